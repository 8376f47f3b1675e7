package gateway

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
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
	// holdBucketFull: as many requests as may wait for one bucket wait already.
	holdBucketFull holdEnd = "bucket-full"
	// holdFull: as many requests as may wait at this gateway wait already.
	holdFull holdEnd = "full"
)

var holdEnds = []holdEnd{holdReleased, holdTimeout, holdClientGone, holdBucketFull, holdFull}

// Released requests go out in bursts, so that a move of busy buckets does not end in a wave that the new owner cannot
// take: the first burst at once, then one per gap (jittered by half).
const (
	releaseBurst = 32
	releaseGap   = 2 * time.Millisecond
)

// room is where requests wait whose buckets move. It is entered before the body is read, so a held request costs its
// head and a goroutine. Per bucket, requests leave in the order in which they came.
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
// has to wait.
func (r *room) wait(ctx context.Context, target route.Target, until time.Time, entered func()) holdEnd {
	key := bucketKey{target.Route.Keyspace, target.Bucket}
	w := &waiter{target: target, free: make(chan struct{})}
	if full := r.enter(key, w); full != "" {
		return full
	}
	defer r.leave(key, w)
	// A view that came after the request's decision, but before it entered, has settled the room without it.
	if r.decide(r.current(), target).Verdict != route.Hold {
		return holdReleased
	}
	entered()
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-w.free:
		return holdReleased
	case <-timer.C:
		return holdTimeout
	case <-ctx.Done():
		return holdClientGone
	}
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
	order := interleave(free)
	n := min(len(order), releaseBurst)
	release(order[:n])
	if rest := order[n:]; len(rest) > 0 {
		// Ends when the rest is out; close waits for it.
		r.pacers.Go(func() { r.pace(rest) })
	}
}

// interleave takes from each queue in turn, so that the first request of every bucket goes before any second one.
func interleave(queues [][]*waiter) []*waiter {
	var out []*waiter
	for i := 0; ; i++ {
		before := len(out)
		for _, q := range queues {
			if i < len(q) {
				out = append(out, q[i])
			}
		}
		if len(out) == before {
			return out
		}
	}
}

func release(ws []*waiter) {
	for _, w := range ws {
		close(w.free)
	}
}

func (r *room) pace(rest []*waiter) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for len(rest) > 0 {
		timer.Reset(releaseGap/2 + rand.N(releaseGap))
		select {
		case <-timer.C:
			n := min(len(rest), releaseBurst)
			release(rest[:n])
			rest = rest[n:]
		case <-r.stop:
			release(rest)
			return
		}
	}
}

// close lets everybody out who is being released and waits for it.
func (r *room) close() {
	close(r.stop)
	r.pacers.Wait()
}
