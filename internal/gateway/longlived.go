package gateway

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// leaveWithin is over how long those who stay connected are told to go when their bucket has moved: all at once they
// would come back all at once.
const leaveWithin = 2 * time.Second

// stayAtLeast lets a call that is just being answered come to its end.
const stayAtLeast = time.Second

// longLived knows who stays connected to a site: WebSockets, gRPC streams, server-sent events. What is begun at a bucket's
// owner is told to go when another site has become the owner.
type longLived struct {
	current func() *snapshot
	mu      struct {
		sync.Mutex
		all map[*lasting]bool
	}
	ended sync.WaitGroup
}

// lasting is one of them.
type lasting struct {
	key   bucketKey
	keyed bool
	at    topo.SiteID // whose application it is connected to
	leave func()      // tells it to go; safe to repeat
	timer *time.Timer // until then it may stay; nil: nobody told it to go
}

func newLongLived(current func() *snapshot) *longLived {
	l := &longLived{current: current}
	l.mu.all = make(map[*lasting]bool)
	return l
}

// add registers whoever stays connected to a site. Only the first gateway tells: edge says that this is one. The answer
// must be called at the end.
func (l *longLived) add(t route.Target, at topo.SiteID, edge bool, leave func()) (ended func()) {
	one := &lasting{at: at, leave: leave}
	if t.Keyed && edge {
		one.keyed, one.key = true, bucketKey{t.Route.Keyspace, t.Bucket}
	}
	l.ended.Add(1)
	l.mu.Lock()
	l.mu.all[one] = true
	one.mind(l.current()) // its bucket may have moved before the answer began
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		delete(l.mu.all, one)
		if one.timer != nil {
			one.timer.Stop()
		}
		l.mu.Unlock()
		l.ended.Done()
	}
}

// count is how many there are.
func (l *longLived) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.mu.all)
}

// update tells those to go whose bucket has another owner now. Where it comes back before their time, they stay.
func (l *longLived) update(now *snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for one := range l.mu.all {
		one.mind(now)
	}
}

// mind looks whether it is to go. Its registry is locked.
func (one *lasting) mind(now *snapshot) {
	if now.site == nil || !one.keyed {
		return
	}
	slot, known := now.site.View.Slot(one.key.keyspace, one.key.bucket)
	switch moved := known && slot.Owner != one.at; {
	case moved && one.timer == nil:
		one.timer = time.AfterFunc(stayAtLeast+rand.N(leaveWithin), one.leave)
	case !moved && one.timer != nil && one.timer.Stop():
		one.timer = nil
	}
}

// close tells all to go, spread over a time; those that are still there when stop is closed, at once. It waits for the last.
func (l *longLived) close(within time.Duration, stop <-chan struct{}) {
	l.tell(func() time.Duration { return rand.N(max(within, 1)) })
	done := make(chan struct{})
	go func() { l.ended.Wait(); close(done) }() // ends with the last of them; whoever stops the servers ends that one, too
	select {
	case <-done:
		return
	case <-stop:
	}
	l.tell(func() time.Duration { return 0 })
	select {
	case <-done:
	case <-time.After(closeLinger):
	}
}

func (l *longLived) tell(when func() time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for one := range l.mu.all {
		if one.timer != nil {
			one.timer.Stop()
		}
		one.timer = time.AfterFunc(when(), one.leave)
	}
}
