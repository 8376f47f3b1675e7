package handover

import (
	"fmt"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Verb is what an action does. Every one may be done twice, late, or by two controllers at once without harm: those
// that change the store compare first, those that change a fence are monotonic in the epoch (I6).
type Verb string

const (
	// Check asks every site concerned whether a switch may start, and reads the ownership document.
	Check Verb = "check"
	// Claim is one store transaction: ownership with the buckets moving, and the record.
	Claim Verb = "claim"
	// Settle asks a site to wait, at most Bound, until its gateways have Version and nothing in flight.
	Settle Verb = "settle"
	// Close asks Site to close its fence, wait writers out at most Bound, and write its marker.
	Close Verb = "close"
	// AwaitMarker asks Site to wait, at most Bound, until it has applied the marker with its vector covered.
	AwaitMarker Verb = "await-marker"
	// Commit is one store transaction: ownership with To at the next epoch, and the record.
	Commit Verb = "commit"
	// Abort is one store transaction: ownership with From at the next epoch, and the record.
	Abort Verb = "abort"
	// Open asks Site, the new owner, to open its fence as ownership Version says.
	Open Verb = "open"
	// Reopen asks Site, the owner that keeps the buckets, to open its fence as ownership Version says.
	Reopen Verb = "reopen"
	// AwaitRelease asks a site to wait, at most Bound, until its gateways have Version.
	AwaitRelease Verb = "await-release"
	// Save writes the record; never on the critical path.
	Save Verb = "save"
	// Reread reads the record again after the store refused or did not answer.
	Reread Verb = "reread"
)

// What a [Lookout] asks for besides Reread. All happen at the taker's own site and in the store.
const (
	// Look asks for a look at once; looks come by themselves, too.
	Look Verb = "look"
	// Halt stops applying the lost site's changes, and reports the durable position.
	Halt Verb = "halt"
	// Unhalt goes on applying them.
	Unhalt Verb = "unhalt"
	// Take is one store transaction: ownership of revision as read for it, the lost site's lease of the revision that was
	// timed, and a record that does not exist.
	Take Verb = "take"
	// GiveUp creates the record as refused, so that a Take of this id that is still on its way can never land.
	GiveUp Verb = "give-up"
	// Drive has the record, which is in TAKEN or further, driven to its end; nothing if somebody does already.
	Drive Verb = "drive"
	// Say is a change of mind, in Text: for people. Nothing waits for it, and it has no answer.
	Say Verb = "say"
	// Audit is a Say that is also written to the audit.
	Audit Verb = "audit"
)

// Action is something to do for the driver.
type Action struct {
	Do      Verb
	Site    topo.SiteID
	Version uint64
	Bound   time.Duration
	Text    string
}

func (a Action) String() string {
	var b strings.Builder
	b.WriteString(string(a.Do))
	if a.Site != "" {
		fmt.Fprintf(&b, " at %s", a.Site)
	}
	if a.Version != 0 {
		fmt.Fprintf(&b, " version %d", a.Version)
	}
	if a.Bound != 0 {
		fmt.Fprintf(&b, " within %s", a.Bound)
	}
	if a.Text != "" {
		fmt.Fprintf(&b, ": %s", a.Text)
	}
	return b.String()
}
