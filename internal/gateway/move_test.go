package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/split"
	"github.com/atollhq/atoll/topo"
)

// says answers with its name.
func says(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name) })
}

// beside starts another application and gives it a name among a gateway's upstreams.
func beside(t testing.TB, c *Config, name string, app http.Handler) {
	t.Helper()
	s := httptest.NewServer(app)
	t.Cleanup(s.Close)
	c.Upstreams[name] = At(s.URL)
}

// strangled are the tests' routes, one of them changed.
func strangled(name string, change func(*topo.Route)) []topo.Route {
	out := append([]topo.Route(nil), testRoutes...)
	for i := range out {
		if out[i].Name == name {
			change(&out[i])
		}
	}
	return out
}

// moving is a gateway one of whose routes moves to a new application.
func moving(t testing.TB, route string, m topo.Move, fresh http.Handler, edit func(*Config)) *site {
	t.Helper()
	return alone(t, says("old"), func(c *Config) {
		m.To = "new"
		c.Routes = strangled(route, func(r *topo.Route) { r.Move, r.FencedRetry = &m, false })
		beside(t, c, "new", fresh)
		if edit != nil {
			edit(c)
		}
	})
}

func userKeys(n int) (out []string) {
	for i := 0; len(out) < n; i++ {
		if key := fmt.Sprintf("user-%d", i); bucketOf(key) < userBuckets/2 { // those at site a
			out = append(out, key)
		}
	}
	return out
}

// Every key goes the same way at each gateway and by each method, and one that went to the new application stays there when the
// share rises.
func TestMove_KeysStay(t *testing.T) {
	t.Parallel()
	c := newClient(t)
	keys := userKeys(100)
	var before map[string]bool
	for _, share := range []float64{0, 0.2, 0.2, 0.6, 1} {
		a := moving(t, "users", topo.Move{Share: share}, says("new"), nil)
		now, n := make(map[string]bool), 0
		for _, key := range keys {
			got := do(t, c, "GET", a.url("/users"), key, "")
			want(t, got, 200, "")
			if again := do(t, c, "POST", a.url("/users"), key, "x"); again.body != got.body {
				t.Fatalf("share %v: %s goes both ways", share, key)
			}
			now[key] = got.body == "new"
			if now[key] {
				n++
			}
			if now[key] != split.Within(share, "users", "k"+key) {
				t.Errorf("share %v: %s went to %s", share, key, got.body)
			}
			if before[key] && !now[key] {
				t.Errorf("share %v: %s went back", share, key)
			}
		}
		if float64(n) < 100*share-20 || float64(n) > 100*share+20 {
			t.Errorf("share %v took %d of 100 keys", share, n)
		}
		if moved := a.counter("moves_total", "result", "answered", "route", "users", "way", "new"); moved != float64(2*n) {
			t.Errorf("share %v: %v were counted of %d", share, moved, 2*n)
		}
		before = now
	}
}

// Without a key, a request goes where its client's others go.
func TestMove_ByClient(t *testing.T) {
	t.Parallel()
	a := moving(t, "plain", topo.Move{Share: 0.5}, says("new"), func(c *Config) {
		c.Listen.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	c := newClient(t)
	took := map[string]int{}
	for i := range 60 {
		var got [2]string
		for n := range got {
			req, _ := http.NewRequest("GET", a.url(fmt.Sprint("/", n)), nil)
			req.Header.Set("X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i))
			got[n] = send(t, c, req).body
		}
		if got[0] != got[1] {
			t.Errorf("client %d goes both ways", i)
		}
		took[got[0]]++
	}
	if took["new"] < 15 || took["old"] < 15 {
		t.Errorf("%v", took)
	}
}

// A request goes the same way whichever site it comes in at: the owner's gateway decides, by the key or by the client whom the
// first one saw.
func TestMove_AtTheOwner(t *testing.T) {
	t.Parallel()
	m := &topo.Move{To: "new", Share: 0.5}
	routes := strangled("users", func(r *topo.Route) { r.Move, r.WithoutKey = m, topo.HomeKeyless })
	a, b := pair(t, says("a-old"), says("b-old"), func(c *Config) {
		c.Routes = routes
		beside(t, c, "new", says(string(c.Site)+"-new"))
	})
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	c := newClient(t)
	took := map[string]int{}
	for b8 := range topo.BucketID(userBuckets) {
		here, there := do(t, c, "GET", a.url("/users"), keyIn(b8), ""), do(t, c, "GET", b.url("/users"), keyIn(b8), "")
		if here.body != there.body {
			t.Errorf("bucket %d: %s at a, %s at b", b8, here, there)
		}
		took[here.body]++
	}
	if len(took) != 4 {
		t.Errorf("%v", took)
	}
	if here, there := do(t, c, "GET", a.url("/users"), "", ""), do(t, c, "GET", b.url("/users"), "", ""); here.body != there.body {
		t.Errorf("without a key: %s at a, %s at b", here, there)
	}
}

// A new application that fails gets nothing any more, soon; nor after a restart, until somebody says something else about it.
func TestMove_StopsBeyondItsBudget(t *testing.T) {
	t.Parallel()
	for name, fresh := range map[string]http.Handler{
		"errors":    http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }),
		"unreached": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			begin := func(share float64) *site {
				return moving(t, "users", topo.Move{Share: share}, fresh, func(c *Config) { c.StateDir = dir })
			}
			c := newClient(t)
			a := begin(0.5)
			for _, key := range userKeys(60) { // so that there is something to compare with
				if !split.Within(0.5, "users", "k"+key) {
					want(t, do(t, c, "POST", a.url("/users"), key, "x"), 200, "")
				}
			}
			failed := 0
			for _, key := range userKeys(60) {
				if got := do(t, c, "POST", a.url("/users"), key, "x"); got.status != 200 {
					failed++
				} else if got.body != "old" {
					t.Errorf("%s", got)
				}
			}
			if failed != 5 {
				t.Errorf("%d requests failed before it stopped", failed)
			}
			var shown map[string]debugMove
			must0(json.Unmarshal([]byte(do(t, c, "GET", "http://"+a.gw.AdminAddr()+"/debug/moves", "", "").body), &shown))
			if got := shown["users"]; got.Stopped == nil || got.Stopped.Reason != stopErrors || got.Stopped.Tally.New.Failed != 5 || got.From != "app" || got.To != "new" {
				t.Errorf("%+v", got)
			}
			if !strings.Contains(a.log.String(), "stopped by itself") {
				t.Error("nothing in the log")
			}
			if a.counter("stopped", "reason", "errors", "route", "users", "what", "move") != 1 {
				t.Error("nothing in the metrics")
			}
			eventually(t, "it is saved", func() bool {
				kept, err := readStops(a.gw.stops.path)
				return err == nil && len(kept) == 1
			})
			a.stop()
			a = begin(0.5)
			for _, key := range userKeys(20) {
				want(t, do(t, c, "POST", a.url("/users"), key, "x"), 200, "")
			}
			a.stop()
			a = begin(0.51)
			failed = 0
			for _, key := range userKeys(20) {
				if do(t, c, "POST", a.url("/users"), key, "x").status != 200 {
					failed++
				}
			}
			if failed == 0 {
				t.Error("it did not begin again")
			}
		})
	}
}

