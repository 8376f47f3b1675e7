package gateway

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// holdEnd says how a request's wait in the room ended; it is the label of a metric.
type holdEnd string

const (
	// holdReleased: the bucket is settled; decide again.
	holdReleased holdEnd = "released"
	// holdTimeout: the request waited for as long as it may.
	holdTimeout holdEnd = "timeout"
	// holdClientGone: the client gave up.
	holdClientGone holdEnd = "client-gone"
	// holdExpired: the time is over for which the caller waits, as it said.
	holdExpired holdEnd = "expired"
	// holdStopping: this gateway is being stopped.
	holdStopping holdEnd = "stopping"
	// holdBucketFull: as many requests as may wait for one bucket wait already.
	holdBucketFull holdEnd = "bucket-full"
	// holdFull: as many requests as may wait at this gateway wait already.
	holdFull holdEnd = "full"
)

var holdEnds = []holdEnd{holdReleased, holdTimeout, holdClientGone, holdExpired, holdStopping, holdBucketFull, holdFull}

// holdEndOf is how the end of a request's context ends its wait.
func holdEndOf(cause error) holdEnd {
	switch cause {
	case errCallTimeout:
		return holdExpired
	case errStopping:
		return holdStopping
	}
	return holdClientGone
}

// Released requests do not go out in one wave, which the new owner may not be able to take and in which their order would be
// lost: so many at a time, and of one bucket only one at a time, until it is answered. Where many wait, more may be under way, up to
// a fortieth of them, as long as answers do not take longer than the quickest ones: where they do, requests wait for each other.
// An answer that takes long is not waited for: at most releasePatience, and less where many wait for one bucket, so that the last
// of them does not wait for long.
const (
	releaseBurst    = 64
	releaseShare    = 40
	releaseSlower   = 2 // times what the quickest answer took: they wait for each other
	releasePatience = 100 * time.Millisecond
	releaseWithin   = time.Second // the patience of all of a bucket's requests together
)

// room is where requests wait whose buckets move. It is entered before the body is read, so a held request costs its
// head and a goroutine. Per bucket, requests leave in the order in which they came, each when the one before is answered.
type room struct {
	limits  Hold
	current func() *snapshot
	decide  func(*snapshot, route.Target) route.Decision
	pacers  sync.WaitGroup
	stop    chan struct{} // closed: pacers stop pacing
	mu      struct {
		sync.Mutex
		total  int
		queues map[bucketKey][]*waiter
	}
}

type bucketKey struct {
	keyspace topo.KeyspaceID
	bucket   topo.BucketID
}

type waiter struct {
	target route.Target
	free   chan struct{} // closed at release
	passed func()        // to be called when it is answered, or held again; set before the release, safe to repeat
	gone   atomic.Bool   // it does not wait any more
}

func newRoom(limits Hold, current func() *snapshot, decide func(*snapshot, route.Target) route.Decision) *room {
	r := &room{limits: limits, current: current, decide: decide, stop: make(chan struct{})}
	r.mu.queues = make(map[bucketKey][]*waiter)
	return r
}

// held is how many requests wait.
func (r *room) held() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.total
}

// wait holds a request until its bucket is settled, at most until the given moment. It calls entered if the request
// has to wait. passed is to be called when the request is answered, or ends in another way; safe to repeat.
func (r *room) wait(ctx context.Context, target route.Target, until time.Time, entered func()) (end holdEnd, passed func()) {
	nobody := func() {}
	key := bucketKey{target.Route.Keyspace, target.Bucket}
	w := &waiter{target: target, free: make(chan struct{})}
	if full := r.enter(key, w); full != "" {
		return full, nobody
	}
	defer r.leave(key, w)
	// A view that came after the request's decision, but before it entered, has settled the room without it.
	if r.decide(r.current(), target).Verdict != route.Hold {
		return holdReleased, nobody
	}
	entered()
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-w.free:
		return holdReleased, w.passed
	case <-timer.C:
		end = holdTimeout
	case <-ctx.Done():
		end = holdEndOf(context.Cause(ctx))
	}
	select {
	case <-w.free: // at the same moment; whoever comes behind it does not wait for it
		w.passed()
	default:
		w.gone.Store(true)
	}
	return end, nobody
}

