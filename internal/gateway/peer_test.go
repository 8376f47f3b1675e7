package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// peerClient speaks as a gateway of site from.
func peerClient(t testing.TB, from, to topo.SiteID) *http.Client {
	c := newClient(t)
	tr := c.Transport.(*http.Transport)
	tr.TLSClientConfig = certs.sites[from].ClientTLS(to)
	tr.ForceAttemptHTTP2 = true
	return c
}

func forwardedRequest(s *site, method string, f forwarded, key string) *http.Request {
	req, err := http.NewRequest(method, "https://"+s.gw.PeerAddr()+"/users", strings.NewReader("x"))
	must0(err)
	req.Header.Set("X-User", key)
	f.set(req.Header)
	return req
}

func TestReceiverDecidesAgain(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	a.start(t, a.config())
	doc := half()
	moving := change(doc.StartMove("users", topo.SpansOf(0), "h", "b"))
	committed := change(moving.CommitMove("users", topo.SpansOf(0), "h"))
	publish(committed, committed.Version, a)
	a.ready(t, committed.Version)
	c := peerClient(t, "b", "a")
	f := func(b topo.BucketID, epoch topo.Epoch, version uint64, hops int) forwarded {
		return forwarded{"users", b, epoch, viewVersion{1, version}, hops}
	}

	mine := send(t, c, forwardedRequest(a, "POST", f(1, 1, 3, 1), keyIn(1)))
	want(t, mine, 200, "")
	if mine.header.Get(hSite) != "a" || mine.header.Get(hEpoch) != "1" || mine.header.Get(hGateway) != "" {
		t.Errorf("headers %v", mine.header)
	}
	behind := send(t, c, forwardedRequest(a, "POST", f(0, 1, 1, 1), keyIn(0)))
	want(t, behind, 421, reasonNotOwner)
	for name, value := range map[string]string{hOwner: "b", hEpoch: "2", hView: "1.3", "Cache-Control": "no-store"} {
		if behind.header.Get(name) != value {
			t.Errorf("%s: %q, want %q", name, behind.header.Get(name), value)
		}
	}
	want(t, send(t, c, forwardedRequest(a, "POST", f(1, 1, 3, maxHops+1), keyIn(1))), 503, reasonHops)
	want(t, send(t, c, forwardedRequest(a, "POST", f(2, 1, 3, 1), keyIn(1))), 503, reasonForwarded)
	twice := forwardedRequest(a, "POST", f(1, 1, 3, 1), keyIn(1))
	twice.Header.Add(hBucket, "1")
	want(t, send(t, c, twice), 503, reasonForwarded)
	bare, _ := http.NewRequest("GET", "https://"+a.gw.PeerAddr()+"/users", nil)
	want(t, send(t, c, bare), 503, reasonForwarded)

	// This gateway is behind: it waits for the view that the other one has; without it, it does nothing.
	start := time.Now()
	want(t, send(t, c, forwardedRequest(a, "POST", f(0, 3, 9, 1), keyIn(0))), 503, reasonBehind)
	if d := time.Since(start); d < viewWait {
		t.Errorf("gave up after %s", d)
	}
	got := make(chan answer, 1)
	back := change(committed.StartMove("users", topo.SpansOf(0), "h2", "a"))
	home := change(back.CommitMove("users", topo.SpansOf(0), "h2"))
	go func() {
		got <- send(t, c, forwardedRequest(a, "POST", f(0, 3, home.Version, 1), keyIn(0)))
	}()
	publish(home, back.Version, a) // here, but the fence is still closed
	eventually(t, "it waits for the fence", func() bool { return a.gw.room.held() == 1 })
	publish(home, home.Version, a)
	want(t, <-got, 200, "")
}

// What another gateway sent before it knew of a move is done; what it sent although it knew waits a moment and goes
// back.
func TestStragglersArePassedOn(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	a.start(t, a.config())
	moving := change(half().StartMove("users", topo.SpansOf(0), "h", "b"))
	publish(moving, 1, a)
	a.ready(t, moving.Version)
	c := peerClient(t, "b", "a")
	want(t, send(t, c, forwardedRequest(a, "POST", forwarded{"users", 0, 1, viewVersion{1, 1}, 1}, keyIn(0))), 200, "")
	start := time.Now()
	want(t, send(t, c, forwardedRequest(a, "POST", forwarded{"users", 0, 1, viewVersion{1, 2}, 1}, keyIn(0))), 421, route.MovingBucket)
	if d := time.Since(start); d < peerWait {
		t.Errorf("gave up after %s", d)
	}
}

