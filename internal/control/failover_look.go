package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

const (
	lookLeast, lookMost = 100 * time.Millisecond, time.Second
	recountEvery        = 5 * time.Second // the list of handovers changes rarely, and is long
	rereadEvery         = 2 * time.Second // the ownership, of a site that renews
)

// eyes are what a looker remembers between looks.
type eyes struct {
	opened    time.Time      // what was before does not count
	rev       store.Revision // of the lease
	seen      time.Time      // first
	owners    topo.Ownership
	read      time.Time // the ownership; zero: never
	counted   time.Time // the handovers; zero: never
	history   bool
	lastTaken time.Time
	lastID    topo.HandoverID
	recent    int
}

// keepLooking looks every twelfth of a lease, and when it is nudged, until ctx ends. One look at a time: they must
// come in the order in which they were made.
func (l *lookout) keepLooking(ctx context.Context) {
	l.eyes.opened = time.Now()
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-wait.C:
		case <-l.nudge:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		sight := l.lookOnce(ctx)
		l.send(ctx, sight)
		wait.Reset(l.pause(sight) - time.Since(began))
	}
}

// pause is how long after the beginning of a look the next one begins. A site that renewed lately is looked at a third as
// often: each look is a read that the whole store takes part in, when a renewal was made is told by the watch, and nothing
// is acted on before a lease has run out. From half a lease without a renewal on every look counts.
func (l *lookout) pause(sight handover.Event) time.Duration {
	often := min(max(l.c.cfg.Lease/12, lookLeast), lookMost)
	seen, ok := sight.(handover.Sight)
	if state, _ := l.snapshot(); !ok || !seen.Lease.Exists || seen.Lease.Revoked || state.UnderWay() {
		return often
	}
	doubtful := time.Until(l.eyes.seen.Add(seen.Lease.Duration / 2))
	return max(often, min(3*often, lookMost, doubtful))
}

// lookOnce reads the lease first, linearizably: everything else is at least as new. What cannot be read is said; it is
// never assumed.
func (l *lookout) lookOnce(ctx context.Context) handover.Event {
	ctx, cancel := context.WithTimeout(ctx, max(l.c.cfg.Lease/2, 500*time.Millisecond))
	defer cancel()
	began := time.Now()
	lease, rev, err := l.c.cfg.Store.Lease(ctx, l.of)
	at := time.Now()
	exists := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return handover.Unseen{Text: fmt.Sprintf("the lease of %s cannot be read: %v", l.of, err)}
	}
	if heard, ok := l.c.cfg.Store.Heard(l.of, rev); ok && exists && heard.Before(at) && heard.After(l.eyes.opened) {
		at = heard // the renewal was made before it: long before, where the store had to find a new leader meanwhile
	}
	if rev != l.eyes.rev {
		l.eyes.rev, l.eyes.seen = rev, at
	}
	if err := l.reread(ctx, exists && !lease.Revoked && at.Sub(l.eyes.seen) < lease.Duration/2); err != nil {
		return handover.Unseen{Text: err.Error()}
	}
	standing := l.stand(ctx)
	l.mu.Lock()
	l.mu.lease, l.mu.leaseRev, l.mu.standing = lease, rev, standing
	l.mu.Unlock()
	return handover.Sight{At: at, ID: newID(), Facts: l.facts(began, standing), Lease: handover.LeaseSeen{
		Exists: exists, Revision: int64(rev), Duration: lease.Duration, Revoked: lease.Revoked, RevokedBy: lease.RevokedBy,
		Holder: lease.Holder, Asks: lease.Asks, Keeps: lease.Keeps}}
}

