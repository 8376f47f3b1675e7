package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

const (
	testD = time.Second
	testW = 300 * time.Millisecond
)

// memSurvivor is the database and the link of the site that survives: what Halt stops, and what the keeper's cuts end.
type memSurvivor struct {
	mu       sync.Mutex
	standing api.Standing
	halted   topo.HandoverID
	cuts     map[topo.HandoverID]bool
	halts    int
	away     error
}

func (m *memSurvivor) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *memSurvivor) haltedBy() topo.HandoverID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.halted
}

func (m *memSurvivor) Standing(context.Context, topo.SiteID) (api.Standing, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.standing
	st.Halted = m.halted
	return st, m.away
}

// CatchUp takes what another survivor has.
func (m *memSurvivor) CatchUp(_ context.Context, _, _ topo.SiteID, position uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.halted != "" && m.standing.Applied < position {
		return fmt.Errorf("halted by %s", m.halted)
	}
	m.standing.Applied = max(m.standing.Applied, position)
	return m.away
}

func (m *memSurvivor) Halt(_ context.Context, _ topo.SiteID, id topo.HandoverID) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.away != nil:
		return 0, m.away
	case m.halted != "" && m.halted != id:
		return 0, fmt.Errorf("halted by %s", m.halted)
	case !m.cuts[id]:
		m.halted = id
	}
	m.halts++
	return m.standing.Applied, nil
}

func (m *memSurvivor) Unhalt(_ context.Context, _ topo.SiteID, id topo.HandoverID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.halted == id {
		m.halted = ""
	}
	return m.away
}

// memTaker is the site that survives, as its keeper sees it: it opens what is its own, and records cuts first.
type memTaker struct {
	Site
	t      testing.TB
	db     *memSurvivor
	mu     sync.Mutex
	opened []time.Time
}

func (s *memTaker) Halt(ctx context.Context, r api.HaltRequest) (api.HaltAnswer, error) {
	at, err := s.db.Halt(ctx, r.Of, r.Handover)
	return api.HaltAnswer{Position: at}, err
}

func (s *memTaker) Unhalt(ctx context.Context, r api.UnhaltRequest) (api.UnhaltAnswer, error) {
	return api.UnhaltAnswer{}, s.db.Unhalt(ctx, r.Of, r.Handover)
}

func (s *memTaker) Open(_ context.Context, r api.OpenRequest) (api.OpenAnswer, error) {
	o, err := topo.DecodeOwnership(r.Ownership)
	if err != nil {
		return api.OpenAnswer{}, err
	}
	s.db.set(func() {
		for _, c := range o.Cuts() {
			id := c.Cut.Handover
			if s.db.cuts[id] {
				continue
			}
			if s.db.halted != id {
				s.t.Errorf("cuts of %s are to be recorded, but the database is halted by %q", id, s.db.halted)
			}
			s.db.cuts[id], s.db.halted = true, ""
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = append(s.opened, time.Now())
	return api.OpenAnswer{Version: o.Version}, nil
}

func (s *memTaker) Settled(context.Context, api.SettleRequest) (api.SettleAnswer, error) {
	return api.SettleAnswer{Gateways: 1}, nil
}

// deadSite answers nothing.
type deadSite struct{}

var errDead = errors.New("connection refused")

func (deadSite) Ready(context.Context, api.ReadyRequest) (api.ReadyAnswer, error) {
	return api.ReadyAnswer{}, errDead
}
func (deadSite) Settled(context.Context, api.SettleRequest) (api.SettleAnswer, error) {
	return api.SettleAnswer{}, errDead
}
func (deadSite) CloseBuckets(context.Context, api.CloseRequest) (api.CloseAnswer, error) {
	return api.CloseAnswer{}, errDead
}
func (deadSite) CaughtUp(context.Context, api.CaughtUpRequest) (api.CaughtUpAnswer, error) {
	return api.CaughtUpAnswer{}, errDead
}
func (deadSite) Open(context.Context, api.OpenRequest) (api.OpenAnswer, error) {
	return api.OpenAnswer{}, errDead
}
func (deadSite) Halt(context.Context, api.HaltRequest) (api.HaltAnswer, error) {
	return api.HaltAnswer{}, errors.New("connection refused")
}

func (deadSite) Unhalt(context.Context, api.UnhaltRequest) (api.UnhaltAnswer, error) {
	return api.UnhaltAnswer{}, errors.New("connection refused")
}

func (deadSite) Abort(context.Context, api.OpenRequest) (api.OpenAnswer, error) {
	return api.OpenAnswer{}, errDead
}

// flood is a world in which site a dies and site b survives, with a real store.
type flood struct {
	t      *testing.T
	store  *store.Client
	b      *memSurvivor
	taker  *memTaker
	policy handover.Policy

	mu    sync.Mutex
	dead  bool
	last  time.Time // when the last renewal that landed was sent
	lease store.Lease
	rev   store.Revision
}

func newFlood(t *testing.T) *flood {
	t.Helper()
	w := &flood{t: t, store: realStore(t), policy: handover.Policy{Mode: handover.ModeAutomatic, W: testW, MaxLoss: 30 * time.Second, VetoBound: 3 * testD, PerHour: 3}}
	w.b = &memSurvivor{cuts: map[topo.HandoverID]bool{}, standing: api.Standing{Known: true, Applied: 4711, Lease: true, HeardMS: 0, WroteMS: -1, LossMS: 20}}
	w.taker = &memTaker{t: t, db: w.b}
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{
		"users":   {Buckets: 64, Hash: topo.HashMD5, Ranges: []topo.Range{{First: 0, Last: 31, Owner: "a", Epoch: 3, State: topo.Open}, {First: 32, Last: 63, Owner: "b", Epoch: 2, State: topo.Open}}},
		"catalog": {Buckets: 1, Hash: topo.HashMD5, Ranges: []topo.Range{{First: 0, Last: 0, Owner: "a", Epoch: 1, State: topo.Open}}}})
	if err := w.store.Bootstrap(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	w.lease = store.Lease{Holder: "keeper-of-a", Duration: testD, Database: topo.Identity{System: "1", Timeline: 1}}
	w.renew()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(testD / 3)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.renew()
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return w
}

// renew is a's keeper.
func (w *flood) renew() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return
	}
	start := time.Now()
	w.lease.Sequence++
	r, err := w.store.RenewLease(context.Background(), "a", w.lease, w.rev)
	if errors.Is(err, store.ErrConflict) {
		w.dead = true // revoked
		return
	}
	if err != nil {
		w.t.Errorf("renew: %v", err)
		return
	}
	w.rev, w.last = r.Revision, start
}

// kill ends a's keeper and tells when its last renewal was sent.
func (w *flood) kill() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = true
	return w.last
}

