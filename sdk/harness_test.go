package sdk_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/control"
	"github.com/atollhq/atoll/internal/gateway"
	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/sdk"
	"github.com/atollhq/atoll/topo"
)

var (
	identities map[topo.SiteID]*pki.Identity
	pkiDir     string // with certificates of services app and other, too
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "atoll-sdk-test")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		pkiDir = dir
		if err := pki.Init(dir, "test"); err != nil {
			panic(err)
		}
		for _, name := range []string{"app", "other"} {
			if err := pki.Issue(dir, pki.Role{Kind: pki.Service, Name: name}); err != nil {
				panic(err)
			}
		}
		identities = make(map[topo.SiteID]*pki.Identity)
		for _, site := range []topo.SiteID{"a", "b"} {
			err := pki.Issue(dir, pki.Role{Kind: pki.Site, Name: string(site)})
			if err == nil {
				identities[site], err = pki.Load(dir, "site-"+string(site))
			}
			if err != nil {
				panic(err)
			}
		}
		code := pgserver.RunMain(m)
		if code == 0 {
			if err := goleak.Find(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
		return code
	}())
}

const userBuckets = fencedBuckets

var (
	testSpaces = map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: userBuckets, Hash: topo.HashMD5, Key: topo.TextKey}, "catalog": {Buckets: 1, Hash: topo.HashMD5, Key: topo.TextKey}}
	testRoutes = []topo.Route{
		{Name: "users", Path: "/users", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}, {Path: 2}}, WithoutKey: topo.RefuseKeyless, FencedRetry: true},
		{Name: "near", Path: "/near", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless, Reads: topo.NearestReads, Session: topo.HeaderSessions},
		{Name: "catalog", Path: "/catalog", Upstream: "app", Keyspace: "catalog"},
		{Name: "plain", Path: "/", Upstream: "app"},
	}
)

// half gives a the first half of the users and the catalog, b the other half.
func half() topo.Ownership {
	return topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{
		"users": {Buckets: userBuckets, Hash: "md5", Ranges: []topo.Range{
			{First: 0, Last: userBuckets/2 - 1, Owner: "a", Epoch: 1, State: topo.Open}, {First: userBuckets / 2, Last: userBuckets - 1, Owner: "b", Epoch: 1, State: topo.Open}}},
		"catalog": {Buckets: 1, Hash: "md5", Ranges: []topo.Range{{Owner: "a", Epoch: 1, State: topo.Open}}},
	})
}

