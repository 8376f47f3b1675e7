package lab

import (
	"net/netip"
	"sync"
	"time"
)

// tracked is what a router knows of the TCP connections between sites: enough to end one with a reset that both ends
// believe.
type tracked struct {
	router *router
	mu     struct {
		sync.Mutex
		flows map[flowKey]*routed
	}
}

// flowKey is a connection by its ends; the first is the one that dialled.
type flowKey struct{ from, to netip.AddrPort }

// routed is one connection through the router.
type routed struct {
	all *tracked
	way Way
	key flowKey

	// Guarded by tracked.mu.
	next   [2]uint32 // what the dialling end, and the other, expects: its last acknowledgement
	acked  [2]bool   // there was one
	ended  [2]bool   // its FIN was seen
	doomed bool      // reset: whatever an end still sends gets a reset as its answer
	seen   time.Time
}

// Connections whose end nobody saw, because it fell into a cut, are forgotten after forgetAfter, once there are many.
const (
	manyFlows   = 4096
	forgetAfter = 10 * time.Minute // of silence; Go's keep-alives come more often
)

func newTracked(r *router) *tracked {
	t := &tracked{router: r}
	t.mu.flows = map[flowKey]*routed{}
	return t
}

// see notes a segment. true: its connection was reset, and the segment was answered.
func (t *tracked) see(way Way, p *packet, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.has(flagSYN) && !p.has(flagACK) {
		t.beginLocked(way, p, now)
		return false
	}
	side, flow := 0, t.mu.flows[flowKey{p.from, p.to}]
	if flow == nil {
		side, flow = 1, t.mu.flows[flowKey{p.to, p.from}]
	}
	if flow == nil {
		return false // older than what the router remembers
	}
	flow.seen = now
	if p.has(flagACK) {
		flow.next[side], flow.acked[side] = p.ack, true
	}
	if flow.doomed {
		if !p.has(flagRST) {
			flow.resetLocked(side)
		}
		return true
	}
	over := flow.ended[0] && flow.ended[1] && p.payload == 0 // the last acknowledgement, at most one too early
	flow.ended[side] = flow.ended[side] || p.has(flagFIN)
	if over || p.has(flagRST) {
		t.forgetLocked(flow)
	}
	return false
}

// beginLocked starts a connection, or starts it again: a dialler sends its SYN until it is answered.
func (t *tracked) beginLocked(way Way, p *packet, now time.Time) {
	key := flowKey{p.from, p.to}
	if old := t.mu.flows[key]; old != nil {
		t.forgetLocked(old)
	}
	if len(t.mu.flows) >= manyFlows {
		for _, f := range t.mu.flows {
			if now.Sub(f.seen) > forgetAfter {
				t.forgetLocked(f)
			}
		}
	}
	f := &routed{all: t, way: way, key: key, seen: now}
	if t.router.net.add(f) {
		t.mu.flows[key] = f
	}
}

func (t *tracked) forgetLocked(f *routed) {
	delete(t.mu.flows, f.key)
	t.router.net.remove(f)
}

func (f *routed) between() Way { return f.way }

// reset ends the connection: at once where the router knows what an end expects, and wherever that was no longer true,
// with the next that this end sends.
func (f *routed) reset() {
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	f.doomed = true
	for side := range f.next {
		f.resetLocked(side)
	}
}

// resetLocked tells one end that the other has reset the connection.
func (f *routed) resetLocked(side int) {
	if !f.acked[side] {
		return // it has nothing of the other end yet, and sends its SYN again: a new connection
	}
	from, to, way := f.key.to, f.key.from, f.way.back()
	if side == 1 {
		from, to, way = to, from, f.way
	}
	r := f.all.router
	if p := r.ports[to.Addr()]; p != nil {
		r.send(p, ruleKey{way, r.kindOf(f.key.to.Port())}, time.Now(), resetPacket(from, to, f.next[side]))
	}
}
