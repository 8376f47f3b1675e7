package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/balance"
	"github.com/atollhq/atoll/internal/limit"
	"github.com/atollhq/atoll/topo"
)

// narrow is a service that works at so many requests at the same time, each for so long; the others wait in it.
type narrow struct {
	slots chan struct{}
	takes time.Duration
	done  atomic.Int64
}

func newNarrow(slots int, takes time.Duration) *narrow {
	return &narrow{slots: make(chan struct{}, slots), takes: takes}
}

func (n *narrow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.slots <- struct{}{}
	<-time.After(n.takes)
	<-n.slots
	n.done.Add(1)
}

// most is what it can do in a time.
func (n *narrow) most(in time.Duration) float64 {
	return float64(cap(n.slots)) * float64(in) / float64(n.takes)
}

func priorityRoutes() []topo.Route {
	out := slices.Clone(testRoutes)
	for _, p := range priorities {
		out = append(out, topo.Route{Name: string(p), Path: "/" + string(p), Upstream: "app", Priority: p})
	}
	return out
}

// Where a service is full, those of a higher priority go first, and what waits at a lower one makes room for them.
func TestPriorities(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan string, 10), make(chan struct{})
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- r.URL.Path
		<-leave
	}), func(c *Config) {
		c.Routes = priorityRoutes()
		up := c.Upstreams["app"]
		up.Limits = &Limits{Requests: 1, Pending: 2, Wait: 10 * time.Second}
		c.Upstreams["app"] = up
	})
	c := newClient(t)
	got := map[string]chan answer{}
	ask := func(name, path string) {
		got[name] = make(chan answer, 1)
		go func() { got[name] <- do(t, c, "GET", a.url(path), "", "") }()
	}
	pending := func(n int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d wait", n), func() bool { return a.gw.upstreams.services["app"].gate.state().Pending == n })
	}
	ask("first", "/normal")
	<-entered
	ask("low", "/low")
	pending(1)
	ask("normal", "/normal/2")
	pending(2)
	ask("high", "/high")
	out := <-got["low"] // displaced
	want(t, out, 503, reasonOverload)
	if out.header.Get("Retry-After") == "" {
		t.Errorf("headers %v", out.header)
	}
	want(t, do(t, c, "GET", a.url("/low/2"), "", ""), 503, reasonOverload) // full
	pending(2)
	leave <- struct{}{}
	want(t, <-got["first"], 200, "")
	if path := <-entered; path != "/high" {
		t.Errorf("%s went before /high", path)
	}
	leave <- struct{}{}
	want(t, <-got["high"], 200, "")
	<-entered
	leave <- struct{}{}
	want(t, <-got["normal"], 200, "")
	for cause, n := range map[string]float64{"displaced": 1, "full": 1, "waited": 0} {
		if got := a.counter("overload_total", "cause", cause, "priority", "low", "upstream", "app"); got != n {
			t.Errorf("%s: %v, want %v", cause, got, n)
		}
	}
}

// Whoever waits too long is told so; whoever goes away makes room.
func TestWaitingEnds(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}, 10), make(chan struct{})
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { entered <- struct{}{}; <-leave }), func(c *Config) {
		up := c.Upstreams["app"]
		up.Limits = &Limits{Requests: 1, Wait: 50 * time.Millisecond}
		c.Upstreams["app"] = up
	})
	gate := a.gw.upstreams.services["app"].gate
	c := newClient(t)
	first := make(chan answer, 1)
	go func() { first <- do(t, c, "POST", a.url("/users"), keyIn(0), "x") }()
	<-entered
	want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 503, reasonOverload)
	if n := a.counter("overload_total", "cause", "waited", "priority", "normal", "upstream", "app"); n != 1 {
		t.Errorf("%v waited", n)
	}
	gate.wait = time.Minute // nobody waits now
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error)
	go func() {
		req, _ := http.NewRequestWithContext(ctx, "GET", a.url("/"), nil)
		_, err := c.Do(req)
		gone <- err
	}()
	eventually(t, "it waits", func() bool { return gate.state().Pending == 1 })
	cancel()
	if <-gone == nil {
		t.Error("answered")
	}
	eventually(t, "nobody waits", func() bool { return gate.state().Pending == 0 })
	close(leave)
	want(t, <-first, 200, "")
	want(t, do(t, c, "GET", a.url("/"), "", ""), 200, "")
	eventually(t, "nobody is inside", func() bool { return gate.state().Inside == 0 })
}

// What lasts keeps nobody out.
func TestStreamsAreNotBounded(t *testing.T) {
	t.Parallel()
	leave := make(chan struct{})
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			<-leave
		}
	}), func(c *Config) {
		up := c.Upstreams["app"]
		up.Limits = &Limits{Requests: 1, Wait: time.Millisecond}
		c.Upstreams["app"] = up
	})
	c := newClient(t)
	for range 3 {
		resp, err := c.Get(a.url("/events"))
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
		defer resp.Body.Close()
	}
	defer close(leave)
	want(t, do(t, c, "GET", a.url("/"), "", ""), 200, "")
	if n := a.gw.upstreams.services["app"].pool.States(time.Now())[0].Active; n != 3 {
		t.Errorf("%d requests are counted at the instance", n)
	}
}