// controller makes one of site b, over a store that may stand in the way.
func (w *flood) controller(incarnation string, s Store) *Controller {
	return New(Config{Site: "b", Incarnation: incarnation, Store: s, Sites: map[topo.SiteID]Site{"a": deadSite{}, "b": w.taker}, Survivor: w.b,
		Failover: w.policy, Lease: testD, Logger: slog.New(slog.DiscardHandler), Bounds: handover.Bounds{MaxLagMS: 5000, DrainMS: 1000, FenceMS: 5000, CatchMS: 10_000}})
}

// run starts a controller; what it returns kills it, wherever it is.
func (w *flood) run(c *Controller) (kill func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = c.Run(ctx) }()
	kill = func() { cancel(); <-ended }
	w.t.Cleanup(kill)
	if c.cfg.Survivor != nil {
		w.eventually("it runs", 5*time.Second, func() bool { return c.lookout("a") != nil })
	}
	return kill
}

// eventually waits for something to become true.
func (w *flood) eventually(what string, within time.Duration, is func() bool) {
	w.t.Helper()
	bound := time.Now().Add(within)
	for !is() {
		if time.Now().After(bound) {
			w.t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// failovers lists the records of failovers, newest first.
func (w *flood) failovers() []handover.Record {
	w.t.Helper()
	all, err := w.store.Handovers(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	var out []handover.Record
	for _, h := range all {
		r, err := handover.DecodeRecord(h.Body)
		if err != nil {
			w.t.Fatal(err)
		}
		if r.Kind == handover.KindFailover {
			out = append(out, r)
		}
	}
	return out
}

// done waits for a failover that has come to its end.
func (w *flood) done(within time.Duration) handover.Record {
	w.t.Helper()
	var found handover.Record
	w.eventually("a failover is done", within, func() bool {
		for _, r := range w.failovers() {
			if r.Phase == handover.Done {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

func (w *flood) ownership() topo.Ownership {
	w.t.Helper()
	o, _, err := w.store.Ownership(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// checkTaken fails unless b owns all that a had open, one epoch higher, and nothing is left halted.
func (w *flood) checkTaken(id topo.HandoverID) {
	w.t.Helper()
	o := w.ownership()
	for ks, epoch := range map[topo.KeyspaceID]topo.Epoch{"users": 4, "catalog": 2} {
		r, _ := o.At(ks, 0)
		if r.Owner != "b" || r.Epoch != epoch || r.State != topo.Open || r.Cut == nil || *r.Cut != (topo.Cut{From: "a", Epoch: epoch - 1, Position: 4711, Handover: id}) {
			w.t.Errorf("%s bucket 0: %+v, cut %+v", ks, r, r.Cut)
		}
	}
	if r, _ := o.At("users", 40); r.Epoch != 2 || r.Cut != nil {
		w.t.Errorf("b's own bucket: %+v", r)
	}
	if by := w.b.haltedBy(); by != "" {
		w.t.Errorf("left halted by %s", by)
	}
}

func (w *flood) checkUntouched() {
	w.t.Helper()
	if o := w.ownership(); o.Version != 1 {
		w.t.Errorf("ownership is at version %d: %+v", o.Version, o.Keyspaces)
	}
}

func (w *flood) audit() (out []string) {
	w.t.Helper()
	entries, err := w.store.Audit(context.Background(), 0)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.What)
	}
	return out
}

// hindered stands between a controller and the store.
type hindered struct {
	*store.Client
	lease  func(ctx context.Context, site topo.SiteID) (store.Lease, store.Revision, error)    // nil: as it is
	commit func(ctx context.Context, ch store.Change) (rev store.Revision, err error, ok bool) // not ok: as it is
}

func (h *hindered) Lease(ctx context.Context, site topo.SiteID) (store.Lease, store.Revision, error) {
	if h.lease != nil {
		return h.lease(ctx, site)
	}
	return h.Client.Lease(ctx, site)
}

func (h *hindered) Commit(ctx context.Context, ch store.Change) (store.Revision, error) {
	if h.commit != nil {
		if rev, err, ok := h.commit(ctx, ch); ok {
			return rev, err
		}
	}
	return h.Client.Commit(ctx, ch)
}
