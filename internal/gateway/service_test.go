package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/balance"
)

// several starts instances of one application; each answers by its number.
func several(t testing.TB, n int, handle func(i int, w http.ResponseWriter, r *http.Request)) []balance.Instance {
	t.Helper()
	out := make([]balance.Instance, n)
	for i := range out {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handle(i, w, r) }))
		t.Cleanup(s.Close)
		out[i] = balance.Instance{Address: s.Listener.Addr().String()}
	}
	return out
}

func byNumber(i int, w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, i) }

// All instances take part; with zones, those of the gateway's own while it is quiet.
func TestInstances(t *testing.T) {
	t.Parallel()
	all := several(t, 4, byNumber)
	for i := range all {
		all[i].Zone = []string{"x", "y"}[i%2]
	}
	for zone, want := range map[string][]string{"": {"0", "1", "2", "3"}, "x": {"0", "2"}, "nowhere": {"0", "1", "2", "3"}} {
		a := alone(t, echo("a"), func(c *Config) {
			c.Upstreams = map[string]Upstream{"app": {URL: "http://app.test/base", Instances: all}}
			c.Zone = zone
		})
		c := newClient(t)
		var who []string
		for range 100 {
			who = append(who, do(t, c, "GET", a.url("/"), "", "").body)
		}
		slices.Sort(who)
		if got := slices.Compact(who); !slices.Equal(got, want) {
			t.Errorf("zone %q: %v answered, want %v", zone, got, want)
		}
		if n := a.counter("attempts_total", "outcome", "answered", "upstream", "app"); n != 100 {
			t.Errorf("%v attempts were counted", n)
		}
	}
}

// One of three is dead: nobody notices. Each request that met it went to another one, and soon nobody meets it.
func TestDeadInstanceIsEjected(t *testing.T) {
	t.Parallel()
	all := append(several(t, 2, byNumber), balance.Instance{Address: freeAddr(t)})
	a := alone(t, echo("a"), func(c *Config) {
		c.Upstreams = map[string]Upstream{"app": {URL: "http://app.test", Instances: all, Ejection: balance.Ejection{Unreached: 3, Base: time.Minute}}}
	})
	c := newClient(t)
	for range 200 {
		want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 200, "")
	}
	unreached := func() float64 { return a.counter("attempts_total", "outcome", "unreached", "upstream", "app") }
	eventually(t, "it is ejected", func() bool {
		want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 200, "")
		return a.counter("ejections_total", "outcome", "unreached", "upstream", "app") == 1
	})
	if n := unreached(); n != 3 {
		t.Errorf("%v attempts met it", n)
	}
	s := a.gw.upstreams.services["app"].pool.Summary(time.Now())
	if s.All != 3 || s.Fit != 2 || s.Ejected != 1 || s.Panic {
		t.Errorf("%+v", s)
	}
}

// An application's own errors are passed on, and eject an instance only where they do not stop; the fence's word is none.
func TestErrorsOfTheApplication(t *testing.T) {
	t.Parallel()
	var fenced atomic.Bool
	all := several(t, 2, func(i int, w http.ResponseWriter, r *http.Request) {
		switch {
		case fenced.Load():
			w.Header().Set(hFenced, "users/9/1") // of another bucket, so it is passed on
			w.WriteHeader(503)
		case i == 0:
			w.WriteHeader(500)
		}
	})
	a := alone(t, echo("a"), func(c *Config) {
		c.Upstreams = map[string]Upstream{"app": {URL: "http://app.test", Instances: all, Ejection: balance.Ejection{Errors: 4, Base: time.Minute}}}
	})
	c := newClient(t)
	fenced.Store(true)
	for range 20 {
		want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 503, reasonFenced)
	}
	fenced.Store(false)
	ejected := func() bool { return a.counter("ejections_total", "outcome", "errored", "upstream", "app") > 0 }
	if ejected() {
		t.Fatal("ejected for what the fence said")
	}
	errors := 0
	eventually(t, "it is ejected", func() bool {
		if do(t, c, "GET", a.url("/"), "", "").status == 500 {
			errors++
		}
		return ejected()
	})
	if errors != 4 {
		t.Errorf("%d errors were passed on", errors)
	}
	for range 20 {
		want(t, do(t, c, "GET", a.url("/"), "", ""), 200, "")
	}
}

