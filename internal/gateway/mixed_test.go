package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/atollhq/atoll/topo"
)

// mixed is everything that users do at once, while their buckets move: nothing fails, and those who stay connected are told to
// come back, and nothing else.
type mixed struct {
	load
	sites                          []*site
	uploads, calls, streamed, said atomic.Int64
	comeBack                       atomic.Int64 // were told to
}

// routes of the mixed load; gRPC's calls carry the key in their metadata.
var mixedRoutes = []topo.Route{
	{Name: "users", Path: "/users", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless, FencedRetry: true},
	{Name: "test", Path: "/grpc.testing.TestService", Upstream: "grpc", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless},
}

// mixedApp is one site's application: what world's app does, uploads that name their write in a header, and WebSockets.
func (w *world) mixedApp(site topo.SiteID) http.Handler {
	writes, sockets := w.app(site), echoSocket(string(site))
	return http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/users/upload":
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				http.Error(out, err.Error(), 499)
				return
			}
			r.Body = io.NopCloser(strings.NewReader(fmt.Sprintf("%s of %d", r.Header.Get("X-Id"), n)))
		case "/users/socket":
			sockets.ServeHTTP(out, r)
			return
		}
		writes.ServeHTTP(out, r)
	})
}

// TestSwitchUnderMixedLoad: reads, writes, uploads of up to 5 MB, gRPC calls and streams, and WebSockets, while their buckets
// go to and fro.
func TestSwitchUnderMixedLoad(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector two cores do not carry this load; make test runs it without")
	}
	const handovers = 12
	w := newWorld()
	rpc := map[topo.SiteID]string{"a": grpcApp(t, "a"), "b": grpcApp(t, "b")}
	a, b := pair(t, w.mixedApp("a"), w.mixedApp("b"), func(c *Config) {
		c.Routes, c.Upstreams = mixedRoutes, map[string]Upstream{"app": c.Upstreams["app"], "grpc": At(rpc[c.Site])}
	})
	sites := map[topo.SiteID]*site{"a": a, "b": b}
	publish(w.mu.doc, w.mu.doc.Version, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	m := &mixed{sites: []*site{a, b}, load: load{clients: []*http.Client{newClient(t)}, world: w, bad: make(chan string, 10), targets: []string{a.url(""), b.url("")}}}
	ctx, end := context.WithCancel(t.Context())
	stop := make(chan struct{})
	finish := sync.OnceFunc(func() { close(stop); end() })
	t.Cleanup(finish) // also where the test fails: they would go on beside the next one
	clients := m.start(ctx, t, stop)
	sets := []topo.Spans{topo.SpansOf(0, 1, 2, 3), topo.SpansOf(5, 6)}
	var told int64 // before both sets went to the other site
	for i := range handovers {
		to := topo.SiteID("b")
		if i/2%2 == 1 {
			to = "a"
		}
		before := m.counts()
		if i%2 == 0 {
			told = m.comeBack.Load()
		}
		w.move(t, topo.HandoverID(fmt.Sprintf("h%d", i)), sets[i%2], to, sites)
		eventually(t, "all of them go on", func() bool {
			now := m.counts()
			for k := range now {
				if now[k] < before[k]+3 {
					return len(m.bad) > 0
				}
			}
			return i%2 == 0 || m.comeBack.Load() > told && m.settled() || len(m.bad) > 0
		})
	}
	finish()
	clients.Wait()
	m.judge(t)
	if m.comeBack.Load() == 0 || m.held.Load() == 0 {
		t.Errorf("%d were told to come back, %d requests were held: the moves met nobody", m.comeBack.Load(), m.held.Load())
	}
	t.Logf("%d handovers: requests, uploads, calls, messages of streams and of WebSockets answered: %v; %d times told to come back", handovers, m.counts(), m.comeBack.Load())
}

// start begins what all users do; they are done when stop is closed and ctx has ended.
func (m *mixed) start(ctx context.Context, t *testing.T, stop <-chan struct{}) *sync.WaitGroup {
	clients := &sync.WaitGroup{}
	for n := range 4 {
		clients.Go(func() { m.run(n, stop) })
		clients.Go(func() { m.upload(t, n, stop) })
		clients.Go(func() { m.call(t, n, stop) })
		clients.Go(func() { m.stream(t, n, stop) })
		clients.Go(func() { m.socket(ctx, t, n, stop) })
	}
	return clients
}

