// Package balance decides which instance of a service takes a request. It knows of instances what requests and checks
// found out about them, and nothing of how they are reached.
//
// The main type is [Pool]: Pick chooses an instance, Report says what became of an attempt there, Checked what an active
// check found, Update who is there at all. Pick neither locks nor allocates.
//
// How it chooses: of two instances drawn at random (by weight), the one with less to do (Mitzenmacher, "The Power of Two
// Choices in Randomized Load Balancing", 1996). The pool's own zone is preferred until its instances have clearly more
// to do than others. Attempts that did not get through count as work, so that an instance that fails at once, and
// is idle for that reason, is not preferred for being idle.
//
// It guarantees that never more than a share of the instances is ejected, and at least half of them stay; that an
// ejection ends by time alone, not by an active check, which may be shallow; and that somebody is chosen as long as
// there is an instance: where less than half of them are fit, all are used (panic).
//
// Everything here is pure but for the counters of requests: no clock, no network, no chance of its own.
package balance

import (
	"sync/atomic"
	"time"
)

// Instance is one place where a service is reached.
type Instance struct {
	Address string // host:port
	Zone    string // "": none
	Weight  int    // 0 means 1
}

// Outcome is what became of an attempt, as far as it tells something about the instance.
type Outcome uint8

const (
	// Answered: with anything but an error of its own.
	Answered Outcome = iota
	// Errored: with an error of the application's own, a 5xx.
	Errored
	// Unreached: no connection, a connection that broke before the answer, or no answer in time.
	Unreached
)

// Rules of a pool. Zero fields take their defaults.
type Rules struct {
	Zone      string // that is preferred; "": none
	Ejection  Ejection
	Health    Health
	Checked   bool // instances are checked actively: a new one is fit when a check has found it so
	PerMember int  // requests at one instance at the same time at most; 0: any number
}

func (r Rules) withDefaults() Rules {
	r.Ejection = r.Ejection.withDefaults()
	r.Health = r.Health.withDefaults()
	return r
}

// Member is one instance in a pool.
type Member struct {
	Address string

	active   atomic.Int64 // requests that are there now
	failures atomic.Int64 // attempts that did not get through, one after another
	shunned  atomic.Int64 // until when they count, in Unix nanoseconds
	troubled atomic.Bool  // record has something that an answer changes

	record record // of what happened there; the pool's lock guards it
	zone   string
	weight int64
}

// Release ends what Pick began.
func (m *Member) Release() { m.active.Add(-1) }

// Active is how many requests are there.
func (m *Member) Active() int64 { return m.active.Load() }

// State of a member, for whoever looks on.
type State struct {
	Instance
	Active    int64
	Failures  int64     // attempts that did not get through, one after another
	Healthy   bool      // as far as active checks say; true without them
	Ejected   time.Time // until then; zero: it is not
	Ejections int
}
