package gateway

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The memory of one address, on a clock of the test's own.
func TestOutlier(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		there := make(chan error) // what a knock comes to; nothing: it is not answered
		knocks := 0
		s := newSeekers()
		defer s.close()
		a := newAddress("peer:1", s, func(ctx context.Context) error {
			knocks++
			select {
			case err := <-there:
				return err
			case <-ctx.Done():
				return &notSent{ctx.Err()}
			}
		})
		start := time.Now()
		admit := func(want bool) attempt {
			t.Helper()
			turn, ok := a.admit(time.Now())
			if ok != want {
				t.Fatalf("after %s: admitted %v, want %v", time.Since(start), ok, want)
			}
			return turn
		}
		after := func(d time.Duration) { time.Sleep(d); synctest.Wait() } // of the bubble: no time passes outside

		// Refused at once: nobody waits for that, so nothing is remembered.
		admit(true).failed(time.Now())
		admit(true)

		// Silent, and spoken to by several at once: one verdict, and nobody is let go there until a knock is answered.
		one, two := admit(true), admit(true)
		after(2 * time.Second)
		one.failed(time.Now())
		after(time.Millisecond)
		two.failed(time.Now())
		admit(false)
		after(knockEvery)
		admit(false)
		after(10 * time.Second)
		admit(false)
		if least := int(10 * time.Second / (silence + knockEvery)); knocks < least || knocks > 2*least {
			t.Errorf("%d knocks in 10 s, not answered within %s each", knocks, silence)
		}
		there <- nil
		synctest.Wait()
		admit(true)
		before := knocks
		after(10 * time.Second)
		if knocks != before {
			t.Error("somebody knocks where nobody is missed")
		}

		// One that was under way when the verdict was passed knows nothing newer.
		late, lost := admit(true), admit(true)
		after(2 * time.Second)
		lost.failed(time.Now())
		after(knockEvery)
		there <- nil
		synctest.Wait()
		after(2 * time.Second)
		late.failed(time.Now())
		admit(true)

		// What is heard on any connection counts: a slow answer that breaks off is not silence.
		slow := admit(true)
		after(10 * time.Second)
		a.heard.Store(int64(time.Since(a.made)))
		slow.failed(time.Now())
		admit(true)

		// A knock that is refused at once: the machine is back, its gateway not yet.
		lost = admit(true)
		after(2 * time.Second)
		lost.failed(time.Now())
		after(knockEvery)
		there <- errors.New("refused")
		synctest.Wait()
		admit(true)

		// Whoever knocks ends with the gateway.
		lost = admit(true)
		after(2 * time.Second)
		lost.failed(time.Now())
		after(knockEvery)
		s.close()
		admit(false)
		lost.failed(time.Now())
	})
}