// Another gateway that waits for the word that its request is taken hears it before the application does anything: an
// application that answers at once, as gRPC's do, would be heard in its stead, and the body would never come.
func TestTakenBeforeTheApplication(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", freeAddr(t)) // takes connections, and ends no TLS handshake
	must0(err)
	defer silent.Close()
	a := newSite(t, "a", echo("a"))
	conf := a.config()
	conf.Upstreams = map[string]Upstream{"app": At("h2://" + silent.Addr().String())}
	a.start(t, conf)
	publish(half(), 1, a)
	a.ready(t, 1)
	c := peerClient(t, "b", "a")
	c.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute
	taken := make(chan bool, 1)
	ctx, cancel := context.WithCancel(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { taken <- true }}))
	defer cancel()
	req := forwardedRequest(a, "POST", forwarded{"users", 0, 1, viewVersion{1, 1}, 1}, keyIn(0)).WithContext(ctx)
	req.Body, req.ContentLength = io.NopCloser(strings.NewReader("x")), -1
	req.Header.Set("Expect", "100-continue")
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, err := c.Do(req); err == nil {
			_ = resp.Body.Close()
		}
	}()
	select {
	case <-taken:
	case <-done:
		t.Error("answered without the word")
	}
	cancel()
	<-done
}

func TestPeersNeedACertificate(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	conf := a.config()
	conf.PeerTLS = certs.sites["a"].ServerTLS(func(p pki.Peer) error {
		if site, ok := p.Site(); !ok || site != "b" {
			return errors.New("not a gateway of another site")
		}
		return nil
	})
	a.start(t, conf)
	publish(half(), 1, a)
	a.ready(t, 1)
	f := forwarded{"users", 0, 1, viewVersion{1, 1}, 1}
	want(t, send(t, peerClient(t, "b", "a"), forwardedRequest(a, "GET", f, keyIn(0))), 200, "")
	plain := newClient(t)
	plain.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	for name, c := range map[string]*http.Client{"no certificate": plain, "wrong site": peerClient(t, "a", "a")} {
		if resp, err := c.Do(forwardedRequest(a, "GET", f, keyIn(0))); err == nil {
			resp.Body.Close()
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}

// A gateway that is behind sends a request to the former owner; it hears 421, waits for the view and sends it to the
// right place, the user sees nothing of it. The body is larger than what is kept: it has not left yet.
func TestMisdirectedRequestIsReRouted(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo("a"), echo("b"), nil)
	doc := half()
	publish(doc, 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	moving := change(doc.StartMove("users", topo.SpansOf(0), "h", "b"))
	committed := change(moving.CommitMove("users", topo.SpansOf(0), "h"))
	publish(committed, committed.Version, a)
	a.ready(t, committed.Version)
	c := newClient(t)
	for _, size := range []int{10, keepBody + 1, 1 << 20} {
		got := make(chan answer, 1)
		before := a.counter("misdirected_total")
		publish(doc, 1, b)
		go func() { got <- do(t, c, "POST", b.url("/users"), keyIn(0), strings.Repeat("x", size)) }()
		eventually(t, "misdirected", func() bool { return a.counter("misdirected_total") > before })
		publish(committed, committed.Version, b)
		answer := <-got
		want(t, answer, 200, "")
		if answer.body != fmt.Sprintf("b POST %d", size) || answer.header.Get(hView) != versionOf(committed) {
			t.Errorf("%s %v", answer, answer.header)
		}
		// Once more, from the beginning: a new gateway b would be the honest way; a fresh pair of documents is cheaper.
		moving = change(committed.StartMove("users", topo.SpansOf(0), topo.HandoverID(fmt.Sprint("to-a", size)), "a"))
		doc = change(moving.CommitMove("users", topo.SpansOf(0), topo.HandoverID(fmt.Sprint("to-a", size))))
		publish(doc, doc.Version, a, b)
		a.ready(t, doc.Version)
		b.ready(t, doc.Version)
		moving = change(doc.StartMove("users", topo.SpansOf(0), topo.HandoverID(fmt.Sprint("to-b", size)), "b"))
		committed = change(moving.CommitMove("users", topo.SpansOf(0), topo.HandoverID(fmt.Sprint("to-b", size))))
		publish(committed, committed.Version, a)
		a.ready(t, committed.Version)
	}
}

func versionOf(o topo.Ownership) string { return fmt.Sprintf("%d.%d", o.Generation, o.Version) }

// Users never see a 421 of ours.
func TestMisdirectedWithoutNewsIsAnError(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo("a"), echo("b"), nil)
	doc := half()
	publish(doc, 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	committed := change(change(doc.StartMove("users", topo.SpansOf(0), "h", "b")).CommitMove("users", topo.SpansOf(0), "h"))
	publish(committed, committed.Version, a)
	a.ready(t, committed.Version)
	got := do(t, newClient(t), "POST", b.url("/users"), keyIn(0), "x")
	want(t, got, 503, reasonBehind)
	if got.header.Get(hOwner) != "" || got.header.Get("Retry-After") == "" {
		t.Errorf("headers %v", got.header)
	}
}

// One of two gateways of the owner does not answer: the request goes to the other one, whatever its method.
func TestUnsentRequestsGoToAnotherGateway(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	a.start(t, a.config())
	b := newSite(t, "b", echo("b"))
	conf := b.config()
	conf.Peers = map[topo.SiteID][]string{"a": {freeAddr(t), a.gw.PeerAddr()}}
	b.start(t, conf)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	c := newClient(t)
	for range 4 {
		want(t, do(t, c, "POST", b.url("/users"), keyIn(0), "x"), 200, "")
	}
	a.stop()
	want(t, do(t, c, "POST", b.url("/users"), keyIn(0), "x"), 503, reasonPeerDown)
	want(t, do(t, c, "POST", b.url("/users"), keyIn(9), "x"), 200, "")
}

func TestOwnerWithoutGateways(t *testing.T) {
	t.Parallel()
	b := newSite(t, "b", echo("b"))
	b.start(t, b.config())
	publish(half(), 1, b)
	b.ready(t, 1)
	want(t, do(t, newClient(t), "POST", b.url("/users"), keyIn(0), "x"), 503, reasonNoPeer)
}

// A body that streams through two gateways arrives piece by piece, and so does the answer.
func TestStreamsBothWaysThroughTwoGateways(t *testing.T) {
	t.Parallel()
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(bytes.ToUpper(buf[:n]))
			_ = rc.Flush()
			if err != nil {
				w.Header().Set(http.TrailerPrefix+"X-End", "yes")
				return
			}
		}
	})
	a, b := pair(t, app, app, func(c *Config) {
		c.Listen.TLS = &tls.Config{Certificates: []tls.Certificate{certs.users}}
	})
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	c := newClient(t)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", "https://"+b.gw.UserAddr()+"/users", pr)
	req.Header.Set("X-User", keyIn(0))
	go func() { _, _ = io.WriteString(pw, "one") }()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, piece := range []string{"one", "two", "three"} {
		if piece != "one" {
			_, _ = io.WriteString(pw, piece)
		}
		buf := make([]byte, len(piece))
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != strings.ToUpper(piece) {
			t.Fatalf("%q, %v", buf, err)
		}
	}
	pw.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 || resp.Trailer.Get("X-End") != "yes" {
		t.Fatalf("rest %q, %v, trailer %v", rest, err, resp.Trailer)
	}
}