// TestFailoverUnderMixedLoad: the other site is lost without a word, under the same load. Until its buckets are taken over their
// requests may fail, and nobody else's; what begins behind that does not, and those who stay connected come back.
func TestFailoverUnderMixedLoad(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector two cores do not carry this load; make test runs it without")
	}
	w := newWorld()
	a := newSite(t, "a", w.mixedApp("a"))
	confA := a.config()
	confA.Routes, confA.Upstreams = mixedRoutes, map[string]Upstream{"app": confA.Upstreams["app"], "grpc": At(grpcApp(t, "a"))}
	a.start(t, confA)
	path := newPausable(t, a.gw.PeerAddr())
	b := newSite(t, "b", w.mixedApp("b"))
	conf := b.config()
	conf.Routes, conf.Upstreams = mixedRoutes, map[string]Upstream{"app": conf.Upstreams["app"], "grpc": At(grpcApp(t, "b"))}
	conf.Peers = map[topo.SiteID][]string{"a": {path.Addr().String()}}
	b.start(t, conf)
	publish(w.mu.doc, w.mu.doc.Version, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	m := &mixed{sites: []*site{b}, load: load{clients: []*http.Client{newClient(t)}, world: w, bad: make(chan string, 10), targets: []string{b.url("")}}}
	ctx, end := context.WithCancel(t.Context())
	stop := make(chan struct{})
	finish := sync.OnceFunc(func() { close(stop); end() })
	heal := sync.OnceFunc(path.mu.Unlock)
	clients := m.start(ctx, t, stop)
	t.Cleanup(finish)
	goOn := func(n int64) {
		t.Helper()
		before := m.counts()
		eventually(t, "all of them go on", func() bool {
			now := m.counts()
			for k := range now {
				if now[k] < before[k]+n {
					return len(m.bad) > 0
				}
			}
			return true
		})
	}
	goOn(20)
	m.phase.Store(phaseLost)
	path.mu.Lock()
	t.Cleanup(heal) // before the path's own end, which waits for what passes
	eventually(t, "requests of the lost site fail", func() bool { return m.excused.Load() > 0 })
	w.mu.Lock()
	taken, _, err := w.mu.doc.TakeOver("a", "b", "f1", 1)
	must0(err)
	w.mu.doc = taken
	for bucket, at := range w.mu.fence {
		if at == "a" { // its lease is over
			w.mu.fence[bucket] = "b"
		}
	}
	w.mu.Unlock()
	b.agent.publish(taken, taken.Version)
	eventually(t, "the gateway has heard", func() bool { return b.gw.views.load().version().version == taken.Version })
	m.phase.Store(phaseTaken)
	goOn(50)
	eventually(t, "all who stay connected are here", func() bool { return m.settled() || len(m.bad) > 0 })
	finish()
	clients.Wait()
	m.judge(t)
	t.Logf("requests, uploads, calls, messages of streams and of WebSockets answered: %v; %d of the lost site's failed before the takeover; %d times told to come back",
		m.counts(), m.excused.Load(), m.comeBack.Load())
}

// judge says what went wrong, when all clients are done: in both tests also what was acknowledged and is not there.
func (m *mixed) judge(t *testing.T) {
	t.Helper()
	close(m.bad)
	for what := range m.bad {
		t.Error(what)
	}
	for _, s := range m.world.strayed() {
		t.Error(s)
	}
	m.acked.Range(func(id, _ any) bool {
		if _, ok := m.world.mu.written[id.(string)]; !ok {
			t.Errorf("acknowledged but not written: %s", id)
		}
		return true
	})
}

// settled tells that all who stay connected are where their buckets are, so that somebody must be told at the next moves.
func (m *mixed) settled() bool {
	here := 0
	for _, s := range m.sites {
		l := s.gw.streams
		l.mu.Lock()
		for one := range l.mu.all {
			if one.timer != nil {
				here = -100
			}
			if one.keyed { // at its first gateway
				here++
			}
		}
		l.mu.Unlock()
	}
	return here == 8 // four streams and four WebSockets
}

func (m *mixed) counts() [5]int64 {
	return [5]int64{m.ok.Load(), m.uploads.Load(), m.calls.Load(), m.streamed.Load(), m.said.Load()}
}

func ended(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return false
	}
}

// slowly gives a body in pieces, so that an upload is under way for a while.
type slowly struct {
	*bytes.Reader
	stop <-chan struct{}
}

func (s slowly) Read(b []byte) (int, error) {
	if !ended(s.stop) {
		<-time.After(time.Millisecond)
	}
	return s.Reader.Read(b[:min(len(b), 64<<10)])
}

