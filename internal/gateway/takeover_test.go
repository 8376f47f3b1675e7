package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// successor is a gateway that takes over from the site's; its Run ends with the test.
func (s *site) successor(t testing.TB, conf Config) *site {
	t.Helper()
	conf.Takeover = true
	next := *s
	next.start(t, conf)
	return &next
}

// Clients that write all the time, on connections that they keep and on new ones, over HTTP/1.1 and HTTP/2, notice nothing of
// three takeovers.
func TestTakeoverUnderLoad(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", echo("a"))
	conf := s.config()
	conf.StateDir = filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	must0(os.MkdirAll(conf.StateDir, 0o700))
	conf.Listen.Users, conf.Listen.Peer, conf.Listen.Admin = freeAddr(t), freeAddr(t), freeAddr(t)
	conf.Grace, conf.Linger = 2*time.Second, 3*time.Second
	s.start(t, conf)
	publish(half(), 1, s)
	s.ready(t, 1)

	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var answered, failed atomic.Int64
	url := s.url("/users")
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	for i := range 8 {
		tr := &http.Transport{DisableKeepAlives: i%4 == 1}
		if i%4 == 2 {
			tr.Protocols = h2
		}
		load.Go(func() {
			defer tr.CloseIdleConnections()
			for ctx.Err() == nil {
				req, _ := http.NewRequest("POST", url, strings.NewReader("body"))
				req.Header.Set("X-User", keyIn(0))
				req.GetBody = nil // what was lost is not sent again
				resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if err != nil || resp.StatusCode != 200 {
					failed.Add(1)
					t.Errorf("client %d: %v %v", i, resp, err)
					return
				}
				answered.Add(1)
			}
		})
	}
	current := s
	for n := range 3 {
		before, old := answered.Load(), current
		current = current.successor(t, conf)
		eventually(t, "the old one stops accepting", func() bool { return old.gw.leaving.Load() })
		eventually(t, "the new one answers", func() bool {
			return answered.Load() > before+500 && current.counter("requests_total", "class", "2xx", "route", "users") > 0
		})
		if n < 2 { // and once while the one before is still there
			eventually(t, "the new one has the common name again", func() bool { return current.gw.ackName() == "a/g1" })
		}
		if status, body, _ := rawly(t, current.gw.AdminAddr(), "GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"); status != 200 {
			t.Errorf("admin: %d %s", status, body)
		}
	}
	cancel()
	load.Wait()
	t.Logf("%d answers, %d failures", answered.Load(), failed.Load())
	if answered.Load() < 1500 {
		t.Errorf("%d answers only", answered.Load())
	}
}

// A connection that waits to be accepted is accepted by either.
func TestTakeoverKeepsTheQueue(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", echo("a"))
	conf := s.config()
	conf.StateDir, conf.Grace = t.TempDir(), time.Second // it ends when the last connection has
	conf.Listen = Listen{Users: freeAddr(t)}
	s.start(t, conf)
	publish(half(), 1, s)
	s.ready(t, 1)
	next := s.successor(t, conf)
	var conns []net.Conn
	for range 50 {
		c, err := net.Dial("tcp", conf.Listen.Users)
		must0(err)
		conns = append(conns, c)
	}
	eventually(t, "it took over", func() bool { return s.gw.leaving.Load() })
	for _, c := range conns {
		must0(c.SetDeadline(time.Now().Add(20 * time.Second)))
		_, _ = fmt.Fprintf(c, "GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		if text, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 200") {
			t.Errorf("%q %v", text, err)
		}
		_ = c.Close()
	}
	s.stop()
	want(t, do(t, newClient(t), "GET", next.url("/x"), "", ""), 200, "")
}

// A successor that cannot serve takes nothing over.
func TestTakeoverThatFails(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", echo("a"))
	conf := s.config()
	conf.StateDir = t.TempDir()
	conf.Listen = Listen{Users: freeAddr(t)}
	s.start(t, conf)
	publish(half(), 1, s)
	s.ready(t, 1)
	broken := conf
	broken.Takeover = true
	broken.Listen.Admin = strings.Replace(s.agent.URL, "http://", "", 1) // in use
	if gw, err := New(broken); err == nil {
		gw.closeListeners()
		t.Error("it began")
	}
	// One that goes away after it got the sockets.
	conf.Takeover = true
	gw, err := New(conf)
	must0(err)
	gw.closeListeners()
	_ = gw.inherited.conn.Close()
	for range 3 {
		want(t, do(t, newClient(t), "GET", s.url("/x"), "", ""), 200, "")
	}
	if s.gw.leaving.Load() {
		t.Error("the running one gave up")
	}
	// One that comes so far as to wait for its own successors at the same place, and dies: the running one is there again.
	gw, err = New(conf)
	must0(err)
	theirs, err := listenUnix(gw.takeoverPath())
	must0(err)
	gw.closeListeners()
	_ = gw.inherited.conn.Close()
	eventually(t, "the running one offers its sockets again", func() bool {
		in, err := gw.inherit()
		if err != nil || in == nil {
			return false
		}
		in.drop()
		_ = in.conn.Close()
		return in.name == s.gw.name
	})
	_ = theirs.Close()
	next := s.successor(t, conf)
	eventually(t, "a good one takes over", func() bool { return s.gw.leaving.Load() })
	want(t, do(t, newClient(t), "GET", next.url("/x"), "", ""), 200, "")
}

// Without anybody to take over from, a gateway starts like any other; what a killed one left is no gateway.
func TestTakeoverFromNobody(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", echo("a"))
	conf := s.config()
	conf.StateDir, conf.Takeover = t.TempDir(), true
	l, err := listenUnix(filepath.Join(conf.StateDir, "takeover-a-g1.sock"))
	must0(err)
	must0(l.Close())
	s.start(t, conf)
	publish(half(), 1, s)
	s.ready(t, 1)
	want(t, do(t, newClient(t), "GET", s.url("/x"), "", ""), 200, "")
	if s.gw.inherited != nil || s.gw.ackName() != "a/g1" {
		t.Error("it took something over")
	}
}

func TestSuccessorName(t *testing.T) {
	t.Parallel()
	for before, want := range map[string]string{"a/g1": "a/g1~2", "a/g1~2": "a/g1~3", "a/g1~9": "a/g1~10"} {
		if got := successorName("a/g1", before); got != want {
			t.Errorf("after %s: %s, want %s", before, got, want)
		}
	}
}
