package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// world is the truth of a test: which site's database takes writes of which bucket, and what was written.
type world struct {
	mu struct {
		sync.Mutex
		doc     topo.Ownership
		fence   map[topo.BucketID]topo.SiteID // where the fence is open; none while a bucket moves
		written map[string]topo.SiteID
		strays  []string
	}
}

func newWorld() *world {
	w := &world{}
	w.mu.doc = half()
	w.mu.fence = make(map[topo.BucketID]topo.SiteID)
	w.mu.written = make(map[string]topo.SiteID)
	for b := range topo.BucketID(userBuckets) {
		r, _ := w.mu.doc.At("users", b)
		w.mu.fence[b] = r.Owner
	}
	return w
}

// app is the application of one site: a write is its id, and it is refused where the fence is closed.
func (w *world) app(site topo.SiteID) http.Handler {
	return http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if ours(name) {
				panic("an application saw " + name)
			}
		}
		id, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(out, err.Error(), 499)
			return
		}
		if r.Method == http.MethodGet {
			fmt.Fprint(out, site)
			return
		}
		key := r.Header.Get("X-User")
		w.mu.Lock()
		defer w.mu.Unlock()
		b := bucketOf(key)
		if w.mu.fence[b] != site {
			w.mu.strays = append(w.mu.strays, fmt.Sprintf("%s: write of bucket %d, open at %q", site, b, w.mu.fence[b]))
			r, _ := w.mu.doc.At("users", b)
			out.Header().Set(hFenced, fmt.Sprintf("users/%d/%d", b, r.Epoch))
			out.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if _, twice := w.mu.written[string(id)]; twice {
			w.mu.strays = append(w.mu.strays, "written twice: "+string(id))
		}
		w.mu.written[string(id)] = site
		fmt.Fprint(out, site)
	})
}

// move switches buckets as the controller does: claim, wait for gateways, close, commit, open.
func (w *world) move(t testing.TB, id topo.HandoverID, buckets topo.Spans, to topo.SiteID, sites map[topo.SiteID]*site) {
	publishAll := func(o topo.Ownership) {
		for _, s := range sites {
			s.agent.publish(o, o.Version-1)
		}
	}
	w.mu.Lock()
	moving := change(w.mu.doc.StartMove("users", buckets, id, to))
	w.mu.doc = moving
	w.mu.Unlock()
	publishAll(moving)
	eventually(t, "gateways have settled", func() bool {
		for _, s := range sites {
			ack := s.agent.acked(s.gw.name)
			if ack.Version < moving.Version || ack.InFlight[id] != 0 {
				return false
			}
		}
		return true
	})
	w.mu.Lock()
	for _, b := range buckets.Buckets() {
		delete(w.mu.fence, b)
	}
	committed := change(moving.CommitMove("users", buckets, id))
	w.mu.doc = committed
	w.mu.Unlock()
	publishAll(committed) // the document comes a moment before the fence opens
	eventually(t, "gateways have the committed view", func() bool {
		for _, s := range sites {
			if s.gw.views.load().version().version < committed.Version {
				return false
			}
		}
		return true
	})
	w.mu.Lock()
	for _, b := range buckets.Buckets() {
		w.mu.fence[b] = to
	}
	w.mu.Unlock()
	for _, s := range sites {
		s.agent.publish(committed, committed.Version)
	}
}

// load sends requests until stop is closed and reports every answer that is not 200.
type load struct {
	clients []*http.Client
	targets []string
	world   *world
	acked   sync.Map // id → true
	ok      atomic.Int64
	held    atomic.Int64
	bad     chan string

	phase   atomic.Int32 // of the loss of site a: what began before the takeover and ended behind the loss may fail
	excused atomic.Int64 // did
}

func (l *load) run(n int, stop <-chan struct{}) {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	views := map[string]viewVersion{}
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		method, id := http.MethodPost, fmt.Sprintf("%d-%d", n, i)
		if r.IntN(3) == 0 {
			method = http.MethodGet
		}
		url := l.targets[r.IntN(len(l.targets))]
		req, _ := http.NewRequest(method, url+"/users/x", strings.NewReader(id))
		key, began := fmt.Sprintf("user-%d", r.IntN(200)), l.phase.Load()
		req.Header.Set("X-User", key)
		resp, err := l.clients[n%len(l.clients)].Do(req)
		if err != nil {
			l.failed(key, began, err.Error())
			continue
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || string(text) != resp.Header.Get(hSite) {
			l.failed(key, began, fmt.Sprintf("%s %s: %d %q %v %v", method, url, resp.StatusCode, text, err, resp.Header))
			continue
		}
		gateway := resp.Header.Get(hGateway)
		v, err := parseVersion(resp.Header.Get(hView))
		if err != nil || v.before(views[gateway]) || gateway == "" || resp.Header.Get(hEpoch) == "" {
			l.fail(fmt.Sprintf("headers %v after view %v", resp.Header, views[gateway]))
		}
		views[gateway] = v
		if resp.Header.Get(hHeld) != "" {
			l.held.Add(1)
		}
		l.ok.Add(1)
		if method == http.MethodPost {
			l.acked.Store(id, true)
		}
	}
}

