package lease

import "time"

// clockWatch compares the database's clock with this process's monotonic one, from one reading to the next. It is
// pure: the readings come from its caller.
type clockWatch struct {
	clock          time.Time // the database's
	sent, answered time.Time // the reading of it happened between these, on this process's clock
}

// look takes a reading and returns by how much the database's clock has left the pace of this process's since the last
// one, beyond 1 % and the slack: negative if it was set back or has lagged, positive if it was set forward. How long a
// reading took is allowed for in both directions, so that a slow answer is never taken for a step.
func (w *clockWatch) look(clock, sent, answered time.Time, slack time.Duration) time.Duration {
	was := *w
	*w = clockWatch{clock, sent, answered}
	if was.answered.IsZero() {
		return 0
	}
	went := clock.Sub(was.clock)
	least, most := max(sent.Sub(was.answered), 0), answered.Sub(was.sent)
	switch {
	case went < least-least/100-slack:
		return went - least
	case went > most+most/100+slack:
		return went - most
	}
	return 0
}
