package balance

import (
	"cmp"
	"time"
)

// Ejection says when an instance is left alone for a while, by what requests met there. Errors of the application's own
// are counted apart from what says that it was not there at all: the first may be the request's fault.
type Ejection struct {
	Unreached int           // attempts in a row that did not get through, default 5; below 0: never for that
	Errors    int           // errors of the application in a row, default 20; below 0: never for that
	Base      time.Duration // how long, times how often lately; default 10 s
	Max       time.Duration // at most; default 5 min
	Share     float64       // of all instances may be ejected at most, default and limit 0.5
}

func (e Ejection) withDefaults() Ejection {
	e.Unreached = cmp.Or(e.Unreached, 5)
	e.Errors = cmp.Or(e.Errors, 20)
	e.Base = cmp.Or(e.Base, 10*time.Second)
	e.Max = max(cmp.Or(e.Max, 5*time.Minute), e.Base)
	e.Share = min(cmp.Or(e.Share, 0.5), 0.5)
	return e
}

// most is how many of n instances may be ejected at the same time.
func (e Ejection) most(n int) int { return int(e.Share * float64(n)) }

// Health says how many active checks in a row change what is believed.
type Health struct {
	Up   int // default 2
	Down int // default 3
}

func (h Health) withDefaults() Health {
	return Health{cmp.Or(h.Up, 2), cmp.Or(h.Down, 3)}
}

// fitness is what active checks say of an instance.
type fitness uint8

const (
	// unchecked: no check has come back yet. The first one decides.
	unchecked fitness = iota
	// up: it is used. Left after Down failed checks in a row.
	up
	// down: it is not used. Left after Up good checks in a row.
	down
)

// record is what happened at one instance.
type record struct {
	unreached, errors int // in a row
	ejections         int // lately: one is taken off for each good stretch of Base
	until             time.Time
	good              time.Time // since when nothing was wrong, or the last ejection was taken off

	fit    fitness
	checks int // in a row that contradict fit
}

// ejected tells whether it is left alone.
func (r *record) ejected(now time.Time) bool { return now.Before(r.until) }

// report takes in an attempt, and tells whether it is a reason to eject. What was under way when the instance was
// ejected says nothing new.
func (r *record) report(rule Ejection, o Outcome, now time.Time) (eject bool) {
	if r.ejected(now) {
		return false
	}
	switch o {
	case Unreached:
		r.unreached++
		return rule.Unreached > 0 && r.unreached >= rule.Unreached
	case Errored:
		r.unreached = 0
		r.errors++
		return rule.Errors > 0 && r.errors >= rule.Errors
	}
	r.unreached, r.errors = 0, 0
	if r.ejections > 0 {
		if since := latest(r.good, r.until); now.Sub(since) >= rule.Base {
			r.ejections--
			r.good = now
		}
	}
	return false
}

// eject leaves it alone from now on. When it comes back it is on trial: the next failure of either kind ejects it again, and
// for longer.
func (r *record) eject(rule Ejection, now time.Time) {
	r.ejections++
	r.until = now.Add(min(time.Duration(r.ejections)*rule.Base, rule.Max))
	r.unreached, r.errors = max(rule.Unreached-1, 0), max(rule.Errors-1, 0)
}

// troubled tells whether a good answer would change the record.
func (r *record) troubled() bool { return r.unreached > 0 || r.errors > 0 || r.ejections > 0 }

// check takes in an active check, and tells whether it changed what is believed.
func (r *record) check(rule Health, good bool) (changed bool) {
	switch {
	case r.fit == unchecked && good:
		r.fit, r.checks = up, 0
		return true
	case r.fit == unchecked:
		r.fit, r.checks = down, 0
		return true
	case good == (r.fit == up):
		r.checks = 0
		return false
	}
	r.checks++
	switch {
	case r.fit == up && r.checks >= rule.Down:
		r.fit, r.checks = down, 0
	case r.fit == down && r.checks >= rule.Up:
		r.fit, r.checks = up, 0
	default:
		return false
	}
	return true
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
