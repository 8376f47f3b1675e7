package gateway

import (
	"net/http"

	"github.com/atollhq/atoll/route"
)

// Reasons of answers that the gateway gives itself, besides those of package route. They go into Atoll-Reason and into
// metrics. The table says for each whether the request may have been executed.
const (
	reasonNoView      route.Reason = "no-view"              // no view yet; not executed
	reasonHoldTimeout route.Reason = "hold-timeout"         // waited for as long as the policy says; not executed
	reasonHoldFull    route.Reason = "hold-full"            // too many wait already; not executed
	reasonStopping    route.Reason = "stopping"             // this gateway is being stopped; not executed
	reasonLease       route.Reason = "lease"                // the site's lease has run out; not executed
	reasonDeadline    route.Reason = "deadline"             // the lease ran out before the answer; outcome unknown (a read has none)
	reasonFenced      route.Reason = "fenced"               // the database refused the write; rolled back
	reasonNotOwner    route.Reason = "not-owner"            // to another gateway: this site does not own the bucket
	reasonBehind      route.Reason = "behind"               // the newer view did not come in time; not executed
	reasonMoved       route.Reason = "moved"                // the bucket moved too often, or the body cannot be sent again; not executed
	reasonNoPeer      route.Reason = "no-peer"              // the owner's gateways are not known; not executed
	reasonPeerDown    route.Reason = "peer-unreachable"     // no gateway of the owner answers; not executed
	reasonAppDown     route.Reason = "upstream-unreachable" // the application does not answer; not executed
	reasonNoInstance  route.Reason = "no-instance"          // the application has no instance that is known; not executed
	reasonOverload    route.Reason = "overload"             // the application has as much to do as it can; not executed
	reasonRate        route.Reason = "rate"                 // the route's quota is used up; not executed
	reasonExpired     route.Reason = "expired"              // the caller's time was over before it was sent; not executed
	reasonLost        route.Reason = "upstream-lost"        // the connection broke; outcome unknown
	reasonTimeout     route.Reason = "upstream-timeout"     // no answer in time; outcome unknown
	reasonSlowBody    route.Reason = "slow-body"            // the client's body stopped
	reasonForwarded   route.Reason = "bad-forward"          // to another gateway: its headers do not fit the request
	reasonHops        route.Reason = "hops"                 // forwarded too often
	reasonSessionLost route.Reason = "session-lost"         // a failover lost what the session had seen; not executed
	reasonNoTokenKeys route.Reason = "no-token-keys"        // the keys of tokens are not known yet; not executed
	reasonStale       route.Reason = "stale"                // this site's copy is older than the route allows; not executed
	reasonUpgrade     route.Reason = "upgrade"              // the application's answer to an upgrade makes no sense
)

type refusal struct {
	status int
	text   string
}

// ofReads are the texts of reads where they are others. A read has no unknown outcome.
var ofReads = map[route.Reason]string{
	reasonLease:    "this site's lease has run out, and what it would read may be old; nothing was done",
	reasonDeadline: "this site's lease ran out before the answer came, and what was read may be old; nothing was changed, ask again",
}

var refusals = map[route.Reason]refusal{
	route.NoRoute:         {http.StatusNotFound, "no route takes this request"},
	route.BadPath:         {http.StatusBadRequest, "the path is not absolute or has dot segments"},
	route.NoKey:           {http.StatusBadRequest, "the request carries no key, and its route wants one"},
	route.DuplicateKey:    {http.StatusBadRequest, "the key occurs more than once"},
	route.MalformedKey:    {http.StatusBadRequest, "the key is malformed"},
	route.BadToken:        {http.StatusUnauthorized, "the token is not valid here"},
	route.ExpiredToken:    {http.StatusUnauthorized, "the token is out of date"},
	route.UnknownKeyspace: {http.StatusServiceUnavailable, "the keyspace of this route is not placed; has its specification changed?"},
	reasonNoView:          {http.StatusServiceUnavailable, "this gateway has no view of the ownership yet; is the agent running?"},
	reasonHoldTimeout:     {http.StatusServiceUnavailable, "the data of this request is being moved and this takes too long; nothing was done"},
	reasonHoldFull:        {http.StatusServiceUnavailable, "the data of this request is being moved and too many requests wait for it; nothing was done"},
	reasonStopping:        {http.StatusServiceUnavailable, "this gateway is being stopped; nothing was done"},
	reasonLease:           {http.StatusServiceUnavailable, "this site's permission to write has run out; nothing was done"},
	reasonDeadline:        {http.StatusServiceUnavailable, "this site's permission to write ran out before the answer came; whether the write stands is not known"},
	reasonFenced:          {http.StatusServiceUnavailable, "the database does not accept writes for this key at present; nothing was done"},
	reasonNotOwner:        {http.StatusMisdirectedRequest, "this site does not own the bucket"},
	reasonBehind:          {http.StatusServiceUnavailable, "the newest view of the ownership did not arrive in time; nothing was done"},
	reasonMoved:           {http.StatusServiceUnavailable, "the data of this request has moved and the request cannot be sent again; nothing was done"},
	reasonNoPeer:          {http.StatusServiceUnavailable, "the owner of this key has no gateway that is known here; nothing was done"},
	reasonPeerDown:        {http.StatusServiceUnavailable, "the owner of this key cannot be reached; nothing was done"},
	reasonAppDown:         {http.StatusBadGateway, "the application cannot be reached; nothing was done"},
	reasonNoInstance:      {http.StatusServiceUnavailable, "the application has no instance that is known here; nothing was done"},
	reasonOverload:        {http.StatusServiceUnavailable, "the application has as much to do as it can; nothing was done, come back later"},
	reasonRate:            {http.StatusTooManyRequests, "too many requests in this time; nothing was done, come back when Retry-After says"},
	reasonExpired:         {http.StatusGatewayTimeout, "the caller's time was over before the request could be sent; nothing was done"},
	reasonLost:            {http.StatusBadGateway, "the connection broke before the answer; what was done is not known"},
	reasonTimeout:         {http.StatusGatewayTimeout, "no answer came in time; what was done is not known"},
	reasonSlowBody:        {http.StatusRequestTimeout, "the request's body did not arrive"},
	reasonForwarded:       {http.StatusServiceUnavailable, "two gateways read this request differently; are their specifications the same?"},
	reasonHops:            {http.StatusServiceUnavailable, "the request was passed on too often; nothing was done"},
	reasonSessionLost:     {http.StatusConflict, "a failover lost something that this session had written or seen; nothing was done, and with this answer's Atoll-Session it begins anew"},
	reasonNoTokenKeys:     {http.StatusServiceUnavailable, "the keys to verify tokens with could not be fetched yet; nothing was done"},
	reasonStale:           {http.StatusServiceUnavailable, "this site's copy of the data is older than this route allows; nothing was done"},
	reasonUpgrade:         {http.StatusBadGateway, "the application changed to a protocol that nobody asked for"},
}