// Phases of a loss.
const (
	phaseLost int32 = 1 + iota
	phaseTaken
)

// failed reports a failure, but for one that the loss of site a excuses. Began: in which phase the request did.
func (l *load) failed(key string, began int32, what string) {
	if was, _ := half().At("users", bucketOf(key)); was.Owner == "a" && began < phaseTaken && l.phase.Load() >= phaseLost {
		l.excused.Add(1)
		return
	}
	l.fail(what)
}

func (l *load) fail(what string) {
	select {
	case l.bad <- what:
	default:
	}
}

// Buckets go to and fro under load, and no request fails, no write reaches a closed fence, none is lost or doubled.
func TestSwitchUnderLoad(t *testing.T) {
	const handovers = 30
	w := newWorld()
	userTLS := &tls.Config{Certificates: []tls.Certificate{certs.users}}
	a, b := pair(t, w.app("a"), w.app("b"), func(c *Config) {
		if c.Site == "b" {
			c.Listen.TLS = userTLS
		}
	})
	sites := map[topo.SiteID]*site{"a": a, "b": b}
	publish(w.mu.doc, w.mu.doc.Version, a, b)
	a.ready(t, 1)
	b.ready(t, 1)

	h1 := newClient(t)
	h1.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	h1.Transport.(*http.Transport).TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	h2 := newClient(t)
	h2.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	h2.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	l := &load{clients: []*http.Client{h1, h2}, world: w, bad: make(chan string, 10),
		targets: []string{"http://" + a.gw.UserAddr(), "https://" + b.gw.UserAddr()}}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for n := range 16 {
		clients.Go(func() { l.run(n, stop) })
	}
	sets := []topo.Spans{topo.SpansOf(0, 1, 2, 3), topo.SpansOf(5, 6)}
	for i := range handovers {
		set, to := sets[i%2], topo.SiteID("b")
		if i/2%2 == 1 {
			to = "a"
		}
		before := l.ok.Load()
		w.move(t, topo.HandoverID(fmt.Sprintf("h%d", i)), set, to, sites)
		eventually(t, "load goes on", func() bool { return l.ok.Load() > before+300 || len(l.bad) > 0 })
	}
	close(stop)
	clients.Wait()
	close(l.bad)
	for what := range l.bad {
		t.Error(what)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.mu.strays {
		t.Error(s)
	}
	n := 0
	l.acked.Range(func(id, _ any) bool {
		n++
		if _, ok := w.mu.written[id.(string)]; !ok {
			t.Errorf("acknowledged but not written: %s", id)
		}
		return true
	})
	if l.held.Load() == 0 {
		t.Error("nothing was held")
	}
	for _, s := range sites {
		// Parts of a move that wait for each other do so until a bound.
		if n := s.counter("hold_ended_total", "reason", "timeout"); n > 0 {
			t.Errorf("%s: %v holds ran into their bound", s.id, n)
		}
	}
	t.Logf("%d answers, %d writes acknowledged, %d held", l.ok.Load(), n, l.held.Load())
	checkHoldLines(t, a.log.String(), handovers)
	checkHoldLines(t, b.log.String(), handovers)
}

func checkHoldLines(t *testing.T, log string, handovers int) {
	t.Helper()
	begun, ended := map[string]int64{}, map[string]int64{}
	dec := json.NewDecoder(strings.NewReader(log))
	for {
		var line struct {
			Msg, Handover, Keyspace, Buckets string
			Version                          uint64
			UnixUS                           int64 `json:"unix_us"`
		}
		if dec.Decode(&line) != nil {
			break
		}
		switch line.Msg {
		case "hold begin":
			begun[line.Handover] = line.UnixUS
		case "hold end":
			ended[line.Handover] = line.UnixUS
		default:
			continue
		}
		if line.Keyspace != "users" || line.Version == 0 || line.Buckets != "0-3" && line.Buckets != "5-6" {
			t.Errorf("hold line %+v", line)
		}
	}
	if len(begun) != handovers || len(ended) != handovers {
		t.Fatalf("%d begun, %d ended, want %d", len(begun), len(ended), handovers)
	}
	for id, at := range ended {
		if at < begun[id] || at > begun[id]+int64(10*time.Second/time.Microsecond) {
			t.Errorf("hold of %s: %d to %d", id, begun[id], at)
		}
	}
}

// A gateway that never hears that a bucket left sends its writes to the old site's application; the fence refuses, and
// the write is done at the new owner as soon as the view comes.
func TestFencedWriteIsSentToTheNewOwner(t *testing.T) {
	t.Parallel()
	w := newWorld()
	a, b := pair(t, w.app("a"), w.app("b"), nil)
	publish(w.mu.doc, 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	moving := change(w.mu.doc.StartMove("users", topo.SpansOf(0), "h", "b"))
	committed := change(moving.CommitMove("users", topo.SpansOf(0), "h"))
	w.mu.Lock()
	w.mu.doc, w.mu.fence[0] = committed, "b"
	w.mu.Unlock()
	publish(committed, committed.Version, b)
	b.ready(t, committed.Version)

	got := make(chan answer, 1)
	c := newClient(t)
	go func() { got <- do(t, c, "POST", a.url("/users"), keyIn(0), "id-1") }()
	eventually(t, "the fence has refused the write", func() bool { return len(w.strayed()) == 1 })
	publish(committed, committed.Version, a)
	answer := <-got
	want(t, answer, 200, "")
	if answer.body != "b" || answer.header.Get(hSite) != "b" || answer.header.Get(hEpoch) != "2" || answer.header.Get(hFenced) != "" {
		t.Fatalf("%s %v", answer, answer.header)
	}
}

func (w *world) strayed() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.strays
}

// The same where the stale gateway is the second one: the fence refuses what a forwarded request asks for.
func TestFencedForwardedWriteComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld()
	a, b := pair(t, w.app("a"), w.app("b"), nil)
	publish(w.mu.doc, 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	moving := change(w.mu.doc.StartMove("users", topo.SpansOf(0), "h", "b"))
	committed := change(moving.CommitMove("users", topo.SpansOf(0), "h"))
	w.mu.Lock()
	w.mu.doc, w.mu.fence[0] = committed, "b"
	w.mu.Unlock()
	got := make(chan answer, 1)
	c := newClient(t)
	go func() { got <- do(t, c, "POST", b.url("/users"), keyIn(0), "id-1") }()
	eventually(t, "the fence has refused the write", func() bool { return len(w.strayed()) == 1 })
	publish(committed, committed.Version, a, b)
	answer := <-got
	want(t, answer, 200, "")
	if answer.body != "b" {
		t.Fatalf("%s %v", answer, answer.header)
	}
}

// What cannot be sent again, and what is not asked to be, goes to the user as the application answered it.
func TestFencedAnswersThatArePassedOn(t *testing.T) {
	t.Parallel()
	fenced := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set(hFenced, fmt.Sprintf("users/%d/1", bucketOf(r.Header.Get("X-User"))))
		w.Header().Set("Atoll-Whatever", "x")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	a, _ := pair(t, fenced, fenced, nil)
	publish(half(), 1, a)
	a.ready(t, 1)
	c := newClient(t)
	big := do(t, c, "POST", a.url("/users"), keyIn(0), strings.Repeat("x", 2*keepBody))
	want(t, big, 503, reasonFenced)
	unasked := do(t, c, "POST", a.url("/strong"), keyIn(0), "x")
	want(t, unasked, 503, "")
	for _, got := range []answer{big, unasked} {
		if got.header.Get(hFenced) != "" || got.header.Get("Atoll-Whatever") != "" || got.header.Get(hSite) != "a" {
			t.Errorf("headers %v", got.header)
		}
	}
}

// No view explains why the fence refuses: after a while the user hears so.
func TestFencedWithoutNews(t *testing.T) {
	t.Parallel()
	w := newWorld()
	a := newSite(t, "a", w.app("a"))
	a.start(t, a.config())
	publish(w.mu.doc, 1, a)
	a.ready(t, 1)
	w.mu.Lock()
	delete(w.mu.fence, 0)
	w.mu.Unlock()
	want(t, do(t, newClient(t), "POST", a.url("/users"), keyIn(0), "x"), 503, reasonFenced)
}

// The acknowledgement of a view names a write that was let through before it, and a second one follows at once when
// that write is answered.
func TestAcknowledgementsCountWritesUnderWay(t *testing.T) {
	t.Parallel()
	enter, leave := make(chan struct{}), make(chan struct{})
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		enter <- struct{}{}
		<-leave
	})
	a := newSite(t, "a", slow)
	a.start(t, a.config())
	doc := half()
	publish(doc, 1, a)
	a.ready(t, 1)
	got := make(chan answer, 1)
	c := newClient(t)
	go func() { got <- do(t, c, "POST", a.url("/users"), keyIn(0), "x") }()
	<-enter
	moving := change(doc.StartMove("users", topo.SpansOf(0, 1), "h1", "b"))
	publish(moving, 1, a)
	eventually(t, "acknowledged with one write under way", func() bool {
		ack := a.agent.acked("a/g1")
		return ack.Version == moving.Version && ack.InFlight["h1"] == 1
	})
	close(leave)
	want(t, <-got, 200, "")
	start := time.Now()
	eventually(t, "acknowledged with none", func() bool {
		ack := a.agent.acked("a/g1")
		n, named := ack.InFlight["h1"]
		return named && n == 0
	})
	if d := time.Since(start); d > ackEvery/2 {
		t.Errorf("the acknowledgement took %s", d)
	}
}

