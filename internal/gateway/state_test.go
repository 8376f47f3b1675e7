package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

func TestDeadlinePassesBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			entered <- struct{}{}
			<-leave
		}
	}), nil)
	got := make(chan answer, 1)
	c := newClient(t)
	go func() { got <- do(t, c, "POST", a.url("/users"), keyIn(0), "x") }()
	<-entered
	a.agent.setRemaining(0)
	eventually(t, "the lease ran out", func() bool { return !a.gw.lease.live() })
	close(leave)
	late := <-got
	want(t, late, 503, reasonDeadline)
	if !strings.Contains(late.body, "not known") {
		t.Errorf("%q", late.body)
	}
	// Now nothing is sent any more; reads and what has no key go on.
	want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 503, reasonLease)
	want(t, do(t, c, "GET", a.url("/users"), keyIn(0), ""), 200, "")
}

// A gateway whose lease ran out asks at once, and goes on when there is one again.
func TestLeaseComesBack(t *testing.T) {
	t.Parallel()
	a := alone(t, echo("a"), nil)
	a.agent.setRemaining(0)
	eventually(t, "the lease ran out", func() bool { return !a.gw.lease.live() })
	got := make(chan answer, 1)
	c := newClient(t)
	go func() { got <- do(t, c, "POST", a.url("/users"), keyIn(0), "x") }()
	a.agent.setRemaining(60_000)
	want(t, <-got, 200, "")
}

func TestAgentGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := alone(t, echo("a"), func(c *Config) { c.StateDir = dir })
	eventually(t, "the view is saved", func() bool { _, err := readView(a.gw.viewFile()); return err == nil })
	a.agent.kill()
	c := newClient(t)
	// The lease that it knows has not run out yet, and the view stays.
	want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 200, "")
	a.stop()

	again := newSite(t, "a", echo("a"))
	conf := again.config()
	conf.StateDir = dir
	conf.Agents[0].URL = a.agent.URL // nobody there
	again.start(t, conf)
	want(t, do(t, c, "GET", again.url("/users"), keyIn(0), ""), 200, "")
	want(t, do(t, c, "POST", again.url("/users"), keyIn(0), "x"), 503, reasonLease)
}

func TestNoViewAtAll(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	conf := a.config()
	conf.Agents[0].URL = "http://127.0.0.1:1"
	a.start(t, conf)
	c := newClient(t)
	want(t, do(t, c, "GET", a.url("/users"), keyIn(0), ""), 503, reasonNoView)
	want(t, do(t, c, "GET", a.url("/"), "", ""), 200, "")
	want(t, do(t, c, "GET", "http://"+a.gw.AdminAddr()+"/healthz", "", ""), 503, "")
}

func TestAnotherSitesAgentHelps(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	other := newTestAgent(t)
	conf := a.config()
	conf.Agents = []Agent{{Site: "b", URL: other.URL}, {Site: "a", URL: a.agent.URL}}
	a.agent.mu.refuse = true
	other.publish(half(), 9)
	a.start(t, conf)
	eventually(t, "view from b", func() bool { return a.gw.views.load().version().version == 1 })
	if a.gw.views.load().opened != 0 || a.gw.lease.live() {
		t.Error("another site's agent knows nothing about this site's fence and lease")
	}
	want(t, do(t, newClient(t), "GET", a.url("/users"), keyIn(0), ""), 200, "")
	a.agent.mu.Lock()
	a.agent.mu.refuse = false
	a.agent.mu.Unlock()
	publish(half(), 1, a)
	eventually(t, "the site's own agent is back", func() bool { return a.gw.views.load().opened == 1 && a.gw.lease.live() })
}

