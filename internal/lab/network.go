package lab

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Kind names what a connection reaches at its destination.
type Kind string

const (
	AnyKind     Kind = ""             // in a rule: every kind
	StoreClient Kind = "store-client" // a store member's client port
	StorePeer   Kind = "store-peer"   // a store member's peer port: raft
	AgentAPI    Kind = "agent-api"    // an agent's API
	Link        Kind = "link"         // an agent's replication link; the target of the changes dials
	GatewayPeer Kind = "gateway"      // a gateway's port for other sites' gateways
	Database    Kind = "database"     // a site's database, for the site's own agent
)

// Way is a direction in which bytes travel, whoever dialled: the changes of site a travel to site b on the way a→b,
// although b dials the link.
type Way struct{ From, To topo.SiteID }

func (w Way) String() string { return fmt.Sprintf("%s→%s", w.From, w.To) }

func (w Way) back() Way { return Way{w.To, w.From} }

// rule is what an operator of the lab did to one way, for one kind or for all.
type rule struct {
	cut   bool
	extra time.Duration
	loss  float64
}

type ruleKey struct {
	way  Way
	kind Kind
}

// condition is what holds for the bytes of one connection in one direction at this moment.
type condition struct {
	cut     bool
	delay   time.Duration
	loss    float64         // of packets, 0 to 1; proxies, which see none, lose nothing
	changed <-chan struct{} // closed when any condition changes
}

// connection is one TCP connection between two sites.
type connection interface {
	between() Way // from the site that dialled
	reset()
}

// Network is the set of paths between the sites of one lab and what was done to them. What carries the bytes asks it for
// each: userspace TCP proxies that delay, cut and reset ([Network.Path]), or a router of packets between namespaces.
//
// Between proxies a cut is a cut cable: nothing passes, not even the end of a connection; connections stay open, new ones hang, and
// what was sent arrives after the healing, as TCP would send it again. (The kernel accepts a new connection at once;
// that its peer cannot be reached shows at the first byte.)
type Network struct {
	oneWay time.Duration
	jitter time.Duration

	mu struct {
		sync.Mutex
		rules   map[ruleKey]rule
		traps   map[*Trap]struct{}
		dark    map[topo.SiteID]bool
		changed chan struct{}
		closers []io.Closer // listeners; a router
		conns   map[connection]struct{}
		closed  bool
	}
	running sync.WaitGroup
}

// NewNetwork makes a network without paths. Every path takes rtt/2 in each direction, plus up to jitter; a path within
// a site, or from or to the lab itself (site ""), takes no time.
func NewNetwork(rtt, jitter time.Duration) *Network {
	n := &Network{oneWay: rtt / 2, jitter: jitter}
	n.mu.rules = map[ruleKey]rule{}
	n.mu.traps = map[*Trap]struct{}{}
	n.mu.dark = map[topo.SiteID]bool{}
	n.mu.changed = make(chan struct{})
	n.mu.conns = map[connection]struct{}{}
	return n
}

// Cut cuts the path between two sites both ways.
func (n *Network) Cut(a, b topo.SiteID) {
	n.CutOneWay(Way{a, b}, AnyKind)
	n.CutOneWay(Way{b, a}, AnyKind)
}

// CutKind cuts what travels between two sites to and from one kind of endpoint; the rest passes.
func (n *Network) CutKind(a, b topo.SiteID, k Kind) {
	n.CutOneWay(Way{a, b}, k)
	n.CutOneWay(Way{b, a}, k)
}

// CutOneWay drops what travels in one direction, for one kind of endpoint or for all.
func (n *Network) CutOneWay(w Way, k Kind) {
	n.change(w, k, func(r *rule) { r.cut = true })
}

// Delay adds d to what travels in one direction, for one kind of endpoint or for all; 0 takes it away.
func (n *Network) Delay(w Way, k Kind, d time.Duration) {
	n.change(w, k, func(r *rule) { r.extra = d })
}

