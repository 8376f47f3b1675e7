package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// alone is a site whose gateway has a view and a lease.
func alone(t testing.TB, app http.Handler, edit func(*Config)) *site {
	a := newSite(t, "a", app)
	conf := a.config()
	if edit != nil {
		edit(&conf)
	}
	a.start(t, conf)
	publish(half(), 1, a)
	a.ready(t, 1)
	return a
}

func TestHeadersThatGoThrough(t *testing.T) {
	t.Parallel()
	var got atomic.Pointer[http.Request]
	a, b := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Store(r)
		w.Header().Set("X-App", "yes")
		w.Header().Set("Connection", "X-Secret")
		w.Header().Set("X-Secret", "1")
		w.Header().Set("Atoll-Site", "lies")
	}), echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	for _, s := range []*site{a, b} {
		req, _ := http.NewRequest("POST", s.url("/users/%2e%2fx?q=a%20b"), strings.NewReader("body"))
		req.Host = "shop.example.com"
		req.Header = http.Header{
			"X-User": {keyIn(0)}, "Connection": {"X-Hop, X-User"}, "X-Hop": {"1"}, "Te": {"trailers"},
			"Atoll-Bucket": {"9"}, "atoll_epoch": {"9"}, "ATOLL-HOPS": {"9"}, "X-Forwarded-For": {"6.6.6.6"}, "Forwarded": {"for=6.6.6.6"},
			"X-Forwarded-Proto": {"https"}, "Cookie": {"c=1"}, "Upgrade": {"h2c"}, "User-Agent": {""},
		}
		answer := send(t, newClient(t), req)
		want(t, answer, 200, "")
		r := got.Load()
		if r.Host != "shop.example.com" || r.RequestURI != "/users/%2e%2fx?q=a%20b" || r.Header.Get("X-User") != keyIn(0) || r.Header.Get("Cookie") != "c=1" {
			t.Errorf("at %s: %s %s %v", s.id, r.Host, r.RequestURI, r.Header)
		}
		for name, value := range map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "shop.example.com",
			"X-Hop": "", "Te": "", "Upgrade": "", "Forwarded": "", "User-Agent": ""} {
			if r.Header.Get(name) != value {
				t.Errorf("at %s: %s is %q, want %q", s.id, name, r.Header.Get(name), value)
			}
		}
		for name := range r.Header {
			if ours(name) {
				t.Errorf("at %s: the application saw %s", s.id, name)
			}
		}
		if answer.header.Get("X-App") != "yes" || answer.header.Get("X-Secret") != "" || answer.header.Get(hSite) != "a" ||
			answer.header.Get(hGateway) != string(s.id)+"/g1" || answer.header.Get(hView) != "1.1" || answer.header.Get(hEpoch) != "1" {
			t.Errorf("at %s: answer %v", s.id, answer.header)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	a := alone(t, echo("a"), nil)
	c := newClient(t)
	want(t, do(t, c, "GET", a.url("/users"), "", ""), 400, route.NoKey)
	twice, _ := http.NewRequest("GET", a.url("/users"), nil)
	twice.Header["X-User"] = []string{"1", "1"}
	got := send(t, c, twice)
	want(t, got, 400, route.DuplicateKey)
	if got.header.Get(hGateway) != "a/g1" || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", got.header)
	}
	ws, _ := http.NewRequest("GET", a.url("/"), nil)
	ws.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
	want(t, send(t, c, ws), 200, "") // the application may say no
	dots, _ := http.NewRequest("GET", a.url("/"), nil)
	dots.URL.Opaque = "//" + a.gw.UserAddr() + "/x/../users"
	want(t, send(t, c, dots), 400, route.BadPath)
	for reason, what := range refusals {
		if what.status < 400 || what.text == "" || a.gw.metrics.refused[reason] == nil {
			t.Errorf("%s: %+v", reason, what)
		}
	}
}

