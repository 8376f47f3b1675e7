package model

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// source is one actor's randomness: what it draws depends on the seed and on its own history, not on who ran first.
type source struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newSource(seed uint64, name string) *source {
	h := fnv.New64a()
	h.Write([]byte(name))
	return &source{r: rand.New(rand.NewPCG(seed, h.Sum64()))}
}

// between draws a duration, in nanoseconds, so that hardly two things happen at one moment.
func (s *source) between(least, most time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return least + time.Duration(s.r.Int64N(int64(most-least)+1))
}

func (s *source) chance(percent int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.IntN(100) < percent
}

func (s *source) below(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.IntN(n)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// process is one run of an agent. Frozen, none of its calls goes on; dead, none has an effect any more.
type process struct {
	mu     sync.Mutex
	dead   bool
	frozen chan struct{} // closed at the thaw; nil: it runs
}

var errDead = errors.New("the agent is dead")

// held waits as long as the process is frozen.
func (p *process) held(ctx context.Context) error {
	for {
		p.mu.Lock()
		dead, frozen := p.dead, p.frozen
		p.mu.Unlock()
		switch {
		case dead:
			return errDead
		case frozen == nil:
			return ctx.Err()
		}
		<-frozen
	}
}

// way is how calls of a process go to one place.
type way struct {
	sim    *simulation
	p      *process
	random *source
	cut    func() bool // with the simulation locked
	loss   func() int  // per cent of calls that are not answered
}

var errNoAnswer = errors.New("no answer")

// call has an effect at the far end and comes back; or it does not come back, and the effect comes late, or never. The
// effect runs with the simulation locked.
func (w *way) call(ctx context.Context, effect func()) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	silent := func() error {
		<-ctx.Done()
		return errNoAnswer
	}
	if err := w.p.held(ctx); err != nil {
		return err
	}
	if err := pause(ctx, w.random.between(200*time.Microsecond, 12*time.Millisecond)); err != nil {
		return errNoAnswer
	}
	if err := w.p.held(ctx); err != nil { // frozen before it was sent
		return err
	}
	w.sim.mu.Lock()
	cut, loss := w.cut(), w.loss()
	w.sim.mu.Unlock()
	if cut {
		return silent()
	}
	if loss > 0 && w.random.chance(loss) {
		switch w.random.below(3) {
		case 0: // carried out, and nobody hears of it
			w.sim.do(effect)
		case 1: // late
			late := w.random.between(0, 2*simD)
			w.sim.background.Go(func() {
				time.Sleep(late)
				w.sim.do(effect)
			})
		}
		return silent()
	}
	w.sim.do(effect)
	if err := pause(ctx, w.random.between(200*time.Microsecond, 12*time.Millisecond)); err != nil {
		return errNoAnswer
	}
	return w.p.held(ctx)
}

// simStore is the store: linearizable, with compare-and-set. It is changed with the simulation locked.
type simStore struct {
	rev      store.Revision
	owner    topo.Ownership
	ownerRev store.Revision
	lease    map[topo.SiteID]store.Lease
	leaseRev map[topo.SiteID]store.Revision
	leaseAt  map[store.Revision]time.Time // when it was written
	record   map[topo.HandoverID]store.Handover
	watch    []chan struct{}
}

// storeClient is one process's.
type storeClient struct {
	*way
	watched chan struct{} // hints
}

// reads and writes fail differently where nobody answers.
func (c storeClient) read(ctx context.Context, f func()) error {
	if err := c.call(ctx, f); err != nil {
		return errors.Join(store.ErrUnavailable, err)
	}
	return nil
}

func (c storeClient) write(ctx context.Context, f func()) error {
	if err := c.call(ctx, f); err != nil {
		return errors.Join(store.ErrOutcomeUnknown, err)
	}
	return nil
}

// What a request writes here it may still write when its caller has long gone on without an answer: after an error
// nothing of it is looked at.

// Heard is as early as it can be: a watch that tells of a lease in the moment in which it is written.
func (c storeClient) Heard(_ topo.SiteID, rev store.Revision) (time.Time, bool) {
	c.sim.mu.Lock()
	defer c.sim.mu.Unlock()
	at, ok := c.sim.store.leaseAt[rev]
	return at, ok
}