// A new application that has as much to do as it can fails its users, too: they would have been served where they were before.
func TestMove_OverloadCounts(t *testing.T) {
	t.Parallel()
	arrived, leave := make(chan struct{}), make(chan struct{})
	a := moving(t, "users", topo.Move{Share: 1}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-leave
		fmt.Fprint(w, "new")
	}), func(c *Config) {
		up := c.Upstreams["new"]
		up.Limits = &Limits{Requests: 1, Wait: time.Millisecond}
		c.Upstreams["new"] = up
	})
	c := newClient(t)
	first := make(chan answer, 1)
	go func() { first <- do(t, c, "GET", a.url("/users"), keyIn(0), "") }() // ends with leave
	<-arrived
	for range 5 {
		want(t, do(t, c, "GET", a.url("/users"), keyIn(0), ""), 503, reasonOverload)
	}
	if got := do(t, c, "GET", a.url("/users"), keyIn(0), ""); got.body != "old" {
		t.Errorf("%s", got)
	}
	close(leave)
	if got := <-first; got.body != "new" {
		t.Errorf("%s", got)
	}
}

// What the fence refuses says nothing against the new application.
func TestMove_FenceIsNoFailure(t *testing.T) {
	t.Parallel()
	var refuses atomic.Bool
	a := moving(t, "users", topo.Move{Share: 1}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuses.Load() {
			w.Header().Set(hFenced, "users/0/1")
			w.WriteHeader(503)
		}
	}), nil)
	refuses.Store(true)
	c := newClient(t)
	for range 30 {
		if got := do(t, c, "POST", a.url("/users"), keyIn(0), "x"); got.status != 503 {
			t.Fatalf("%s", got)
		}
	}
	if !a.gw.movers[a.gw.table.Routes()[0]].guard.on() || a.counter("moves_total", "result", "failed", "route", "users", "way", "new") != 0 {
		t.Error("the fence's refusals were counted")
	}
}

// A file that says nothing is no reason not to start.
func TestStops_BrokenFile(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "null", "{", `{"format":9,"stops":{}}`, `{"format":1}`} {
		if kept, err := parseStops([]byte(text)); err == nil {
			t.Errorf("%q: %v", text, kept)
		}
	}
	kept, err := parseStops([]byte(`{"format":1,"stops":{"move x":{"declared":{"to":"new"},"reason":"errors"}}}`))
	if err != nil || kept["move x"].Reason != stopErrors || string(kept["move x"].Declared) != `{"to":"new"}` {
		t.Errorf("%+v, %v", kept, err)
	}
}

func FuzzStops(f *testing.F) {
	f.Add([]byte(`{"format":1,"stops":{"move x":{"declared":{"to":"new"},"reason":"errors","at":"2026-01-02T03:04:05Z","tally":{"old":{"answers":1}}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if kept, err := parseStops(data); err == nil && kept == nil {
			t.Error("nothing, and no error")
		}
	})
}
