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
	reasonLost        route.Reason = "upstream-lost"        // the connection broke; outcome unknown
	reasonTimeout     route.Reason = "upstream-timeout"     // no answer in time; outcome unknown
	reasonSlowBody    route.Reason = "slow-body"            // the client's body stopped
	reasonForwarded   route.Reason = "bad-forward"          // to another gateway: its headers do not fit the request
	reasonHops        route.Reason = "hops"                 // forwarded too often
	reasonUpgrade     route.Reason = "upgrade"              // protocol upgrades are not passed on
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
	reasonLost:            {http.StatusBadGateway, "the connection broke before the answer; what was done is not known"},
	reasonTimeout:         {http.StatusGatewayTimeout, "no answer came in time; what was done is not known"},
	reasonSlowBody:        {http.StatusRequestTimeout, "the request's body did not arrive"},
	reasonForwarded:       {http.StatusServiceUnavailable, "two gateways read this request differently; are their specifications the same?"},
	reasonHops:            {http.StatusServiceUnavailable, "the request was passed on too often; nothing was done"},
	reasonUpgrade:         {http.StatusNotImplemented, "this gateway does not pass on protocol upgrades"},
}
