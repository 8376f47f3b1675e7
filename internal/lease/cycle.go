package lease

import (
	"fmt"
	"time"

	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// phase is where the holder of a record stands in its cycle.
type phase uint8

const (
	// proving: the database has to complete a durable write before the next renewal. Left by proven.
	proving phase = iota
	// renewing: the record has to be renewed. Left by renewed, refused or unanswered.
	renewing
	// enforcing: the record is renewed; the fence has to be restricted to the ownership and its lease extended, before
	// the deadline. Left by enforced or failed.
	enforcing
	// resting: all is done until the next renewal is due. Left by time.
	resting
	// doubting: what the record says is not known; it has to be read. Left by read.
	doubting
	// lost: the record is another's. Not left: whoever drives the cycle stops being active.
	lost
)

func (p phase) String() string {
	return [...]string{"proving", "renewing", "enforcing", "resting", "doubting", "lost"}[p]
}

// timing are a lease's durations.
type timing struct {
	duration time.Duration // of the lease, from the start of its renewal
	margin   time.Duration // the fence closes this much before the deadline
	every    time.Duration // from the start of one renewal to the next
	retry    time.Duration // after a failure
}

// cycle is the decision core of an active keeper: a pure state machine of (state, event, now). next says what is to be
// done; the outcome comes back by one of the events.
//
//	proving → renewing → enforcing → resting → proving …
//	              ↘ doubting ↗ (proving)      ↘ lost
type cycle struct {
	t  timing
	me string

	phase    phase
	wake     time.Time // nothing is done before
	lease    store.Lease
	revision store.Revision
	deadline time.Time // of the renewal that is being enforced
	until    time.Time // of the renewal that is enforced: the fence is open until then, less margin
	bridges  time.Time // of the store: not before this moment
	returns  bool      // the bits of this database are not to be trusted: next enforcement starts from its epoch rows
	shut     bool      // every bit was turned off since the last enforcement
}

// begin takes a record over; l is what it says now, found or not.
func begin(t timing, me string, l store.Lease, rev store.Revision, database topo.Identity) *cycle {
	c := &cycle{t: t, me: me, revision: rev, returns: true}
	if l.Database != (topo.Identity{}) {
		database = l.Database // the new one is adopted when it is known to be harmless
	}
	c.lease = store.Lease{Holder: me, Sequence: l.Sequence, Duration: t.duration, Database: database,
		Beat: l.Beat, Generation: l.Generation, Version: l.Version}
	return c
}

// task is what is to be done next.
type task struct {
	do     phase // proving, renewing, enforcing, doubting (read the record), lost (stop), or resting (sleep until)
	until  time.Time
	renew  store.Lease
	expect store.Revision
}

func (c *cycle) next(now time.Time) task {
	if c.phase == lost {
		return task{do: lost}
	}
	if now.Before(c.wake) {
		return task{do: resting, until: c.wake}
	}
	switch c.phase {
	case proving, resting:
		c.phase = proving
		return task{do: proving, until: now.Add(c.t.every)}
	case renewing:
		next := c.lease
		next.Sequence++
		return task{do: renewing, until: now.Add(c.t.every), renew: next, expect: c.revision}
	case enforcing:
		return task{do: enforcing, until: c.deadline.Add(-c.t.margin)}
	case doubting:
		return task{do: doubting, until: now.Add(c.t.every)}
	}
	panic(fmt.Sprintf("BUG: cycle in phase %d", c.phase))
}

// proven: the database completed a durable write, with which its counter reached beat.
func (c *cycle) proven(beat uint64) {
	c.phase, c.wake = renewing, time.Time{}
	c.lease.Beat = beat
}

// closed: every bit was turned off before the lease's time.
func (c *cycle) closed() { c.until, c.returns, c.shut = time.Time{}, true, true }

// rest: nothing but time or others can help; look again once per renewal.
func (c *cycle) rest(now time.Time) { c.phase, c.wake = proving, now.Add(c.t.every) }

// adopt: the lease is kept for another database from here on.
func (c *cycle) adopt(database topo.Identity) {
	c.lease.Database, c.lease.Beat = database, 0
	c.returns = true
	c.phase, c.wake = proving, time.Time{}
}

// failed: the database did not complete what was asked of it. Nothing is renewed before it completes a write again, so
// a dead database under a live agent loses its lease.
func (c *cycle) failed(now time.Time) {
	c.phase, c.wake = proving, now.Add(c.t.retry)
}

// renewed: the store committed the renewal that was asked for at start. The deadline counts from start, not from the
// answer: an observer may have seen the renewal right after it was sent.
func (c *cycle) renewed(start, now time.Time, rev store.Revision) {
	if plant.DeadlineLate {
		start = now
	}
	c.lease.Sequence++
	c.revision = rev
	c.deadline = start.Add(c.t.duration)
	if !now.Before(c.deadline.Add(-c.t.margin)) { // too late to be worth anything
		c.phase = proving
		return
	}
	c.phase = enforcing
}

// mayBridge tells whether the lease may be extended without the store now: this keeper has enforced it before, so that it
// knows what the site owns, and a quarter of it has passed since it was extended last.
func (c *cycle) mayBridge(now time.Time) bool {
	return c.phase == doubting && !c.until.IsZero() && !now.Before(c.bridges)
}

// bridging: every site that could take over has promised, when asked at start, not to for so long.
func (c *cycle) bridging(start time.Time, long time.Duration) {
	c.deadline = start.Add(long)
	c.phase = enforcing
}

// bridged: the fence is extended, and what the record says is still not known. wake is when it is read next.
func (c *cycle) bridged(wake time.Time) { c.phase, c.wake = doubting, wake }

// refused: the record is not as this keeper left it.
func (c *cycle) refused() { c.phase = doubting }

// unanswered: the store did not answer, or not in a way that can be used. The record may have been renewed, and may
// still be; the lease is not extended.
func (c *cycle) unanswered(now time.Time) {
	c.phase, c.wake = doubting, now.Add(c.t.retry)
}

// read: the record, read linearizably. One's own renewal whose answer was lost is adopted, but counts for nothing:
// its start is forgotten.
func (c *cycle) read(l store.Lease, rev store.Revision, found bool) {
	switch {
	case found && (l.Holder != c.me || l.Revoked):
		c.phase = lost
		return
	case found:
		c.lease.Sequence, c.revision = l.Sequence, rev
	default:
		c.revision = 0
	}
	c.phase = proving
}

// enforced: the fence is restricted to the ownership and its lease runs until the deadline less margin.
func (c *cycle) enforced(now time.Time) {
	c.until = c.deadline
	c.bridges = now.Add(c.t.duration / 4)
	c.returns, c.shut = false, false
	c.phase, c.wake = resting, c.deadline.Add(c.t.every-c.t.duration)
	if c.wake.Before(now) {
		c.wake = now
	}
}

// inForce tells whether the fence may be open at this moment by this keeper's leave.
func (c *cycle) inForce(now time.Time) bool {
	return !c.until.IsZero() && now.Before(c.until.Add(-c.t.margin))
}
