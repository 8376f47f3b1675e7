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

// Action is something to do for the driver.
type Action struct {
	Do      Verb
	Site    topo.SiteID
	Version uint64
	Bound   time.Duration
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
	return b.String()
}
