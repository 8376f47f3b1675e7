package sdk

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

var guardRoutes = api.RouteTable{
	Keyspaces: map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: 2, Hash: topo.HashMD5, Key: topo.IntegerKey}, "unplaced": {Buckets: 1, Hash: topo.HashMD5, Key: topo.TextKey}},
	Routes:    []topo.Route{{Name: "all", Path: "/", Upstream: "app"}},
}

func guardOwnership() topo.Ownership {
	return topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 2, Hash: "md5", Ranges: []topo.Range{{First: 0, Last: 1, Owner: "a", Epoch: 1, State: topo.Open}}}})
}

// guarded is a view whose lines a test writes, and a guard with a bound of 4 s.
type guarded struct {
	t     *testing.T
	view  *View
	guard *Guard
}

func newGuarded(t *testing.T) guarded {
	v, err := NewView(ViewConfig{Site: "a", Gateways: []string{"http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	return guarded{t, v, NewGuard(v, 4*time.Second)}
}

// line is one that a gateway sends: with a document or nil, what the fence is open for, and what the gateway knows.
func (g guarded) line(o *topo.Ownership, opened uint64, age, lease time.Duration) error {
	u := &api.ViewUpdate{Format: 1, OpenedVersion: opened, Gateway: &api.GatewayWord{Site: "a", AgeMS: age.Milliseconds(), LeaseMS: lease.Milliseconds(), Table: &guardRoutes}}
	if o != nil {
		u.Ownership = o.Encode()
	}
	return g.view.apply(u, time.Now(), true)
}

func (g guarded) say(o *topo.Ownership, opened uint64, age, lease time.Duration) {
	g.t.Helper()
	if err := g.line(o, opened, age, lease); err != nil {
		g.t.Fatal(err)
	}
}

func done(o topo.Ownership, err error) *topo.Ownership {
	if err != nil {
		panic(err)
	}
	return &o
}

func TestGuard_RefusesWhereTheBucketIsNotOwned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t)
		ran := false
		job := func(context.Context, topo.Epoch) error { ran = true; return nil }
		if err := g.guard.Run(t.Context(), "users", "7", job); !errors.Is(err, ErrNoView) {
			t.Fatal(err)
		}
		expect := func(step, why string) {
			t.Helper()
			ran = false
			err := g.guard.Run(t.Context(), "users", "7", job)
			var e *ElsewhereError
			if why == "" && (err != nil || !ran) || why != "" && (!errors.As(err, &e) || e.Why != why || e.Began || ran) {
				t.Errorf("%s: %v, ran %v; want %q", step, err, ran, why)
			}
		}
		o := guardOwnership()
		g.say(&o, 0, 0, time.Minute)
		expect("the fence has not opened", WhyPending)
		g.say(nil, 1, 0, time.Minute)
		expect("owned", "")
		for _, bad := range []struct {
			ks  topo.KeyspaceID
			key string
		}{{"users", "x"}, {"users", ""}, {"unplaced", "x"}, {"nobody", "x"}} {
			if err := g.guard.Run(t.Context(), bad.ks, bad.key, job); err == nil || errors.As(err, new(*ElsewhereError)) {
				t.Errorf("%s/%s: %v", bad.ks, bad.key, err)
			}
		}
		g.say(nil, 1, 0, 0)
		expect("no lease", WhyLease)
		g.say(nil, 1, 4*time.Second, time.Minute)
		expect("no agent", WhyLost)
		g.say(nil, 1, -time.Millisecond, time.Minute)
		expect("a gateway that has heard of none since it started tells nothing new", WhyLost)
		moving := done(o.StartMove("users", topo.Spans{{First: 0, Last: 1}}, "h1", "b"))
		g.say(moving, 1, 0, time.Minute)
		expect("moving", WhyMoving)
		g.say(done(moving.CommitMove("users", topo.Spans{{First: 0, Last: 1}}, "h1")), 3, 0, time.Minute)
		expect("b's", WhyOwner)
		if err := g.line(&o, 9, 0, time.Minute); !errors.Is(err, errOlderView) {
			t.Errorf("an older document: %v", err)
		}
		expect("still b's", WhyOwner)
	})
}