// An aborted move releases to the same site, once its fence is open again.
func TestAbortedMove(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	a.start(t, a.config())
	doc := half()
	publish(doc, 1, a)
	a.ready(t, 1)
	moving := change(doc.StartMove("users", topo.SpansOf(0), "h1", "b"))
	publish(moving, 1, a)
	a.ready(t, moving.Version)
	got := make(chan answer, 1)
	c := newClient(t)
	go func() { got <- do(t, c, "POST", a.url("/users"), keyIn(0), "x") }()
	eventually(t, "held", func() bool { return a.gw.room.held() == 1 })
	aborted := change(moving.AbortMove("users", topo.SpansOf(0), "h1"))
	publish(aborted, 1, a)
	a.ready(t, aborted.Version)
	if a.gw.room.held() != 1 {
		t.Fatal("released before the fence is open")
	}
	publish(aborted, aborted.Version, a)
	answer := <-got
	want(t, answer, 200, "")
	if answer.header.Get(hHeld) == "" || answer.header.Get(hEpoch) != "2" {
		t.Fatalf("headers %v", answer.header)
	}
}

// The early-release plant is absent from the ordinary build: nothing leaves before the view says so. The test of the
// plant itself is the lab's.
func TestHeldUntilTheViewSaysSo(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	conf := a.config()
	conf.Hold.MaxTime = 300 * time.Millisecond
	a.start(t, conf)
	doc := half()
	moving := change(doc.StartMove("users", topo.SpansOf(0), "h1", "b"))
	publish(moving, 2, a)
	a.ready(t, moving.Version)
	c := newClient(t)
	want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 503, reasonHoldTimeout)
	want(t, do(t, c, "GET", a.url("/users"), keyIn(0), ""), 200, "")
	want(t, do(t, c, "GET", a.url("/strong"), keyIn(0), ""), 503, reasonHoldTimeout)
	want(t, do(t, c, "POST", a.url("/users"), keyIn(1), "x"), 200, "")
	want(t, do(t, c, "POST", a.url("/other"), "", "x"), 200, "")
}