func TestGarbageInTheViewFile(t *testing.T) {
	t.Parallel()
	good, err := json.Marshal(map[string]any{"format": 1, "ownership": json.RawMessage(half().Encode())})
	must0(err)
	for name, content := range map[string]string{
		"empty":            "",
		"not JSON":         "\x00\x01garbage",
		"cut off":          string(good[:len(good)/2]),
		"bad checksum":     strings.Replace(string(good), `"owner":"a"`, `"owner":"b"`, 1),
		"newer format":     `{"format": 2, "ownership": {}}`,
		"newer document":   `{"format": 1, "ownership": {"format": 99}}`,
		"without document": `{"format": 1}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newSite(t, "a", echo("a"))
			conf := a.config()
			conf.StateDir = t.TempDir()
			path := conf.StateDir + "/view-a-g1.json"
			must0(os.WriteFile(path, []byte(content), 0o600))
			if _, err := readView(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "delete it") {
				t.Errorf("error %v", err)
			} else if strings.HasPrefix(name, "newer") && !errors.Is(err, topo.ErrNewerFormat) {
				t.Errorf("error %v", err)
			}
			a.start(t, conf)
			if !strings.Contains(a.log.String(), "refused the saved view") {
				t.Errorf("log %s", a.log)
			}
			publish(half(), 1, a)
			a.ready(t, 1)
			eventually(t, "the file is replaced", func() bool { _, err := readView(path); return err == nil })
		})
	}
}

func TestViewsNeverGoBack(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	a.start(t, a.config())
	doc := half()
	newer := change(change(doc.StartMove("users", topo.SpansOf(0), "h", "b")).CommitMove("users", topo.SpansOf(0), "h"))
	publish(newer, newer.Version, a)
	a.ready(t, newer.Version)
	refused := func() bool { return a.counter("view_lines_refused_total") > 0 }
	publish(doc, 1, a)
	eventually(t, "the older view is looked at", func() bool { return refused() || a.gw.views.load().version().version != newer.Version })
	if v := a.gw.views.load().version(); v.version != newer.Version {
		t.Fatalf("after 2 views it went back from 1.%d to %s", newer.Version, v)
	}
	// Another document under the same version is refused, and so is one that fails its checks.
	forged := doc
	forged.Version = newer.Version
	before := a.counter("view_lines_refused_total")
	publish(forged, 1, a)
	eventually(t, "the forged view is refused", func() bool { return a.counter("view_lines_refused_total") > before })
	before = a.counter("view_lines_refused_total")
	a.agent.publishLine([]byte(`{"format":1,"ownership":{"format":1,"generation":9,"version":9,"keyspaces":{},"checksum":""}}`))
	eventually(t, "the empty view is refused", func() bool { return a.counter("view_lines_refused_total") > before })
	if v := a.gw.views.load().version(); v.version != newer.Version || v.generation != 1 {
		t.Fatalf("took %s", v)
	}
	// A new generation replaces everything, and waits for its fence.
	restored := doc
	restored.Generation = 2
	publish(restored, 0, a)
	eventually(t, "the new generation is taken", func() bool { return a.gw.views.load().version() == viewVersion{2, 1} })
	if snap := a.gw.views.load(); snap.opened != 0 || !snap.site.Pending("users", 0, snap.opened) {
		t.Error("what was open in the old generation counts as open in the new one")
	}
}

func TestBadConfigurations(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must0(err)
	defer taken.Close()
	base := (&site{id: "a", agent: newTestAgent(t), app: newSite(t, "a", echo("a")).app, log: &lockedBuffer{}}).config()
	for want, edit := range map[string]func(*Config){
		"choose another address":       func(c *Config) { c.Listen.Users = taken.Addr().String() },
		"want ip:port":                 func(c *Config) { c.Listen.Users = "" },
		"peer address: listen":         func(c *Config) { c.Listen.Peer = taken.Addr().String() },
		"plaintext: true":              func(c *Config) { c.Listen.Users = "0.0.0.0:0" },
		"mutual TLS only":              func(c *Config) { c.PeerTLS = nil },
		"is not loopback":              func(c *Config) { c.Listen.Admin = "0.0.0.0:0" },
		"no upstream":                  func(c *Config) { c.Upstreams = nil },
		"not a base URL":               func(c *Config) { c.Upstreams = map[string]Upstream{"app": At("127.0.0.1:80")} },
		"upstream app: \"ftp://":       func(c *Config) { c.Upstreams = map[string]Upstream{"app": At("ftp://h:1")} },
		"no agent":                     func(c *Config) { c.Agents = nil },
		"no gateway address":           func(c *Config) { c.Peers = map[topo.SiteID][]string{"b": nil} },
		"reached by mutual TLS":        func(c *Config) { c.Peers, c.ClientTLS = map[topo.SiteID][]string{"b": {"x:1"}}, nil },
		"want a lower-case":            func(c *Config) { c.Name = "../x" },
		"keyspace users is not declar": func(c *Config) { c.Keyspaces = nil },
	} {
		conf := base
		edit(&conf)
		if g, err := New(conf); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
			if g != nil {
				g.closeListeners()
			}
		}
	}
}

func TestAdmin(t *testing.T) {
	t.Parallel()
	a := alone(t, echo("a"), nil)
	c := newClient(t)
	admin := "http://" + a.gw.AdminAddr()
	want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 200, "")
	want(t, do(t, c, "GET", admin+"/healthz", "", ""), 200, "")
	eventually(t, "counted", func() bool {
		text := do(t, c, "GET", admin+"/metrics", "", "").body
		return strings.Contains(text, `atoll_gateway_requests_total{class="2xx",route="users"} 1`) && strings.Contains(text, "atoll_gateway_view_version 1")
	})
	var view debugView
	if err := json.Unmarshal([]byte(do(t, c, "GET", admin+"/debug/view", "", "").body), &view); err != nil || view.View != "1.1" || view.LeaseMS < 1 {
		t.Errorf("%+v, %v", view, err)
	}
	if o, err := topo.DecodeOwnership(view.Ownership); err != nil || o.Version != 1 {
		t.Errorf("%v", err)
	}
}

// A client that was told to go on with its body while it is held keeps its time: the hold's end is the same.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	a.start(t, a.config())
	moving := change(half().StartMove("users", topo.SpansOf(0), "h", "b"))
	publish(moving, 2, a)
	a.ready(t, moving.Version)
	c := newClient(t)
	c.Transport.(*http.Transport).ExpectContinueTimeout = 20 * time.Second
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	body := strings.Repeat("x", 3*smallBody)
	req, _ := http.NewRequestWithContext(ctx, "POST", a.url("/users"), io.NopCloser(strings.NewReader(body)))
	req.ContentLength = int64(len(body))
	req.Header = http.Header{"X-User": {keyIn(0)}, "Expect": {"100-continue"}}
	got := make(chan answer, 1)
	go func() { got <- send(t, c, req) }()
	eventually(t, "held", func() bool { return a.gw.room.held() == 1 })
	aborted := change(moving.AbortMove("users", topo.SpansOf(0), "h"))
	publish(aborted, aborted.Version, a)
	want(t, <-got, 200, "")
}
