package gateway

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/limit"
	"github.com/atollhq/atoll/topo"
)

// shadowed is a gateway one of whose routes has a candidate.
func shadowed(t testing.TB, route string, s topo.Shadow, primary, candidate http.Handler, edit func(*Config)) *site {
	t.Helper()
	return alone(t, primary, func(c *Config) {
		s.To = "new"
		c.Routes = strangled(route, func(r *topo.Route) { r.Shadow = &s })
		beside(t, c, "new", candidate)
		if edit != nil {
			edit(c)
		}
	})
}

// shadow is what the gateway shows of a route's candidate.
func (s *site) shadow(t testing.TB, route string) debugShadow {
	t.Helper()
	var out map[string]debugShadow
	must0(json.Unmarshal([]byte(do(t, newClient(t), "GET", "http://"+s.gw.AdminAddr()+"/debug/shadow", "", "").body), &out))
	return out[route]
}

// idle waits until no copy is on its way.
func (s *site) idle(t testing.TB) {
	t.Helper()
	eventually(t, "no copy is on its way", func() bool { return len(s.gw.shadows.places) == 0 })
}

// heard is what an application got.
type heardRequest struct {
	method, path, body string
	header             http.Header
}

type hears struct {
	mu  sync.Mutex
	all []heardRequest
}

func (h *hears) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, heardRequest{r.Method, r.URL.RequestURI(), string(body), r.Header})
}

func (h *hears) got() []heardRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.all)
}

// Reads are copied, marked as copies, whole and without what belongs to the primary's answers; writes only where the route
// says so, and never twice to the primary.
func TestShadow_Copies(t *testing.T) {
	t.Parallel()
	for _, writes := range []bool{false, true} {
		var primary, candidate hears
		a := shadowed(t, "users", topo.Shadow{Share: 1, Writes: writes, Compare: &topo.Comparison{Noise: 1}}, &primary, &candidate, nil)
		c := newClient(t)
		ask := func(method, path, body string) {
			req, _ := http.NewRequest(method, a.url(path), strings.NewReader(body))
			req.Header = http.Header{"X-User": {keyIn(0)}, "If-None-Match": {`"x"`}, "Accept-Encoding": {"gzip"}, hShadow: {"1"}, "Authorization": {"Bearer x"}, "X-Request-Deadline": {"20s"}}
			want(t, send(t, c, req), 200, "")
			a.idle(t)
		}
		ask("GET", "/users?a=%2Fb", "")
		ask("HEAD", "/users/h", "")
		ask("PUT", "/users/p", "the body")
		ask("OPTIONS", "/users/o", "")
		var methods []string
		for i, r := range candidate.got() {
			methods = append(methods, r.method)
			if r.header.Get(hShadow) != "1" || r.header.Get("Authorization") != "Bearer x" || r.header.Get("X-Forwarded-Host") == "" || r.header.Get("Accept-Encoding") != "" || r.header.Get(hDeadline) != "2000ms" {
				t.Errorf("copy with %v", r.header)
			}
			if got := r.header.Get("If-None-Match") != ""; got != (r.method == "PUT" || r.method == "OPTIONS") {
				t.Errorf("condition of %s: %v", r.method, got)
			}
			if i == 0 && r.path != "/users?a=%2Fb" || r.method == "PUT" && r.body != "the body" {
				t.Errorf("%+v", r)
			}
		}
		wanted := []string{"GET", "HEAD"}
		if writes {
			wanted = append(wanted, "PUT", "OPTIONS")
		}
		if !slices.Equal(methods, wanted) {
			t.Errorf("writes %v: copied %v", writes, methods)
		}
		asked := map[string]int{}
		for _, r := range primary.got() {
			asked[r.method]++
			if r.method == "PUT" && r.header.Get(hShadow) != "" {
				t.Error("a user's request says that it is a copy")
			}
		}
		if asked["GET"] != 2 || asked["HEAD"] != 2 || asked["PUT"] != 1 || asked["OPTIONS"] != 1 {
			t.Errorf("the primary was asked %v", asked)
		}
	}
}

