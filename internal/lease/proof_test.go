package lease

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
)

func TestAnotherDatabase(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*memFence){
		"a promoted standby": func(f *memFence) { f.identity.Timeline = 2 },
		"an old snapshot":    func(f *memFence) { f.beat -= 2 },
	} {
		bubble(t, name+" that owns buckets is closed", func(t *testing.T) {
			s, f := &memStore{}, newMemFence("a")
			s.own(users())
			x := start(t, s, f)
			after(d)
			renewed, _ := s.renewed()
			f.set(change)
			after(10 * d)
			x.wantOn("")
			if n, _ := s.renewed(); n != renewed {
				t.Errorf("the lease was renewed %d times for another database", n-renewed)
			}
			if p := x.keeper.Status().Problem; !strings.Contains(p, ErrDatabaseChanged.Error()) || x.keeper.Differs() == nil {
				t.Errorf("problem %q", p)
			}
			if !x.keeper.Holder() {
				t.Error("what else runs while the agent is active was ended")
			}
			if n := f.did("restrict"); n > 3 {
				t.Errorf("the fence was closed %d times", n)
			}
			// Nor does a new run take it for granted.
			x.stop()
			x.ended <- <-x.ended
			y := start(t, s, f, func(c *Config) { c.Previous = x.keeper.cfg.Incarnation })
			after(d)
			y.wantOn("")
			// Taken over, and with nothing left to itself, the site adopts it.
			taken := must(must(users().StartMove("users", spans("0-3"), "f1", "b")).CommitMove("users", spans("0-3"), "f1"))
			s.own(taken)
			s.set(func(s *memStore) {
				l := *s.lease
				l.Revoked, l.RevokedBy, l.Sequence = true, "f1", l.Sequence+1
				s.rev++
				s.lease, s.leaseRev = &l, s.rev
			})
			after(d)
			if l := s.record(); l.Database != f.identity || l.Beat > f.beat || !l.Rebuild || l.Revoked || y.keeper.Differs() != nil {
				t.Errorf("record %+v", l)
			}
			y.wantOn("")
			if !y.keeper.Status().Active || !y.keeper.Status().Rebuild {
				t.Errorf("status %+v", y.keeper.Status())
			}
		})
	}
	bubble(t, "that owns nothing is adopted", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("c")
		s.own(users())
		x := start(t, s, f, func(c *Config) { c.Site = "c" })
		f.set(func(f *memFence) { f.identity.System = "8000"; f.beat = 0 })
		after(d)
		if s.record().Database.System != "8000" || !x.keeper.Status().Active {
			t.Errorf("record %+v, status %+v", s.record(), x.keeper.Status())
		}
	})
}

func TestDatabaseClockStepsBack(t *testing.T) {
	t.Parallel()
	for _, step := range []time.Duration{300 * time.Millisecond, 5 * time.Second, time.Hour} {
		bubble(t, "by "+step.String(), func(t *testing.T) {
			s, f := &memStore{}, newMemFence("a")
			s.own(users())
			x := start(t, s, f)
			after(d)
			var moment time.Time
			f.set(func(f *memFence) { f.ahead -= step; moment = f.lease })
			after(d / 3) // the next heartbeat
			x.wantOn("")
			if f.did("distrust") != 1 || x.keeper.Status().Clock == "" || x.keeper.Status().Problem == "" {
				t.Errorf("status %+v", x.keeper.Status())
			}
			if _, ok := x.keeper.Deadline(); ok {
				t.Error("the keeper believes that the fence is open")
			}
			// A new run knows it from the database.
			x.stop()
			x.ended <- <-x.ended
			f.set(func(f *memFence) {
				f.seen = func(call string) {
					if (strings.HasPrefix(call, "open") || call == "extend") && f.clock().Before(moment) {
						t.Errorf("%s while the clock is %s behind the last moment", call, moment.Sub(f.clock()))
					}
				}
			})
			y := start(t, s, f, func(c *Config) { c.Previous = x.keeper.cfg.Incarnation })
			after(step + 2*d)
			y.wantOn("0-3")
			y.wantAccepts(0, true)
		})
	}
	bubble(t, "while no keeper looked", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f)
		after(d)
		x.stop()
		x.ended <- <-x.ended
		f.set(func(f *memFence) { f.ahead -= time.Minute })
		y := start(t, s, f, func(c *Config) { c.Previous = x.keeper.cfg.Incarnation })
		after(30 * time.Second)
		y.wantOn("")
		after(time.Minute)
		y.wantAccepts(0, true)
	})
	bubble(t, "a slow clock", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f)
		for range 4 { // half a second in every three
			f.set(func(f *memFence) { f.ahead -= 500 * time.Millisecond })
			after(d / 3)
		}
		if f.did("distrust") == 0 {
			t.Errorf("unnoticed: %+v", x.keeper.Status())
		}
	})
	bubble(t, "a step forward closes early and is reported", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f)
		f.set(func(f *memFence) { f.ahead += time.Hour })
		x.wantAccepts(0, false)
		after(d / 3)
		x.wantAccepts(0, true)
		if st := x.keeper.Status(); st.Clock == "" || f.did("distrust") > 0 {
			t.Errorf("status %+v", st)
		}
	})
	bubble(t, "slow answers are no step", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f)
		for range 20 {
			f.set(func(f *memFence) { f.slow = d / 4 })
			after(d / 3)
			f.set(func(f *memFence) { f.slow = 0 })
			after(d / 3)
		}
		if st := x.keeper.Status(); st.Clock != "" || f.did("distrust") > 0 {
			t.Errorf("status %+v", st)
		}
	})
	bubble(t, "a site that owns nothing goes on with the clock as it is", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("c")
		s.own(users())
		x := start(t, s, f, func(c *Config) { c.Site = "c" })
		f.set(func(f *memFence) { f.ahead -= time.Hour })
		after(d)
		if st := x.keeper.Status(); !st.Active || st.Problem != "" || f.did("forget") == 0 {
			t.Errorf("status %+v", st)
		}
	})
}

