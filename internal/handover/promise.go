package handover

import (
	"fmt"
	"time"
)

// Plea is the watched site's request to go on while the store does not answer.
type Plea struct {
	Holder string        // of its lease
	For    time.Duration // from the moment at which the plea is answered
}

// Pledge answers a plea: this site does not take over before so long a time has passed, or why it does not promise that.
type Pledge struct {
	For     time.Duration
	Refused string
}

// Promise is what a lookout makes of a plea. What is promised counts like a lease that was renewed at this moment. It
// need not outlive the agent: an observer that starts waits for a whole lease from its first look on, which is longer
// than any promise that was made before.
func (l Lookout) Promise(p Plea, now time.Time) (Lookout, Pledge) {
	switch {
	case l.Looked.IsZero() || !l.Lease.Exists:
		return l, Pledge{Refused: fmt.Sprintf("%s has not seen the lease of %s since its agent started", l.Policy.Taker, l.Policy.Lost)}
	case l.Lease.Revoked:
		return l, Pledge{Refused: fmt.Sprintf("failover %s has ended the lease of %s", l.Lease.RevokedBy, l.Policy.Lost)}
	case l.Stage != Watching && l.Stage != Expired:
		return l, Pledge{Refused: fmt.Sprintf("%s is taking over from %s (failover %s)", l.Policy.Taker, l.Policy.Lost, l.Record.ID)}
	case p.Holder == "" || p.Holder != l.Lease.Holder:
		return l, Pledge{Refused: fmt.Sprintf("the lease of %s is held by %s", l.Policy.Lost, l.Lease.Holder)}
	case p.For <= 0 || l.Lease.Duration <= 0:
		return l, Pledge{Refused: fmt.Sprintf("a promise for %s makes no sense", p.For)}
	}
	long := min(p.For, l.Lease.Duration) // an observer that starts waits no longer than that
	if until := now.Add(long + long/rateError); until.After(l.promised) {
		l.promised = until
	}
	return l, Pledge{For: long}
}