func bucketOf(key string) topo.BucketID {
	b, err := route.Bucket(topo.HashMD5, key, userBuckets)
	if err != nil {
		panic(err)
	}
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

func must(o topo.Ownership, err error) topo.Ownership {
	if err != nil {
		panic(err)
	}
	return o
}

// testAgent says to a gateway what an agent would say.
type testAgent struct {
	*httptest.Server
	hub     *control.Hub
	leaseMS atomic.Int64
	stands  atomic.Pointer[api.Seen]
}

func newTestAgent(t testing.TB) *testAgent {
	a := &testAgent{hub: control.NewHub()}
	a.leaseMS.Store(60_000)
	mux := http.NewServeMux()
	ctx, end := context.WithCancel(context.Background())
	mux.HandleFunc("GET /v1/view", func(w http.ResponseWriter, r *http.Request) {
		both, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		_ = a.hub.Stream(both, r.FormValue("gateway"), true, func(u api.ViewUpdate) error {
			if err := json.NewEncoder(w).Encode(u); err != nil {
				return err
			}
			return http.NewResponseController(w).Flush()
		})
	})
	mux.HandleFunc("POST /v1/view/ack", func(w http.ResponseWriter, r *http.Request) {
		var in api.ViewAck
		_ = json.NewDecoder(r.Body).Decode(&in)
		a.hub.Ack(in)
		o, _ := a.hub.Ownership()
		_ = json.NewEncoder(w).Encode(api.LeaseState{RemainingMS: a.leaseMS.Load(), Generation: o.Generation, Version: o.Version})
	})
	mux.HandleFunc("POST /v1/view/seen", func(w http.ResponseWriter, r *http.Request) {
		var in api.SeenRequest
		_ = json.NewDecoder(r.Body).Decode(&in)
		for i, s := range in.Buckets {
			in.Buckets[i] = *a.stands.Load()
			in.Buckets[i].Keyspace, in.Buckets[i].Bucket = s.Keyspace, s.Bucket
		}
		_ = json.NewEncoder(w).Encode(api.SeenAnswer(in))
	})
	a.Server = httptest.NewServer(mux)
	t.Cleanup(func() { end(); a.CloseClientConnections(); a.Close() })
	return a
}

// site is a real gateway with an agent that says what the test wants, and an application.
type site struct {
	id    topo.SiteID
	agent *testAgent
	gw    *gateway.Gateway
	stop  func()
}

func (s *site) users() string { return "http://" + s.gw.UserAddr() }
func (s *site) admin() string { return "http://" + s.gw.AdminAddr() }

// pair is two sites whose gateways know each other.
func pair(t testing.TB, app func(topo.SiteID) http.Handler) (a, b *site) {
	t.Helper()
	peers := map[topo.SiteID]string{}
	for _, id := range []topo.SiteID{"a", "b"} {
		addr, err := loopback.Addr()
		if err != nil {
			t.Fatal(err)
		}
		peers[id] = addr
	}
	start := func(id, other topo.SiteID) *site {
		s := &site{id: id, agent: newTestAgent(t)}
		server := httptest.NewServer(app(id))
		t.Cleanup(server.Close)
		var err error
		s.gw, err = gateway.New(gateway.Config{
			Site: id, Name: "g1", Listen: gateway.Listen{Users: "127.0.0.1:0", Peer: peers[id], Admin: "127.0.0.1:0"},
			PeerTLS: identities[id].ServerTLS(nil), ClientTLS: func(s topo.SiteID) *tls.Config { return identities[id].ClientTLS(s) },
			Routes: testRoutes, Keyspaces: testSpaces, Upstreams: map[string]gateway.Upstream{"app": gateway.At(server.URL)},
			Peers:  map[topo.SiteID][]string{other: {peers[other]}},
			Agents: []gateway.Agent{{Site: id, URL: s.agent.URL}}, Hold: gateway.Hold{MaxTime: 10 * time.Second},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.stop = running(t, "gateway", s.gw.Run)
		return s
	}
	return start("a", "b"), start("b", "a")
}

// running runs f until the test ends, or stop is called.
func running(t testing.TB, what string, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && err != context.Canceled {
			t.Errorf("%s: %v", what, err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func publish(o topo.Ownership, sites ...*site) {
	for _, s := range sites {
		s.agent.hub.Publish(o)
		s.agent.hub.SetOpened(o.Version)
	}
}

// viewAt follows a site's gateway, and waits for a version.
func viewAt(t testing.TB, s *site) *sdk.View {
	t.Helper()
	v, err := sdk.NewView(sdk.ViewConfig{Site: s.id, Gateways: []string{s.admin()}})
	if err != nil {
		t.Fatal(err)
	}
	running(t, "view", v.Run)
	waitFor(t, v)
	return v
}

func waitFor(t testing.TB, v *sdk.View) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := v.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func newTransport(t testing.TB, conf sdk.TransportConfig) *sdk.Transport {
	t.Helper()
	tr, err := sdk.NewTransport(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

func ask(t testing.TB, tr http.RoundTripper, req *http.Request) answer {
	t.Helper()
	resp, err := tr.RoundTrip(req)
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

func request(t testing.TB, method, path, key string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://shop"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("X-User", key)
	}
	return req
}

// echo answers with its site's name.
func echo(id topo.SiteID) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", id, r.Method, text)
	})
}
