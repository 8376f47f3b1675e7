package lab

import (
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/topo"
)

// router carries IPv4 packets between sites, one device each, under the conditions of a network: what is cut is dropped
// without a word, as is what is lost; the rest arrives in order after its delay. Whatever has to be sent again, the
// kernels of both ends send again. The lab's own device, site "", is a neighbour of every site: its packets take no time.
//
// A packet's kind follows from the ports: at one of its ends is an endpoint of the spec.
type router struct {
	net     *Network
	kindOf  func(port uint16) Kind // AnyKind for what has no rules of its own
	ports   map[netip.Addr]*port   // complete before run
	tracked *tracked

	passed, dropped, lost, malformed atomic.Int64 // packets
}

// Packets are what became of a router's.
type Packets struct {
	Passed  int64 `json:"passed"`
	Dropped int64 `json:"dropped"` // by cuts, by resets, at dark sites, and the few that nobody was there for
	Lost    int64 `json:"lost"`    // by loss
}

func (p Packets) plus(o *Packets) Packets {
	if o == nil {
		return p
	}
	return Packets{p.Passed + o.Passed, p.Dropped + o.Dropped, p.Lost + o.Lost}
}

func (r *router) packets() Packets {
	return Packets{r.passed.Load(), r.dropped.Load(), r.lost.Load()}
}

// port is a site's end of the router.
type port struct {
	site   topo.SiteID
	addr   netip.Addr
	device io.ReadWriteCloser

	wake chan struct{} // something was put into the outbox
	mu   struct {
		sync.Mutex
		outbox
	}
}

const maxPacket = 64 << 10

func newRouter(n *Network, kindOf func(port uint16) Kind) *router {
	r := &router{net: n, kindOf: kindOf, ports: map[netip.Addr]*port{}}
	r.tracked = newTracked(r)
	return r
}

// attach gives the router a site's device, whose packets are from one address and to it.
func (r *router) attach(site topo.SiteID, addr netip.Addr, device io.ReadWriteCloser) {
	r.ports[addr] = &port{site: site, addr: addr, device: device, wake: make(chan struct{}, 1)}
}

// run carries packets until the devices are closed, which is for the network to do.
func (r *router) run() {
	n := r.net
	for _, p := range r.ports {
		done := make(chan struct{})
		n.running.Go(func() { defer close(done); r.receive(p) })
		n.running.Go(func() { r.deliver(p, done) })
	}
}

// receive takes what a site sends until its device is closed.
func (r *router) receive(p *port) {
	buf := make([]byte, maxPacket)
	for {
		n, err := p.device.Read(buf)
		if err != nil {
			return
		}
		r.route(p, buf[:n], time.Now())
	}
}

// route decides about one packet from a site.
func (r *router) route(from *port, b []byte, now time.Time) {
	p, err := parsePacket(b)
	if err != nil {
		r.malformed.Add(1) // IPv6's search for neighbours, mostly
		return
	}
	to := r.ports[p.to.Addr()]
	if to == nil || to == from || p.from.Addr() != from.addr {
		r.dropped.Add(1)
		return
	}
	key := r.key(from, to, &p)
	if from.site != "" && to.site != "" && p.tcp && r.tracked.see(key.way, &p, now) {
		r.dropped.Add(1)
		return
	}
	c := r.net.condition(key.way, key.kind)
	switch {
	case c.cut:
		r.dropped.Add(1)
	case c.loss > 0 && rand.Float64() < c.loss:
		r.lost.Add(1)
	default:
		r.send(to, key, now.Add(c.delay), append([]byte(nil), b...))
	}
}

func (r *router) key(from, to *port, p *packet) ruleKey {
	kind := r.kindOf(p.to.Port())
	if kind == AnyKind {
		kind = r.kindOf(p.from.Port()) // an answer
	}
	return ruleKey{Way{from.site, to.site}, kind}
}

func (r *router) send(to *port, key ruleKey, due time.Time, b []byte) {
	to.mu.Lock()
	fits := to.mu.add(key, due, b)
	to.mu.Unlock()
	if !fits {
		r.dropped.Add(1)
		return
	}
	select {
	case to.wake <- struct{}{}:
	default: // it is to look already
	}
}

// deliver hands a site what has arrived, until its device is closed. What was on its way when the way was cut is gone.
func (r *router) deliver(p *port, closed <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		p.mu.Lock()
		next, arrived, wait := p.mu.take(time.Now())
		p.mu.Unlock()
		if arrived {
			if r.net.condition(next.key.way, next.key.kind).cut {
				r.dropped.Add(1)
			} else if _, err := p.device.Write(next.data); err != nil {
				r.dropped.Add(1) // no room in the kernel, or the end
			} else {
				r.passed.Add(1)
			}
			continue
		}
		var due <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-p.wake:
		case <-due:
		case <-closed:
			return
		}
	}
}
