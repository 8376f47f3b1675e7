package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

var certs struct {
	sites map[topo.SiteID]*pki.Identity
	users tls.Certificate
}

func TestMain(m *testing.M) {
	if text := os.Getenv("GATEWAY_TEST_PROCESS"); text != "" {
		os.Exit(runProcess(text))
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "atoll-gateway-test")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		must0(pki.Init(dir, "test"))
		certs.sites = make(map[topo.SiteID]*pki.Identity)
		for _, site := range []topo.SiteID{"a", "b"} {
			must0(pki.Issue(dir, pki.Role{Kind: pki.Site, Name: string(site)}))
			id, err := pki.Load(dir, "site-"+string(site))
			must0(err)
			certs.sites[site] = id
		}
		s := httptest.NewTLSServer(nil)
		certs.users = s.TLS.Certificates[0]
		s.Close()
		code := m.Run()
		if code == 0 {
			if err := goleak.Find(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
		return code
	}())
}

func must0(err error) {
	if err != nil {
		panic(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// testAgent streams views and takes acknowledgements, as an agent does.
type testAgent struct {
	*httptest.Server
	mu struct {
		sync.Mutex
		line      []byte
		changed   chan struct{}
		acks      map[string]api.ViewAck
		remaining int64
		known     viewVersion // of the newest document that it knows; may be ahead of the stream
		refuse    bool
		refuseAck bool
		stands    *api.Seen // answers seen; nil: not to be learned
		awaits    int
		applied   map[topo.SiteID]uint64 // answers await
		staleMS   map[topo.SiteID]int64
		stop      chan struct{}
	}
}

func newTestAgent(t testing.TB) *testAgent {
	a := &testAgent{}
	a.mu.changed, a.mu.stop = make(chan struct{}), make(chan struct{})
	a.mu.acks = make(map[string]api.ViewAck)
	a.mu.remaining = 60_000
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/view", a.stream)
	mux.HandleFunc("POST /v1/view/ack", a.ack)
	mux.HandleFunc("POST /v1/view/seen", a.seen)
	mux.HandleFunc("POST /v1/view/await", a.await)
	a.Server = httptest.NewServer(mux)
	t.Cleanup(a.kill)
	return a
}

func (a *testAgent) kill() {
	a.mu.Lock()
	select {
	case <-a.mu.stop:
	default:
		close(a.mu.stop)
	}
	a.mu.Unlock()
	a.CloseClientConnections()
	a.Close()
}

func (a *testAgent) stream(w http.ResponseWriter, r *http.Request) {
	var sent []byte
	alive := time.NewTicker(time.Second)
	defer alive.Stop()
	for {
		a.mu.Lock()
		line, changed, stop, refuse := a.mu.line, a.mu.changed, a.mu.stop, a.mu.refuse
		a.mu.Unlock()
		if refuse {
			http.Error(w, "not the active agent", http.StatusServiceUnavailable)
			return
		}
		if line != nil && !bytes.Equal(line, sent) {
			if _, err := w.Write(append(line, '\n')); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			sent = line
		}
		select {
		case <-changed:
		case <-alive.C:
			_, _ = fmt.Fprintf(w, "{\"format\":%d}\n", api.ViewFormat)
			_ = http.NewResponseController(w).Flush()
		case <-stop:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (a *testAgent) ack(w http.ResponseWriter, r *http.Request) {
	var ack api.ViewAck
	if err := json.NewDecoder(r.Body).Decode(&ack); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.mu.refuseAck {
		a.mu.acks[ack.Gateway] = ack
	}
	if a.mu.refuse || a.mu.refuseAck {
		http.Error(w, "not the active agent", http.StatusServiceUnavailable)
		return
	}
	_ = json.NewEncoder(w).Encode(api.LeaseState{RemainingMS: a.mu.remaining, Generation: a.mu.known.generation, Version: a.mu.known.version, StaleMS: a.mu.staleMS})
}

// seen tells for every bucket the same place.
func (a *testAgent) seen(w http.ResponseWriter, r *http.Request) {
	var in api.SeenRequest
	must0(json.NewDecoder(r.Body).Decode(&in))
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.stands == nil {
		http.Error(w, "the database is away", http.StatusServiceUnavailable)
		return
	}
	for i := range in.Buckets {
		ks, b := in.Buckets[i].Keyspace, in.Buckets[i].Bucket
		in.Buckets[i] = *a.mu.stands
		in.Buckets[i].Keyspace, in.Buckets[i].Bucket = ks, b
	}
	must0(json.NewEncoder(w).Encode(api.SeenAnswer(in)))
}

func (a *testAgent) await(w http.ResponseWriter, r *http.Request) {
	var in api.AwaitRequest
	must0(json.NewDecoder(r.Body).Decode(&in))
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.mu.applied[in.Seen.Site]
	answer := api.AwaitAnswer{Here: at >= in.Seen.Position, Applied: at}
	if s := a.mu.stands; !answer.Here && s != nil && s.Epoch > in.Seen.Epoch {
		answer.Here, answer.Epoch = true, s.Epoch
	}
	a.mu.awaits++
	must0(json.NewEncoder(w).Encode(answer))
}

// awaited is how often the agent was asked to wait for what a reader has seen.
func (a *testAgent) awaited() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.awaits
}

// stand sets where the agent's database stands, for every bucket.
func (a *testAgent) stand(epoch topo.Epoch, owner topo.SiteID, position uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.stands = &api.Seen{Epoch: epoch, Site: owner, Position: position}
}

// lose makes where the database stands unknown.
func (a *testAgent) lose() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.stands = nil
}

// age sets how old the agent's copy of a site is.
func (a *testAgent) age(site topo.SiteID, ms int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.staleMS = map[topo.SiteID]int64{site: ms}
}

// apply has the agent's database apply a site's changes up to a position.
func (a *testAgent) apply(site topo.SiteID, position uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.applied == nil {
		a.mu.applied = make(map[topo.SiteID]uint64)
	}
	a.mu.applied[site] = position
}

func (a *testAgent) acked(gateway string) api.ViewAck {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.acks[gateway]
}

func (a *testAgent) publish(o topo.Ownership, opened uint64) {
	line, err := json.Marshal(api.ViewUpdate{Format: api.ViewFormat, Ownership: o.Encode(), OpenedVersion: opened})
	must0(err)
	a.know(o)
	a.publishLine(line)
}

// know lets the agent answer for the lease under a document, without streaming it.
func (a *testAgent) know(o topo.Ownership) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if v := (viewVersion{o.Generation, o.Version}); a.mu.known.before(v) {
		a.mu.known = v
	}
}

func (a *testAgent) publishLine(line []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.line = line
	close(a.mu.changed)
	a.mu.changed = make(chan struct{})
}

func (a *testAgent) setRemaining(ms int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.remaining = ms
}

// users is the keyspace of these tests: 16 buckets, half at each site.
const userBuckets = 16

var (
	testSpaces = map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: userBuckets, Hash: topo.HashMD5, Key: topo.TextKey}}
	testRoutes = []topo.Route{
		{Name: "users", Path: "/users", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}, {Path: 2}}, WithoutKey: topo.RefuseKeyless, FencedRetry: true},
		{Name: "strong", Path: "/strong", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless, HoldReads: true},
		{Name: "near", Path: "/near", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless, Reads: topo.NearestReads, Session: topo.HeaderSessions},
		{Name: "cookie", Path: "/cookie", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless, Reads: topo.NearestReads, Session: topo.CookieSessions, Strict: true},
		{Name: "aged", Path: "/aged", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless, Reads: topo.NearestReads, MaxStaleness: 5 * time.Second},
		{Name: "refuses", Path: "/aged/refuses", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless, Reads: topo.NearestReads, MaxStaleness: 5 * time.Second, WhenStale: topo.StaleRefused},
		{Name: "serves", Path: "/aged/serves", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless, Reads: topo.NearestReads, MaxStaleness: 5 * time.Second, WhenStale: topo.StaleServed, Session: topo.HeaderSessions},
		{Name: "plain", Path: "/", Upstream: "app"},
	}
)

