package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// memStore is the control store in memory, with its compare-and-set, and faults.
type memStore struct {
	mu       sync.Mutex
	rev      store.Revision
	lease    *store.Lease
	leaseRev store.Revision
	owner    topo.Ownership
	ownerRev store.Revision
	renewals []time.Time // when each was committed

	down       bool          // requests hang until their deadline
	loseAnswer bool          // renewals are committed, but the answer is lost
	delay      time.Duration // of each answer, after the commit
	unreadable error         // the ownership cannot be read
}

func (s *memStore) wait(ctx context.Context) error {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		<-ctx.Done()
		return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
	}
	return nil
}

func (s *memStore) Lease(ctx context.Context, _ topo.SiteID) (store.Lease, store.Revision, error) {
	if err := s.wait(ctx); err != nil {
		return store.Lease{}, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease == nil {
		return store.Lease{}, 0, store.ErrNotFound
	}
	return *s.lease, s.leaseRev, nil
}

func (s *memStore) RenewLease(ctx context.Context, _ topo.SiteID, l store.Lease, expect store.Revision) (store.Renewal, error) {
	if err := s.wait(ctx); err != nil {
		return store.Renewal{}, fmt.Errorf("%w: %w", store.ErrOutcomeUnknown, err)
	}
	s.mu.Lock()
	if s.leaseRev != expect {
		s.mu.Unlock()
		return store.Renewal{}, store.ErrConflict
	}
	s.rev++
	s.lease, s.leaseRev = &l, s.rev
	s.renewals = append(s.renewals, time.Now())
	r := store.Renewal{Revision: s.rev, Ownership: s.owner, OwnershipRevision: s.ownerRev}
	lose, delay, unreadable := s.loseAnswer, s.delay, s.unreadable
	s.mu.Unlock()
	if lose {
		<-ctx.Done()
		return store.Renewal{}, store.ErrOutcomeUnknown
	}
	if delay > 0 {
		time.Sleep(delay) // in a bubble; deliberately beyond ctx: the answer is late, not absent
	}
	return r, unreadable
}

func (s *memStore) Ownership(ctx context.Context) (topo.Ownership, store.Revision, error) {
	if err := s.wait(ctx); err != nil {
		return topo.Ownership{}, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ownerRev == 0 {
		return topo.Ownership{}, 0, store.ErrNotFound
	}
	return s.owner, s.ownerRev, s.unreadable
}

// set changes the store at once, as another process would.
func (s *memStore) set(f func(*memStore)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// record is what the site's record says now.
func (s *memStore) record() store.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *s.lease
}

// renewed tells how often the record was written, and when last.
func (s *memStore) renewed() (int, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.renewals), s.renewals[len(s.renewals)-1]
}

// own commits an ownership.
func (s *memStore) own(o topo.Ownership) {
	s.set(func(s *memStore) { s.rev++; s.owner, s.ownerRev = o, s.rev })
}

// pathToStore is one keeper's way to the store, which can be cut.
type pathToStore struct {
	*memStore
	cut atomic.Bool
}

func (p *pathToStore) Lease(ctx context.Context, site topo.SiteID) (store.Lease, store.Revision, error) {
	if p.cut.Load() {
		<-ctx.Done()
		return store.Lease{}, 0, store.ErrUnavailable
	}
	return p.memStore.Lease(ctx, site)
}

func (p *pathToStore) RenewLease(ctx context.Context, site topo.SiteID, l store.Lease, expect store.Revision) (store.Renewal, error) {
	if p.cut.Load() {
		<-ctx.Done()
		return store.Renewal{}, store.ErrOutcomeUnknown
	}
	return p.memStore.RenewLease(ctx, site, l, expect)
}

// memFence is a database's fence in memory, with a clock that can be set.
type memFence struct {
	mu       sync.Mutex
	site     topo.SiteID
	identity topo.Identity
	buckets  int
	bits     map[topo.BucketID]bool
	rows     map[topo.BucketID]postgres.BucketRow
	closing  map[topo.BucketID]topo.Epoch
	lease    time.Time // on the database's clock
	ahead    time.Duration
	beat     uint64
	reached  time.Time
	writers  int // transactions that hold write locks; EndWriters ends them
	calls    []string
	cuts     []topo.CutRange // all that were recorded

	generation uint64 // the newest that the database was told of

	hang   bool          // every request hangs until its deadline
	slow   time.Duration // of each answer to a heartbeat
	refuse map[string]error
	seen   func(call string) // called with the lock held
}

func newMemFence(site topo.SiteID) *memFence {
	return &memFence{
		site: site, identity: topo.Identity{System: "7000", Timeline: 1}, buckets: 8,
		bits: map[topo.BucketID]bool{}, rows: map[topo.BucketID]postgres.BucketRow{}, closing: map[topo.BucketID]topo.Epoch{},
		refuse: map[string]error{},
	}
}

// clock is the database's: minutes away from that of the keeper.
func (f *memFence) clock() time.Time { return time.Now().Round(0).Add(f.ahead) }

// accepts is what an application's write meets.
func (f *memFence) accepts(b topo.BucketID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bits[b] && f.clock().Before(f.lease)
}

func (f *memFence) on() topo.Spans {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.onLocked()
}

func (f *memFence) onLocked() topo.Spans {
	var on []topo.BucketID
	for b := range f.bits {
		on = append(on, b)
	}
	return topo.SpansOf(on...)
}

func (f *memFence) row(b topo.BucketID) postgres.BucketRow {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rows[b]
}

// left is how long the fence stays open on the database's clock.
func (f *memFence) left() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lease.Sub(f.clock())
}

