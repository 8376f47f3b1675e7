package gateway

import (
	"context"
	"sync/atomic"
	"time"
)

// leaseCopy is the gateway's copy of its site's lease: until when, on this process's monotonic clock, the site may
// accept writes. It is what the agent said in its last answer, counted from the moment at which the gateway asked.
type leaseCopy struct {
	current atomic.Pointer[leaseState]
}

type leaseState struct {
	until time.Time
	next  chan struct{} // closed when there is a newer state
}

func newLeaseCopy() *leaseCopy {
	l := &leaseCopy{}
	l.current.Store(&leaseState{next: make(chan struct{})})
	return l
}

func (l *leaseCopy) set(until time.Time) {
	old := l.current.Swap(&leaseState{until: until, next: make(chan struct{})})
	close(old.next)
}

// remaining is negative or zero when the lease has run out or was never heard of.
func (l *leaseCopy) remaining() time.Duration {
	until := l.current.Load().until
	if until.IsZero() {
		return 0
	}
	return time.Until(until)
}

func (l *leaseCopy) live() bool { return l.remaining() > 0 }

// await returns true as soon as the lease is live, false after the bound or at the end of ctx.
func (l *leaseCopy) await(ctx context.Context, bound time.Duration) bool {
	timer := time.NewTimer(bound)
	defer timer.Stop()
	for {
		state := l.current.Load()
		if l.live() {
			return true
		}
		select {
		case <-state.next:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}
