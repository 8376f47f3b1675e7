// Package model is a small world in which the state machines of internal/handover and internal/lease are walked through
// every interleaving: two sites with their databases, agents and clocks, and a store.
//
// The main type is [Model]; [Model.Search] visits every state that is reached within a horizon of time and a number of
// faults, checks the invariants of docs/ownership.md in each (I1, I2, I3, I4, I5, I6, I9), and returns the shortest way to
// one that breaks any. What decides is the code that runs in production, called as it is: handover.Observe and Next,
// lease.Cycle, PlanFence, Claims, ClockWatch, and the document's own steps in topo. What they act on is modelled: the
// store, the fence and the change stream as internal/postgres changes them, messages, clocks.
//
// Time is discrete: agents act at every Grid milliseconds, and whatever depends on a moment also right before and at that
// moment. Agents are prompt unless a fault makes them slow; applications, appliers, and requests that are late take their
// time as they like.
//
// It says nothing about what is not in it: gateways, more than two sites, databases that are replaced, reads.
package model

import (
	"fmt"
	"time"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/lease"
	"github.com/atollhq/atoll/topo"
)

// Config describes a world and how far it is searched.
type Config struct {
	Name     string
	Owners   [buckets]int // who owns each bucket at first: 0 is a, 1 is b
	Switches []Switch     // each may be begun once
	Horizon  int          // milliseconds behind the first state
	Grid     int          // milliseconds; agents act at multiples of it
	Faults   int          // how many of May may happen
	May      Fault
	Here     []int   // the sites at which they happen; nil: both
	Writes   int     // applications' transactions
	To       []int   // the buckets that they write to
	Watches  [2]bool // whose agents watch the other site
	W        time.Duration
	Rates    [2]Rates // per site, in per cent of true time
	Plant    Plant
	Outcomes bool // only what clients could see is wrong: commits and changes, not that a fence could have let one pass
	Returns  bool // a site that was taken over from may be settled, and own again
	Fine     bool // everything may come between two steps of a keeper's turn, not only faults
	NoMargin bool // keepers close at their deadline, not before it
}

// Rates are how fast a site's clocks run.
type Rates struct{ Agent, Database int }

// Switch moves one bucket; the agent of Driver begins it At a moment behind the first state, before or after whatever
// else happens then.
type Switch struct{ Bucket, To, Driver, At int }

// Fault is a set of kinds of fault.
type Fault uint16

const (
	LoseRequests  Fault = 1 << iota // one call is not answered: carried out at once, later, or never
	CrashAgents                     // with or without a request on its way
	CrashDatabase                   // comes up without lease moment and transactions
	FreezeAgents                    // for as long as it likes
	CutStore                        // of one site's agent, for as long as it likes
	StopClock                       // of a database whose agent is dead: the machine stands still and does not see it
	StopAnyClock                    // also under a live agent
)

// Sound are the faults that the claims allow.
const Sound = LoseRequests | CrashAgents | CrashDatabase | FreezeAgents | CutStore

// Plant is a bug that is planted into the world, to show that the checks see it.
type Plant string

const (
	TakeoverUnconditional Plant = "takeover-unconditional" // the takeover compares nothing and revokes nothing; its watch is frozen
	LeaseRelative         Plant = "lease-relative"         // the moment is computed when the database executes the write
	WaitOutRemoved        Plant = "wait-out-removed"       // closing does not wait writers out
	OpenBeforeApplierIdle Plant = "open-before-applier-idle"
	MarkerSkipped         Plant = "marker-skipped"
	FenceRemoved          Plant = "fence-removed"
	EpochKept             Plant = "epoch-kept"           // an abort does not raise the epoch
	AttemptIgnored        Plant = "attempt-ignored"      // a closing that was begun anew is finished by one that waited before
	OpenUnconditional     Plant = "open-unconditional"   // opening does not compare epochs (I6)
	BitsUnchecked         Plant = "bits-unchecked"       // the second half of opening does not look again
	DeadlineFromAnswer    Plant = "deadline-from-answer" // the keeper's deadline counts from the store's answer
	GapIgnored            Plant = "gap-ignored"          // failover does not wait W out
	RateIgnored           Plant = "rate-ignored"         // nor the rate error
	RestrictSkipped       Plant = "restrict-skipped"     // a site that returns, or whose lease had lapsed, closes nothing before it extends the lease
	CutIgnored            Plant = "cut-ignored"          // the taker opens, and goes on applying, without recording the cut
	EpochIgnored          Plant = "epoch-ignored"        // stale changes are applied as if they were ordinary
)

// Model is a world's machinery: what the parts of its states are. Make one with [New].
type Model struct {
	cfg  Config
	root world

	docs     table[topo.Ownership]
	moveSets table[lease.Moves]
	cycles   table[lease.Cycle]
	watches  table[lease.ClockWatch]
	lookouts table[handover.Lookout]
	states   table[handover.State]
	actions  table[handover.Action]
	records  table[handover.Record]
	sights   table[seen]

	docInfo              memo[document]
	moved, taken, settle memo[uint16]
	cycled               memo[uint32]
	tasks                memo[cycleTask]
	looked               memo[looked]
	plans                memo[fencePlan]
	observed             memo[watched]
	wakes                memo[lookTimes]
	drove                memo[driven]
	stateWakes           memo[int]
	errands              memo[errand]
	abouts               memo[aboutRecord]
	readable             memo[bool]
}

// New makes a world in which both sites are up, hold their leases and have opened what they own.
func New(cfg Config) *Model {
	m := &Model{cfg: cfg}
	var ranges []topo.Range
	for b, owner := range cfg.Owners {
		ranges = append(ranges, topo.Range{First: topo.BucketID(b), Last: topo.BucketID(b), Owner: siteID(owner), Epoch: 1, State: topo.Open})
	}
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{keyspace: {Buckets: buckets, Hash: topo.HashMD5, Ranges: ranges}})
	s := step{m: m, w: world{now: uint16(cfg.Grid)}}
	s.setDoc(m.docOf(o))
	for at := range s.w.ag {
		s.w.db[at].up = true
		s.w.ag[at].up, s.w.ag[at].inc = true, 1
		s.w.ag[at].l.id = m.newLookout(at, 1, m.clock(&s.w, at))
	}
	for at := range s.w.ag {
		for m.keeperDue(&s.w, at) {
			s.keeper(at, false)
		}
	}
	for at := range s.w.ag {
		for s.applies(at) {
			s.applyBegin(at)
			s.applyEnd(at)
		}
		s.look(at)
	}
	if s.bad != "" {
		panic("BUG: the first state of world " + cfg.Name + " is broken: " + s.bad)
	}
	m.root = s.w
	return m
}

func (c *Config) lease() lease.Timing { return c.timing() }

// timing is a keeper's: D is three seconds, and the margin the least that a keeper accepts.
func (c *Config) timing() lease.Timing {
	t := lease.Timing{Duration: 3 * time.Second, Margin: 30 * time.Millisecond, Every: 990 * time.Millisecond, Retry: 500 * time.Millisecond}
	if c.NoMargin {
		t.Margin = 0
	}
	return t
}

func (c Config) String() string {
	return fmt.Sprintf("%s: %d s, up to %d faults, %d writes", c.Name, c.Horizon/1000, c.Faults, c.Writes)
}