// The path to the owner swallows everything: the first requests learn it by a time-out, all others are told at once.
// When it is whole again, the first request goes through: the gateway had knocked meanwhile. Nothing of this touches
// this site's own buckets.
func TestSilentPeerFailsFast(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	a.start(t, a.config())
	path := newPausable(t, a.gw.PeerAddr())
	b := newSite(t, "b", echo("b"))
	conf := b.config()
	conf.Peers = topoPeers("a", path.Addr().String())
	b.start(t, conf)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	c := newClient(t)
	want(t, do(t, c, "POST", b.url("/users"), keyIn(0), "x"), 200, "")
	path.mu.Lock()
	cut := time.Now()
	do(t, c, "POST", b.url("/users"), keyIn(0), "x") // outcome unknown: it was sent
	learnt := time.Since(cut)

	var mu sync.Mutex
	var worst time.Duration
	const each = 200 // some seconds, within which the gateway knocks
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range each {
				<-time.After(5 * time.Millisecond) // a client's pace
				began := time.Now()
				got := do(t, c, "POST", b.url("/users"), keyIn(0), "x")
				took := time.Since(began)
				if got.status != 503 || got.header.Get("Retry-After") == "" || got.header.Get(hReason) != string(reasonPeerDown) {
					t.Errorf("got %s", got)
				}
				want(t, do(t, c, "POST", b.url("/users"), keyIn(9), "x"), 200, "")
				mu.Lock()
				worst = max(worst, took)
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	t.Logf("the first time-out took %s; then %d requests were refused within %s", learnt, 4*each, worst)
	if learnt > peerPing+handshakeTimeout || worst > silence {
		t.Errorf("too slow")
	}
	path.mu.Unlock()
	healed := time.Now()
	eventually(t, "the gateway knows that its peer answers", func() bool {
		_, ok := b.gw.upstreams.peers["a"].addrs[0].admit(time.Now())
		return ok
	})
	t.Logf("healed after %s", time.Since(healed))
	want(t, do(t, c, "POST", b.url("/users"), keyIn(0), "x"), 200, "")
}

// A peer whose port refuses: told at once, every time, and used again as soon as it is there.
func TestRefusingPeerFailsAtOnce(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	b := newSite(t, "b", echo("b"))
	conf := b.config()
	conf.Peers = topoPeers("a", addr)
	b.start(t, conf)
	publish(half(), 1, b)
	b.ready(t, 1)
	c := newClient(t)
	for range 20 {
		began := time.Now()
		for _, method := range []string{"POST", "GET"} {
			got := do(t, c, method, b.url("/users"), keyIn(0), "")
			want(t, got, 503, reasonPeerDown)
			if got.header.Get("Retry-After") == "" {
				t.Errorf("headers %v", got.header)
			}
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("took %s", took)
		}
	}
	a := newSite(t, "a", echo("a"))
	conf = a.config()
	conf.Listen.Peer = addr
	a.start(t, conf)
	a.agent.publish(half(), 1)
	a.ready(t, 1)
	want(t, do(t, c, "POST", b.url("/users"), keyIn(0), "x"), 200, "")
}

// A site dies and this one takes its buckets over: no view says before that they move. Writes wait until this site's
// fence is known to be open for the view that brought them, from this gateway's users and from other gateways alike;
// reads and what this site owned before do not.
func TestFailoverIsHeldUntilOpened(t *testing.T) {
	t.Parallel()
	served := make(chan string, 100)
	b := newSite(t, "b", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { served <- r.Method }))
	conf := b.config()
	conf.Peers = topoPeers("a", freeAddr(t))
	b.start(t, conf)
	doc := half()
	publish(doc, doc.Version, b)
	b.ready(t, doc.Version)
	c := newClient(t)
	want(t, do(t, c, "POST", b.url("/users"), keyIn(0), "x"), 503, reasonPeerDown)

	taken, _, err := doc.TakeOver("a", "b", "f1", 4711)
	if err != nil {
		t.Fatal(err)
	}
	publish(taken, doc.Version, b)
	b.ready(t, taken.Version)
	got := make(chan answer, 30)
	for i := range cap(got) {
		method, path := "POST", "/users"
		if i%3 == 2 {
			method = "DELETE"
		}
		go func() { got <- do(t, c, method, b.url(path), keyIn(0), "x") }()
		eventually(t, "it is held", func() bool { return b.gw.room.held() == i+1 })
	}
	want(t, do(t, c, "GET", b.url("/users"), keyIn(0), ""), 200, "")
	want(t, do(t, c, "POST", b.url("/users"), keyIn(9), "x"), 200, "")
	if method := <-served + <-served; method != "GETPOST" || len(served) != 0 {
		t.Fatalf("served %q and %d more before the fence was open", method, len(served))
	}
	publish(taken, taken.Version, b)
	for range cap(got) {
		one := <-got
		want(t, one, 200, "")
		if one.header.Get(hEpoch) != "2" || one.header.Get(hHeld) == "" {
			t.Errorf("headers %v", one.header)
		}
	}
	if len(served) != cap(got) {
		t.Errorf("%d requests reached the application, want %d", len(served), cap(got))
	}
}

// A write that another gateway forwarded is answered after the owner's lease ran out: neither gateway passes it on as
// a success.
func TestForwardedAnswerAfterTheDeadline(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	a, b := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-leave
	}), echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	got := make(chan answer, 1)
	c := newClient(t)
	go func() { got <- do(t, c, "POST", b.url("/users"), keyIn(0), "x") }()
	<-entered
	a.agent.setRemaining(0)
	eventually(t, "the owner's lease ran out", func() bool { return !a.gw.lease.live() })
	close(leave)
	late := <-got
	want(t, late, 503, reasonDeadline)
	if !b.gw.lease.live() {
		t.Error("this site's own lease has run out too, so the test says nothing")
	}
}