func TestHoldCaps(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	conf := a.config()
	conf.Hold = Hold{MaxTime: time.Minute, MaxPerBucket: 2, MaxRequests: 3}
	a.start(t, conf)
	doc := half()
	moving := change(doc.StartMove("users", topo.SpansOf(0, 1), "h1", "b"))
	publish(moving, 2, a)
	a.ready(t, moving.Version)
	c := newClient(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var held sync.WaitGroup
	hold := func(b topo.BucketID) {
		req, _ := http.NewRequestWithContext(ctx, "POST", a.url("/users"), bytes.NewReader([]byte("x")))
		req.Header.Set("X-User", keyIn(b))
		n := a.gw.room.held()
		held.Go(func() {
			resp, err := c.Do(req)
			if err == nil {
				resp.Body.Close()
				t.Errorf("a held request was answered: %s", resp.Status)
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		eventually(t, "one more is held", func() bool { return a.gw.room.held() == n+1 })
	}
	hold(0)
	hold(0)
	want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 503, reasonHoldFull)
	hold(1)
	want(t, do(t, c, "POST", a.url("/users"), keyIn(1), "x"), 503, reasonHoldFull)
	// The clients go away long before the hold's time is up; a small body does not hide that.
	cancel()
	held.Wait()
	eventually(t, "nobody is held", func() bool { return a.gw.room.held() == 0 })
}