func (c storeClient) Lease(ctx context.Context, site topo.SiteID) (store.Lease, store.Revision, error) {
	s := &c.sim.store
	var l store.Lease
	var rev store.Revision
	if err := c.read(ctx, func() { l, rev = s.lease[site], s.leaseRev[site] }); err != nil {
		return store.Lease{}, 0, err
	}
	if rev == 0 {
		return l, rev, store.ErrNotFound
	}
	return l, rev, nil
}

func (c storeClient) Ownership(ctx context.Context) (topo.Ownership, store.Revision, error) {
	var o topo.Ownership
	var rev store.Revision
	if err := c.read(ctx, func() { o, rev = c.sim.store.owner, c.sim.store.ownerRev }); err != nil {
		return topo.Ownership{}, 0, err
	}
	return o, rev, nil
}

func (c storeClient) RenewLease(ctx context.Context, site topo.SiteID, l store.Lease, expect store.Revision) (store.Renewal, error) {
	s := &c.sim.store
	var r store.Renewal
	conflict := false
	err := c.write(ctx, func() {
		if conflict = s.leaseRev[site] != expect; conflict {
			return
		}
		s.rev++
		s.lease[site], s.leaseRev[site], s.leaseAt[s.rev] = l, s.rev, time.Now()
		r = store.Renewal{Revision: s.rev, Ownership: s.owner, OwnershipRevision: s.ownerRev}
	})
	switch {
	case err != nil:
		return store.Renewal{}, err
	case conflict:
		return r, store.ErrConflict
	}
	return r, nil
}

func (c storeClient) Handover(ctx context.Context, id topo.HandoverID) (json.RawMessage, store.Revision, error) {
	var h store.Handover
	if err := c.read(ctx, func() { h = c.sim.store.record[id] }); err != nil {
		return nil, 0, err
	}
	if h.Revision == 0 {
		return nil, 0, store.ErrNotFound
	}
	return h.Body, h.Revision, nil
}

func (c storeClient) Handovers(ctx context.Context) ([]store.Handover, error) {
	var out []store.Handover
	err := c.read(ctx, func() {
		for _, h := range c.sim.store.record {
			out = append(out, h)
		}
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b store.Handover) int { return cmp.Compare(b.ID, a.ID) })
	return out, nil
}

func (c storeClient) Commit(ctx context.Context, ch store.Change) (store.Revision, error) {
	var rev store.Revision
	conflict := false
	switch err := c.write(ctx, func() { rev, conflict = c.sim.store.commit(c.sim, ch) }); {
	case err != nil:
		return 0, err
	case conflict:
		return rev, store.ErrConflict
	}
	return rev, nil
}

func (s *simStore) commit(sim *simulation, ch store.Change) (rev store.Revision, conflict bool) {
	switch {
	case ch.Ownership != nil && ch.Ownership.Expect != s.ownerRev,
		ch.Handover != nil && ch.Handover.Expect != s.record[ch.Handover.ID].Revision,
		ch.Lease != nil && ch.Lease.Expect != s.leaseRev[ch.Lease.Site] && sim.plant != TakeoverUnconditional:
		return 0, true
	}
	s.rev++
	if o := ch.Ownership; o != nil {
		sim.checkDocument(s.owner, o.Next)
		s.owner, s.ownerRev = o.Next, s.rev
		for _, w := range s.watch {
			select {
			case w <- struct{}{}:
			default:
			}
		}
	}
	if h := ch.Handover; h != nil {
		s.record[h.ID] = store.Handover{ID: h.ID, Revision: s.rev, Body: h.Body}
		sim.count(h.Body)
	}
	if l := ch.Lease; l != nil && sim.plant != TakeoverUnconditional {
		s.lease[l.Site], s.leaseRev[l.Site], s.leaseAt[s.rev] = l.Next, s.rev, time.Now()
	}
	return s.rev, false
}

// count keeps how handovers ended.
func (s *simulation) count(body json.RawMessage) {
	r, err := handover.DecodeRecord(body)
	if err != nil {
		s.fail("a record that is not readable: %v", err)
		return
	}
	if r.Kind == handover.KindFailover && r.Phase == handover.Taken {
		s.stats["takeovers"]++
	}
	if r.Over() && !s.over[r.ID] {
		s.over[r.ID] = true
		s.stats[string(r.Kind)+" "+string(r.Outcome)]++
	}
}