func half() topo.Ownership {
	return topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: userBuckets, Hash: "md5", Ranges: []topo.Range{
		{First: 0, Last: 7, Owner: "a", Epoch: 1, State: topo.Open}, {First: 8, Last: 15, Owner: "b", Epoch: 1, State: topo.Open},
	}}})
}

func bucketOf(key string) topo.BucketID {
	b, err := route.Bucket(topo.HashMD5, key, userBuckets)
	must0(err)
	return b
}

// keyIn finds a key of a bucket.
func keyIn(b topo.BucketID) string {
	for i := 0; ; i++ {
		if key := fmt.Sprintf("user-%d", i); bucketOf(key) == b {
			return key
		}
	}
}

func change(o topo.Ownership, err error) topo.Ownership {
	must0(err)
	return o
}

// site is one gateway with its agent and its application.
type site struct {
	id    topo.SiteID
	agent *testAgent
	app   *httptest.Server
	gw    *Gateway
	log   *lockedBuffer
	stop  func()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newSite makes a site with a gateway that is not yet built; edit may change its configuration, start starts it.
func newSite(t testing.TB, id topo.SiteID, app http.Handler) *site {
	s := &site{id: id, agent: newTestAgent(t), log: &lockedBuffer{}}
	s.app = httptest.NewServer(app)
	t.Cleanup(s.app.Close)
	return s
}

func (s *site) config() Config {
	return Config{
		Site: s.id, Name: "g1",
		Listen:    Listen{Users: "127.0.0.1:0", Peer: "127.0.0.1:0", Admin: "127.0.0.1:0"},
		PeerTLS:   certs.sites[s.id].ServerTLS(nil),
		ClientTLS: certs.sites[s.id].ClientTLS,
		Routes:    testRoutes, Keyspaces: testSpaces,
		Upstreams: map[string]Upstream{"app": At(s.app.URL)},
		Agents:    []Agent{{Site: s.id, URL: s.agent.URL}},
		Hold:      Hold{MaxTime: 10 * time.Second},
		Grace:     5 * time.Second,
		Log:       slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

func (s *site) start(t testing.TB, conf Config) {
	gw, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	s.gw = gw
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- gw.Run(ctx) }()
	var once sync.Once
	s.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("gateway %s: %v", gw.name, err)
			}
		})
	}
	t.Cleanup(s.stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", gw.name, s.log.String())
		}
	})
}

