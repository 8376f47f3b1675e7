package discover

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/atollhq/atoll/internal/balance"
)

// nameServer answers by a zone file that can be changed; an empty one makes it fail.
type nameServer struct {
	addr string
	mu   sync.Mutex
	zone []dns.RR
	fail bool
	tcp  int // questions by TCP
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{addr: conn.LocalAddr().String()}
	ln, err := net.Listen("tcp", n.addr)
	if err != nil {
		t.Skipf("the port is taken for TCP: %v", err)
	}
	for _, s := range []*dns.Server{{PacketConn: conn, Handler: n}, {Listener: ln, Handler: n}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }() // ends with Shutdown
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return n
}

func (n *nameServer) set(fail bool, records ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail, n.zone = fail, nil
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		n.zone = append(n.zone, rr)
	}
}

func (n *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := new(dns.Msg)
	m.SetReply(q)
	name, kind := q.Question[0].Name, q.Question[0].Qtype
	for _, rr := range n.zone {
		h := rr.Header()
		if h.Name != name {
			continue
		}
		if alias, is := rr.(*dns.CNAME); is {
			m.Answer, name = append(m.Answer, rr), alias.Target
		} else if h.Rrtype == kind {
			m.Answer = append(m.Answer, rr)
		}
	}
	switch _, udp := w.RemoteAddr().(*net.UDPAddr); {
	case n.fail:
		m = new(dns.Msg)
		m.SetRcode(q, dns.RcodeServerFailure)
	case udp && len(m.Answer) > 5:
		m.Answer, m.Truncated = nil, true
	case !udp:
		n.tcp++
	}
	_ = w.WriteMsg(m)
}

// find follows a name and returns what was found, call by call.
func find(t *testing.T, d DNS) chan string {
	t.Helper()
	d.Log = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	got, ended := make(chan string, 100), make(chan struct{})
	go func() {
		defer close(ended)
		_ = d.Find(ctx, func(in []balance.Instance) {
			var lines []string
			for _, i := range in {
				lines = append(lines, fmt.Sprintf("%s*%d@%s", i.Address, i.Weight, i.Zone))
			}
			got <- strings.Join(lines, " ")
		})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return got
}

func next(t *testing.T, got chan string, want string) {
	t.Helper()
	select {
	case one := <-got:
		if one != want {
			t.Fatalf("found %q, want %q", one, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing was found, want %q", want)
	}
}

// Addresses of both kinds, behind an alias; changes are found as the time to live ends; what fails or is empty changes nothing.
func TestAddresses(t *testing.T) {
	t.Parallel()
	n := newNameServer(t)
	n.set(false, "shop.test. 0 CNAME real.test.", "real.test. 0 A 10.0.0.2", "real.test. 0 A 10.0.0.1", "real.test. 0 AAAA 2001:db8::1")
	got := find(t, DNS{Name: "shop.test", Port: 80, Zone: "z", Weight: 3, Servers: []string{"127.0.0.1:1", n.addr}})
	next(t, got, "10.0.0.1:80*3@z 10.0.0.2:80*3@z [2001:db8::1]:80*3@z")
	n.set(true)
	n.set(false) // nothing under that name any more
	n.set(false, "shop.test. 0 A 10.0.0.3")
	// The kind of which nothing is found any more stays as it was.
	next(t, got, "10.0.0.3:80*3@z [2001:db8::1]:80*3@z")
	if len(got) > 0 {
		t.Errorf("and %q", <-got)
	}
}

func TestLastGoodStays(t *testing.T) {
	t.Parallel()
	n := newNameServer(t)
	n.set(false, "shop.test. 0 A 10.0.0.1")
	r := &resolver{servers: []string{n.addr}, good: map[dns.Question][]dns.RR{}}
	d := DNS{Name: "shop.test", Port: 80}
	want := []balance.Instance{{Address: "10.0.0.1:80"}}
	if in, _, err := d.lookup(context.Background(), r); err != nil || !slices.Equal(in, want) {
		t.Fatalf("%v, %v", in, err)
	}
	for _, fail := range []bool{true, false} {
		n.set(fail)
		if in, ttl, err := d.lookup(context.Background(), r); err == nil || !slices.Equal(in, want) || ttl != soonest {
			t.Errorf("fail %v: %v, %v, %v", fail, in, ttl, err)
		}
	}
	n.set(false, "shop.test. 3600 A 10.0.0.9", "shop.test. 60 A 10.0.0.8")
	if in, ttl, err := d.lookup(context.Background(), r); err != nil || len(in) != 2 || ttl != time.Minute {
		t.Errorf("%v, %v, %v", in, ttl, err)
	}
}

// SRV: of the best priority, with ports and weights; many answers come by TCP.
func TestSRV(t *testing.T) {
	t.Parallel()
	n := newNameServer(t)
	zone := []string{"_http._tcp.shop.test. 0 SRV 1 5 8080 x.test.", "_http._tcp.shop.test. 0 SRV 1 0 8081 y.test.", "_http._tcp.shop.test. 0 SRV 2 9 8082 z.test.",
		"x.test. 0 A 10.0.0.1", "y.test. 0 A 10.0.0.2", "z.test. 0 A 10.0.0.3"}
	n.set(false, zone...)
	got := find(t, DNS{Name: "_http._tcp.shop.test", SRV: true, Servers: []string{n.addr}})
	next(t, got, "10.0.0.1:8080*5@ 10.0.0.2:8081*1@")
	for i := range 6 {
		zone = append(zone, fmt.Sprintf("x.test. 0 A 10.0.1.%d", i))
	}
	n.set(false, zone...)
	next(t, got, "10.0.0.1:8080*5@ 10.0.0.2:8081*1@ 10.0.1.0:8080*5@ 10.0.1.1:8080*5@ 10.0.1.2:8080*5@ 10.0.1.3:8080*5@ 10.0.1.4:8080*5@ 10.0.1.5:8080*5@")
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tcp == 0 {
		t.Error("nothing was asked by TCP")
	}
}
