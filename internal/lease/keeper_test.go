package lease

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

func TestMain(m *testing.M) { pgserver.Main(m) }

const (
	d      = 9 * time.Second // lease; renewals every 3 s, the fence closes 900 ms before the deadline
	margin = 900 * time.Millisecond
)

// users places buckets 0-3 at a and 4-7 at b.
func users() topo.Ownership {
	return topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 8, Hash: topo.HashMD5, Ranges: []topo.Range{
		{First: 0, Last: 3, Owner: "a", Epoch: 1, State: topo.Open},
		{First: 4, Last: 7, Owner: "b", Epoch: 1, State: topo.Open},
	}}})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func spans(s string) topo.Spans { return must(topo.ParseSpans(s, 8)) }

// site is one keeper of site a with its surroundings, in a bubble of synthetic time.
type site struct {
	t      *testing.T
	store  *memStore
	fence  *memFence
	keeper *Keeper
	stop   context.CancelFunc
	ended  chan error
}

func start(t *testing.T, s *memStore, f *memFence, change ...func(*Config)) *site {
	t.Helper()
	cfg := Config{Site: "a", Store: s, Fence: f, Duration: d, Margin: margin}
	for _, c := range change {
		c(&cfg)
	}
	k, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	x := &site{t: t, store: s, fence: f, keeper: k, stop: cancel, ended: make(chan error, 1)}
	go func() { x.ended <- k.Run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		<-x.ended
	})
	synctest.Wait()
	return x
}

// after lets synthetic time pass.
func after(how time.Duration) {
	time.Sleep(how)
	synctest.Wait()
}

func (x *site) wantOn(want string) {
	x.t.Helper()
	if got := x.fence.on().String(); got != want {
		x.t.Errorf("bits on %q, want %q", got, want)
	}
}

func (x *site) wantAccepts(b topo.BucketID, want bool) {
	x.t.Helper()
	if got := x.fence.accepts(b); got != want {
		x.t.Errorf("bucket %d: accepts %t, want %t (lease %s left, status %+v)", b, got, want, x.fence.left(), x.keeper.Status())
	}
}

func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func TestKeeperStarts(t *testing.T) {
	t.Parallel()
	bubble(t, "opens what it owns and nothing else", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		f.ahead = -7 * time.Minute
		s.own(users())
		x := start(t, s, f)
		x.wantOn("0-3")
		x.wantAccepts(0, true)
		if v := x.keeper.OpenedVersion(); v != 1 {
			t.Errorf("opened version %d", v)
		}
		if f.row(0).Handover != "open-1.1" {
			t.Errorf("opened under %q", f.row(0).Handover)
		}
		after(time.Minute)
		x.wantAccepts(0, true)
		if l := s.record(); l.Version != 1 || l.Database != f.identity {
			t.Errorf("record %+v", l)
		}
		if left := f.left(); left > d-margin || left < d-margin-d/3 {
			t.Errorf("lease runs for %s", left)
		}
	})
	bubble(t, "before bootstrap", func(t *testing.T) {
		x := start(t, &memStore{}, newMemFence("a"))
		x.wantOn("")
		x.store.own(users())
		after(d / 3)
		x.wantOn("0-3")
	})
	bubble(t, "from what its rows say", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		o := must(users().StartMove("users", spans("1,3"), "h1", "b"))
		s.own(o)
		for b, row := range map[topo.BucketID]postgres.BucketRow{
			0: {Epoch: 1, State: "open"},   // its bit comes back
			1: {Epoch: 1, State: "open"},   // moving: left as it is; and so is 3, which was never open
			2: {Epoch: 1, State: "closed"}, // stays closed
			4: {Epoch: 1, State: "open"},   // not ours: its bit goes
			5: {Epoch: 3, State: "open"},
		} {
			row.Bucket = b
			f.rows[b] = row
		}
		f.bits[1], f.bits[4], f.bits[5], f.bits[7] = true, true, true, true
		f.seen = func(call string) {
			if call == "extend" && f.onLocked().String() != "1" {
				t.Errorf("extended with bits %s on", f.onLocked())
			}
		}
		x := start(t, s, f)
		x.wantOn("0-1")
	})
	bubble(t, "a bucket that lags behind is closed before the lease is extended", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		o := must(must(users().StartMove("users", spans("0"), "h1", "b")).AbortMove("users", spans("0"), "h1"))
		s.own(o)
		f.rows[0] = postgres.BucketRow{Bucket: 0, Epoch: 1, State: "open"}
		f.bits[0] = true
		f.seen = func(call string) {
			if call == "extend" && len(f.bits) > 0 {
				t.Errorf("extended with bits %s on", f.onLocked())
			}
		}
		x := start(t, s, f)
		x.wantOn("0-3")
		if row := f.row(0); row.Epoch != 2 {
			t.Errorf("row %+v", row)
		}
	})
}

