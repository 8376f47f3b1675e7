package gateway

import (
	"cmp"
	"context"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/atollhq/atoll/internal/limit"
	"github.com/atollhq/atoll/topo"
)

// Limits bound what is at a service at the same time. Zero fields take their defaults.
type Limits struct {
	Requests    int             // at most; 0: no fixed number
	Connections int             // requests at one instance at most, and connections by HTTP/1.1; 0: no fixed number
	Pending     int             // may wait for their turn, default 64
	Wait        time.Duration   // for so long at most, default 250 ms
	Adaptive    *limit.Adaptive // nil: nothing is learnt, and only the numbers above count
}

// turnedAway says why a request was not let in; it is the label of a metric.
type turnedAway string

const (
	awayFull      turnedAway = "full"      // as many wait as may
	awayDisplaced turnedAway = "displaced" // it waited, and one of a higher priority took its place
	awayWaited    turnedAway = "waited"    // its turn did not come in time
)

// gate is the way into a service. Behind it a request is inside until its answer is passed on; what lasts (WebSockets, gRPC
// streams, events) is only until its answer begins.
type gate struct {
	wait   time.Duration
	most   int        // requests at a time; 0: no fixed number
	places func() int // of all instances together; 0: no fixed number
	away   map[limit.Priority]map[turnedAway]prometheus.Counter
	mu     struct {
		sync.Mutex
		door    limit.Door[*waiting]
		limiter *limit.Limiter // nil: nothing is learnt
		shed    time.Time      // when somebody was turned away last
		guests  map[*guest]bool
	}
}

// guest is a copy of a request that is inside as long as nobody else wants to be.
type guest struct{ evict func() }

// waiting is a request that waits at a gate.
type waiting struct {
	turn chan bool // true: it is inside; false: it was displaced
}

func newGate(l Limits, places func() int) *gate {
	g := &gate{wait: cmp.Or(l.Wait, 250*time.Millisecond), most: l.Requests, places: places}
	if l.Adaptive != nil {
		g.mu.limiter = limit.NewLimiter(*l.Adaptive)
	}
	g.mu.door.Pending = cmp.Or(l.Pending, 64)
	return g
}

// enter lets a request in, at once or when it is its turn. Not ok: it was turned away, or its client is gone.
func (g *gate) enter(ctx context.Context, p limit.Priority) (ok bool) {
	me := &waiting{}
	g.mu.Lock()
	g.refreshLocked()
	verdict, displaced, displaces := g.mu.door.Arrive(p, me)
	if verdict == limit.Wait {
		me.turn = make(chan bool, 1)
	}
	var guests map[*guest]bool
	if verdict != limit.In {
		guests, g.mu.guests = g.mu.guests, nil
	}
	g.mu.Unlock()
	for one := range guests {
		one.evict()
	}
	if displaces {
		displaced.turn <- false
	}
	switch verdict {
	case limit.In:
		return true
	case limit.Away:
		g.turnedAway(p, awayFull)
		return false
	}
	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	select {
	case in := <-me.turn:
		if !in {
			g.turnedAway(p, awayDisplaced)
		}
		return in
	case <-timer.C:
	case <-ctx.Done():
	}
	g.mu.Lock()
	waits := g.mu.door.GiveUp(p, me)
	g.mu.Unlock()
	if !waits && <-me.turn { // it was its turn at the same moment
		if ctx.Err() == nil {
			return true
		}
		g.leave()
		return false
	}
	if ctx.Err() == nil {
		g.turnedAway(p, awayWaited)
	}
	return false
}

func (g *gate) turnedAway(p limit.Priority, why turnedAway) {
	g.away[p][why].Inc()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.shed = time.Now()
}

// pressedFor is how long after it turned somebody away a gate counts as pressed.
const pressedFor = 10 * time.Second

// pressed tells whether somebody waits, or was turned away a moment ago.
func (g *gate) pressed(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.door.Waiting() > 0 || !g.mu.shed.IsZero() && now.Sub(g.mu.shed) < pressedFor
}

// slipIn lets a guest in, whose priority is lower than the lowest: it does not wait, and it is told to go when somebody would
// have to wait because of it. leave must be called if ok.
func (g *gate) slipIn(evict func()) (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refreshLocked()
	if g.mu.door.Waiting() > 0 || g.mu.door.Inside() >= g.mu.door.Limit {
		return nil, false
	}
	if v, _, _ := g.mu.door.Arrive(limit.Low, &waiting{}); v != limit.In {
		panic("BUG: there is room and nobody waits, but a guest is not let in")
	}
	me := &guest{evict}
	if g.mu.guests == nil {
		g.mu.guests = make(map[*guest]bool)
	}
	g.mu.guests[me] = true
	return func() {
		g.mu.Lock()
		delete(g.mu.guests, me)
		g.mu.Unlock()
		g.leave()
	}, true
}

// leave ends what enter began.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.door.Leave()
	g.admitLocked()
}

// learn takes in how long an answer took.
func (g *gate) learn(s limit.Sample, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.limiter == nil {
		return
	}
	s.Inside = g.mu.door.Inside()
	g.mu.limiter.Add(s, now)
	g.admitLocked()
}

// admitLocked lets those in whose turn it is.
func (g *gate) admitLocked() {
	g.refreshLocked()
	for who, ok := g.mu.door.Next(); ok; who, ok = g.mu.door.Next() {
		who.turn <- true
	}
}

func (g *gate) refreshLocked() {
	most := math.MaxInt
	if g.mu.limiter != nil {
		most = g.mu.limiter.Limit()
	}
	if g.most > 0 {
		most = min(most, g.most)
	}
	if n := g.places(); n > 0 {
		most = min(most, n)
	}
	g.mu.door.Limit = most
}

// gateState is what there is at a moment.
type gateState struct {
	Limit   int     `json:"limit"`
	Inside  int     `json:"inside"`
	Pending int     `json:"pending"`
	BaseMS  float64 `json:"base_ms,omitempty"` // how long an answer takes without waiting, as far as that is known
}

func (g *gate) state() gateState {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refreshLocked()
	s := gateState{Limit: g.mu.door.Limit, Inside: g.mu.door.Inside(), Pending: g.mu.door.Waiting()}
	if g.mu.limiter != nil {
		s.BaseMS = float64(g.mu.limiter.Base().Microseconds()) / 1000
	}
	return s
}

// priorities are the labels of priorities, which are also how a specification writes them.
var priorities = map[limit.Priority]topo.Priority{limit.Low: topo.LowPriority, limit.Normal: topo.NormalPriority, limit.High: topo.HighPriority}

// priority is the request's, by its route.
func (x *exchange) priority() limit.Priority {
	switch x.target.Route.Priority {
	case topo.LowPriority:
		return limit.Low
	case topo.HighPriority:
		return limit.High
	}
	return limit.Normal
}