func (m *mixed) upload(t *testing.T, n int, stop <-chan struct{}) {
	r := rand.New(rand.NewPCG(uint64(n), 2))
	c := newClient(t)
	for i := 0; !ended(stop); i++ {
		key, began := fmt.Sprintf("user-%d", r.IntN(200)), m.phase.Load()
		body := bytes.NewReader(make([]byte, 1+r.IntN(5<<20)))
		size := body.Len()
		req, err := http.NewRequest("POST", m.targets[r.IntN(len(m.targets))]+"/users/upload", slowly{body, stop})
		if err != nil {
			m.fail(err.Error())
			return
		}
		if r.IntN(2) == 0 {
			req.ContentLength = int64(size) // else it is not known ahead
		}
		req.Header.Set("X-User", key)
		req.Header.Set("X-Id", fmt.Sprintf("upload %d-%d", n, i))
		resp, err := c.Do(req)
		if err != nil {
			m.failed(key, began, "upload: "+err.Error())
			continue
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 {
			m.failed(key, began, fmt.Sprintf("upload of %d bytes: %s %q %v %v", size, resp.Status, text, err, resp.Header))
			continue
		}
		m.uploads.Add(1)
	}
}

func (m *mixed) call(t *testing.T, n int, stop <-chan struct{}) {
	r := rand.New(rand.NewPCG(uint64(n), 3))
	var keys []string
	var clients []testgrpc.TestServiceClient
	for k := range 10 { // two of them b's
		keys = append(keys, keyIn(topo.BucketID(k)))
		clients = append(clients, testgrpc.NewTestServiceClient(dialGRPC(t, m.sites[k%len(m.sites)], keys[k])))
	}
	for !ended(stop) {
		size, k, began := 1+r.IntN(200_000), r.IntN(len(clients)), m.phase.Load()
		resp, err := clients[k].UnaryCall(context.Background(), &testgrpc.SimpleRequest{ResponseSize: int32(size), Payload: &testgrpc.Payload{Body: make([]byte, size)}})
		if err != nil || len(resp.GetPayload().GetBody()) != size {
			m.failed(keys[k], began, fmt.Sprintf("call: %d of %d bytes, %v", len(resp.GetPayload().GetBody()), size, err))
			continue
		}
		m.calls.Add(1)
	}
}

func (m *mixed) stream(t *testing.T, n int, stop <-chan struct{}) {
	r := rand.New(rand.NewPCG(uint64(n), 4))
	say := &testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 100}}}
	key := keyIn(topo.BucketID(r.IntN(8)))
	cc := testgrpc.NewTestServiceClient(dialGRPC(t, m.sites[n%len(m.sites)], key))
	for !ended(stop) {
		began := m.phase.Load()
		ctx, cancel := context.WithCancel(context.Background())
		s, err := cc.FullDuplexCall(ctx)
		for err == nil && !ended(stop) {
			if err = s.Send(say); err == nil || err == io.EOF { // the stream's end says why
				_, err = s.Recv()
			}
			if err == nil {
				m.streamed.Add(1)
			}
		}
		cancel()
		switch {
		case err == nil:
		case status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), errMoved.Error()):
			m.comeBack.Add(1)
		default:
			m.failed(key, began, "stream: "+err.Error())
		}
	}
}

func (m *mixed) socket(ctx context.Context, t *testing.T, n int, stop <-chan struct{}) {
	r := rand.New(rand.NewPCG(uint64(n), 5))
	key := keyIn(topo.BucketID(r.IntN(8)))
	header := http.Header{"X-User": {key}}
	url, client := strings.Replace(m.targets[n%len(m.targets)], "http", "ws", 1)+"/users/socket", newClient(t)
	for !ended(stop) {
		began := m.phase.Load()
		c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPHeader: header, HTTPClient: client, Subprotocols: []string{"shop"}})
		if err != nil {
			if ctx.Err() == nil {
				m.failed(key, began, "WebSocket: "+err.Error())
			}
			continue
		}
		c.SetReadLimit(1 << 20)
		_, _, err = c.Read(ctx) // its name
		for err == nil && !ended(stop) {
			said := make([]byte, r.IntN(100_000))
			if err = c.Write(ctx, websocket.MessageBinary, said); err != nil {
				_, _, err = c.Read(ctx) // which says why
				break
			}
			var back []byte
			if _, back, err = c.Read(ctx); err == nil && len(back) != len(said) {
				m.fail(fmt.Sprintf("WebSocket: %d of %d bytes came back", len(back), len(said)))
			}
			if err == nil {
				m.said.Add(1)
			}
		}
		switch {
		case err == nil || ctx.Err() != nil:
		case websocket.CloseStatus(err) == closeServiceRestart:
			m.comeBack.Add(1)
		default:
			m.failed(key, began, "WebSocket: "+err.Error())
		}
		_ = c.CloseNow()
	}
}