// ready waits until the gateway uses a version and knows its lease.
func (s *site) ready(t testing.TB, version uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has view %d and a lease", s.id, version), func() bool {
		return s.gw.views.load().version().version >= version && s.gw.lease.live()
	})
}

func (s *site) url(path string) string { return "http://" + s.gw.UserAddr() + path }

// pair is two sites whose gateways know each other.
func pair(t testing.TB, appA, appB http.Handler, edit func(*Config)) (a, b *site) {
	a, b = newSite(t, "a", appA), newSite(t, "b", appB)
	// Each gateway must know the other's address before either has one.
	addrs := map[topo.SiteID]string{"a": freeAddr(t), "b": freeAddr(t)}
	for _, s := range []*site{a, b} {
		conf := s.config()
		other := topo.SiteID("a")
		if s.id == "a" {
			other = "b"
		}
		conf.Listen.Peer = addrs[s.id]
		conf.Peers = map[topo.SiteID][]string{other: {addrs[other]}}
		if edit != nil {
			edit(&conf)
		}
		s.start(t, conf)
	}
	return a, b
}

func freeAddr(t testing.TB) string {
	t.Helper()
	addr, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func publish(o topo.Ownership, opened uint64, sites ...*site) {
	for _, s := range sites {
		s.agent.publish(o, opened)
	}
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) String() string {
	return fmt.Sprintf("%d %s %q", a.status, a.header.Get(hReason), strings.TrimSpace(a.body))
}

func newClient(t testing.TB) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

func do(t testing.TB, c *http.Client, method, url, key string, body string) answer {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, url, r)
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("X-User", key)
	}
	return send(t, c, req)
}

func send(t testing.TB, c *http.Client, req *http.Request) answer {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

func want(t testing.TB, got answer, status int, reason route.Reason) {
	t.Helper()
	if got.status != status || got.header.Get(hReason) != string(reason) {
		t.Fatalf("got %s, want %d %q", got, status, reason)
	}
}

// echo answers with its site's name, the method, and the body's length.
func echo(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, err.Error(), 499)
			return
		}
		fmt.Fprintf(w, "%s %s %d", name, r.Method, n)
	})
}

// counter reads a counter or a gauge of the gateway, by name and labels.
func (s *site) counter(name string, labels ...string) float64 {
	families, err := s.gw.metrics.registry.Gather()
	must0(err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var has []string
			for _, l := range m.GetLabel() {
				has = append(has, l.GetName(), l.GetValue())
			}
			if f.GetName() == "atoll_gateway_"+name && slices.Equal(has, labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() // it is one of the two
			}
		}
	}
	panic("no metric " + name)
}

func topoPeers(site topo.SiteID, addrs ...string) map[topo.SiteID][]string {
	return map[topo.SiteID][]string{site: addrs}
}
