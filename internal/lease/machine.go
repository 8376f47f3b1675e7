package lease

import (
	"time"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// This file shows the pure parts of a keeper to whoever walks them without a clock, a store or a database: values in,
// values out. It decides nothing; every method is one line around what the keeper itself uses.

// Timing are a lease's durations, as [New] derives them from its Config.
type Timing struct {
	Duration time.Duration // of the lease, from the start of its renewal
	Margin   time.Duration // the fence closes this much before the deadline
	Every    time.Duration // from the start of one renewal to the next
	Retry    time.Duration // after a failure
}

// Cycle is the decision core of an active keeper, as a value. Make one with [BeginCycle].
type Cycle struct{ c cycle }

// Task is what a [Cycle] wants done next: "proving", "renewing", "enforcing", "doubting", "resting", "lost".
type Task struct {
	Do     string
	Until  time.Time
	Renew  store.Lease
	Expect store.Revision
}

// BeginCycle takes a record over; l is what it says now, found or not.
func BeginCycle(t Timing, me string, l store.Lease, rev store.Revision, database topo.Identity) Cycle {
	return Cycle{*begin(timing{t.Duration, t.Margin, t.Every, t.Retry}, me, l, rev, database)}
}

// Next says what is to be done.
func (c Cycle) Next(now time.Time) (Cycle, Task) {
	t := c.c.next(now)
	return c, Task{t.do.String(), t.until, t.renew, t.expect}
}

// Proven: the database completed a durable write.
func (c Cycle) Proven(beat uint64) Cycle { c.c.proven(beat); return c }

// Failed: the database did not complete what was asked of it.
func (c Cycle) Failed(now time.Time) Cycle { c.c.failed(now); return c }

// Renewed: the store committed the renewal that was asked for at start.
func (c Cycle) Renewed(start, now time.Time, rev store.Revision) Cycle {
	c.c.renewed(start, now, rev)
	return c
}

// Refused: the record is not as this keeper left it.
func (c Cycle) Refused() Cycle { c.c.refused(); return c }

// Unanswered: the store did not answer.
func (c Cycle) Unanswered(now time.Time) Cycle { c.c.unanswered(now); return c }

// Read: the record, read linearizably.
func (c Cycle) Read(l store.Lease, rev store.Revision, found bool) Cycle {
	c.c.read(l, rev, found)
	return c
}

// Enforced: the fence is restricted and extended.
func (c Cycle) Enforced(now time.Time) Cycle { c.c.enforced(now); return c }

// Closed: every bit was turned off before the lease's time.
func (c Cycle) Closed() Cycle { c.c.closed(); return c }

// Shut tells whether every bit was turned off since the last enforcement.
func (c Cycle) Shut() bool { return c.c.shut }

// Deadline is that of the renewal that is being enforced.
func (c Cycle) Deadline() time.Time { return c.c.deadline }

// InForce tells whether the fence may be open at this moment by this keeper's leave.
func (c Cycle) InForce(now time.Time) bool { return c.c.inForce(now) }

// Continuous tells whether the lease has been in force without a break, so that rows may lag behind; see planFence.
func (c Cycle) Continuous(now time.Time) bool { return !c.c.returns && c.c.inForce(now) }

// Moves remembers which handover a bucket's new epoch comes from.
type Moves = moves

// MovesOf lists the handovers that move buckets in a document.
func MovesOf(o topo.Ownership) Moves { return movesOf(o) }

// Plan is what brings a database's fence in line with the ownership, in this order: restrict (where there is a surplus,
// or the lease was not continuous), extend the lease, record the cuts, open.
type Plan struct {
	Keep    map[topo.KeyspaceID]topo.Spans
	Surplus bool
	Cuts    []topo.CutRange
	Open    []postgres.OpenOrder
}

// PlanFence compares a fence with the ownership.
func PlanFence(site topo.SiteID, o topo.Ownership, from Moves, st postgres.FenceState, continuous bool) Plan {
	p := planFence(site, o, from, st, continuous)
	return Plan{p.keep, p.surplus, cutsHere(site, o), p.open}
}

// Claims tells whether a keeper may take the site's record over at first sight: nobody holds it, or it is revoked,
// released, or of this agent's own earlier run.
func Claims(me, previous string, l store.Lease, found bool, now time.Time) bool {
	who := candidate{me: me, previous: previous}
	return who.look(l, found, now).take
}

// ClockWatch compares a database's clock with the keeper's own.
type ClockWatch struct{ w clockWatch }

// Look takes a reading that was sent and answered at one moment of the keeper's clock, and returns by how much the
// database's has left its pace.
func (w ClockWatch) Look(clock, now time.Time, slack time.Duration) (ClockWatch, time.Duration) {
	d := w.w.look(clockReading{clock, now, now}, slack)
	return w, d
}

// Extended: the fence's moment was extended by the clock as it was last read.
func (w ClockWatch) Extended() ClockWatch { w.w.extended(); return w }
