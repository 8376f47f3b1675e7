package sdk

import "net/http"

// HeaderReason is the gateway's word for why it gave an answer of its own.
const HeaderReason = "Atoll-Reason"

// Outcome says what became of a request, as far as its answer tells.
type Outcome int

const (
	// Answered: an application answered, with whatever status.
	Answered Outcome = iota
	// NotExecuted: a gateway refused it, and nothing was done.
	NotExecuted
	// Unknown: a gateway lost it after it was passed on; a write may stand.
	Unknown
)

func (o Outcome) String() string {
	return [...]string{Answered: "answered", NotExecuted: "not executed", Unknown: "unknown"}[o]
}

// reason is what a reason of a gateway means.
type reason struct {
	outcome Outcome
	again   bool // to send the request again may help
}

// reasons are those of gateways. One that is not here, of a newer gateway, counts as unknown.
var reasons = map[string]reason{
	// The request is wrong, and stays so.
	"no-route": {NotExecuted, false}, "bad-path": {NotExecuted, false}, "no-key": {NotExecuted, false},
	"duplicate-key": {NotExecuted, false}, "malformed-key": {NotExecuted, false},
	"bad-token": {NotExecuted, false}, "expired-token": {NotExecuted, false}, // so does its token
	"slow-body": {Unknown, false}, // what arrived of it was passed on
	// A specification is.
	"unknown-keyspace": {NotExecuted, false}, "no-peer": {NotExecuted, false}, "bad-forward": {NotExecuted, false},
	// It waited for as long as the policy says; the caller knows whether that is worth it once more.
	"hold-timeout": {NotExecuted, false},
	// The session begins anew; the caller decides.
	"session-lost": {NotExecuted, false},
	// To ask again at once would make it worse, or is too late.
	"overload": {NotExecuted, false}, "rate": {NotExecuted, false}, "expired": {NotExecuted, false},
	// It may be otherwise in a moment, or at another gateway.
	"no-view": {NotExecuted, true}, "hold-full": {NotExecuted, true}, "stopping": {NotExecuted, true}, "lease": {NotExecuted, true},
	"fenced": {NotExecuted, true}, "not-owner": {NotExecuted, true}, "behind": {NotExecuted, true}, "moved": {NotExecuted, true},
	"peer-unreachable": {NotExecuted, true}, "upstream-unreachable": {NotExecuted, true}, "hops": {NotExecuted, true},
	"moving": {NotExecuted, true}, "pending-open": {NotExecuted, true}, "no-instance": {NotExecuted, true}, "no-token-keys": {NotExecuted, true},
	"stale": {NotExecuted, true},
	// Passed on, and lost.
	"deadline": {Unknown, false}, "upgrade": {Unknown, false}, "upstream-lost": {Unknown, false}, "upstream-timeout": {Unknown, false},
}

// OutcomeOf says what became of the request that resp answers. An application cannot forge the header: gateways take it out.
func OutcomeOf(resp *http.Response) Outcome {
	return outcomeOf(resp.Header.Get(HeaderReason)).outcome
}

// ReasonOutcome is [OutcomeOf] for the bare value of [HeaderReason]; again says whether to send the request again may help.
func ReasonOutcome(text string) (o Outcome, again bool) {
	r := outcomeOf(text)
	return r.outcome, r.again
}

func outcomeOf(text string) reason {
	if text == "" {
		return reason{Answered, false}
	}
	if r, ok := reasons[text]; ok {
		return r
	}
	return reason{Unknown, false}
}
