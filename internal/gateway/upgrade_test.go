package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/atollhq/atoll/topo"
)

// echoSocket says everything again, in front of it the site's name as a message of its own, and closes with the code that
// a message "close CODE" asks for.
func echoSocket(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			fmt.Fprint(w, name)
			return
		}
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"shop"}, InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(4 << 20)
		ctx := context.Background()
		if c.Write(ctx, websocket.MessageText, []byte(name)) != nil {
			return
		}
		for {
			kind, said, err := c.Read(ctx)
			if err != nil {
				return
			}
			var code websocket.StatusCode
			if n, _ := fmt.Sscanf(string(said), "close %d", &code); n == 1 {
				_ = c.Close(code, "as asked")
				return
			}
			if c.Write(ctx, kind, said) != nil {
				return
			}
		}
	})
}

func dialSocket(t testing.TB, s *site, path, key string) (*websocket.Conn, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, strings.Replace(s.url(path), "http", "ws", 1), &websocket.DialOptions{
		HTTPHeader: http.Header{"X-User": {key}}, Subprotocols: []string{"shop"}, HTTPClient: newClient(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	if resp.Header.Get(hGateway) == "" || resp.Header.Get(hSite) == "" || c.Subprotocol() != "shop" {
		t.Errorf("the answer's head: %v, subprotocol %q", resp.Header, c.Subprotocol())
	}
	c.SetReadLimit(4 << 20)
	_, name, err := c.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return c, string(name)
}

// A WebSocket goes to the owner, through its gateway if need be, and passes messages of all sizes, pieces, pings and the
// reasons of either end.
func TestWebSocket(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echoSocket("a"), echoSocket("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	for _, at := range []*site{a, b} {
		c, name := dialSocket(t, at, "/users", keyIn(0))
		if name != "a" {
			t.Fatalf("asked at %s, %s answers", at.id, name)
		}
		for _, size := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
			message := strings.Repeat("x", size)
			w, err := c.Writer(t.Context(), websocket.MessageBinary) // in pieces
			for rest := message; err == nil && len(rest) > 0; {
				n := min(len(rest), 100_000)
				_, err = io.WriteString(w, rest[:n])
				rest = rest[n:]
			}
			if err = errors.Join(err, w.Close()); err != nil {
				t.Fatal(err)
			}
			kind, said, err := c.Read(t.Context())
			if err != nil || kind != websocket.MessageBinary || string(said) != message {
				t.Fatalf("%d bytes: %d came back, %v", size, len(said), err)
			}
		}
		if err := c.Write(t.Context(), websocket.MessageText, []byte("close 4321")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != 4321 {
			t.Errorf("the application's reason came as %v", err)
		}
		c, _ = dialSocket(t, at, "/users", keyIn(0))
		reads := c.CloseRead(t.Context())
		if err := c.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		if err := c.Close(4000, "enough"); err != nil { // waits for the application's answer
			t.Errorf("the client's reason: %v", err)
		}
		<-reads.Done()
	}
	eventually(t, "no WebSocket is left", func() bool { return a.gw.streams.count()+b.gw.streams.count() == 0 })
}

// When a bucket moves, its WebSockets are told to go one after the other, those of other buckets stay, and who comes back
// is at the new owner.
func TestWebSocketsLeaveWithTheirBucket(t *testing.T) {
	t.Parallel()
	many := 1000
	if raceEnabled {
		many = 60
	}
	a, b := pair(t, echoSocket("a"), echoSocket("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	stays, _ := dialSocket(t, b, "/users", keyIn(1))
	var group sync.WaitGroup
	var mu sync.Mutex
	var gone []time.Time
	moved := takenOver()
	var begun sync.WaitGroup
	dialling := make(chan struct{}, 20)
	for n := range many {
		at := []*site{a, b}[n%2]
		begun.Add(1)
		group.Go(func() {
			dialling <- struct{}{}
			done := sync.OnceFunc(func() { <-dialling; begun.Done() })
			defer done() // also where the test ends
			c, name := dialSocket(t, at, "/users", keyIn(0))
			done()
			if name != "a" {
				t.Errorf("%s answers before the move", name)
			}
			_, _, err := c.Read(t.Context())
			if websocket.CloseStatus(err) != closeServiceRestart {
				t.Errorf("told to go by %v", err)
			}
			mu.Lock()
			gone = append(gone, time.Now())
			mu.Unlock()
		})
	}
	begun.Wait()
	publish(moved, moved.Version, a, b)
	group.Wait()
	if len(gone) != many {
		t.Fatalf("%d of %d were told to go", len(gone), many)
	}
	if spread := gone[len(gone)-1].Sub(gone[0]); spread < leaveWithin/4 {
		t.Errorf("all %d go within %s", many, spread)
	}
	if _, name := dialSocket(t, a, "/users", keyIn(0)); name != "b" {
		t.Errorf("who comes back is at %s", name)
	}
	if err := stays.Write(t.Context(), websocket.MessageText, []byte("still here")); err != nil {
		t.Fatal(err)
	}
	if _, said, err := stays.Read(t.Context()); err != nil || string(said) != "still here" {
		t.Errorf("one of another bucket: %q, %v", said, err)
	}
}

// While its bucket moves, a WebSocket waits to begin like a write does.
func TestWebSocketIsHeld(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echoSocket("a"), echoSocket("b"), nil)
	moving := change(half().StartMove("users", topo.SpansOf(0), "h", "b"))
	publish(moving, moving.Version, a, b)
	a.ready(t, moving.Version)
	b.ready(t, moving.Version)
	came := make(chan string, 1)
	go func() {
		_, name := dialSocket(t, a, "/users", keyIn(0))
		came <- name
	}()
	eventually(t, "it is held", func() bool { return a.gw.room.held() == 1 })
	done := change(moving.CommitMove("users", topo.SpansOf(0), "h"))
	publish(done, done.Version, a, b)
	if name := <-came; name != "b" {
		t.Errorf("it begins at %s", name)
	}
}

// What is no WebSocket is passed on without its offer, as before; and an application that changes protocols by itself is
// not believed.
func TestUpgradeToOtherThings(t *testing.T) {
	t.Parallel()
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/users/wild" {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				_ = conn.Close()
			}
			return
		}
		fmt.Fprintf(w, "%q", r.Header.Get("Upgrade"))
	}), nil)
	for _, c := range []struct{ method, upgrade, path, body string }{
		{"GET", "h2c", "/users", `""`}, {"POST", "websocket", "/users", `""`},
	} {
		req, _ := http.NewRequest(c.method, a.url(c.path), nil)
		req.Header.Set("X-User", keyIn(0))
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", c.upgrade)
		if got := send(t, newClient(t), req); got.status != 200 || got.body != c.body {
			t.Errorf("%s to %s: %s", c.method, c.upgrade, got)
		}
	}
	want(t, do(t, newClient(t), "GET", a.url("/users/wild"), keyIn(0), ""), http.StatusBadGateway, reasonUpgrade)
}
