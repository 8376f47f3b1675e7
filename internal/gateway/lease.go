package gateway

import (
	"context"
	"sync/atomic"
	"time"
)

// leaseCopy is the gateway's copy of its site's lease: until when, on this process's monotonic clock, the site may
// accept writes and vouch for what it reads. It is what the agent said in its last answer, counted from the moment at
// which the gateway asked.
type leaseCopy struct {
	current atomic.Pointer[leaseState]
}

type leaseState struct {
	until time.Time
	view  viewVersion   // what the agent knew; under an older view the lease says nothing about who owns a bucket
	next  chan struct{} // closed when there is a newer state
}

// live tells whether the lease is in force.
func (s *leaseState) live() bool { return !s.until.IsZero() && time.Until(s.until) > 0 }

func newLeaseCopy() *leaseCopy {
	l := &leaseCopy{}
	l.current.Store(&leaseState{next: make(chan struct{})})
	return l
}

func (l *leaseCopy) set(until time.Time, view viewVersion) {
	old := l.current.Swap(&leaseState{until: until, view: view, next: make(chan struct{})})
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

func (l *leaseCopy) live() bool { return l.current.Load().live() }

// await returns true as soon as the lease is live, false after the bound or at the end of ctx.
func (l *leaseCopy) await(ctx context.Context, bound time.Duration) bool {
	timer := time.NewTimer(bound)
	defer timer.Stop()
	for {
		state := l.current.Load()
		if state.live() {
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
