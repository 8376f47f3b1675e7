package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// memStore is a store in memory: revisions, compare-and-set, nothing more. What stands in the real one's way is
// tested there; away makes it as silent as a lost quorum.
type memStore struct {
	mu        sync.Mutex
	rev       store.Revision
	owners    topo.Ownership
	ownersRev store.Revision
	records   map[topo.HandoverID]store.Handover
	away      bool
	loseNext  bool // the next commit is carried out, but its answer is lost
	audit     []string
}

func newStore(o topo.Ownership) *memStore {
	return &memStore{rev: 1, owners: o, ownersRev: 1, records: map[topo.HandoverID]store.Handover{}}
}

// answer waits as long as a silent store would, or is there at once.
func (m *memStore) answer(ctx context.Context) error {
	for {
		m.mu.Lock()
		if !m.away {
			return nil // locked
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return store.ErrUnavailable
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (m *memStore) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *memStore) Ownership(ctx context.Context) (topo.Ownership, store.Revision, error) {
	if err := m.answer(ctx); err != nil {
		return topo.Ownership{}, 0, err
	}
	defer m.mu.Unlock()
	return m.owners, m.ownersRev, nil
}

func (m *memStore) Heard(topo.SiteID, store.Revision) (time.Time, bool) { return time.Time{}, false }

func (m *memStore) Lease(ctx context.Context, site topo.SiteID) (store.Lease, store.Revision, error) {
	if err := m.answer(ctx); err != nil {
		return store.Lease{}, 0, err
	}
	defer m.mu.Unlock()
	return store.Lease{}, 0, store.ErrNotFound // failovers are tested against a real store
}

func (m *memStore) Handover(ctx context.Context, id topo.HandoverID) (json.RawMessage, store.Revision, error) {
	if err := m.answer(ctx); err != nil {
		return nil, 0, err
	}
	defer m.mu.Unlock()
	h, ok := m.records[id]
	if !ok {
		return nil, 0, store.ErrNotFound
	}
	return h.Body, h.Revision, nil
}

func (m *memStore) Handovers(ctx context.Context) ([]store.Handover, error) {
	if err := m.answer(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	var out []store.Handover
	for _, h := range m.records {
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b store.Handover) int { return cmp.Compare(b.ID, a.ID) })
	return out, nil
}

func (m *memStore) Commit(ctx context.Context, ch store.Change) (store.Revision, error) {
	if err := m.answer(ctx); err != nil {
		return 0, store.ErrOutcomeUnknown
	}
	defer m.mu.Unlock()
	if ch.Ownership != nil && ch.Ownership.Expect != m.ownersRev {
		return 0, store.ErrConflict
	}
	if ch.Handover != nil && ch.Handover.Expect != m.records[ch.Handover.ID].Revision {
		return 0, store.ErrConflict
	}
	m.rev++
	if ch.Ownership != nil {
		m.owners, m.ownersRev = ch.Ownership.Next, m.rev
	}
	if h := ch.Handover; h != nil {
		m.records[h.ID] = store.Handover{ID: h.ID, Revision: m.rev, Body: h.Body}
	}
	if ch.Audit != "" {
		m.audit = append(m.audit, ch.Audit)
	}
	if m.loseNext {
		m.loseNext = false
		return 0, store.ErrOutcomeUnknown
	}
	return m.rev, nil
}

func (m *memStore) ownership() topo.Ownership {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.owners
}

func (m *memStore) record(t testing.TB, id topo.HandoverID) (handover.Record, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, ok := m.records[id]
	if !ok {
		return handover.Record{}, false
	}
	r, err := handover.DecodeRecord(h.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r, true
}

// memSite is a site in memory: a fence per bucket that is monotonic in the epoch, and the markers that have come.
// gates lets a test stop a step where it likes.
type memSite struct {
	world *memWorld
	id    topo.SiteID

	mu    sync.Mutex
	epoch map[topo.BucketID]topo.Epoch
	open  map[topo.BucketID]bool

	problems []api.Problem
	writers  bool
	gates    sync.Mutex                                   // guards gate
	gate     func(ctx context.Context, step string) error // see pass and block
}

// memWorld is a store and two sites; markers travel from one to the other in 10 ms.
type memWorld struct {
	t     testing.TB
	store *memStore
	sites map[topo.SiteID]*memSite

	mu      sync.Mutex
	markers map[topo.HandoverID]change.Marker
}

func newMemWorld(t testing.TB) *memWorld {
	w := &memWorld{t: t, store: newStore(firstOwnership()), sites: map[topo.SiteID]*memSite{}, markers: map[topo.HandoverID]change.Marker{}}
	for _, id := range []topo.SiteID{"a", "b"} {
		s := &memSite{world: w, id: id, epoch: map[topo.BucketID]topo.Epoch{}, open: map[topo.BucketID]bool{}}
		w.sites[id] = s
		s.observe(w.store.owners)
	}
	return w
}

func (w *memWorld) controller(site topo.SiteID) *Controller {
	sites := map[topo.SiteID]Site{}
	for id, s := range w.sites {
		sites[id] = s
	}
	return New(Config{Site: site, Incarnation: "1", Store: w.store, Sites: sites, Logger: slog.New(slog.DiscardHandler),
		Bounds: handover.Bounds{MaxLagMS: 5000, DrainMS: 1000, FenceMS: 5000, CatchMS: 10_000}})
}

// checkOneOwner fails if two fences are open for a bucket (I1, I3).
func (w *memWorld) checkOneOwner() {
	a, b := w.sites["a"], w.sites["b"]
	a.mu.Lock()
	defer a.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	for bucket := range topo.BucketID(64) {
		if a.open[bucket] && b.open[bucket] {
			w.t.Errorf("bucket %d is open at both sites", bucket)
		}
	}
}

// block makes every step of the site go through gate first; nil lets all pass.
func (s *memSite) block(gate func(ctx context.Context, step string) error) {
	s.gates.Lock()
	defer s.gates.Unlock()
	s.gate = gate
}

func (s *memSite) pass(ctx context.Context, step string) error {
	s.gates.Lock()
	gate := s.gate
	s.gates.Unlock()
	if gate == nil {
		return nil
	}
	return gate(ctx, step)
}

func (s *memSite) observe(o topo.Ownership) {
	s.mu.Lock()
	for b := range topo.BucketID(64) {
		r, _ := o.At("users", b)
		if r.Owner == s.id && r.State == topo.Open && r.Epoch > s.epoch[b] {
			s.epoch[b], s.open[b] = r.Epoch, true
		}
	}
	s.mu.Unlock()
	if len(s.world.sites) == 2 {
		s.world.checkOneOwner()
	}
}

func (s *memSite) Ready(ctx context.Context, _ api.ReadyRequest) (api.ReadyAnswer, error) {
	return api.ReadyAnswer{Problems: s.problems}, s.pass(ctx, "ready")
}

func (s *memSite) Settled(ctx context.Context, r api.SettleRequest) (api.SettleAnswer, error) {
	if o, err := topo.DecodeOwnership(r.Ownership); err != nil || o.Version < r.Version {
		s.world.t.Errorf("settle of version %d came with document %d, %v", r.Version, o.Version, err)
	}
	return api.SettleAnswer{Gateways: 2}, s.pass(ctx, "settled")
}

func (s *memSite) CloseBuckets(ctx context.Context, r api.CloseRequest) (api.CloseAnswer, error) {
	if err := s.pass(ctx, "close"); err != nil {
		return api.CloseAnswer{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range r.Buckets {
		for b := sp.First; b <= sp.Last; b++ {
			if s.epoch[b] != sp.Epoch {
				return api.CloseAnswer{}, &api.Error{Status: 409, Code: api.CodeStale, Message: fmt.Sprintf("bucket %d is at epoch %d", b, s.epoch[b])}
			}
		}
	}
	if s.writers {
		return api.CloseAnswer{}, &api.Error{Status: 409, Code: api.CodeWritersRemain, Message: "pid 4711"}
	}
	for _, sp := range r.Buckets {
		for b := sp.First; b <= sp.Last; b++ {
			s.open[b] = false
		}
	}
	m := change.Marker{Kind: change.MarkerClosed, Site: s.id, Handover: r.Handover, Keyspace: r.Keyspace, Buckets: r.Buckets, Vector: topo.Vector{}}
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	s.world.markers[r.Handover] = m
	return api.CloseAnswer{Marker: m}, s.pass(ctx, "closed")
}

func (s *memSite) CaughtUp(ctx context.Context, r api.CaughtUpRequest) (api.CaughtUpAnswer, error) {
	if err := s.pass(ctx, "caught-up"); err != nil {
		return api.CaughtUpAnswer{}, err
	}
	bound := time.After(time.Duration(r.BoundMS) * time.Millisecond)
	for {
		s.world.mu.Lock()
		m, ok := s.world.markers[r.Handover]
		s.world.mu.Unlock()
		if ok {
			return api.CaughtUpAnswer{Marker: m}, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-bound:
			return api.CaughtUpAnswer{}, &api.Error{Status: 504, Code: api.CodeNotYet, Message: "no marker"}
		case <-ctx.Done():
			return api.CaughtUpAnswer{}, ctx.Err()
		}
	}
}

func (s *memSite) Open(ctx context.Context, r api.OpenRequest) (api.OpenAnswer, error) {
	if err := s.pass(ctx, "open"); err != nil {
		return api.OpenAnswer{}, err
	}
	o, err := topo.DecodeOwnership(r.Ownership)
	if err != nil {
		return api.OpenAnswer{}, err
	}
	s.observe(o)
	return api.OpenAnswer{Version: o.Version}, s.pass(ctx, "opened")
}

func (s *memSite) Halt(context.Context, api.HaltRequest) (api.HaltAnswer, error) {
	return api.HaltAnswer{}, nil
}

func (s *memSite) Unhalt(context.Context, api.UnhaltRequest) (api.UnhaltAnswer, error) {
	return api.UnhaltAnswer{}, nil
}

func (s *memSite) Abort(ctx context.Context, r api.OpenRequest) (api.OpenAnswer, error) {
	return s.Open(ctx, r)
}

var errCut = errors.New("connection reset")

// cuttable is a path to the store that can be cut.
type cuttable struct {
	Store
	cut atomic.Bool
}

func (c *cuttable) Handover(ctx context.Context, id topo.HandoverID) (json.RawMessage, store.Revision, error) {
	if c.cut.Load() {
		return nil, 0, store.ErrUnavailable
	}
	return c.Store.Handover(ctx, id)
}

func (c *cuttable) Commit(ctx context.Context, ch store.Change) (store.Revision, error) {
	if c.cut.Load() {
		return 0, store.ErrOutcomeUnknown
	}
	return c.Store.Commit(ctx, ch)
}
