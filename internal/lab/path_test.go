package lab

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

const testRTT = 40 * time.Millisecond

// echo is a server that sends back what it gets and ends its side when the client does.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func testNetwork(t *testing.T) *Network {
	t.Helper()
	n := NewNetwork(testRTT, 0)
	t.Cleanup(n.Close)
	return n
}

func dialPath(t *testing.T, n *Network, kind Kind) net.Conn {
	t.Helper()
	addr, err := n.Path("b", "a", kind, echo(t))
	if err != nil {
		t.Fatal(err)
	}
	return dial(t, addr)
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ping sends a word and returns how long its echo took; the deadline bounds it.
func ping(c net.Conn, within time.Duration) (time.Duration, error) {
	began := time.Now()
	if err := c.SetDeadline(began.Add(within)); err != nil {
		return 0, err
	}
	if _, err := c.Write([]byte("word")); err != nil {
		return 0, err
	}
	return time.Since(began), hear(c)
}

func hear(c net.Conn) error {
	got := make([]byte, 4)
	_, err := io.ReadFull(c, got)
	if err == nil && string(got) != "word" {
		err = fmt.Errorf("heard %q", got)
	}
	return err
}

func mustPing(t *testing.T, c net.Conn, atLeast time.Duration) {
	t.Helper()
	began := time.Now()
	if _, err := ping(c, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < atLeast {
		t.Errorf("an answer after %v; want at least %v", took, atLeast)
	}
}

func silence(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(4 * testRTT)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if n, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("heard %d bytes, %v; want silence", n, err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
}

func TestPath_Delays(t *testing.T) {
	t.Parallel()
	c := dialPath(t, testNetwork(t), Link)
	mustPing(t, c, 2*testRTT-testRTT/4) // the handshake, which began before ping looked at the clock, then the word
	mustPing(t, c, testRTT)
}

func TestPath_KeepsOrderAndBandwidth(t *testing.T) {
	t.Parallel()
	n := NewNetwork(testRTT, testRTT/4) // jitter must not mix the bytes up
	t.Cleanup(n.Close)
	c := dialPath(t, n, Link)
	sent := make([]byte, 16<<20)
	rand.Read(sent)
	began := time.Now()
	go func() {
		c.Write(sent)
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d of %d bytes came back alike, %v", len(got), len(sent), err)
	}
	// A sleep per chunk would take 256 chunks × 20 ms twice. Window / delay allows 200 MB/s.
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("16 MiB there and back took %v", took)
	}
}

func TestPath_CutIsACutCable(t *testing.T) {
	t.Parallel()
	n := testNetwork(t)
	c := dialPath(t, n, Link)
	mustPing(t, c, 0)
	n.Cut("a", "b")
	if _, err := c.Write([]byte("word")); err != nil {
		t.Fatal(err)
	}
	silence(t, c)
	fresh := dialPath(t, n, Link)
	if _, err := fresh.Write([]byte("word")); err != nil {
		t.Fatal(err)
	}
	silence(t, fresh)
	n.Heal("b", "a")
	for _, conn := range []net.Conn{c, fresh} {
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if err := hear(conn); err != nil {
			t.Errorf("after the healing: %v", err)
		}
	}
}

func TestPath_CutHidesTheEnd(t *testing.T) {
	t.Parallel()
	n := testNetwork(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr, err := n.Path("b", "a", AgentAPI, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, addr)
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	n.Cut("a", "b")
	server.Close()
	silence(t, c)
	n.Heal("a", "b")
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the healing: %v; want the end of the stream", err)
	}
}

func TestPath_OneWayCut(t *testing.T) {
	t.Parallel()
	n := testNetwork(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr, err := n.Path("b", "a", Link, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := dial(t, addr)
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	n.CutOneWay(Way{"a", "b"}, Link)
	for _, c := range []net.Conn{client, server} {
		if _, err := c.Write([]byte("word")); err != nil {
			t.Fatal(err)
		}
	}
	server.SetReadDeadline(time.Now().Add(10 * time.Second))
	if err := hear(server); err != nil {
		t.Errorf("b→a is not cut: %v", err)
	}
	silence(t, client)
}

func TestPath_ExtraDelayOfOneKindAndWay(t *testing.T) {
	t.Parallel()
	n := testNetwork(t)
	const extra = 150 * time.Millisecond
	n.Delay(Way{"a", "b"}, Link, extra)
	link, api := dialPath(t, n, Link), dialPath(t, n, AgentAPI)
	mustPing(t, link, extra)
	mustPing(t, api, 0)
	if took := quickest(t, api, extra); took >= extra {
		t.Errorf("another kind was delayed too: %v", took)
	}
	n.Heal("a", "b")
	mustPing(t, link, 0) // what is under way keeps its order
	mustPing(t, link, testRTT)
	if took := quickest(t, link, extra); took >= extra {
		t.Errorf("delayed after the healing: %v", took)
	}
}

// quickest pings until an answer takes less than a time, which none does on a path with as much delay: a machine that is
// busy holds up some of them.
func quickest(t *testing.T, c net.Conn, below time.Duration) time.Duration {
	t.Helper()
	least := time.Duration(math.MaxInt64)
	for range 50 {
		began := time.Now()
		mustPing(t, c, 0)
		if least = min(least, time.Since(began)); least < below {
			break
		}
	}
	return least
}

func TestPath_Reset(t *testing.T) {
	t.Parallel()
	n := testNetwork(t)
	c := dialPath(t, n, Link)
	mustPing(t, c, 0)
	n.Reset("a", "b")
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%v; want a reset", err)
	}
}

func TestPath_NobodyThere(t *testing.T) {
	t.Parallel()
	n := testNetwork(t)
	addr, err := n.Path("b", "a", Link, "127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, addr)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%v; want a reset", err)
	}
}

func TestPath_CloseEndsEverything(t *testing.T) {
	t.Parallel()
	n := NewNetwork(testRTT, 0)
	c := dialPath(t, n, Link)
	n.Cut("a", "b")
	c.SetWriteDeadline(time.Now().Add(4 * testRTT))
	if _, err := c.Write(make([]byte, 4*windowBytes)); err != nil { // more than the path takes
		t.Log(err)
	}
	n.Close()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a closed network passes bytes")
	}
	if _, err := n.Path("b", "a", Link, "127.0.0.1:1"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("path of a closed network: %v", err)
	}
}

func TestConnectProxy(t *testing.T) {
	t.Parallel()
	n := testNetwork(t)
	target := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "raft") }))
	t.Cleanup(target.Close)
	addr, err := n.ConnectProxy("a", StorePeer, map[string]Destination{"b.store.atoll:2380": {Site: "b", Addr: target.Listener.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	transport := target.Client().Transport.(*http.Transport).Clone()
	transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: addr})
	transport.TLSClientConfig.ServerName = "example.com"
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	t.Cleanup(transport.CloseIdleConnections)
	began := time.Now()
	resp, err := client.Get("https://b.store.atoll:2380/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "raft" {
		t.Errorf("%q, %v", body, err)
	}
	if took := time.Since(began); took < 3*testRTT {
		t.Errorf("connection, TLS and request took %v; want at least 3 round trips of %v", took, testRTT)
	}
	if _, err := client.Get("https://c.store.atoll:2380/"); err == nil {
		t.Error("an unknown host was reached")
	}
}

func TestConnectProxy_RefusesOtherRequests(t *testing.T) {
	t.Parallel()
	addr, err := testNetwork(t).ConnectProxy("a", StorePeer, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: b\r\n\r\n", "nonsense\r\n\r\n"} {
		c := dial(t, addr)
		fmt.Fprint(c, request)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusBadGateway {
			t.Errorf("%q: %v, %v; want 502", request, resp, err)
		}
	}
}