// reread refreshes what is remembered; of a site that is well it may be a little old.
func (l *lookout) reread(ctx context.Context, well bool) error {
	if !well || time.Since(l.eyes.read) > rereadEvery {
		o, _, err := l.c.cfg.Store.Ownership(ctx)
		if err != nil {
			return fmt.Errorf("the ownership cannot be read: %w", err)
		}
		l.eyes.owners, l.eyes.read = o, time.Now()
	}
	if l.eyes.counted.IsZero() || !well && time.Since(l.eyes.counted) > recountEvery {
		all, err := l.c.cfg.Store.Handovers(ctx)
		if l.eyes.history = err == nil; err == nil {
			l.recount(all)
			l.eyes.counted = time.Now()
		}
	}
	return nil
}

// recount goes through all handovers for what quiet time and limits need. The times in records are wall clocks of
// agents: good enough for rules that count minutes.
func (l *lookout) recount(all []store.Handover) {
	l.eyes.recent, l.eyes.lastTaken, l.eyes.lastID = 0, time.Time{}, ""
	for _, h := range all {
		rec, err := handover.DecodeRecord(h.Body)
		if err != nil || rec.Kind != handover.KindFailover || rec.Decided == 0 {
			continue
		}
		step, _ := rec.Entered(handover.Taken)
		if rec.Failover.Incident == "" && time.Since(step.At) < time.Hour {
			l.eyes.recent++
		}
		if l.ownsAny(rec.Failover.Taken) && step.At.After(l.eyes.lastTaken) {
			l.eyes.lastTaken, l.eyes.lastID = step.At, rec.ID
		}
	}
}

// ownsAny tells whether the site owns one of the buckets.
func (l *lookout) ownsAny(taken []topo.Taken) bool {
	for _, t := range taken {
		for _, have := range l.eyes.owners.EpochsAt(t.Keyspace, l.of) {
			for _, was := range t.Buckets {
				if was.First <= have.Last && have.First <= was.Last {
					return true
				}
			}
		}
	}
	return false
}

func (l *lookout) stand(ctx context.Context) api.Standing {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	st, err := l.c.cfg.Survivor.Standing(ctx, l.of)
	if err != nil {
		st = api.Standing{HeardMS: -1, WroteMS: -1, LossMS: -1, Problem: err.Error()}
	}
	st.Site, st.Of = l.c.cfg.Site, l.of
	return st
}

// facts turns ages into moments of this process's clock.
func (l *lookout) facts(began time.Time, st api.Standing) handover.Facts {
	now := time.Now()
	ago := func(ms int64) time.Time {
		if ms < 0 {
			return time.Time{}
		}
		return now.Add(-time.Duration(ms) * time.Millisecond)
	}
	others := l.present()
	turn := 0
	for _, site := range others {
		if site < l.c.cfg.Site {
			turn++
		}
	}
	if o := l.eyes.owners; !o.Full(l.c.cfg.Site) {
		st.Problem = fmt.Sprintf("site %s is no member that may own; take it in with atoll site add", l.c.cfg.Site)
	}
	f := handover.Facts{Began: began, Others: others, Turn: turn, HaltedFor: st.HaltedFor, OwnLease: st.Lease, Problem: st.Problem, Unsettled: l.eyes.owners.Unsettled(l.c.cfg.Site),
		Known: st.Known, Halted: st.Halted, Serving: st.Linked && st.Serving, Until: now.Add(time.Duration(st.RemainingMS) * time.Millisecond),
		Heard: ago(st.HeardMS), Wrote: ago(st.WroteMS), Loss: time.Duration(st.LossMS) * time.Millisecond,
		History: l.eyes.history, LastID: l.eyes.lastID, Recent: l.eyes.recent}
	if !l.eyes.lastTaken.IsZero() {
		f.LastTaken = now.Add(-time.Since(l.eyes.lastTaken))
	}
	for _, p := range l.eyes.owners.Keyspaces {
		for _, r := range p.Ranges {
			switch n := int(r.Last-r.First) + 1; {
			case r.Owner != l.of:
			case r.State == topo.Open:
				f.Owns += n
			default:
				f.Moving += n
			}
		}
	}
	return f
}
