package lease

import "time"

// clockWatch compares the database's clock with this process's monotonic one, since the reading before the fence's
// moment was last extended: what the clock has lost since then, that moment comes too late. It is pure: the readings
// come from its caller.
type clockWatch struct{ base, last clockReading }

type clockReading struct {
	clock          time.Time // the database's
	sent, answered time.Time // the reading of it happened between these, on this process's clock
}

// look takes a reading and returns by how much the database's clock has left the pace of this process's, beyond 1 % and
// the slack: negative if it was set back or has lagged, positive if it was set forward. How long a reading took is
// allowed for in both directions, so that a slow answer is never taken for a step.
func (w *clockWatch) look(now clockReading, slack time.Duration) time.Duration {
	w.last = now
	if w.base.answered.IsZero() {
		w.base = now
		return 0
	}
	went := now.clock.Sub(w.base.clock)
	least, most := max(now.sent.Sub(w.base.answered), 0), now.answered.Sub(w.base.sent)
	switch {
	case went < least-least/100-slack:
		w.base = now
		return went - least
	case went > most+most/100+slack:
		w.base = now
		return went - most
	}
	return 0
}

// extended: the fence's moment was extended by the clock as it was last read, or a little later.
func (w *clockWatch) extended() { w.base = w.last }