// However slow a candidate is, users do not wait for it, and what is on its way to it is bounded; what there is no room for is counted.
func TestShadow_SlowCandidate(t *testing.T) {
	t.Parallel()
	let := make(chan struct{})
	var at atomic.Int64
	a := shadowed(t, "users", topo.Shadow{Share: 1, Timeout: time.Minute, Compare: &topo.Comparison{}}, says("old"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at.Add(1)
		<-let
		fmt.Fprint(w, "old")
	}), nil)
	c := newClient(t)
	const asked = 3 * shadowPlaces
	for range asked {
		if got := do(t, c, "GET", a.url("/users"), keyIn(0), ""); got.body != "old" { // the candidate answers nobody yet
			t.Fatalf("%s", got)
		}
	}
	eventually(t, "the candidate is full", func() bool { return at.Load() == shadowWorkers })
	if n := a.counter("shadow_skipped_total", "reason", "busy", "route", "users"); n != asked-shadowPlaces {
		t.Errorf("%v were skipped", n)
	}
	close(let)
	a.idle(t)
	got := a.shadow(t, "users")
	if got.Ends[shadowAnswered] != shadowPlaces || got.Compared.Compared != shadowPlaces || got.Skipped[skipBusy] != asked-shadowPlaces || got.State != "on" {
		t.Errorf("%+v", got)
	}
}

// Users hear nothing of a candidate that fails, hangs up or is not there; it is left alone soon.
func TestShadow_StopsBeyondItsBudget(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		candidate http.HandlerFunc
		reason    stopReason
	}{
		"errors":   {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }, stopErrors},
		"hangs up": {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, stopErrors},
		"late":     {func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, stopLate},
		"late halfway": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "begins")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, stopLate},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			a := shadowed(t, "users", topo.Shadow{Share: 1, Timeout: 50 * time.Millisecond, Compare: &topo.Comparison{}}, says("old"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				c.candidate(w, r)
			}), nil)
			client := newClient(t)
			for range 10 {
				if got := do(t, client, "GET", a.url("/users"), keyIn(0), ""); got.body != "old" {
					t.Fatalf("%s", got)
				}
				a.idle(t)
			}
			if got := a.shadow(t, "users"); got.State != "stopped" || got.Stopped.Reason != c.reason || asked.Load() != 5 {
				t.Errorf("%d copies, %+v", asked.Load(), got)
			}
			if a.counter("stopped", "reason", string(c.reason), "route", "users", "what", "shadow") != 1 {
				t.Error("nothing in the metrics")
			}
		})
	}
}

// The report says what differs and counts, and what differs every time; it has nothing of what users sent or got.
func TestShadow_NoiseIsRemoved(t *testing.T) {
	t.Parallel()
	var now atomic.Int64
	answer := func(price, note string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"at": %d, "items": [{"name": "Secret", "price": %s}], "note": "Secret %s"}`, now.Add(1), price, note)
		})
	}
	a := shadowed(t, "users", topo.Shadow{Share: 1, Compare: &topo.Comparison{Ignore: []string{"/note"}}}, answer("10.50", "a"), answer(`"10.50"`, "b"), nil)
	c := newClient(t)
	for range 20 {
		want(t, do(t, c, "GET", a.url("/users"), keyIn(0), ""), 200, "")
		a.idle(t)
	}
	got := a.shadow(t, "users")
	if got.Compared.Compared != 20 || got.Compared.Repeated < 1 || len(got.Compared.Fields) != 2 || got.Times == nil {
		t.Fatalf("%+v", got)
	}
	price, at := got.Compared.Fields[0], got.Compared.Fields[1]
	if price.Field != "/items/*/price" || price.Answers != 20 || price.Noise || price.Kinds["type"] != 20 || price.Samples[0].Primary != "number" || price.Samples[0].Candidate != "text" {
		t.Errorf("%+v", price)
	}
	if at.Field != "/at" || !at.Noise {
		t.Errorf("%+v", at)
	}
	if text := do(t, c, "GET", "http://"+a.gw.AdminAddr()+"/debug/shadow", "", "").body; strings.Contains(text, "Secret") || strings.Contains(text, "10.5") {
		t.Error(text)
	}
	if n := a.counter("shadow_compared_total", "result", "different", "route", "users"); n != 20 {
		t.Errorf("%v are different", n)
	}
}

// What is packed is unpacked; what is too long is not compared, and not kept.
func TestShadow_Bodies(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", shadowBody+1)
	a := shadowed(t, "users", topo.Shadow{Share: 1, Compare: &topo.Comparison{}}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/users/long" {
			_, _ = io.WriteString(w, long+"a")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if r.Header.Get("Accept-Encoding") == "gzip" {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close()
			_, _ = io.WriteString(z, `{"a":1}`)
			return
		}
		w.Header().Set("Content-Encoding", r.URL.Query().Get("encoding"))
		_, _ = io.WriteString(w, `{"a":1}`)
	}), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/users/long" {
			_, _ = io.WriteString(w, long+"b")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{ "a": 1.0 }`)
	}), nil)
	c := newClient(t)
	ask := func(path, encoding string) {
		req, _ := http.NewRequest("GET", a.url(path), nil)
		req.Header = http.Header{"X-User": {keyIn(0)}, "Accept-Encoding": {encoding}}
		want(t, send(t, c, req), 200, "")
		a.idle(t)
	}
	ask("/users", "gzip")
	ask("/users", "identity")
	ask("/users?encoding=br", "br")
	for range 5 {
		ask("/users/long", "identity")
	}
	got := a.shadow(t, "users")
	if got.Compared.Compared != 8 || got.Compared.Unread != 6 || len(got.Compared.Fields) != 0 {
		t.Errorf("%+v", got)
	}
}