// An upstream that takes a request and breaks the connection: whether it did something is not known.
func TestRetriesAfterABrokenConnection(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	breaking := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if seen.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
	})
	a := alone(t, breaking, nil)
	c := newClient(t)
	for _, k := range []struct {
		method, key string
		status      int
		reason      route.Reason
		times       int64
	}{
		{"GET", "", 200, "", 2},
		{"PUT", "", 200, "", 2},
		{"POST", "", 502, reasonLost, 1},
		{"POST", "k1", 200, "", 2},
	} {
		seen.Store(0)
		req, _ := http.NewRequest(k.method, a.url("/users"), strings.NewReader("x"))
		req.Header.Set("X-User", keyIn(0))
		if k.key != "" {
			req.Header.Set("Idempotency-Key", k.key)
		}
		want(t, send(t, c, req), k.status, k.reason)
		if seen.Load() != k.times {
			t.Errorf("%s %s: executed %d times, want %d", k.method, k.key, seen.Load(), k.times)
		}
	}
}

// The first attempt may have been executed; that a later one was not does not undo it.
func TestAnUnknownOutcomeStaysUnknown(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if seen.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusServiceUnavailable) // the application's own: rolled back
	}), nil)
	for method, status := range map[string]int{"POST": http.StatusBadGateway, "GET": http.StatusServiceUnavailable} {
		// On a connection that was used before, a transport may send some requests again on its own.
		seen.Store(1)
		do(t, newClient(t), "GET", a.url("/users"), keyIn(0), "")
		seen.Store(0)
		req, _ := http.NewRequest(method, a.url("/users"), strings.NewReader("x"))
		req.Header.Set("X-User", keyIn(0))
		req.Header.Set("Idempotency-Key", "k")
		reason := reasonLost
		if method == "GET" {
			reason = ""
		}
		want(t, send(t, newClient(t), req), status, reason)
		if seen.Load() != 2 {
			t.Errorf("%s: executed %d times, want 2", method, seen.Load())
		}
	}
}

func TestRetryBudget(t *testing.T) {
	t.Parallel()
	start := time.Now()
	b := newBudget(start)
	spent := 0
	for b.spend(start) {
		spent++
	}
	if spent != budgetPerSecond {
		t.Errorf("%d at first", spent)
	}
	for range 10 {
		b.earn()
	}
	for spent = 0; b.spend(start); spent++ {
	}
	if spent != 2 {
		t.Errorf("ten requests earned %d retries", spent)
	}
	for spent = 0; b.spend(start.Add(time.Second)); spent++ {
	}
	if spent != budgetPerSecond {
		t.Errorf("%d after a second", spent)
	}
}

func TestApplicationIsDown(t *testing.T) {
	t.Parallel()
	a := alone(t, echo("a"), func(c *Config) { c.Upstreams = map[string]Upstream{"app": At("http://127.0.0.1:1")} })
	c := newClient(t)
	want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 502, reasonAppDown)
	want(t, do(t, c, "GET", a.url("/"), "", ""), 502, reasonAppDown)
}

// A client that goes away ends its request at the application too.
func TestClientGone(t *testing.T) {
	t.Parallel()
	entered, left := make(chan struct{}, 1), make(chan struct{}, 1)
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		entered <- struct{}{}
		<-r.Context().Done()
		left <- struct{}{}
	}), nil)
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "POST", a.url("/users"), strings.NewReader("x"))
	req.Header.Set("X-User", keyIn(0))
	ended := make(chan struct{})
	c := newClient(t)
	go func() {
		if resp, err := c.Do(req); err == nil {
			resp.Body.Close()
		}
		close(ended)
	}()
	<-entered
	cancel()
	<-ended
	<-left
	eventually(t, "counted", func() bool { return a.counter("client_gone_total") == 1 })
}

// A client that closes what it sends, and waits, counts as gone. It gets no answer that could be taken for the application's.
func TestHalfClosedClient(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{}, 1)
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
	}), nil)
	conn, err := net.Dial("tcp", a.gw.UserAddr())
	must0(err)
	defer conn.Close()
	_, _ = fmt.Fprintf(conn, "GET /users HTTP/1.1\r\nHost: x\r\nX-User: %s\r\n\r\n", keyIn(0))
	<-entered
	must0(conn.(*net.TCPConn).CloseWrite())
	if text, err := io.ReadAll(conn); err != nil || len(text) > 0 {
		t.Errorf("got %q, %v", text, err)
	}
	eventually(t, "counted", func() bool { return a.counter("client_gone_total") == 1 })
}

