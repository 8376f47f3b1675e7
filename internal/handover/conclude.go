package handover

import (
	"slices"
	"time"
)

// Conclude ends a record that a recovered store was left with, by what the recovery has found: moved says that To owns all
// of its buckets in the document of that version. Nobody drives it any more; what is to be opened, the keepers open.
func (r Record) Conclude(moved bool, version uint64, driver, reason string, now time.Time) Record {
	if r.Over() {
		return r
	}
	r.Driver, r.Steps, r.Reasons = driver, slices.Clone(r.Steps), append(slices.Clone(r.Reasons), reason)
	phase, outcome := Aborted, OutcomeAborted
	switch r.Phase {
	case Committed, Taken, Opened:
		phase, outcome = Done, OutcomeDone
	case Moving, Fenced, CaughtUp:
		if moved {
			phase, outcome = Done, OutcomeDone
		}
	}
	if r.Phase != phase {
		r.Steps = append(r.Steps, Step{Phase: phase, At: now.UTC(), Driver: driver})
	}
	r.Phase, r.Outcome = phase, outcome
	if r.Decided == 0 {
		r.Decided = version
	}
	return r
}