// A request whose body is not kept is not copied; nor is an answer that breaks off.
func TestShadow_NotCopied(t *testing.T) {
	t.Parallel()
	var candidate hears
	a := shadowed(t, "users", topo.Shadow{Share: 1, Writes: true}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/users/fails":
			w.WriteHeader(500)
		case "/users/same":
			w.WriteHeader(304)
		case "/users/events":
			w.Header().Set("Content-Type", "text/event-stream")
		case "/users/broken":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "12345")
		}
	}), &candidate, nil)
	c := newClient(t)
	for _, path := range []string{"fails", "same", "events"} {
		do(t, c, "GET", a.url("/users/"+path), keyIn(0), "")
	}
	req, _ := http.NewRequest("GET", a.url("/users/broken"), nil)
	req.Header.Set("X-User", keyIn(0))
	if resp, err := c.Do(req); err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	want(t, do(t, c, "POST", a.url("/users/long"), keyIn(0), strings.Repeat("x", 4*keepBody)), 200, "")
	a.idle(t)
	if got := candidate.got(); len(got) > 0 {
		t.Errorf("copied %+v", got)
	}
	if n := a.counter("shadow_skipped_total", "reason", "body", "route", "users"); n != 1 {
		t.Errorf("%v were skipped for their bodies", n)
	}
	want(t, do(t, c, "GET", a.url("/users"), keyIn(0), ""), 200, "")
	a.idle(t)
	if got := candidate.got(); len(got) != 1 {
		t.Errorf("copied %+v", got)
	}
	if a.shadow(t, "users").Compared != nil {
		t.Error("compared though nobody asked for it")
	}
}

// While users wait for the primary or for the candidate, nothing is copied; it goes on when they do not.
func TestShadow_UsersFirst(t *testing.T) {
	t.Parallel()
	for _, full := range []string{"app", "new"} {
		a := shadowed(t, "users", topo.Shadow{Share: 1}, says("old"), says("old"), func(c *Config) {
			up := c.Upstreams[full]
			up.Limits = &Limits{Requests: 2}
			c.Upstreams[full] = up
		})
		gate := a.gw.upstreams.services[full].gate
		c := newClient(t)
		ask := func() {
			t.Helper()
			want(t, do(t, c, "GET", a.url("/users"), keyIn(0), ""), 200, "")
			a.idle(t)
		}
		ask()
		shed(gate, time.Now()) // somebody is turned away
		ask()
		if got := a.shadow(t, "users"); got.State != "paused" || got.Skipped[skipOverload] != 1 || got.Ends[shadowAnswered] != 1 {
			t.Errorf("%s is full: %+v", full, got)
		}
		shed(gate, time.Now().Add(-pressedFor))
		ask()
		if got := a.shadow(t, "users"); got.State != "on" || got.Ends[shadowAnswered] != 2 {
			t.Errorf("%s is not full: %+v", full, got)
		}
		if got := gate.state().Inside; got != 0 {
			t.Errorf("%d are still inside", got)
		}
	}
}

func shed(g *gate, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.shed = at
}

// A guest takes no place that anybody wants: it is let in where there is room, and goes when there is none.
func TestGuests(t *testing.T) {
	t.Parallel()
	g := newGate(Limits{Requests: 2, Wait: time.Minute}, func() int { return 0 })
	evicted := make(chan func(), 2)
	guest := func() bool {
		var leave func()
		leave, ok := g.slipIn(func() { evicted <- leave })
		return ok
	}
	ctx := t.Context()
	for i := range 3 {
		if guest() != (i < 2) {
			t.Fatal("not two of two")
		}
	}
	in := make(chan bool)
	go func() { in <- g.enter(ctx, limit.Low) }() // ends when a guest has left
	(<-evicted)()
	(<-evicted)()
	if !<-in {
		t.Error("turned away for guests")
	}
	if got := g.state(); got.Inside != 1 || got.Pending != 0 {
		t.Errorf("%+v", got)
	}
	for i := range 2 {
		if guest() != (i < 1) || g.pressed(time.Now()) {
			t.Error("not one more")
		}
	}
}

