package gateway

import (
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

func TestSessionLost(t *testing.T) {
	t.Parallel()
	cut := &topo.Cut{From: "a", Epoch: 3, Position: 100, Earlier: &topo.Cut{From: "c", Epoch: 1, Position: 50}}
	slot := topo.Slot{Owner: "b", Epoch: 4, Cut: cut}
	for _, c := range []struct {
		epoch    topo.Epoch
		site     topo.SiteID
		position uint64
		want     bool
	}{
		{3, "a", 100, false}, {3, "a", 101, true}, {2, "a", 101, true}, {4, "b", 900, false}, {4, "a", 900, false},
		{1, "c", 51, true}, {1, "c", 50, false}, {2, "c", 51, false}, {3, "d", 900, false},
	} {
		if got := lost(api.Seen{Epoch: c.epoch, Site: c.site, Position: c.position}, slot); got != c.want {
			t.Errorf("%d of %s at %d: lost %v", c.epoch, c.site, c.position, got)
		}
	}
}

// readsAt sends a read of bucket 0 with a token.
func readsAt(t *testing.T, s *site, path, token string) answer {
	t.Helper()
	req, err := http.NewRequest("GET", s.url(path), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-User", keyIn(0))
	if token != "" {
		req.Header.Set(hSession, token)
	}
	return send(t, newClient(t), req)
}

// writesAt sends a write of bucket 0 with a new session.
func writesAt(t *testing.T, s *site, path string) answer {
	t.Helper()
	req, err := http.NewRequest("POST", s.url(path), strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-User", keyIn(0))
	req.Header.Set(hSession, api.SessionNew)
	return send(t, newClient(t), req)
}

// A session reads what it wrote, at a site that has it; until then, at the owner.
func TestSessionReadsItsWrites(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo("a"), echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	a.agent.stand(1, "a", 100)
	b.agent.stand(1, "a", 80) // behind
	b.agent.apply("a", 80)

	if got := readsAt(t, b, "/near", ""); got.body != "b GET 0" || got.header.Get(hSession) != "" {
		t.Fatalf("nobody asks for a session: %s, session %q", got, got.header.Get(hSession))
	}
	got := readsAt(t, b, "/near", api.SessionNew)
	if got.body != "b GET 0" || got.header.Get(hSession) != "1~users.0.1.a.50" {
		t.Fatalf("the first read: %s, session %q", got, got.header.Get(hSession))
	}
	wrote := writesAt(t, b, "/near")
	token := wrote.header.Get(hSession)
	if wrote.body != "a POST 1" || token != "1~users.0.1.a.64" {
		t.Fatalf("the write: %s, session %q", wrote, token)
	}
	if got := readsAt(t, b, "/near", token); got.body != "a GET 0" {
		t.Errorf("b is behind, and answers: %s", got)
	}
	a.agent.stand(1, "a", 120)
	if got := readsAt(t, a, "/near", token); got.body != "a GET 0" || got.header.Get(hSession) != "1~users.0.1.a.78" {
		t.Errorf("at the owner: %s, session %q", got, got.header.Get(hSession))
	}
	b.agent.apply("a", 100)
	if got := readsAt(t, b, "/near", token); got.body != "b GET 0" || got.header.Get(hSession) != token {
		t.Errorf("b has it: %s, session %q", got, got.header.Get(hSession))
	}
	b.agent.apply("a", 0) // what is known is not asked again
	if got := readsAt(t, b, "/near", token); got.body != "b GET 0" {
		t.Errorf("b still has it: %s", got)
	}
	if here, owner := b.counter("sessions_total", "result", "here"), b.counter("sessions_total", "result", "owner"); here != 2 || owner != 1 {
		t.Errorf("counted %v here, %v at the owner", here, owner)
	}
	// A token that cannot be read may stand for anything; two are none.
	for _, bad := range []string{"1~users.0.1.a", "7~users.0.1.a.1"} {
		if got := readsAt(t, b, "/near", bad); got.body != "a GET 0" || got.header.Get(hSession) != "1~users.0.1.a.78" {
			t.Errorf("with %q: %s, session %q", bad, got, got.header.Get(hSession))
		}
	}
	// Where the database stands is not to be learned: only the owner is sure to have what was written.
	a.agent.lose()
	wrote = writesAt(t, b, "/near")
	token = wrote.header.Get(hSession)
	if want := fmt.Sprintf("1~users.0.1.a.%x", api.Everything); token != want {
		t.Fatalf("session %q, want %q", token, want)
	}
	b.agent.apply("a", 1<<40)
	if got := readsAt(t, b, "/near", token); got.body != "a GET 0" {
		t.Errorf("unknown: %s", got)
	}
}

// A gateway whose view is older than what the session has seen waits for the newer one.
func TestSessionAheadOfTheView(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo("a"), echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	moved := takenOver() // bucket 0 at b, epoch 2
	b.agent.publish(moved, moved.Version)
	b.ready(t, moved.Version)
	b.agent.stand(2, "b", 10)
	token := writesAt(t, b, "/near").header.Get(hSession)
	if token != "1~users.0.2.b.a" {
		t.Fatalf("session %q", token)
	}
	got := make(chan answer, 1)
	go func() { got <- readsAt(t, a, "/near", token) }()
	a.agent.stand(2, "b", 12)
	a.agent.apply("b", 12)
	a.agent.publish(moved, moved.Version)
	if late := <-got; late.body != "a GET 0" || late.header.Get(hSession) != "1~users.0.2.b.c" {
		t.Errorf("%s, session %q", late, late.header.Get(hSession))
	}
}

// A failover that loses what a session has seen is told, once; a strict route refuses instead.
func TestSessionLosesInAFailover(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo("a"), echo("b"), nil)
	o := half()
	taken, _, err := o.TakeOver("a", "b", "f", 100)
	if err != nil {
		t.Fatal(err)
	}
	publish(taken, taken.Version, a, b)
	a.ready(t, taken.Version)
	b.ready(t, taken.Version)
	a.agent.stand(1, "a", 500)
	b.agent.stand(2, "b", 10)
	if got := readsAt(t, b, "/near", "1~users.0.1.a.64"); got.body != "b GET 0" || got.header.Get(hLost) != "" {
		t.Errorf("at the cut: %s, lost %q", got, got.header.Get(hLost))
	}
	for _, s := range []*site{a, b} {
		got := readsAt(t, s, "/near", "1~users.0.1.a.65")
		if got.body != "b GET 0" || got.header.Get(hLost) != "users/0/1" || got.header.Get(hSession) != "1~users.0.2.b.a" {
			t.Errorf("beyond the cut, at %s: %s, lost %q, session %q", s.id, got, got.header.Get(hLost), got.header.Get(hSession))
		}
		strict := readsAt(t, s, "/cookie", "1~users.0.1.a.65~users.9.1.b.1")
		want(t, strict, http.StatusConflict, reasonSessionLost)
		if strict.header.Get(hSession) != "1~users.9.1.b.1" || strict.header.Get(hLost) != "users/0/1" {
			t.Errorf("the refusal has lost %q, session %q", strict.header.Get(hLost), strict.header.Get(hSession))
		}
	}
}

// The database is behind a failover, and the view is not yet: that the bucket has a later epoch here does not say what was
// cut off. The view does.
func TestSessionLosesWhileTheViewIsLate(t *testing.T) {
	t.Parallel()
	for token, wantLost := range map[string]string{"1~users.0.1.a.64": "", "1~users.0.1.a.65": "users/0/1"} {
		t.Run(token, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t, echo("a"), echo("b"), nil)
			publish(half(), 1, a, b)
			a.ready(t, 1)
			b.ready(t, 1)
			o := half()
			taken, _, err := o.TakeOver("a", "b", "f", 100)
			if err != nil {
				t.Fatal(err)
			}
			b.agent.stand(2, "b", 10)
			b.agent.apply("a", 90)
			got := make(chan answer, 1)
			go func() { got <- readsAt(t, b, "/near", token) }()
			eventually(t, "the agent is asked", func() bool { return b.agent.awaited() > 0 })
			b.agent.publish(taken, taken.Version)
			if late := <-got; late.body != "b GET 0" || late.header.Get(hLost) != wantLost || late.header.Get(hSession) != "1~users.0.2.b.a" {
				t.Errorf("%s, lost %q, session %q", late, late.header.Get(hLost), late.header.Get(hSession))
			}
		})
	}
}

