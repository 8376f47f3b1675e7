package lab

import (
	"net/netip"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// idleRouter has ports without devices: what it would deliver stays in the outboxes.
func idleRouter(t *testing.T) *router {
	t.Helper()
	r := newRouter(testNetwork(t), kindOfPort)
	for i, site := range []topo.SiteID{"", "a", "b"} {
		r.attach(site, siteAddr(i).Addr(), nil)
	}
	return r
}

func (r *router) at(site topo.SiteID) *port {
	for _, p := range r.ports {
		if p.site == site {
			return p
		}
	}
	return nil
}

// arriving takes the next packet that is on its way to a site, whenever it is due.
func (r *router) arriving(t *testing.T, site topo.SiteID) (packet, sent, bool) {
	t.Helper()
	p, ok, _ := r.at(site).mu.take(time.Now().Add(time.Hour))
	if !ok {
		return packet{}, sent{}, false
	}
	got, err := parsePacket(p.data)
	if err != nil {
		t.Fatal(err)
	}
	return got, p, true
}

func TestRouter_Route(t *testing.T) {
	t.Parallel()
	ab := Way{"a", "b"}
	lab, user := netip.MustParseAddrPort("10.77.0.1:50000"), netip.MustParseAddrPort("10.77.1.1:8080")
	for _, c := range []struct {
		name   string
		do     func(*Network)
		from   topo.SiteID
		packet []byte
		to     topo.SiteID // "-": dropped
		delay  time.Duration
	}{
		{"there", nil, "a", segment(endA, endB, flagACK, "x"), "b", testRTT / 2},
		{"back", nil, "b", segment(endB, endA, flagACK, "x"), "a", testRTT / 2},
		{"the lab is everybody's neighbour", nil, "", segment(lab, user, flagACK, "x"), "a", 0},
		{"and what is cut between sites does not concern it", func(n *Network) { n.Cut("a", "b") }, "", segment(lab, user, flagACK, "x"), "a", 0},
		{"a dark site hears nothing", func(n *Network) { n.Darken("a") }, "", segment(lab, user, flagACK, "x"), "-", 0},
		{"and says nothing", func(n *Network) { n.Darken("a") }, "a", segment(endA, endB, flagACK, "x"), "-", 0},
		{"which healing a path does not undo", func(n *Network) { n.Darken("a"); n.Heal("a", "b") }, "b", segment(endB, endA, flagACK, "x"), "-", 0},
		{"but light does", func(n *Network) { n.Darken("a"); n.Light("a") }, "b", segment(endB, endA, flagACK, "x"), "a", testRTT / 2},
		{"cut", func(n *Network) { n.Cut("a", "b") }, "a", segment(endA, endB, flagACK, "x"), "-", 0},
		{"cut one way", func(n *Network) { n.CutOneWay(ab, AnyKind) }, "a", segment(endA, endB, flagACK, "x"), "-", 0},
		{"cut the other way", func(n *Network) { n.CutOneWay(ab.back(), AnyKind) }, "a", segment(endA, endB, flagACK, "x"), "b", testRTT / 2},
		{"cut of the kind", func(n *Network) { n.CutKind("a", "b", Link) }, "a", segment(endA, endB, flagACK, "x"), "-", 0},
		{"cut of the kind, the answers", func(n *Network) { n.CutKind("a", "b", Link) }, "b", segment(endB, endA, flagACK, "x"), "-", 0},
		{"cut of another kind", func(n *Network) { n.CutKind("a", "b", StorePeer) }, "a", segment(endA, endB, flagACK, "x"), "b", testRTT / 2},
		{"healed", func(n *Network) { n.Cut("a", "b"); n.Heal("b", "a") }, "a", segment(endA, endB, flagACK, "x"), "b", testRTT / 2},
		{"delayed", func(n *Network) { n.Delay(ab, Link, time.Second) }, "a", segment(endA, endB, flagACK, "x"), "b", testRTT/2 + time.Second},
		{"lost", func(n *Network) { n.Lose(ab, AnyKind, 1) }, "a", segment(endA, endB, flagACK, "x"), "-", 0},
		{"lost the other way", func(n *Network) { n.Lose(ab.back(), AnyKind, 1) }, "a", segment(endA, endB, flagACK, "x"), "b", testRTT / 2},
		{"a sender that it is not", nil, "b", segment(endA, endB, flagACK, "x"), "-", 0},
		{"nobody's address", nil, "a", segment(endA, netip.MustParseAddrPort("10.77.9.1:1"), flagACK, "x"), "-", 0},
		{"no packet", nil, "a", []byte("x"), "-", 0},
	} {
		r := idleRouter(t)
		if c.do != nil {
			c.do(r.net)
		}
		now := time.Now()
		r.route(r.at(c.from), c.packet, now)
		got, delay := topo.SiteID("-"), time.Duration(0)
		for _, site := range []topo.SiteID{"", "a", "b"} {
			if _, p, ok := r.arriving(t, site); ok {
				got, delay = site, p.due.Sub(now)
			}
		}
		if got != c.to || delay != c.delay {
			t.Errorf("%s: to %q after %v, want %q after %v", c.name, got, delay, c.to, c.delay)
		}
		if dropped := r.dropped.Load() + r.lost.Load() + r.malformed.Load(); (dropped == 1) != (c.to == "-") {
			t.Errorf("%s: %d counted as dropped", c.name, dropped)
		}
	}
}

// A reset reaches both ends with the numbers that they expect, and again whenever one of them has moved on.
func TestRouter_Reset(t *testing.T) {
	t.Parallel()
	r := idleRouter(t)
	pass := func(from topo.SiteID, b []byte) {
		t.Helper()
		r.route(r.at(from), b, time.Now())
	}
	pass("a", segment(endA, endB, flagSYN, ""))
	pass("b", segment(endB, endA, flagSYN|flagACK, ""))
	pass("a", segment(endA, endB, flagACK, "x"))
	for _, site := range []topo.SiteID{"a", "b"} {
		for ok := true; ok; {
			_, _, ok = r.arriving(t, site)
		}
	}
	r.net.Reset("b", "a")
	isReset := func(site topo.SiteID, from, to netip.AddrPort) {
		t.Helper()
		p, _, ok := r.arriving(t, site)
		if want := (packet{from: from, to: to, tcp: true, flags: flagRST, seq: 9}); !ok || p != want {
			t.Errorf("to %s: %+v, want %+v", site, p, want)
		}
	}
	isReset("a", endB, endA)
	isReset("b", endA, endB)
	pass("b", segment(endB, endA, flagACK, "late"))
	isReset("b", endA, endB)
	if _, _, ok := r.arriving(t, "a"); ok {
		t.Error("a segment of a connection that was reset has passed")
	}
	pass("a", segment(endA, endB, flagSYN, "")) // a new one from the same port
	if p, _, ok := r.arriving(t, "b"); !ok || p.flags != flagSYN {
		t.Errorf("to b: %+v, want the SYN of a new connection", p)
	}
}

// What is over is forgotten.
func TestTracked_Forgets(t *testing.T) {
	t.Parallel()
	r := idleRouter(t)
	syn := segment(endA, endB, flagSYN, "")
	for _, c := range []struct {
		name string
		rest [][]byte
		left int
	}{
		{"open", nil, 1},
		{"half closed", [][]byte{segment(endA, endB, flagACK|flagFIN, "")}, 1},
		{"closed", [][]byte{segment(endA, endB, flagACK|flagFIN, ""), segment(endB, endA, flagACK|flagFIN, ""), segment(endA, endB, flagACK, "")}, 0},
		{"reset", [][]byte{segment(endB, endA, flagRST|flagACK, "")}, 0},
	} {
		for _, b := range append([][]byte{syn}, c.rest...) {
			p, err := parsePacket(b)
			if err != nil {
				t.Fatal(err)
			}
			r.route(r.ports[p.from.Addr()], b, time.Now())
		}
		if got := len(r.net.open()); got != c.left || len(r.tracked.mu.flows) != c.left {
			t.Errorf("%s: %d connections are remembered, %d by the network; want %d", c.name, len(r.tracked.mu.flows), got, c.left)
		}
	}
}
