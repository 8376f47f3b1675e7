package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// running starts a controller; the function it returns kills it, wherever it is.
func running(t *testing.T, c *Controller) (kill func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	synctest.Wait()
	killed := false
	kill = func() {
		if killed {
			return
		}
		killed = true
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("controller ended with %v", err)
		}
	}
	return kill
}

func twentyFive(to topo.SiteID) api.SwitchRequest {
	return api.SwitchRequest{Keyspace: "users", Buckets: "0-24", To: to, Why: "test"}
}

func start(t *testing.T, c *Controller, r api.SwitchRequest) topo.HandoverID {
	t.Helper()
	a, err := c.Switch(t.Context(), "operator ann", r)
	if err != nil {
		t.Fatal(err)
	}
	return a.ID
}

func await(t *testing.T, c *Controller, id topo.HandoverID, outcome handover.Outcome) api.Handover {
	t.Helper()
	h, err := c.Handover(t.Context(), id, 2*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if h.Outcome != string(outcome) {
		t.Fatalf("outcome %q in %s, reasons %q; want %q", h.Outcome, h.Phase, h.Reasons, outcome)
	}
	return h
}

// checkOwner fails unless buckets 0-24 are at owner and epoch, in the store and in the fences.
func (w *memWorld) checkOwner(owner topo.SiteID, epoch topo.Epoch) {
	w.t.Helper()
	synctest.Wait()
	r, _ := w.store.ownership().At("users", 7)
	if r.Owner != owner || r.Epoch != epoch || r.State != topo.Open {
		w.t.Errorf("bucket 7 in the store: %+v; want open at %s in epoch %d", r, owner, epoch)
	}
	for id, s := range w.sites {
		s.mu.Lock()
		if s.open[7] != (id == owner) {
			w.t.Errorf("fence of bucket 7 at %s is open=%v; owner is %s", id, s.open[7], owner)
		}
		s.mu.Unlock()
	}
}

func TestSwitchThereAndBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t)
		c := w.controller("a")
		defer running(t, c)()
		h := await(t, c, start(t, c, twentyFive("b")), handover.OutcomeDone)
		w.checkOwner("b", 2)
		if h.Pause == nil || h.Pause.Approximate || h.Count != 25 || h.From != "a" || h.Who != "operator ann" {
			t.Errorf("report %+v", h)
		}
		var phases []string
		for _, s := range h.Steps {
			phases = append(phases, s.Phase)
		}
		if got := strings.Join(phases, " "); got != "PREPARE MOVING FENCED CAUGHT_UP COMMITTED OPEN DONE" {
			t.Errorf("phases %s", got)
		}
		await(t, c, start(t, c, twentyFive("a")), handover.OutcomeDone)
		w.checkOwner("a", 3)
		if n := len(w.store.audit); n != 6 {
			t.Errorf("%d audit lines; want claim, commit and end of each: %q", n, w.store.audit)
		}
	})
}

// The store is led by the driver's site before the buckets move, unless that could get into anybody's way; what comes of it
// does not stop the switch.
func TestSwitchHasTheStoreLed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		prepare func(*memWorld)
		fails   error
		dry     bool
		asked   int
		fact    string
	}{
		{"moved", func(*memWorld) {}, nil, false, 1, "b, before a"},
		{"stays", func(*memWorld) {}, store.ErrLeaderStays, false, 1, store.ErrLeaderStays.Error()},
		{"dry run", func(*memWorld) {}, nil, true, 0, ""},
		{"another switch is under way", func(w *memWorld) {
			next, err := w.store.owners.StartMove("users", topo.Spans{{First: 40, Last: 41}}, "other", "b")
			if err != nil {
				t.Fatal(err)
			}
			w.store.owners = next
		}, nil, false, 0, "stays: another handover is under way or not settled, or a site does not answer"},
		{"a third site is away", func(w *memWorld) {
			w.sites["c"] = &memSite{world: w, id: "c", epoch: map[topo.BucketID]topo.Epoch{}, open: map[topo.BucketID]bool{}}
			w.sites["c"].block(func(context.Context, string) error { return errCut })
		}, nil, false, 0, "stays: another handover is under way or not settled, or a site does not answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newMemWorld(t)
				c.prepare(w)
				asked := 0
				ctl := w.controller("b")
				ctl.cfg.Lead = func(_ context.Context, site topo.SiteID) (topo.SiteID, error) {
					asked++
					if r, _ := w.store.ownership().At("users", 7); r.State != topo.Open || site != "b" {
						t.Errorf("asked for %s while bucket 7 is %s", site, r.State)
					}
					return "a", c.fails
				}
				defer running(t, ctl)()
				r := twentyFive("b")
				r.DryRun = c.dry
				answer, err := ctl.Switch(t.Context(), "operator ann", r)
				if err != nil {
					t.Fatal(err)
				}
				if got := answer.Handover.Steps[0].Facts["store leader"]; asked != c.asked || got != c.fact {
					t.Errorf("asked %d times: %q; want %d: %q", asked, got, c.asked, c.fact)
				}
				if !c.dry {
					await(t, ctl, answer.ID, handover.OutcomeDone)
				}
			})
		})
	}
}

func TestSwitchIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		prepare func(*memWorld)
		request api.SwitchRequest
		want    string
	}{
		{"target not ready", func(w *memWorld) {
			w.sites["b"].problems = []api.Problem{{Check: "target-lag", Site: "b", Text: "9 s behind"}}
		}, twentyFive("b"), "target-lag at b: 9 s behind"},
		{"source does not answer", func(w *memWorld) {
			w.sites["a"].block(func(context.Context, string) error { return errCut })
		}, twentyFive("b"), "agent at a: connection reset; start the agent"},
		{"there already", func(*memWorld) {}, twentyFive("a"), "are at a already"},
		{"several owners", func(w *memWorld) {
			o, _ := w.store.owners.StartMove("users", topo.Spans{{First: 0, Last: 3}}, "h0", "b")
			w.store.owners, _ = o.CommitMove("users", topo.Spans{{First: 0, Last: 3}}, "h0")
		}, twentyFive("b"), "b has 0-3, a has 4-24; switch them one owner at a time, first --buckets 4-24"},
		{"moving", func(w *memWorld) {
			w.store.owners, _ = w.store.owners.StartMove("users", topo.Spans{{First: 20, Last: 30}}, "h0", "b")
		}, twentyFive("b"), "buckets 20-24 move in handover h0"},
		{"no such keyspace", func(*memWorld) {}, api.SwitchRequest{Keyspace: "uzers", Buckets: "0", To: "b"}, `"uzers" does not exist`},
		{"no such site", func(*memWorld) {}, api.SwitchRequest{Keyspace: "users", Buckets: "0", To: "c"}, `site "c" does not exist`},
		{"bad buckets", func(*memWorld) {}, api.SwitchRequest{Keyspace: "users", Buckets: "9-1", To: "b"}, "reversed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newMemWorld(t)
				c.prepare(w)
				before := w.store.owners.Checksum
				ctl := w.controller("a")
				defer running(t, ctl)()
				for _, dry := range []bool{true, false} {
					c.request.DryRun = dry
					_, err := ctl.Switch(t.Context(), "operator ann", c.request)
					if err == nil || !strings.Contains(err.Error(), c.want) {
						t.Errorf("dry run %v: error %v; want %q", dry, err, c.want)
					}
				}
				if w.store.ownership().Checksum != before {
					t.Error("a refused switch changed the ownership")
				}
			})
		})
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t)
		c := w.controller("a")
		defer running(t, c)()
		r := twentyFive("b")
		r.DryRun = true
		a, err := c.Switch(t.Context(), "operator ann", r)
		if err != nil || a.Handover.Outcome != string(handover.OutcomeReady) || a.Handover.From != "a" {
			t.Fatalf("answer %+v, %v", a, err)
		}
		time.Sleep(time.Minute)
		if w.store.rev != 1 {
			t.Errorf("store is at revision %d; want untouched", w.store.rev)
		}
	})
}

func TestAbortReopensAtTheNextEpoch(t *testing.T) {
	t.Parallel()
	for name, break_ := range map[string]func(*memWorld){
		"writers remain":         func(w *memWorld) { w.sites["a"].writers = true },
		"source does not answer": func(w *memWorld) { w.sites["a"].block(failing(errCut, "close", "settled")) },
		"marker does not come":   func(w *memWorld) { w.sites["b"].block(failing(errCut, "caught-up")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newMemWorld(t)
				break_(w)
				c := w.controller("b")
				defer running(t, c)()
				h := await(t, c, start(t, c, twentyFive("b")), handover.OutcomeAborted)
				if len(h.Reasons) == 0 {
					t.Error("no reason")
				}
				w.checkOwner("a", 2)
			})
		})
	}
}

func failing(err error, steps ...string) func(context.Context, string) error {
	return func(_ context.Context, step string) error {
		for _, s := range steps {
			if s == step {
				return err
			}
		}
		return nil
	}
}