func (f *memFence) did(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(f.calls), func(c string) bool { return c != call }))
}

func (f *memFence) set(change func(*memFence)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// call runs do under the lock, unless a fault is set.
func (f *memFence) call(ctx context.Context, name string, do func() error) error {
	f.mu.Lock()
	hang := f.hang
	f.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name)
	if f.seen != nil {
		f.seen(name)
	}
	if err := f.refuse[name]; err != nil {
		return err
	}
	return do()
}

func (f *memFence) Identity(ctx context.Context) (id topo.Identity, err error) {
	err = f.call(ctx, "identity", func() error { id = f.identity; return nil })
	return id, err
}

func (f *memFence) Heartbeat(ctx context.Context, after uint64) (p postgres.Pulse, err error) {
	defer func() {
		f.mu.Lock()
		slow := f.slow
		f.mu.Unlock()
		time.Sleep(slow)
	}()
	err = f.call(ctx, "heartbeat", func() error {
		p.Database = f.identity
		if f.beat < after {
			return &postgres.WentBackError{Beat: f.beat, After: after}
		}
		f.beat++
		if now := f.clock(); now.After(f.reached) {
			f.reached = now
		}
		p.Beat, p.Clock, p.Reached = f.beat, f.clock(), f.reached
		return nil
	})
	return p, err
}

func (f *memFence) DistrustClock(ctx context.Context) error {
	return f.call(ctx, "distrust", func() error {
		clear(f.bits)
		if f.lease.After(f.reached) {
			f.reached = f.lease
		}
		return nil
	})
}

func (f *memFence) ForgetMoments(ctx context.Context) error {
	return f.call(ctx, "forget", func() error {
		clear(f.bits)
		f.lease, f.reached = time.Time{}, f.clock()
		return nil
	})
}

func (f *memFence) EndWriters(ctx context.Context, patience, bound time.Duration) (ended []postgres.Blocker, err error) {
	select {
	case <-time.After(patience):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	err = f.call(ctx, "end writers", func() error {
		ended = make([]postgres.Blocker, f.writers)
		f.writers = 0
		return nil
	})
	return ended, err
}

func (f *memFence) State(ctx context.Context) (st postgres.FenceState, err error) {
	err = f.call(ctx, "state", func() error {
		st = postgres.FenceState{
			Buckets: map[topo.KeyspaceID]int{"users": f.buckets},
			Bits:    map[topo.KeyspaceID]topo.Spans{"users": f.onLocked()},
			Rows:    map[topo.KeyspaceID][]postgres.BucketRow{}, Lease: f.lease, Clock: f.clock(), Generation: f.generation,
		}
		for b := range topo.BucketID(f.buckets) {
			if row, ok := f.rows[b]; ok {
				st.Rows["users"] = append(st.Rows["users"], row)
			}
		}
		return nil
	})
	return st, err
}

func (f *memFence) Restrict(ctx context.Context, keep map[topo.KeyspaceID]topo.Spans) error {
	return f.call(ctx, "restrict", func() error {
		for b := range f.bits {
			if !keep["users"].Contains(b) {
				delete(f.bits, b)
			}
		}
		return nil
	})
}

func (f *memFence) RaiseGeneration(ctx context.Context, generation uint64) error {
	return f.call(ctx, "generation", func() error {
		f.generation = max(f.generation, generation)
		return nil
	})
}

func (f *memFence) RecordCuts(ctx context.Context, cuts []topo.CutRange) error {
	return f.call(ctx, "cuts", func() error {
		f.cuts = append(f.cuts, cuts...)
		return nil
	})
}

func (f *memFence) OpenBuckets(ctx context.Context, o postgres.OpenOrder) error {
	return f.call(ctx, "open "+string(o.Handover), func() error {
		var stale error
		if o.Generation < f.generation {
			return postgres.ErrFormerStore
		}
		for _, sp := range o.Buckets {
			for b := sp.First; b <= sp.Last; b++ {
				row := f.rows[b]
				if row.Epoch > sp.Epoch || row.Epoch == sp.Epoch && row.State != "open" || f.closing[b] >= sp.Epoch {
					stale = fmt.Errorf("bucket %d: %w", b, postgres.ErrStale)
					continue
				}
				delete(f.closing, b)
				if row.Epoch < sp.Epoch {
					f.rows[b] = postgres.BucketRow{Bucket: b, Epoch: sp.Epoch, State: "open", Handover: o.Handover}
				}
				f.bits[b] = true
			}
		}
		return stale
	})
}

// close is the closing of a switch, done by others than the keeper.
func (f *memFence) close(id topo.HandoverID, b topo.BucketID) {
	f.set(func(f *memFence) {
		delete(f.bits, b)
		f.rows[b] = postgres.BucketRow{Bucket: b, Epoch: f.rows[b].Epoch, State: "closed", Handover: id}
	})
}

func (f *memFence) ExtendLease(ctx context.Context, deadline time.Time, margin time.Duration) error {
	return f.call(ctx, "extend", func() error {
		d := f.clock()
		lead := time.Until(deadline) - margin
		if lead <= 0 {
			return errors.New("the deadline has passed")
		}
		if moment := d.Add(lead); moment.After(f.lease) {
			f.lease = moment
		}
		return nil
	})
}

func (f *memFence) RecordOwners(ctx context.Context, _ topo.Ownership) error {
	return f.call(ctx, "owners", func() error { return nil })
}