// A browser brings the session along as a cookie.
func TestSessionCookie(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo("a"), echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	a.agent.stand(1, "a", 100)
	b.agent.stand(1, "a", 80)
	c := newClient(t)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Jar = jar
	if got := do(t, c, "GET", b.url("/cookie"), keyIn(0), ""); got.body != "b GET 0" {
		t.Fatalf("without: %s", got)
	}
	set := do(t, c, "POST", b.url("/cookie"), keyIn(0), "x").header.Get("Set-Cookie")
	if !strings.HasPrefix(set, "atoll_session=1~users.0.1.a.64; Path=/; Max-Age=") || !strings.Contains(set, "HttpOnly") || !strings.Contains(set, "SameSite=Lax") {
		t.Errorf("cookie %q", set)
	}
	if got := do(t, c, "GET", b.url("/cookie"), keyIn(0), ""); got.body != "a GET 0" {
		t.Errorf("with: %s", got)
	}
}

// A copy that is older than its route allows answers nothing, or only where nobody else does.
func TestStaleCopies(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo("a"), echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	a.agent.stand(1, "a", 100)
	b.agent.stand(1, "a", 80)
	aged := func(ms int64) {
		t.Helper()
		b.agent.age("a", ms)
		eventually(t, "b's gateway knows how old the copy is", func() bool {
			b.gw.kickAck()
			age, known := b.gw.readers.age("a", time.Now())
			return known && age >= time.Duration(ms)*time.Millisecond && (ms > 0 || age < 3*time.Second)
		})
	}
	if got := readsAt(t, b, "/aged", ""); got.body != "a GET 0" {
		t.Errorf("of an age that is not known: %s", got)
	}
	aged(0)
	for _, path := range []string{"/aged", "/aged/refuses", "/aged/serves"} {
		if got := readsAt(t, b, path, ""); got.body != "b GET 0" || got.header.Get(hStale) != "" {
			t.Errorf("%s, fresh: %s", path, got)
		}
		if got := readsAt(t, a, path, ""); got.body != "a GET 0" {
			t.Errorf("%s at the owner: %s", path, got)
		}
	}
	aged(60_000)
	if got := readsAt(t, b, "/aged", ""); got.body != "a GET 0" {
		t.Errorf("too old: %s", got)
	}
	want(t, readsAt(t, b, "/aged/refuses", ""), http.StatusServiceUnavailable, reasonStale)
	got := readsAt(t, b, "/aged/serves", api.SessionNew)
	if got.body != "a GET 0" || got.header.Get(hStale) != "" {
		t.Errorf("too old, and the owner answers: %s", got)
	}
	token := got.header.Get(hSession)
	a.stop()
	want(t, readsAt(t, b, "/aged", ""), http.StatusServiceUnavailable, reasonPeerDown)
	got = readsAt(t, b, "/aged/serves", "")
	if ms, err := strconv.Atoi(got.header.Get(hStale)); got.body != "b GET 0" || err != nil || ms < 60_000 {
		t.Errorf("too old, and nobody else answers: %s, %s ms", got, got.header.Get(hStale))
	}
	// What the session has seen is not here: no age excuses that.
	want(t, readsAt(t, b, "/aged/serves", token), http.StatusServiceUnavailable, reasonPeerDown)
}