// As many at each instance as it may have: the one that is left waits, though the other ones are idle now and then.
func TestConnections(t *testing.T) {
	t.Parallel()
	var most [3]atomic.Int64
	var there [3]atomic.Int64
	all := several(t, 3, func(i int, w http.ResponseWriter, r *http.Request) {
		n := there[i].Add(1)
		for m := most[i].Load(); n > m && !most[i].CompareAndSwap(m, n); m = most[i].Load() {
		}
		<-time.After(2 * time.Millisecond)
		there[i].Add(-1)
	})
	a := alone(t, echo("a"), func(c *Config) {
		c.Upstreams = map[string]Upstream{"app": {URL: "http://app.test", Instances: all, Limits: &Limits{Connections: 2, Pending: 100, Wait: 30 * time.Second}}}
	})
	c := newClient(t)
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			for range 10 {
				want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 200, "")
			}
		})
	}
	wg.Wait()
	for i := range most {
		if n := most[i].Load(); n > 3 { // one that leaves is counted for a moment more
			t.Errorf("%d at instance %d", n, i)
		}
	}
}

// A service gets five times what it can do, from clients that do not wait for each other: it goes on doing most of what
// it can, memory is bounded, and right behind that everybody is let in again. Alone on the machine, as far as the
// tests of this package go.
func TestOverload(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector the machine is the bottleneck, not the application; make test runs it without")
	}
	app := newNarrow(10, 20*time.Millisecond)
	a := alone(t, app, func(c *Config) {
		up := c.Upstreams["app"]
		up.Limits = &Limits{Adaptive: &limit.Adaptive{}}
		c.Upstreams["app"] = up
	})
	c := newClient(t)
	c.Transport.(*http.Transport).MaxIdleConnsPerHost = 500
	var good, shed, other atomic.Int64
	flood := func(rate float64, length time.Duration) {
		var wg sync.WaitGroup
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		sent := 0
		for began := time.Now(); time.Since(began) < length; <-tick.C {
			for ; float64(sent) < time.Since(began).Seconds()*rate; sent++ {
				wg.Go(func() {
					resp, err := c.Get(a.url("/"))
					switch {
					case err != nil:
						other.Add(1)
						return
					case resp.StatusCode == 200:
						good.Add(1)
					case resp.Header.Get(hReason) == string(reasonOverload) && resp.Header.Get("Retry-After") != "":
						shed.Add(1)
					default:
						other.Add(1)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				})
			}
		}
		wg.Wait()
	}
	can := app.most(time.Second)
	flood(can, time.Second) // it learns; and so does the machine
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := memory()
	app.done.Store(0)
	good.Store(0)
	shed.Store(0)
	const length = 3 * time.Second
	began := time.Now()
	flood(5*can, length)
	took := time.Since(began)
	share := float64(good.Load()) / app.most(took)
	grown := int64(memory()) - int64(before)
	t.Logf("%.1f %% of what it can; %d shed, %d other; limit %+v; %d KiB more memory", 100*share, shed.Load(), other.Load(), a.gw.upstreams.services["app"].gate.state(), grown>>10)
	if share < 0.8 {
		t.Error("too little was done")
	}
	if other.Load() > 0 || shed.Load() == 0 {
		t.Error("requests ended in another way")
	}
	if grown > 64<<20 {
		t.Errorf("%d MiB more memory", grown>>20)
	}
	shed.Store(0)
	flood(can/2, time.Second)
	if n := shed.Load(); float64(n) > can/20 {
		t.Errorf("%d were still shed behind it", n)
	}
}

// One of three instances gets twenty times as slow: the others' answers do not take twice as long.
func TestSlowInstance(t *testing.T) {
	var slow atomic.Bool
	const takes = 20 * time.Millisecond
	all := several(t, 3, func(i int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Instance", fmt.Sprint(i))
		if i == 0 && slow.Load() {
			<-time.After(20 * takes)
			return
		}
		<-time.After(takes)
	})
	a := alone(t, echo("a"), func(c *Config) {
		c.Upstreams = map[string]Upstream{"app": {URL: "http://app.test", Instances: all, Ejection: balance.Ejection{Unreached: -1}, Limits: &Limits{Adaptive: &limit.Adaptive{}}}}
	})
	c := newClient(t)
	measure := func() (p99 time.Duration, share float64) {
		var mu sync.Mutex
		var of []time.Duration
		var wg sync.WaitGroup
		slowest, n := 0, 0
		for range 20 {
			wg.Go(func() {
				for range 25 {
					began := time.Now()
					one := do(t, c, "GET", a.url("/"), "", "")
					took := time.Since(began)
					mu.Lock()
					if n++; one.header.Get("X-Instance") == "0" {
						slowest++
					} else {
						of = append(of, took)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		slices.Sort(of)
		return of[len(of)*99/100], float64(slowest) / float64(n)
	}
	measure()
	before, _ := measure()
	slow.Store(true)
	with, share := measure()
	t.Logf("p99 of the others %s, with a slow one %s; that got %.0f %%", before, with, 100*share)
	if with > 2*before {
		t.Error("too slow")
	}
	if share > 0.2 {
		t.Error("too much went to the slow one")
	}
}