func TestKeeperFailsClosed(t *testing.T) {
	t.Parallel()
	running := func(t *testing.T) *site {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		return start(t, s, f)
	}
	bubble(t, "store silent", func(t *testing.T) {
		x := running(t)
		after(time.Second)
		x.store.set(func(s *memStore) { s.down = true })
		extended := x.fence.did("extend")
		began := time.Now().Add(-time.Second) // of the renewal in force
		after(time.Until(began.Add(d - margin - time.Millisecond)))
		x.wantAccepts(0, true)
		after(2 * time.Millisecond)
		x.wantAccepts(0, false)
		if _, ok := x.keeper.Deadline(); ok {
			t.Error("the keeper believes that its lease is in force")
		}
		if err := x.keeper.Observe(t.Context(), must(users().StartMove("users", spans("0"), "h", "b"))); !errors.Is(err, ErrNotActive) {
			t.Errorf("observe: %v", err)
		}
		after(time.Minute)
		if n := x.fence.did("extend"); n != extended {
			t.Errorf("extended %d times without the store", n-extended)
		}
		x.store.set(func(s *memStore) { s.down = false })
		after(d / 3)
		x.wantAccepts(0, true)
		if p := x.keeper.Status().Problem; p != "" {
			t.Errorf("problem %q", p)
		}
	})
	bubble(t, "database completes no write", func(t *testing.T) {
		x := running(t)
		x.fence.set(func(f *memFence) { f.hang = true })
		n, _ := x.store.renewed()
		after(time.Minute)
		if got, _ := x.store.renewed(); got > n {
			t.Errorf("renewed %d times for a dead database", got-n)
		}
		x.fence.set(func(f *memFence) { f.hang = false })
		after(d / 3)
		x.wantAccepts(0, true)
	})
	bubble(t, "heartbeat refused", func(t *testing.T) {
		x := running(t)
		x.fence.set(func(f *memFence) { f.refuse["heartbeat"] = errors.New("disk full") })
		n, _ := x.store.renewed()
		after(time.Minute)
		if got, _ := x.store.renewed(); got > n {
			t.Errorf("renewed %d times", got-n)
		}
		x.wantAccepts(0, false)
	})
	bubble(t, "bits cannot be restricted", func(t *testing.T) {
		x := running(t)
		x.fence.set(func(f *memFence) { f.bits[6] = true; f.refuse["restrict"] = errors.New("no") })
		after(d)
		x.wantAccepts(0, false)
		x.fence.set(func(f *memFence) { delete(f.refuse, "restrict") })
		after(d / 3)
		x.wantOn("0-3")
		x.wantAccepts(0, true)
	})
	bubble(t, "ownership of a newer version", func(t *testing.T) {
		x := running(t)
		x.store.set(func(s *memStore) { s.unreadable = topo.ErrNewerFormat })
		after(d)
		x.wantAccepts(0, false)
		if x.store.record().Holder != x.keeper.cfg.Incarnation {
			t.Error("the record is lost")
		}
	})
	bubble(t, "late answers count from the request", func(t *testing.T) {
		x := running(t)
		x.store.set(func(s *memStore) { s.delay = 2 * d / 3 })
		x.fence.set(func(f *memFence) {
			f.seen = func(call string) {
				if call != "extend" {
					return
				}
				x.store.mu.Lock()
				defer x.store.mu.Unlock()
				asked := x.store.renewals[len(x.store.renewals)-1]
				if left := time.Until(asked.Add(d)); left > d/3 {
					t.Errorf("extended with %s left", left)
				}
			}
		})
		after(time.Minute)
		x.store.set(func(s *memStore) { s.delay = d })
		after(d)
		n := x.fence.did("extend")
		after(time.Minute)
		if got := x.fence.did("extend"); got != n {
			t.Errorf("extended %d times by answers that came after their deadline", got-n)
		}
		x.wantAccepts(0, false)
	})
	bubble(t, "lost answers", func(t *testing.T) {
		x := running(t)
		x.store.set(func(s *memStore) { s.loseAnswer = true })
		n := x.fence.did("extend")
		after(time.Minute)
		x.wantAccepts(0, false) // its own renewals are adopted, but from when they count is unknown
		if got := x.fence.did("extend"); got != n {
			t.Errorf("extended %d times", got-n)
		}
		x.store.set(func(s *memStore) { s.loseAnswer = false })
		after(d / 2)
		x.wantAccepts(0, true)
	})
}