// TestDriverDiesAtEveryStep stops the driver in the middle of a step, kills it there, and lets the other site's
// controller finish.
func TestDriverDiesAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		site topo.SiteID
		step string
	}{{"b", "settled"}, {"a", "close"}, {"a", "closed"}, {"b", "caught-up"}, {"b", "open"}, {"b", "opened"}} {
		t.Run(fmt.Sprintf("%s at %s", c.step, c.site), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newMemWorld(t)
				first, second := w.controller("a"), w.controller("b")
				kill := running(t, first)
				defer running(t, second)()
				stuck := make(chan struct{}, 100)
				w.sites[c.site].block(func(ctx context.Context, step string) error {
					if step != c.step {
						return nil
					}
					stuck <- struct{}{}
					<-ctx.Done()
					return ctx.Err()
				})
				id := start(t, first, twentyFive("b"))
				<-stuck
				kill()
				w.sites[c.site].block(nil)
				h := await(t, second, id, handover.OutcomeDone)
				if h.Driver != "b/1" {
					t.Errorf("driver %s; want b/1", h.Driver)
				}
				w.checkOwner("b", 2)
			})
		})
	}
}

// TestPausedDriverIsDeposed: the first driver does not die, it stands still. When it goes on, it finds the record in
// other hands and writes nothing.
func TestPausedDriverIsDeposed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t)
		first, second := w.controller("a"), w.controller("b")
		path := &cuttable{Store: w.store} // the first controller's path to the store
		first.cfg.Store = path
		defer running(t, first)()
		defer running(t, second)()
		stuck := make(chan struct{}, 100)
		w.sites["a"].block(func(ctx context.Context, step string) error {
			if step == "close" && !path.cut.Swap(true) {
				stuck <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		id := start(t, first, twentyFive("b"))
		<-stuck
		await(t, second, id, handover.OutcomeDone)
		path.cut.Store(false)
		time.Sleep(time.Minute)
		if first.drives(id) {
			t.Error("the deposed driver still drives")
		}
		w.checkOwner("b", 2)
		if r, _ := w.store.record(t, id); r.Driver != "b/1" || r.Phase != handover.Done {
			t.Errorf("record of driver %s in %s", r.Driver, r.Phase)
		}
	})
}

func TestStoreIsAwayInTheMiddle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t)
		c := w.controller("a")
		defer running(t, c)()
		w.sites["b"].block(func(_ context.Context, step string) error {
			if step == "caught-up" {
				w.store.set(func() { w.store.away = true })
			}
			return nil
		})
		id := start(t, c, twentyFive("b"))
		time.Sleep(40 * time.Second)
		for id, s := range w.sites {
			s.mu.Lock()
			if s.open[7] {
				t.Errorf("without the store, a bucket behind FENCED opened at %s", id)
			}
			s.mu.Unlock()
		}
		w.store.set(func() { w.store.away = false })
		await(t, c, id, handover.OutcomeDone)
		w.checkOwner("b", 2)
	})
}

// TestAnswersOfTheStoreAreLost: claim and commit are carried out, but nobody says so.
func TestAnswersOfTheStoreAreLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t)
		c := w.controller("a")
		defer running(t, c)()
		lose := func() { w.store.set(func() { w.store.loseNext = true }) }
		w.sites["b"].block(func(_ context.Context, step string) error {
			if step == "ready" || step == "caught-up" {
				lose()
			}
			return nil
		})
		await(t, c, start(t, c, twentyFive("b")), handover.OutcomeDone)
		w.checkOwner("b", 2)
	})
}

// TestManyAtOnce: handovers of different buckets share the ownership document; its conflicts delay, and nothing else.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newMemWorld(t)
		a, b := w.controller("a"), w.controller("b")
		defer running(t, a)()
		defer running(t, b)()
		results := make(chan error)
		for n := range 16 {
			c := []*Controller{a, b}[n%2]
			go func() {
				answer, err := c.Switch(t.Context(), "operator ann", api.SwitchRequest{Keyspace: "users", Buckets: fmt.Sprintf("%d-%d", 4*n, 4*n+3), To: "b"})
				if err == nil {
					var h api.Handover
					if h, err = c.Handover(t.Context(), answer.ID, time.Minute); err == nil && h.Outcome != "done" {
						err = fmt.Errorf("outcome %s: %q", h.Outcome, h.Reasons)
					}
				}
				results <- err
			}()
		}
		for range 16 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		if got := w.store.ownership().Keyspaces["users"].Ranges; len(got) != 1 || got[0].Owner != "b" || got[0].Epoch != 2 {
			t.Errorf("ranges %+v; want all at b in epoch 2", got)
		}
	})
}
