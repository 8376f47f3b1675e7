package handover

import (
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// Event is what happened: the result of one action, or time passing. Every action yields exactly one result.
type Event interface{ event() }

type (
	// Tick says that State.Wake has come.
	Tick struct{}

	// Ready answers Check: every condition holds. From and Epochs are as in the ownership document.
	Ready struct {
		Move  Move
		Facts map[string]string
	}
	// Refused answers Check: the switch may not start.
	Refused struct{ Problems []Problem }

	// Claimed answers Claim: the buckets move in this version of the ownership document.
	Claimed struct{ Version uint64 }
	// CommitStands answers Commit: To owns the buckets in this version.
	CommitStands struct{ Version uint64 }
	// AbortStands answers Abort: From keeps the buckets in this version, one epoch higher.
	AbortStands struct{ Version uint64 }
	// Conflict answers Claim, Commit or Abort: the store refused, something changed meanwhile.
	Conflict struct{ Do Verb }
	// Observed answers Reread. Exists is false where the store has no record of this handover.
	Observed struct {
		Exists bool
		Record Record
	}

	// Settled answers Settle: this site's gateways hold and have nothing in flight, or their bound passed.
	Settled struct {
		Site  topo.SiteID
		Facts string
	}
	// Closed answers Close: the marker is durable at From.
	Closed struct{ Marker change.Marker }
	// WritersRemain answers Close: transactions outlived the bound, and From's fence has reopened.
	WritersRemain struct{ Text string }
	// MarkerArrived answers AwaitMarker: To has applied the marker and all it depends on.
	MarkerArrived struct{ Marker change.Marker }
	// Reached answers Open and Reopen: the site's fence is open as of that version or a later one.
	Reached struct {
		Site    topo.SiteID
		Version uint64
	}
	// Released answers AwaitRelease: this site's gateways have the view of the commit, or their bound passed.
	Released struct {
		Site  topo.SiteID
		Facts string
	}
	// Saved answers Save. Outcome is that of the record that was written.
	Saved struct{ Outcome Outcome }

	// Failed answers any action that could not be done or whose effect is unknown: time-out, broken connection, a
	// database that is away.
	Failed struct {
		Do   Verb
		Site topo.SiteID
		Text string
	}
)

func (Tick) event()          {}
func (Ready) event()         {}
func (Refused) event()       {}
func (Claimed) event()       {}
func (CommitStands) event()  {}
func (AbortStands) event()   {}
func (Conflict) event()      {}
func (Observed) event()      {}
func (Settled) event()       {}
func (Closed) event()        {}
func (WritersRemain) event() {}
func (MarkerArrived) event() {}
func (Reached) event()       {}
func (Released) event()      {}
func (Saved) event()         {}
func (Failed) event()        {}