func TestKeeperObserves(t *testing.T) {
	t.Parallel()
	bubble(t, "a switch to here and one away", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		o := users()
		s.own(o)
		x := start(t, s, f)
		moving := must(o.StartMove("users", spans("4-5"), "h1", "a"))
		committed := must(moving.CommitMove("users", spans("4-5"), "h1"))
		if err := x.keeper.Observe(t.Context(), moving); err != nil {
			t.Fatal(err)
		}
		x.wantOn("0-3")
		changed := x.keeper.Opened()
		if err := x.keeper.Observe(t.Context(), committed); err != nil {
			t.Fatal(err)
		}
		x.wantOn("0-5")
		x.wantAccepts(4, true)
		if row := f.row(4); row.Epoch != 2 || row.Handover != "h1" {
			t.Errorf("row %+v", row)
		}
		select {
		case <-changed:
		default:
			t.Error("subscribers were not told")
		}
		if v := x.keeper.OpenedVersion(); v != committed.Version {
			t.Errorf("opened version %d", v)
		}
		// An older document, late: nothing closes, nothing goes back.
		if err := x.keeper.Observe(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		x.wantOn("0-5")
		after(d / 2) // nor by a renewal that still reads the old one
		x.wantOn("0-5")

		s.own(committed)
		away := must(committed.StartMove("users", spans("0"), "h2", "b"))
		s.own(away)
		if err := x.keeper.Observe(t.Context(), away); err != nil {
			t.Fatal(err)
		}
		x.wantOn("0-5") // closing is the switch's business
		f.close("h2", 0)
		after(d / 2)
		x.wantOn("1-5")
		gone := must(away.CommitMove("users", spans("0"), "h2"))
		s.own(gone)
		after(d / 2)
		x.wantOn("1-5")
	})
	bubble(t, "an aborted switch", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		o := users()
		s.own(o)
		x := start(t, s, f)
		moving := must(o.StartMove("users", spans("0-1"), "h1", "b"))
		aborted := must(moving.AbortMove("users", spans("0-1"), "h1"))
		f.close("h1", 1) // bucket 0 was not closed yet
		x.fence.set(func(f *memFence) {
			f.seen = func(string) {
				if !f.bits[0] {
					t.Error("bucket 0 was closed for its new epoch")
				}
			}
		})
		s.own(aborted) // found by the renewal
		after(d / 2)
		x.wantOn("0-3")
		if f.row(0).Epoch != 2 || f.row(1).Epoch != 2 {
			t.Errorf("rows %+v and %+v", f.row(0), f.row(1))
		}
	})
	bubble(t, "a stale document cannot reopen what is being closed", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f)
		f.set(func(f *memFence) { delete(f.bits, 0); f.closing[0] = 1 })
		after(d / 2)
		x.wantOn("1-3")
		x.wantAccepts(1, true) // a refused opening does not cost the lease
	})
	bubble(t, "an opening that fails is repeated", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		o := users()
		s.own(o)
		x := start(t, s, f)
		o = must(must(o.StartMove("users", spans("4"), "h1", "a")).CommitMove("users", spans("4"), "h1"))
		s.own(o)
		f.set(func(f *memFence) { f.refuse["open open-1.3"] = errors.New("connection reset") })
		if err := x.keeper.Observe(t.Context(), o); err == nil || x.keeper.OpenedVersion() != 1 {
			t.Errorf("observe: %v, opened %d", err, x.keeper.OpenedVersion())
		}
		f.set(func(f *memFence) { clear(f.refuse) })
		after(d / 2)
		x.wantOn("0-4")
	})
}

