package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

func everyLocal(c *Config) { c.Listen.Balancers = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }

func proxyV2(source string) string {
	h := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source)), net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source)))
	must0(h.SetTLVs([]proxyproto.TLV{{Type: proxyproto.PP2_TYPE_NOOP, Value: bytes.Repeat([]byte{1}, 500)}}))
	text, err := h.Format()
	must0(err)
	return string(text)
}

func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	a := alone(t, http.HandlerFunc(tell), everyLocal)
	local, err := (&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}).Format()
	must0(err)
	const get = "GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
	for name, c := range map[string]struct {
		head   string
		client string // "": refused
	}{
		"v1":                     {"PROXY TCP4 192.0.2.7 10.0.0.1 5555 443\r\n", "192.0.2.7"},
		"v1, IPv6":               {"PROXY TCP6 2001:db8::7 2001:db8::1 5555 443\r\n", "2001:db8::7"},
		"v2":                     {proxyV2("192.0.2.8:5555"), "192.0.2.8"},
		"v2, IPv6":               {proxyV2("[2001:db8::8]:5555"), "2001:db8::8"},
		"the balancer itself":    {string(local), "127.0.0.1"},
		"none":                   {"", ""},
		"not to be told":         {"PROXY UNKNOWN\r\n", "127.0.0.1"},
		"v1, broken":             {"PROXY TCP4 192.0.2.7\r\n", ""},
		"v1, an address too big": {"PROXY TCP4 192.0.2.777 10.0.0.1 5555 443\r\n", ""},
		"v1 without end":         {"PROXY " + strings.Repeat("x", 300), ""},
		"v2, cut":                {proxyV2("192.0.2.8:5555")[:20], ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status, body, _ := rawly(t, a.gw.UserAddr(), c.head+get)
			if c.client == "" && status != 0 || c.client != "" && !strings.Contains(body, "X-Forwarded-For: "+c.client+"\n") {
				t.Errorf("%d %q, want a client at %q", status, body, c.client)
			}
		})
	}
	// A second header on the same connection is no request.
	if status, body, rest := rawly(t, a.gw.UserAddr(), "PROXY TCP4 192.0.2.7 10.0.0.1 5555 443\r\n"+get+"PROXY TCP4 6.6.6.6 10.0.0.1 5555 443\r\n"+get); status != 200 {
		t.Errorf("%d %s", status, body)
	} else if resp, err := http.ReadResponse(rest, nil); err != nil || resp.StatusCode != 400 {
		t.Errorf("%v %v", resp, err)
	}
}

// A balancer that says nothing holds up neither the others nor the stop.
func TestProxyProtocolSilence(t *testing.T) {
	t.Parallel()
	a := alone(t, http.HandlerFunc(tell), everyLocal)
	conn, err := net.Dial("tcp", a.gw.UserAddr())
	must0(err)
	defer conn.Close()
	eventually(t, "it is connected", func() bool { return a.gw.listeners.users.open.Load() == 1 })
	if status, body, _ := rawly(t, a.gw.UserAddr(), "PROXY TCP4 192.0.2.7 10.0.0.1 5555 443\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	_, _ = conn.Read(make([]byte, 1)) // ends when the gateway lets go
	eventually(t, "it was counted", func() bool { return a.counter("connections_refused_total", "reason", "proxy-header") == 1 })
}

func TestProxyProtocolBeforeTLS(t *testing.T) {
	t.Parallel()
	a := alone(t, http.HandlerFunc(tell), func(c *Config) {
		everyLocal(c)
		c.Listen.TLS = &tls.Config{Certificates: []tls.Certificate{certs.users}}
	})
	for _, proto := range []string{"h2", "http/1.1"} {
		c := newClient(t)
		tr := c.Transport.(*http.Transport)
		tr.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}}
		tr.ForceAttemptHTTP2 = proto == "h2"
		tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil {
				_, err = conn.Write([]byte(proxyV2("192.0.2.9:1")))
			}
			return conn, err
		}
		req, _ := http.NewRequest("GET", "https://"+a.gw.UserAddr()+"/x", nil)
		got := send(t, c, req)
		if !strings.Contains(got.body, "X-Forwarded-For: 192.0.2.9\n") || !strings.Contains(got.body, "X-Forwarded-Proto: https\n") {
			t.Errorf("%s: %s", proto, got)
		}
	}
}