// pausable passes TCP on until it is paused; then bytes of both directions stay where they are, as on a cut path.
type pausable struct {
	net.Listener
	to string
	mu sync.RWMutex // held for reading while bytes move
	wg sync.WaitGroup
}

func newPausable(t testing.TB, to string) *pausable {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must0(err)
	p := &pausable{Listener: l, to: to}
	p.wg.Go(p.accept)
	t.Cleanup(func() { l.Close(); p.wg.Wait() })
	return p
}

func (p *pausable) accept() {
	for {
		in, err := p.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil {
			in.Close()
			continue
		}
		p.wg.Go(func() { p.copy(in, out) })
		p.wg.Go(func() { p.copy(out, in) })
	}
}

func (p *pausable) copy(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.RLock()
		_, werr := to.Write(buf[:n])
		p.mu.RUnlock()
		if err != nil || werr != nil {
			return
		}
	}
}

// The path to the owner is cut without a word: requests end with an error in bounded time, and go through again soon
// after it is healed.
func TestCutPath(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	a.start(t, a.config())
	path := newPausable(t, a.gw.PeerAddr())
	b := newSite(t, "b", echo("b"))
	conf := b.config()
	conf.Peers = map[topo.SiteID][]string{"a": {path.Addr().String()}}
	b.start(t, conf)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	c := newClient(t)
	want(t, do(t, c, "POST", b.url("/users"), keyIn(0), "x"), 200, "")
	path.mu.Lock()
	start := time.Now()
	first := do(t, c, "POST", b.url("/users"), keyIn(0), "x")
	if first.status < 500 || time.Since(start) > 3*(peerPing+peerPingTimeout+handshakeTimeout) {
		t.Errorf("%s after %s", first, time.Since(start))
	}
	want(t, do(t, c, "GET", b.url("/users"), keyIn(0), ""), 503, reasonPeerDown)
	want(t, do(t, c, "POST", b.url("/users"), keyIn(9), "x"), 200, "")
	path.mu.Unlock()
	healed := time.Now()
	eventually(t, "healed", func() bool { return do(t, c, "POST", b.url("/users"), keyIn(0), "x").status == 200 })
	t.Logf("error after %s, healed after %s", healed.Sub(start), time.Since(healed))
}