// The one instance of a service is used, whatever was met there.
func TestLastInstanceStays(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	a := alone(t, echo("a"), func(c *Config) {
		c.Upstreams = map[string]Upstream{"app": {URL: "http://" + addr, Ejection: balance.Ejection{Unreached: 1}}}
	})
	c := newClient(t)
	for range 5 {
		want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 502, reasonAppDown)
	}
	s := &http.Server{Addr: addr, Handler: echo("a")}
	ln, err := net.Listen("tcp", addr)
	must0(err)
	go func() { _ = s.Serve(ln) }() // ends with Close
	t.Cleanup(func() { _ = s.Close() })
	want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 200, "")
}

// What active checks say decides who is used, from the first one on; an instance that is not well comes back when it is.
func TestHealthChecks(t *testing.T) {
	t.Parallel()
	var sick [3]atomic.Bool
	var asked atomic.Int64
	all := several(t, 3, func(i int, w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/healthz":
			fmt.Fprint(w, i)
		case r.Host != "app.test":
			t.Errorf("asked as %s", r.Host)
		case sick[i].Load():
			w.WriteHeader(500)
		default:
			asked.Add(1)
			w.WriteHeader(204)
		}
	})
	sick[2].Store(true)
	a := alone(t, echo("a"), func(c *Config) {
		c.Upstreams = map[string]Upstream{"app": {URL: "http://app.test", Instances: all,
			Health: HealthCheck{Path: "/healthz", Interval: 10 * time.Millisecond, Timeout: 10 * time.Second, Rules: balance.Health{Up: 2, Down: 2}}}}
	})
	c := newClient(t)
	pool := a.gw.upstreams.services["app"].pool
	fit := func(want int, panic bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d are fit", want), func() bool {
			s := pool.Summary(time.Now())
			return s.Fit == want && s.Panic == panic
		})
	}
	who := func() []string {
		var got []string
		for range 50 {
			one := do(t, c, "POST", a.url("/users"), keyIn(0), "x")
			want(t, one, 200, "")
			got = append(got, one.body)
		}
		slices.Sort(got)
		return slices.Compact(got)
	}
	fit(2, false)
	if got := who(); !slices.Equal(got, []string{"0", "1"}) {
		t.Errorf("%v answered", got)
	}
	sick[2].Store(false)
	fit(3, false)
	for i := range sick { // the check is wrong, or everybody is: then all are used
		sick[i].Store(true)
	}
	fit(0, true)
	if got := who(); len(got) != 3 {
		t.Errorf("%v answered", got)
	}
	if asked.Load() == 0 || a.counter("checks_total", "result", "bad", "upstream", "app") == 0 {
		t.Error("not counted")
	}
}

// Instances come and go as sources tell; what one source says does not touch what another one did.
func TestSources(t *testing.T) {
	t.Parallel()
	all := several(t, 4, byNumber)
	said := make(chan []balance.Instance)
	source := func(ctx context.Context, found func([]balance.Instance)) error {
		for {
			select {
			case in := <-said:
				found(in)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	a := alone(t, echo("a"), func(c *Config) {
		fixed := func(ctx context.Context, found func([]balance.Instance)) error {
			found(all[3:])
			<-ctx.Done()
			return ctx.Err()
		}
		c.Upstreams = map[string]Upstream{"app": {URL: "http://app.test", Sources: []Source{source, fixed}, Health: HealthCheck{Path: "/healthz"}}}
	})
	c := newClient(t)
	for _, in := range [][]balance.Instance{all[:2], all[1:3], nil} {
		said <- in
		eventually(t, "it is taken in", func() bool { return a.gw.upstreams.services["app"].pool.Len() == len(in)+1 })
		for range 10 {
			want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 200, "")
		}
	}
	var shown map[string]debugService
	must0(json.Unmarshal([]byte(do(t, c, "GET", "http://"+a.gw.AdminAddr()+"/debug/services", "", "").body), &shown))
	if got := shown["app"].Instances; len(got) != 1 || got[0].Address != all[3].Address {
		t.Errorf("%+v", shown)
	}
}

// A service of which no instance is known.
func TestNoInstance(t *testing.T) {
	t.Parallel()
	a := alone(t, echo("a"), func(c *Config) {
		nobody := func(ctx context.Context, found func([]balance.Instance)) error { <-ctx.Done(); return ctx.Err() }
		c.Upstreams = map[string]Upstream{"app": {URL: "http://app.test", Sources: []Source{nobody}}}
	})
	want(t, do(t, newClient(t), "POST", a.url("/users"), keyIn(0), "x"), 503, reasonNoInstance)
}
