// Package api holds the HTTP interface of an agent, version 1: JSON types, and [Client], which calls it.
//
// Four kinds of callers use it, told apart by certificate: operators (status, switches, handovers), the gateways of
// the sites (view stream and acknowledgements), other agents (the steps of a switch that happen at a site), and the
// instances of services, which register themselves and may do nothing else. An operator may not call /v1/site/.
//
//	GET  /v1/view?gateway=NAME       stream of ViewUpdate, one JSON document per line
//	POST /v1/view/ack                ViewAck → LeaseState
//	POST /v1/view/seen               SeenRequest → SeenAnswer
//	POST /v1/view/await              AwaitRequest → AwaitAnswer
//	POST /v1/services/register       RegisterRequest → RegisterAnswer; the service is the certificate's
//	POST /v1/services/leave          LeaveRequest → LeaveAnswer; likewise
//	GET  /v1/services                ServiceList
//	GET  /v1/services/NAME?after=V   InstanceList; &wait=20s waits for another version than V, at most that long
//	GET  /v1/status                  Status; ?self=1 leaves the other sites out, &active=1 asks the active agent only
//	GET  /v1/health                  Health: which sites can serve users
//	POST /v1/switches                SwitchRequest → SwitchAnswer
//	GET  /v1/handovers?limit=N       HandoverList, newest first
//	GET  /v1/handovers/ID?wait=30s   Handover; waits until it is over, at most that long
//	POST /v1/failovers               FailoverRequest → FailoverAnswer; at the agent of the site that takes over
//	GET  /v1/explain?site=NAME       Explanation: why there was a failover, or none
//	GET  /v1/conflicts?limit=N       ConflictList of this agent's database, newest first; &before=ID, &table=, &handover=
//	GET  /v1/conflicts/ID            Conflict
//	POST /v1/site/ready              ReadyRequest → ReadyAnswer
//	POST /v1/site/settled            SettleRequest → SettleAnswer
//	POST /v1/site/close              CloseRequest → CloseAnswer
//	POST /v1/site/caught-up          CaughtUpRequest → CaughtUpAnswer
//	POST /v1/site/open, …/abort      OpenRequest → OpenAnswer
//	POST /v1/site/halt               HaltRequest → HaltAnswer
//	POST /v1/site/unhalt             UnhaltRequest → UnhaltAnswer
//	POST /v1/site/promise            PromiseRequest → PromiseAnswer; the asking site is the certificate's
//	POST /v1/site/end                EndAnswer
//	POST /v1/rebuilds                RebuildRequest → RebuildAnswer; at the agent of the site that is rebuilt
//	POST /v1/site/begin-anew         BeginAnewRequest → BeginAnewAnswer
//	POST /v1/site/place              PlaceRequest → PlaceAnswer
//	POST /v1/site/standing           StandingRequest → Standing
//	POST /v1/site/point              PointRequest → PointAnswer
//	POST /v1/site/dismiss            DismissRequest → DismissAnswer
//	POST /v1/members                 MemberRequest → MemberAnswer; to add a site, at its own agent, else at another's
//
// Anything but a 2xx carries an [Error]. Unknown fields are ignored, so that sites can be upgraded one at a time; a
// newer Format is refused.
package api