func TestGuard_EndsWhatRuns(t *testing.T) {
	t.Parallel()
	o := guardOwnership()
	both := topo.Spans{{First: 0, Last: 1}}
	moving := done(o.StartMove("users", both, "h1", "b"))
	for why, leave := range map[string]func(g guarded){
		WhyMoving: func(g guarded) { g.say(moving, 1, 0, time.Minute) },
		WhyOwner:  func(g guarded) { g.say(done(moving.CommitMove("users", both, "h1")), 1, 0, time.Minute) },
		WhyEpoch:  func(g guarded) { g.say(done(moving.AbortMove("users", both, "h1")), 3, 0, time.Minute) },
		WhyLease:  func(g guarded) { g.say(nil, 1, 0, time.Second) }, // and no word after that
		WhyLost:   func(g guarded) { g.say(nil, 1, time.Second, time.Minute) },
	} {
		t.Run(why, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := newGuarded(t)
				g.say(&o, 1, 0, time.Minute)
				began := time.Now()
				err := g.guard.Run(t.Context(), "users", "007", func(ctx context.Context, epoch topo.Epoch) error {
					if epoch != 1 {
						t.Errorf("epoch %d", epoch)
					}
					g.say(nil, 1, 0, time.Minute) // a word changes nothing
					synctest.Wait()
					if ctx.Err() != nil {
						t.Errorf("ended for nothing: %v", context.Cause(ctx))
					}
					leave(g)
					<-ctx.Done()
					return ctx.Err()
				})
				var e *ElsewhereError
				if !errors.Is(err, context.Canceled) || !errors.As(err, &e) || e.Why != why || !e.Began {
					t.Errorf("error %v", err)
				}
				want := map[string]time.Duration{WhyLease: time.Second, WhyLost: 3 * time.Second}[why]
				if took := time.Since(began); took != want {
					t.Errorf("ended after %s, want %s", took, want)
				}
			})
		})
	}
}

func TestGuard_HandsOnWhatTheJobSays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t)
		o := guardOwnership()
		g.say(&o, 1, 0, time.Minute)
		own := errors.New("the job's own")
		if err := g.guard.Run(t.Context(), "users", "7", func(context.Context, topo.Epoch) error { return own }); err != own {
			t.Errorf("error %v", err)
		}
		// A job that ended well before it heard has ended well.
		err := g.guard.Run(t.Context(), "users", "7", func(context.Context, topo.Epoch) error {
			g.say(nil, 1, 0, 0)
			synctest.Wait()
			return nil
		})
		if err != nil {
			t.Errorf("error %v", err)
		}
		// The caller's end is the caller's.
		g.say(nil, 1, 0, time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		err = g.guard.Run(ctx, "users", "7", func(ctx context.Context, _ topo.Epoch) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, context.Canceled) || errors.As(err, new(*ElsewhereError)) {
			t.Errorf("error %v", err)
		}
	})
}

// A gateway whose document is older says nothing about the one in use, however fresh it is.
func TestView_AGatewayThatIsBehindConfirmsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuarded(t)
		o := guardOwnership()
		next := done(o.StartMove("users", topo.Spans{{First: 0, Last: 0}}, "h1", "b"))
		g.say(next, 2, 0, 10*time.Second)
		heard := g.view.current.Load().heard
		time.Sleep(time.Second) // of the bubble's clock
		if err := g.view.apply(&api.ViewUpdate{Format: 1, Gateway: &api.GatewayWord{Site: "a", LeaseMS: 60_000}}, time.Now(), false); err != nil {
			t.Fatal(err)
		}
		if now := g.view.current.Load(); !now.heard.Equal(heard) || time.Until(now.lease) != 9*time.Second {
			t.Errorf("heard %s, lease for %s", now.heard, time.Until(now.lease))
		}
	})
}