// Lose loses a share of the packets that travel in one direction, for one kind of endpoint or for all; 0 ends it.
func (n *Network) Lose(w Way, k Kind, share float64) {
	n.change(w, k, func(r *rule) { r.loss = share })
}

// Darken cuts a site from everybody, the lab's own packets too, as a loss of power does: nobody hears that its connections
// have ended. Light undoes it; healing a path does not.
func (n *Network) Darken(site topo.SiteID) { n.setDark(site, true) }

// Light undoes Darken.
func (n *Network) Light(site topo.SiteID) { n.setDark(site, false) }

func (n *Network) setDark(site topo.SiteID, dark bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.dark[site] = dark
	n.announceLocked()
}

// Heal undoes every cut, delay and loss between two sites, both ways and of every kind.
func (n *Network) Heal(a, b topo.SiteID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.mu.rules, func(k ruleKey, _ rule) bool { return k.way == Way{a, b} || k.way == Way{b, a} })
	n.announceLocked()
}

// HealKind undoes CutKind, and delays of that kind.
func (n *Network) HealKind(a, b topo.SiteID, k Kind) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.mu.rules, ruleKey{Way{a, b}, k})
	delete(n.mu.rules, ruleKey{Way{b, a}, k})
	n.announceLocked()
}

// Reset ends every connection between two sites with a TCP reset.
func (n *Network) Reset(a, b topo.SiteID) {
	for _, c := range n.open() {
		if w := c.between(); w == (Way{a, b}) || w == (Way{b, a}) {
			c.reset()
		}
	}
}

// closeWith closes c when the network is closed, or at once where it is.
func (n *Network) closeWith(c io.Closer) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.closed {
		return errors.Join(fmt.Errorf("lab: open a path: %w", net.ErrClosed), c.Close())
	}
	n.mu.closers = append(n.mu.closers, c)
	return nil
}

// Close ends every connection and listener and waits for them.
func (n *Network) Close() {
	n.mu.Lock()
	n.mu.closed = true
	closers := n.mu.closers
	n.mu.closers = nil
	n.mu.Unlock()
	for _, c := range closers {
		c.Close()
	}
	for _, c := range n.open() {
		c.reset()
	}
	n.running.Wait()
}

func (n *Network) change(w Way, k Kind, f func(*rule)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.mu.rules[ruleKey{w, k}]
	f(&r)
	n.mu.rules[ruleKey{w, k}] = r
	n.announceLocked()
}

func (n *Network) announceLocked() {
	close(n.mu.changed)
	n.mu.changed = make(chan struct{})
}

func (n *Network) condition(w Way, k Kind) condition {
	n.mu.Lock()
	defer n.mu.Unlock()
	all, one := n.mu.rules[ruleKey{w, AnyKind}], n.mu.rules[ruleKey{w, k}]
	c := condition{cut: all.cut || one.cut || n.mu.dark[w.From] || n.mu.dark[w.To], delay: all.extra + one.extra, loss: max(all.loss, one.loss), changed: n.mu.changed}
	if w.From == w.To || w.From == "" || w.To == "" {
		return c
	}
	c.delay += n.oneWay
	if n.jitter > 0 {
		c.delay += rand.N(n.jitter)
	}
	return c
}

func (n *Network) open() []connection {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.mu.conns))
}

// listen opens a loopback listener that hands every connection to serve until the network is closed.
func (n *Network) listen(serve func(*net.TCPConn)) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("lab: open a path: %w", err)
	}
	if err := n.closeWith(l); err != nil {
		return "", err
	}
	n.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.running.Go(func() { serve(c.(*net.TCPConn)) })
		}
	})
	return l.Addr().String(), nil
}

func (n *Network) add(c connection) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.closed {
		return false
	}
	n.mu.conns[c] = struct{}{}
	return true
}

func (n *Network) remove(c connection) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.mu.conns, c)
}