import (
	"fmt"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Format is the version of the interface that this build speaks; it is in the path as /v1.
const Format = 1

// MaxBody bounds every request and answer but the view stream.
const MaxBody = 4 << 20

// Codes of errors that callers decide on.
const (
	CodeRefused       = "refused"        // the switch may not start; Problems say why
	CodeWritersRemain = "writers_remain" // transactions outlived the bound; the fence has reopened
	CodeNotYet        = "not_yet"        // the bound passed and it has not happened
	CodeNotFound      = "not_found"
	CodeForbidden     = "forbidden"
	CodeBadRequest    = "bad_request"
	CodeUnavailable   = "unavailable" // the store or the database does not answer
	CodeStale         = "stale"       // the order is older than what this site has done
)

// Error is the body of every answer that is not a 2xx.
type Error struct {
	Status   int       `json:"-"`
	Code     string    `json:"code"`
	Message  string    `json:"message"`
	Hint     string    `json:"hint,omitempty"`
	Problems []Problem `json:"problems,omitempty"`
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for _, p := range e.Problems {
		b.WriteString("\n  " + p.String())
	}
	if e.Hint != "" {
		b.WriteString("\n  " + e.Hint)
	}
	return b.String()
}

// Problem is one reason why a switch may not start, and what to do about it.
type Problem struct {
	Check string      `json:"check"` // stable name: target-lag, one-owner, source-lease, …
	Site  topo.SiteID `json:"site,omitempty"`
	Text  string      `json:"text"`
	Hint  string      `json:"hint,omitempty"`
}

func (p Problem) String() string {
	out := p.Check
	if p.Site != "" {
		out += " at " + string(p.Site)
	}
	out += ": " + p.Text
	if p.Hint != "" {
		out += "; " + p.Hint
	}
	return out
}

// SwitchRequest asks for a switch.
type SwitchRequest struct {
	Keyspace topo.KeyspaceID `json:"keyspace"`
	Buckets  string          `json:"buckets"` // "0-24,30" or "all"
	To       topo.SiteID     `json:"to"`
	Why      string          `json:"why,omitempty"`
	DryRun   bool            `json:"dry_run,omitempty"`
}

// SwitchAnswer says that a switch is under way, or with DryRun that it would be tried. A refusal is an Error with
// CodeRefused.
type SwitchAnswer struct {
	ID       topo.HandoverID `json:"id,omitempty"`
	DryRun   bool            `json:"dry_run,omitempty"`
	Handover Handover        `json:"handover"`
}

// HandoverList is the newest handovers.
type HandoverList struct {
	Handovers []Handover `json:"handovers"`
}

// Handover is one switch, under way or over; its record in the store.
type Handover struct {
	ID       topo.HandoverID  `json:"id"`
	Kind     string           `json:"kind"`
	Keyspace topo.KeyspaceID  `json:"keyspace"`
	Buckets  string           `json:"buckets"` // "0-24,30"
	Count    int              `json:"count"`   // of buckets
	From     topo.SiteID      `json:"from,omitempty"`
	To       topo.SiteID      `json:"to"`
	Epochs   []topo.EpochSpan `json:"epochs,omitempty"` // before
	Who      string           `json:"who"`
	Why      string           `json:"why,omitempty"`
	Phase    string           `json:"phase"`
	Driver   string           `json:"driver"`
	Claimed  uint64           `json:"claimed_version,omitempty"`
	Decided  uint64           `json:"decided_version,omitempty"`
	Outcome  string           `json:"outcome,omitempty"` // done, aborted, refused, ready; empty while under way
	Reasons  []string         `json:"reasons,omitempty"`
	Steps    []Step           `json:"steps"`
	Pause    *Pause           `json:"pause,omitempty"`
	Failover *Failover        `json:"failover,omitempty"` // kind "failover"
}

// Over tells whether it has ended.
func (h Handover) Over() bool { return h.Outcome != "" }

// Step is the entry into a phase. Times are the driver's wall clock.
type Step struct {
	Phase  string            `json:"phase"`
	At     time.Time         `json:"at"`
	Driver string            `json:"driver"`
	Facts  map[string]string `json:"facts,omitempty"`
}

// Pause is how long writes of the moved buckets waited, as the driver saw it.
type Pause struct {
	HoldMS      float64 `json:"hold_ms"`   // from the claim to the open fence at the new owner
	ClosedMS    float64 `json:"closed_ms"` // from the closed fence at the old owner to the open one
	Approximate bool    `json:"approximate,omitempty"`
}

func (p Pause) String() string {
	about := ""
	if p.Approximate {
		about = "about "
	}
	return fmt.Sprintf("%sheld %.0f ms, closed %.0f ms", about, p.HoldMS, p.ClosedMS)
}
