package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/atollhq/atoll/internal/loopback"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serveTest runs a server on a port of 127.0.0.1 until the test ends.
func serveTest(t *testing.T, conf Config, first Choice) (*Server, string) {
	t.Helper()
	addr, pc, ln := listenTest(t)
	s := NewServer(conf, first, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, pc, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the server ended with %v", err)
		}
	})
	return s, addr
}

func listenTest(t *testing.T) (string, net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 { // loopback looks at TCP only: somebody may have the port of UDP
		addr, err := loopback.Addr()
		if err != nil {
			t.Fatal(err)
		}
		if pc, ln, err := Listen(t.Context(), addr); err == nil {
			return addr, pc, ln
		}
	}
	t.Fatal("no port is free for UDP and TCP")
	return "", nil, nil
}

func exchange(t *testing.T, network, addr string, req *wire.Msg) *wire.Msg {
	t.Helper()
	client := wire.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 4096}
	resp, _, err := client.ExchangeContext(t.Context(), req, addr)
	if err != nil {
		t.Fatalf("%s: %v", network, err)
	}
	return resp
}

func TestServer_UDPAndTCP(t *testing.T) {
	t.Parallel()
	s, addr := serveTest(t, testConfig(), Choice{Healthy, testChoice.Shares[:1]})
	for _, network := range []string{"udp", "tcp"} {
		if got := summary(exchange(t, network, addr, new(wire.Msg).SetQuestion("live.shop.example.", wire.TypeA))); got != "NOERROR aa live.shop.example./30/192.0.2.1" {
			t.Errorf("%s: %s", network, got)
		}
		if got := summary(exchange(t, network, addr, new(wire.Msg).SetQuestion("example.com.", wire.TypeA))); got != "REFUSED" {
			t.Errorf("%s: %s", network, got)
		}
		if got := exchange(t, network, addr, new(wire.Msg).SetUpdate("live.shop.example.")).Rcode; got != wire.RcodeNotImplemented {
			t.Errorf("%s: an update gets %s", network, wire.RcodeToString[got])
		}
		transfer := exchange(t, network, addr, new(wire.Msg).SetAxfr("live.shop.example."))
		if got := summary(transfer); got != "REFUSED" {
			t.Errorf("%s: a transfer gets %s", network, got)
		}
	}
	s.Set(Choice{Healthy, testChoice.Shares[1:]})
	if got := summary(exchange(t, "udp", addr, new(wire.Msg).SetQuestion("live.shop.example.", wire.TypeA))); got != "NOERROR aa live.shop.example./30/198.51.100.1 live.shop.example./30/198.51.100.2" {
		t.Errorf("after the choice changed: %s", got)
	}
}

// TestServer_CutAnswersComeByTCP: a client that follows the rules gets all of a large answer.
func TestServer_CutAnswersComeByTCP(t *testing.T) {
	t.Parallel()
	many := Choice{Healthy, []Share{{Site: "a", Weight: 1}}}
	for i := range 100 {
		many.Shares[0].Addresses = append(many.Shares[0].Addresses, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	_, addr := serveTest(t, testConfig(), many)
	req := new(wire.Msg).SetQuestion("live.shop.example.", wire.TypeA)
	if got := exchange(t, "udp", addr, req); !got.Truncated || len(got.Answer) != 0 {
		t.Fatalf("over UDP: %v", got)
	}
	if got := exchange(t, "tcp", addr, req); got.Truncated || len(got.Answer) != 100 {
		t.Errorf("over TCP: %d addresses", len(got.Answer))
	}
}

// TestServer_Rubbish: what is no message gets an error or nothing, and the next one an answer.
func TestServer_Rubbish(t *testing.T) {
	t.Parallel()
	_, addr := serveTest(t, testConfig(), testChoice)
	query, err := new(wire.Msg).SetQuestion("nope.shop.test.", wire.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	twice := append([]byte(nil), query...)
	binary.BigEndian.PutUint16(twice[4:], 65535)
	answer := append([]byte(nil), query...)
	answer[2] |= 0x80
	udp, err := new(net.Dialer).DialContext(t.Context(), "udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, packet := range [][]byte{{}, {1}, query[:11], query[:len(query)-3], twice, answer, query} {
		if _, err := udp.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	if err := udp.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := map[int]int{}
	buf := make([]byte, 2048)
	for range 3 { // two errors and an answer, in any order
		n, err := udp.Read(buf)
		if err != nil {
			t.Fatalf("%v, after %v", err, got)
		}
		m := new(wire.Msg)
		if err := m.Unpack(buf[:n]); err != nil {
			t.Fatal(err)
		}
		got[m.Rcode]++
	}
	if got[wire.RcodeFormatError] != 2 || got[wire.RcodeNameError] != 1 {
		t.Errorf("answers by rcode: %v", got)
	}
	// A TCP connection that says nothing, and one that breaks off in a message, hold nobody up.
	for _, bytes := range []string{"", "\x00", "\x00\x40half"} {
		tcp, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		if _, err := io.WriteString(tcp, bytes); err != nil {
			t.Fatal(err)
		}
	}
	if got := exchange(t, "tcp", addr, new(wire.Msg).SetQuestion("www.shop.test.", wire.TypeA)); got.Rcode != wire.RcodeSuccess {
		t.Errorf("%v", got)
	}
}

func TestListen_PortInUse(t *testing.T) {
	t.Parallel()
	addr, pc, ln := listenTest(t)
	defer pc.Close()
	if _, _, err := Listen(t.Context(), addr); err == nil {
		t.Error("two servers have one port")
	}
	ln.Close()
	if _, _, err := Listen(t.Context(), addr); err == nil {
		t.Error("two servers have one port of UDP")
	}
	again, err := new(net.ListenConfig).Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Errorf("the TCP port was kept: %v", err)
	} else {
		again.Close()
	}
}

// TestServe_SocketFails: a server that lost a socket ends, so that whoever supervises it starts it again.
func TestServe_SocketFails(t *testing.T) {
	t.Parallel()
	for i := range 2 {
		_, pc, ln := listenTest(t)
		s := NewServer(testConfig(), testChoice, slog.New(slog.DiscardHandler))
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(t.Context(), pc, ln) }()
		if i == 0 {
			pc.Close()
		} else {
			ln.Close()
		}
		if err := <-ended; err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%v", fmt.Errorf("socket %d: %w", i, err))
		}
	}
}