func (r *room) enter(key bucketKey, w *waiter) holdEnd {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.mu.total >= r.limits.MaxRequests:
		return holdFull
	case len(r.mu.queues[key]) >= r.limits.MaxPerBucket:
		return holdBucketFull
	}
	r.mu.total++
	r.mu.queues[key] = append(r.mu.queues[key], w)
	return ""
}

func (r *room) leave(key bucketKey, w *waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.total--
	queue := r.mu.queues[key]
	if i := slices.Index(queue, w); i >= 0 {
		r.keepLocked(key, slices.Delete(queue, i, i+1))
	}
}

func (r *room) keepLocked(key bucketKey, queue []*waiter) {
	if len(queue) == 0 {
		delete(r.mu.queues, key)
		return
	}
	r.mu.queues[key] = queue
}

// settle releases whoever need not wait any longer under snap.
func (r *room) settle(snap *snapshot) {
	r.mu.Lock()
	var free [][]*waiter
	for key, queue := range r.mu.queues {
		var go_, stay []*waiter
		for _, w := range queue {
			if r.decide(snap, w.target).Verdict == route.Hold {
				stay = append(stay, w)
			} else {
				go_ = append(go_, w)
			}
		}
		if len(go_) > 0 {
			free = append(free, go_)
			r.keepLocked(key, stay)
		}
	}
	r.mu.Unlock()
	if len(free) > 0 {
		// Ends when all are out; close waits for it.
		r.pacers.Go(func() { newPacer(free, r.stop).run() })
	}
}

// pacer lets the requests of some buckets go.
type pacer struct {
	queues   [][]*waiter
	patience []time.Duration // by queue
	most     int             // under way at a time
	top      int             // most is at most
	quickest time.Duration   // of the answers; 0: there is none yet
	out      []underWay      // by queue
	answers  chan served
	stop     <-chan struct{}
}

// underWay is the request of a queue that was let go last.
type underWay struct {
	waiter *waiter // nil: it is answered, or not waited for any more
	since  time.Time
	until  time.Time // it is waited for
}

// served says that a queue's request is.
type served struct {
	queue  int
	waiter *waiter
}

func newPacer(queues [][]*waiter, stop <-chan struct{}) *pacer {
	p := &pacer{queues: queues, out: make([]underWay, len(queues)), stop: stop}
	all := 0
	for _, q := range queues {
		all += len(q)
		p.patience = append(p.patience, min(releasePatience, releaseWithin/time.Duration(len(q))))
	}
	p.most, p.top, p.answers = releaseBurst, max(releaseBurst, all/releaseShare), make(chan served, all)
	return p
}

// learn takes in how long an answer took.
func (p *pacer) learn(took time.Duration) {
	if p.quickest == 0 || took < p.quickest {
		p.quickest = took
	}
	if took <= releaseSlower*p.quickest {
		p.most = min(p.most+1, p.top)
	} else {
		p.most = max(p.most-1, releaseBurst)
	}
}

// release lets the next one of a queue go.
func (p *pacer) release(i int) {
	w := p.queues[i][0]
	p.queues[i] = p.queues[i][1:]
	now := time.Now()
	p.out[i] = underWay{w, now, now.Add(p.patience[i])}
	w.passed = sync.OnceFunc(func() { p.answers <- served{i, w} }) // there is room for all
	if w.gone.Load() {
		w.passed()
	}
	close(w.free)
}

// run takes turns among the queues, so that the first request of every bucket goes before any second one.
func (p *pacer) run() {
	turn := make([]int, len(p.queues)) // queues whose next one may go
	for i := range turn {
		turn[i] = i
	}
	out := 0
	back := func(i int) {
		p.out[i] = underWay{}
		out--
		if len(p.queues[i]) > 0 {
			turn = append(turn, i)
		}
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for len(turn) > 0 || out > 0 {
		for ; out < p.most && len(turn) > 0; turn = turn[1:] {
			p.release(turn[0])
			out++
		}
		select {
		case one := <-p.answers:
			if p.out[one.queue].waiter == one.waiter {
				p.learn(time.Since(p.out[one.queue].since))
				back(one.queue)
			}
		case now := <-tick.C:
			for i, one := range p.out {
				if one.waiter != nil && now.After(one.until) {
					back(i)
				}
			}
		case <-p.stop:
			for i := range p.queues {
				for len(p.queues[i]) > 0 {
					p.release(i)
				}
			}
			return
		}
	}
}

// close lets everybody out who is being released and waits for it.
func (r *room) close() {
	close(r.stop)
	r.pacers.Wait()
}