func TestCapsOfConnections(t *testing.T) {
	t.Parallel()
	a := alone(t, http.HandlerFunc(tell), func(c *Config) {
		everyLocal(c)
		c.Listen.MaxConns, c.Listen.MaxPerClient = 4, 2
		c.Listen.Trusted = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	})
	connect := func(from string) (io.Closer, bool) {
		conn, err := net.Dial("tcp", a.gw.UserAddr())
		must0(err)
		t.Cleanup(func() { _ = conn.Close() })
		_, _ = fmt.Fprintf(conn, "PROXY TCP%s %s %s 1 2\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n", map[bool]string{true: "6", false: "4"}[strings.Contains(from, ":")], from, from)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return conn, false
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return conn, true
	}
	wantRefused := func(why refusedConn, n float64) {
		t.Helper()
		eventually(t, "it was counted", func() bool { return a.counter("connections_refused_total", "reason", string(why)) == n })
	}
	first, ok := connect("192.0.2.1")
	if !ok {
		t.Fatal("the first was refused")
	}
	if _, ok := connect("192.0.2.1"); !ok {
		t.Fatal("the second of a client was refused")
	}
	if _, ok := connect("192.0.2.1"); ok {
		t.Fatal("three of one client")
	}
	wantRefused(tooManyOfOne, 1)
	second, ok := connect("192.0.2.2")
	if !ok {
		t.Fatal("another client was refused")
	}
	_ = first.Close()
	_ = second.Close()
	eventually(t, "they are gone", func() bool { return a.gw.listeners.users.open.Load() == 1 })
	if _, ok := connect("192.0.2.1"); !ok {
		t.Fatal("a client whose connection has ended was refused")
	}
	eventually(t, "it is counted", func() bool { return a.gw.listeners.users.open.Load() == 2 })
	for _, from := range []string{"198.51.100.1", "198.51.100.1"} { // a trusted proxy: many clients come through it
		if _, ok := connect(from); !ok {
			t.Fatal("a trusted proxy was refused")
		}
	}
	if _, ok := connect("192.0.2.3"); ok {
		t.Fatal("five in all")
	}
	wantRefused(tooMany, 1)
}

func TestOneClientOfIPv6IsANetwork(t *testing.T) {
	t.Parallel()
	for a, want := range map[string]string{"2001:db8:1:2:3::4": "2001:db8:1:2::/64", "192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.1": "192.0.2.1/32"} {
		if got := clientOf(addrOfConn(net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(a), 1)))); got.String() != want {
			t.Errorf("%s: %s, want %s", a, got, want)
		}
	}
}

// Who sends a byte now and then is let go although no pause is long, and so is who takes nothing of its answer.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	var broken atomic.Int64
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			for range 64 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					broken.Add(1)
					return
				}
			}
			return
		}
		tell(w, r)
	}), func(c *Config) { c.Pace = Pace{Idle: 400 * time.Millisecond, Rate: 1000} })

	drip := func(t *testing.T, pause time.Duration, pieces, size int) int {
		conn, err := net.Dial("tcp", a.gw.UserAddr())
		must0(err)
		defer conn.Close()
		_, _ = fmt.Fprintf(conn, "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", pieces*size)
		answer := make(chan int, 1)
		go func() {
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				answer <- 0
				return
			}
			answer <- resp.StatusCode
		}()
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for range pieces {
			if _, err := conn.Write(make([]byte, size)); err != nil {
				break
			}
			select {
			case <-tick.C:
			case status := <-answer:
				return status
			}
		}
		return <-answer
	}
	t.Run("a byte now and then", func(t *testing.T) {
		t.Parallel()
		if status := drip(t, 50*time.Millisecond, 200, 1); status != 408 {
			t.Errorf("got %d", status)
		}
	})
	t.Run("slow but fast enough", func(t *testing.T) {
		t.Parallel()
		if status := drip(t, 50*time.Millisecond, 40, 500); status != 200 {
			t.Errorf("got %d", status)
		}
	})
	for _, proto := range []string{"http/1.1", "h2c"} {
		t.Run("takes nothing, "+proto, func(t *testing.T) {
			conn, err := net.Dial("tcp", a.gw.UserAddr())
			must0(err)
			defer conn.Close()
			must0(conn.(*net.TCPConn).SetReadBuffer(4 << 10))
			before := a.gw.listeners.users.open.Load()
			if proto == "http/1.1" {
				_, _ = io.WriteString(conn, "GET /big HTTP/1.1\r\nHost: h\r\n\r\n")
				eventually(t, "it is let go", func() bool { return a.gw.listeners.users.open.Load() < before || broken.Load() > 0 })
				return
			}
			// Preface, empty SETTINGS, HEADERS for GET /big with END_STREAM; the stream's window is never widened.
			_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
			block := "\x82\x86\x04\x04/big\x01\x01h" // GET, http, :path /big, :authority h
			_, _ = io.WriteString(conn, "\x00\x00"+string(rune(len(block)))+"\x01\x05\x00\x00\x00\x01"+block)
			n := broken.Load()
			go func() { _, _ = io.Copy(io.Discard, conn) }() // ends with the connection
			eventually(t, "its stream is let go", func() bool { return broken.Load() > n })
		})
	}
}