func TestTwoKeepers(t *testing.T) {
	t.Parallel()
	bubble(t, "the second waits for a whole lease of silence", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		path := &pathToStore{memStore: s}
		first := start(t, s, f, func(c *Config) { c.Incarnation, c.Store = "one", path })
		second := start(t, s, f, func(c *Config) { c.Incarnation = "two" })
		after(time.Minute)
		if s.record().Holder != "one" || second.keeper.Status().Doing != "standby" {
			t.Fatalf("holder %s, second is %+v", s.record().Holder, second.keeper.Status())
		}
		if second.keeper.OpenedVersion() != 0 {
			t.Error("the standby opened something")
		}
		// The first loses the store, and its record falls silent.
		path.cut.Store(true)
		_, last := s.renewed()
		after(time.Until(last.Add(d)))
		if s.record().Holder != "one" {
			t.Error("taken over too early")
		}
		after(d / 10)
		if s.record().Holder != "two" {
			t.Fatalf("not taken over: %+v", second.keeper.Status())
		}
		second.wantAccepts(0, true)
		// The first comes back to the store: it is not active, and stands by.
		path.cut.Store(false)
		after(d)
		if _, ok := first.keeper.Deadline(); ok || s.record().Holder != "two" || first.keeper.Status().Doing != "standby" {
			t.Errorf("the first is %+v", first.keeper.Status())
		}
		if err := first.keeper.Observe(t.Context(), must(users().StartMove("users", spans("0"), "h", "b"))); !errors.Is(err, ErrNotActive) {
			t.Errorf("observe: %v", err)
		}
	})
	bubble(t, "an orderly end hands over at once", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		first := start(t, s, f)
		second := start(t, s, f, func(c *Config) { c.Incarnation = "two" })
		first.stop()
		first.ended <- <-first.ended
		if _, ok := first.keeper.Deadline(); ok {
			t.Error("the first believes that it is active")
		}
		if err := first.keeper.Observe(t.Context(), must(users().StartMove("users", spans("0"), "h", "b"))); !errors.Is(err, ErrNotActive) {
			t.Errorf("observe: %v", err)
		}
		after(d / 10)
		if s.record().Holder != "two" {
			t.Errorf("holder %s", s.record().Holder)
		}
		second.wantAccepts(0, true)
	})
	bubble(t, "the same agent again need not wait", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		s.rev, s.leaseRev, s.lease = 5, 5, &store.Lease{Holder: "before", Sequence: 9, Duration: d}
		start(t, s, f, func(c *Config) { c.Previous = "before" })
		if s.record().Holder == "before" || s.record().Sequence != 10 {
			t.Errorf("record %+v", s.record())
		}
	})
}

func TestRevoked(t *testing.T) {
	t.Parallel()
	bubble(t, "", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		o := users()
		s.own(o)
		x := start(t, s, f)
		after(time.Second)
		// A failover: b takes 0-1 over, and revokes a's record in the same transaction.
		taken := must(must(o.StartMove("users", spans("0-1"), "f1", "b")).CommitMove("users", spans("0-1"), "f1"))
		s.set(func(s *memStore) {
			s.rev++
			s.owner, s.ownerRev = taken, s.rev
			l := *s.lease
			l.Revoked, l.RevokedBy = true, "f1"
			s.lease, s.leaseRev = &l, s.rev
		})
		restricted, extended := false, 0
		f.set(func(f *memFence) {
			f.seen = func(call string) {
				switch {
				case call == "restrict":
					restricted = true
				case call == "extend" && extended == 0:
					extended++
					if !restricted || len(f.bits) > 0 {
						t.Errorf("extended with bits %s on after the site was revoked", f.onLocked())
					}
				}
			}
		})
		after(d)
		x.wantOn("2-3")
		x.wantAccepts(2, true)
		if s.record().Revoked || s.record().Holder != x.keeper.cfg.Incarnation {
			t.Errorf("record %+v", s.record())
		}
	})
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{
		{Duration: time.Millisecond}, {Duration: d, Margin: d / 2}, {Duration: d, Margin: d / 200}, {Duration: d + time.Microsecond},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s with margin %s passed", c.Duration, c.Margin)
		}
	}
}