// A user who would have to wait for a copy does not: the copy goes.
func TestShadow_GivesWay(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 1)
	candidate := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(hShadow) != "" {
			arrived <- struct{}{}
			<-r.Context().Done()
		}
		fmt.Fprint(w, "new")
	})
	a := shadowed(t, "users", topo.Shadow{Share: 1, Timeout: time.Minute}, says("old"), candidate, func(c *Config) {
		c.Routes = append(c.Routes, topo.Route{Name: "new", Path: "/new", Upstream: "new"})
		up := c.Upstreams["new"]
		up.Limits = &Limits{Requests: 1, Wait: 30 * time.Second}
		c.Upstreams["new"] = up
	})
	c := newClient(t)
	want(t, do(t, c, "GET", a.url("/users"), keyIn(0), ""), 200, "")
	<-arrived
	if got := do(t, c, "GET", a.url("/new"), "", ""); got.body != "new" {
		t.Errorf("%s", got)
	}
	a.idle(t)
	if got := a.shadow(t, "users"); got.Skipped[skipOverload] != 1 || len(got.Ends) != 0 {
		t.Errorf("%+v", got)
	}
}

// A request is copied where it is served, not where it comes in.
func TestShadow_AtTheOwner(t *testing.T) {
	t.Parallel()
	var candidates [2]hears
	a, b := pair(t, says("a"), says("b"), func(c *Config) {
		c.Routes = strangled("users", func(r *topo.Route) { r.Shadow = &topo.Shadow{To: "new", Share: 1} })
		beside(t, c, "new", &candidates[map[topo.SiteID]int{"a": 0, "b": 1}[c.Site]])
	})
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	c := newClient(t)
	want(t, do(t, c, "GET", a.url("/users"), keyIn(15), ""), 200, "")
	a.idle(t)
	b.idle(t)
	if here, there := candidates[0].got(), candidates[1].got(); len(here) != 0 || len(there) != 1 || there[0].header.Get(hShadow) != "1" || there[0].header.Get(hBucket) != "" {
		t.Errorf("%+v, %+v", here, there)
	}
}

// What goes to the candidate by a move is not compared with itself; the others' keys are drawn apart from the move's.
func TestShadow_BesideAMove(t *testing.T) {
	t.Parallel()
	var candidate hears
	a := shadowed(t, "users", topo.Shadow{Share: 0.5}, says("old"), &candidate, func(c *Config) {
		c.Routes = strangled("users", func(r *topo.Route) {
			r.Shadow, r.Move = &topo.Shadow{To: "new", Share: 0.5}, &topo.Move{To: "new", Share: 0.5}
		})
	})
	c := newClient(t)
	for _, key := range userKeys(80) {
		want(t, do(t, c, "GET", a.url("/users"), key, ""), 200, "")
		a.idle(t)
	}
	moved, copies := 0, 0
	for _, r := range candidate.got() {
		if r.header.Get(hShadow) == "" {
			moved++
		} else {
			copies++
		}
	}
	if moved < 20 || moved > 60 || copies < 5 || copies > 40 {
		t.Errorf("%d moved, %d copied", moved, copies)
	}
}

// Long answers of many requests to a candidate that never answers: memory stays within what the places may have.
func TestShadow_MemoryIsBounded(t *testing.T) {
	body := strings.Repeat("x", shadowBody)
	a := shadowed(t, "users", topo.Shadow{Share: 1, Timeout: time.Minute, Compare: &topo.Comparison{}}, says(body), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}), nil)
	c := newClient(t)
	memory := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	want(t, do(t, c, "GET", a.url("/users"), keyIn(0), ""), 200, "")
	before := memory()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				resp, err := c.Get(a.url("/users/" + keyIn(0)))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
	wg.Wait()
	grown := memory() - before
	t.Logf("%d KiB more with %d copies on their way", grown>>10, len(a.gw.shadows.places))
	if most := int64(shadowPlaces * 3 * shadowBody); grown > most {
		t.Errorf("more than %d KiB", most>>10)
	}
	if n := a.counter("shadow_skipped_total", "reason", "busy", "route", "users"); n < 100 {
		t.Errorf("%v were skipped", n)
	}
}