// A client stops in the middle of its body, the application waits: neither a goroutine nor a count stays behind.
func TestClientGoneWithinItsBody(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{}, 1)
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		_, _ = io.Copy(io.Discard, r.Body)
	}), nil)
	conn, err := net.Dial("tcp", a.gw.UserAddr())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /users HTTP/1.1\r\nHost: x\r\nX-User: %s\r\nContent-Length: 100\r\n\r\nhalf", keyIn(0))
	<-entered
	conn.Close()
	eventually(t, "the write is no longer under way", func() bool { return a.gw.flights.counts["users"][0].Load() == 0 })
}

// An application that answers before it has read the body: the answer goes through, the connection ends.
func TestAnswerBeforeTheBody(t *testing.T) {
	t.Parallel()
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no", http.StatusForbidden)
	}), nil)
	conn, err := net.Dial("tcp", a.gw.UserAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /users HTTP/1.1\r\nHost: x\r\nX-User: %s\r\nContent-Length: 1000000\r\n\r\nhalf", keyIn(0))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 403 || !resp.Close {
		t.Fatalf("%s close %v", resp.Status, resp.Close)
	}
}

// Held uploads on an HTTP/2 connection leave room for their neighbours on it.
func TestHeldUploadsDoNotStallTheirNeighbours(t *testing.T) {
	t.Parallel()
	const large, small, uploads = 2 << 20, 100 << 10, 10
	a := newSite(t, "a", echo("a"))
	conf := a.config()
	conf.Listen.TLS = &tls.Config{Certificates: []tls.Certificate{certs.users}}
	a.start(t, conf)
	moving := change(half().StartMove("users", topo.SpansOf(0), "h", "b"))
	publish(moving, 2, a)
	a.ready(t, moving.Version)
	c := newClient(t)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	url := "https://" + a.gw.UserAddr() + "/users"
	want(t, do(t, c, "GET", url, keyIn(1), ""), 200, "") // opens the connection
	got := make(chan answer, uploads)
	for range uploads {
		go func() { got <- do(t, c, "POST", url, keyIn(0), strings.Repeat("x", large)) }()
	}
	eventually(t, "held", func() bool { return a.gw.room.held() == uploads })
	for _, size := range []int{small, large} {
		answer := do(t, c, "POST", url, keyIn(1), strings.Repeat("x", size))
		want(t, answer, 200, "")
		if text := fmt.Sprintf("a POST %d", size); answer.body != text {
			t.Errorf("got %q, want %q", answer.body, text)
		}
	}
	if n := a.gw.room.held(); n != uploads {
		t.Errorf("a neighbour waited for the held uploads: %d are left", n)
	}
	if n := a.gw.listeners.users.open.Load(); n != 1 {
		t.Errorf("%d connections: they were no neighbours", n)
	}
	aborted := change(moving.AbortMove("users", topo.SpansOf(0), "h"))
	publish(aborted, aborted.Version, a)
	for range uploads {
		answer := <-got
		want(t, answer, 200, "")
		if text := fmt.Sprintf("a POST %d", large); answer.body != text {
			t.Errorf("got %q, want %q", answer.body, text)
		}
	}
}

func TestGracefulStop(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	a := newSite(t, "a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-leave
	}))
	conf := a.config()
	conf.Grace = 300 * time.Millisecond
	a.start(t, conf)
	moving := change(half().StartMove("users", topo.SpansOf(0), "h", "b"))
	publish(moving, 2, a)
	a.ready(t, moving.Version)
	held, slow := make(chan answer, 1), make(chan answer, 1)
	c := newClient(t)
	go func() { held <- do(t, c, "POST", a.url("/users"), keyIn(0), "x") }()
	go func() { slow <- do(t, c, "POST", a.url("/users"), keyIn(1), "x") }()
	<-entered
	eventually(t, "held", func() bool { return a.gw.room.held() == 1 })
	stopped := make(chan struct{})
	go func() { a.stop(); close(stopped) }()
	eventually(t, "no new connections", func() bool {
		conn, err := net.Dial("tcp", a.gw.UserAddr())
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	close(leave)
	want(t, <-slow, 200, "")
	want(t, <-held, 503, reasonStopping)
	<-stopped
}