// TestLapsedLeaseEndsWriters: with real transactions it is in package postgres; here, when and how often.
func TestLapsedLeaseEndsWriters(t *testing.T) {
	t.Parallel()
	bubble(t, "within W", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f, func(c *Config) { c.W = 2 * time.Second })
		began := time.Now()
		f.set(func(f *memFence) { f.writers = 3 })
		s.set(func(s *memStore) { s.down = true })
		lapse := began.Add(d - margin)
		after(time.Until(lapse) + 900*time.Millisecond)
		if n := f.did("end writers"); n != 0 {
			t.Errorf("ended %d times before half of W", n)
		}
		after(1100 * time.Millisecond)
		if st := x.keeper.Status(); f.did("end writers") != 1 || st.WritersEnded != 3 || st.WritersLeft != "" {
			t.Errorf("status %+v", st)
		}
		after(time.Minute)
		if n := f.did("end writers"); n != 1 {
			t.Errorf("ended %d times for one lapse", n)
		}
	})
	bubble(t, "unless renewed in time", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f, func(c *Config) { c.W = 4 * time.Second })
		began := time.Now()
		f.set(func(f *memFence) { f.writers = 3 })
		s.set(func(s *memStore) { s.down = true })
		after(time.Until(began.Add(d - margin + time.Second)))
		x.wantAccepts(0, false)
		s.set(func(s *memStore) { s.down = false })
		after(d)
		x.wantAccepts(0, true)
		if n := f.did("end writers"); n > 0 {
			t.Errorf("ended %d times", n)
		}
	})
	bubble(t, "and says which it cannot end", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f)
		f.set(func(f *memFence) {
			f.refuse["end writers"] = &postgres.WritersLeftError{Blockers: []postgres.Blocker{{PID: 7, Role: "root"}}}
		})
		s.set(func(s *memStore) { s.down = true })
		after(3 * d)
		if st := x.keeper.Status(); !strings.Contains(st.WritersLeft, "backend 7 of role root") || f.did("end writers") < 2 {
			t.Errorf("status %+v", st)
		}
	})
	bubble(t, "and when a revoked site starts", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		s.rev, s.leaseRev, s.lease = 5, 5, &store.Lease{Holder: "before", Sequence: 9, Duration: d, Revoked: true, RevokedBy: "f1"}
		f.writers = 1
		f.seen = func(call string) {
			if call == "extend" && f.writers > 0 {
				t.Error("extended before the writers of the old epochs were gone")
			}
		}
		x := start(t, s, f)
		after(d)
		if st := x.keeper.Status(); st.WritersEnded != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

// TestActive: what else being active is runs exactly while the record is the keeper's.
func TestActive(t *testing.T) {
	t.Parallel()
	bubble(t, "", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		var running atomic.Int32
		path := &pathToStore{memStore: s}
		k := func(name string, st Store) *Keeper {
			return must(New(Config{Site: "a", Store: st, Fence: f, Duration: d, Margin: margin, Incarnation: name}))
		}
		role := func(k *Keeper) func(context.Context) error {
			return func(ctx context.Context) error {
				if n := running.Add(1); n != 1 || !k.Holder() {
					t.Errorf("%d are active, holder %t", n, k.Holder())
				}
				<-ctx.Done()
				time.Sleep(d / 10) // an orderly end takes its time
				running.Add(-1)
				return nil
			}
		}
		one, two := k("one", path), k("two", s)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		ended := make(chan error, 2)
		go func() { ended <- one.Run(ctx, role(one)) }()
		synctest.Wait()
		go func() { ended <- two.Run(ctx, role(two)) }()
		after(5 * d)
		if running.Load() != 1 || two.Holder() || !one.Holder() {
			t.Errorf("%d active, the second holds: %t", running.Load(), two.Holder())
		}
		path.cut.Store(true) // the store is silent for the first: it goes on replicating, until it learns that another took over
		after(d - time.Second)
		if running.Load() != 1 || !one.Holder() {
			t.Error("a silent store ended what runs while active")
		}
		s.set(func(s *memStore) { s.down = true })
		path.cut.Store(false)
		s.set(func(s *memStore) { s.down = false })
		stop()
		if err := errors.Join(<-ended, <-ended); err != nil || running.Load() != 0 {
			t.Errorf("%v, %d still active", err, running.Load())
		}
		if !s.record().Released {
			t.Errorf("record %+v", s.record())
		}
	})
	bubble(t, "ended while a renewal is under way, it releases the record all the same", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		k := must(New(Config{Site: "a", Store: s, Fence: f, Duration: d, Margin: margin}))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- k.Run(ctx, nil) }()
		synctest.Wait()
		s.set(func(s *memStore) { s.loseAnswer = true })
		for before, _ := s.renewed(); ; {
			after(d / 1000)
			if now, _ := s.renewed(); now > before { // written; the answer is on its way
				break
			}
		}
		stop()
		s.set(func(s *memStore) { s.loseAnswer = false })
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if !s.record().Released {
			t.Errorf("record %+v", s.record())
		}
	})
	bubble(t, "its own end releases the record", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		k := must(New(Config{Site: "a", Store: s, Fence: f, Duration: d, Margin: margin}))
		broken := errors.New("the port is in use")
		if err := k.Run(t.Context(), func(context.Context) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("ended with %v", err)
		}
		if !s.record().Released || k.Holder() {
			t.Errorf("record %+v", s.record())
		}
	})
}
