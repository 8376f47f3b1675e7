package lease

import (
	"context"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Observe takes note of an ownership document and opens at once what it says is open here; an older one is ignored.
// Nothing is opened unless the lease is in force: then ErrNotActive, and the next renewal opens it.
func (k *Keeper) Observe(ctx context.Context, o topo.Ownership) error {
	k.note(o)
	if err := k.lockFence(ctx); err != nil {
		return err
	}
	defer k.unlockFence()
	newest, from := k.ownership()
	k.mu.Lock()
	until, opened := k.mu.until, k.mu.opened
	k.mu.Unlock()
	switch {
	case opened.Version != 0 && !newest.Newer(opened):
		return nil
	case !time.Now().Before(until):
		return ErrNotActive
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	return k.open(ctx, newest, from)
}

// OpenedVersion is the highest ownership version for which this site's database has opened its fence; 0 before the
// first.
func (k *Keeper) OpenedVersion() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.opened.Version
}

// Opened returns a channel that is closed when OpenedVersion changes. Take it before reading the version.
func (k *Keeper) Opened() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.change
}

// Deadline is the moment, on this process's monotonic clock, until which the site's database accepts writes by this
// keeper's leave (the margin is taken off). false: not active, or lapsed.
func (k *Keeper) Deadline() (time.Time, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.until, time.Now().Before(k.mu.until)
}

// Status says what the keeper is doing.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.mu.status
	s.Active = time.Now().Before(k.mu.until)
	s.Generation, s.Version = k.mu.newest.Generation, k.mu.newest.Version
	return s
}

// note keeps the newest ownership.
func (k *Keeper) note(o topo.Ownership) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if o.Newer(k.mu.newest) {
		k.mu.from, k.mu.newest = movesOf(k.mu.newest), o
	}
}

func (k *Keeper) ownership() (topo.Ownership, moves) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.newest, k.mu.from
}

// sayOpened notes that o's buckets are open; false if that was known.
func (k *Keeper) sayOpened(o topo.Ownership) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !o.Newer(k.mu.opened) {
		return false
	}
	k.mu.opened = o
	close(k.mu.change)
	k.mu.change = make(chan struct{})
	return true
}

func (k *Keeper) active(until time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.until = until
}

// inactive is the end of being active. Whoever opens at this moment ends first: nothing is opened afterwards.
func (k *Keeper) inactive() {
	k.mu.Lock()
	k.mu.until = time.Time{}
	k.mu.Unlock()
	k.fencing <- struct{}{}
	<-k.fencing
}

// doing keeps the status, and logs a problem when it begins and when it is over.
func (k *Keeper) doing(what string, problem error) {
	k.mu.Lock()
	was := k.mu.status.Problem
	k.mu.status.Doing = what
	switch {
	case problem != nil:
		k.mu.status.Problem = problem.Error()
	case what == resting.String() || what == "standby":
		k.mu.status.Problem = ""
	}
	is := k.mu.status.Problem
	k.mu.Unlock()
	switch {
	case was == "" && is != "":
		k.log.Warn("the site's lease has a problem", "site", k.cfg.Site, "while", what, "problem", is)
	case was != "" && is == "":
		k.log.Info("the site's lease is well again", "site", k.cfg.Site)
	}
}

func (k *Keeper) lockFence(ctx context.Context) error {
	select {
	case k.fencing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (k *Keeper) unlockFence() { <-k.fencing }
