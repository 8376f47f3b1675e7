package lease

import (
	"time"

	"github.com/atollhq/atoll/internal/store"
)

// candidate decides, without a clock of its own, when a site's record may be taken over by this keeper.
type candidate struct {
	me       string // this keeper's incarnation
	previous string // an incarnation that is known to have ended; "" if none is

	holder   string // of the record when its sequence was last seen to change
	sequence uint64
	since    time.Time // when that was
}

// verdict is what a look at the record leads to.
type verdict struct {
	take bool
	why  string
	wait time.Duration // look again after this; unless take
}

// look is fed every linearizable read of the record, with the time after it. Nobody compares clocks: silence counts
// from when this keeper read the newest sequence, by the holder's own duration, stretched by the rate at which two
// clocks may drift apart.
func (c *candidate) look(l store.Lease, found bool, now time.Time) verdict {
	switch {
	case !found:
		return verdict{take: true, why: "the site has no keeper yet"}
	case l.Revoked:
		return verdict{take: true, why: "revoked by " + string(l.RevokedBy)}
	case l.Released:
		return verdict{take: true, why: "its holder has ended in good order"}
	case l.Holder == c.me || l.Holder == c.previous && c.previous != "":
		return verdict{take: true, why: "held by this agent's earlier run"}
	}
	if l.Holder != c.holder || l.Sequence != c.sequence {
		c.holder, c.sequence, c.since = l.Holder, l.Sequence, now
	}
	if left := stretched(l.Duration) - now.Sub(c.since); left > 0 {
		return verdict{wait: min(left, max(l.Duration/20, time.Millisecond))}
	}
	return verdict{take: true, why: "its holder was silent for a whole lease"}
}

// stretched allows for 1 % between the rates of two clocks.
func stretched(d time.Duration) time.Duration { return d + d/100 }
