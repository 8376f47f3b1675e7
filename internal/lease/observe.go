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

// Ownership is the newest document that the keeper knows, zero before the first. Taken after Deadline, it is no older
// than the one that the renewal behind that deadline read.
func (k *Keeper) Ownership() topo.Ownership {
	o, _ := k.ownership()
	return o
}

// Status says what the keeper is doing.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.mu.status
	s.Rebuild = k.mu.rebuild
	s.Active, s.Holder = time.Now().Before(k.mu.until), k.mu.holder
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

// extended notes until when the fence may be open; zero: everything was closed before its time. When the writers of the
// last extension must have ended stays as it is then.
func (k *Keeper) extended(until time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.until = until
	if !until.IsZero() {
		k.lapsesLocked(until)
	}
}

func (k *Keeper) lapsesLocked(at time.Time) {
	k.mu.lapses = at
	close(k.mu.lapsesChange)
	k.mu.lapsesChange = make(chan struct{})
}

// inactive is the end of being active. Whoever opens at this moment ends first: nothing is opened afterwards.
func (k *Keeper) inactive() {
	k.mu.Lock()
	k.mu.until = time.Time{}
	k.lapsesLocked(time.Time{})
	k.mu.Unlock()
	k.fencing <- struct{}{}
	<-k.fencing
}

// Holder tells whether the site's record is this keeper's, in force or not.
func (k *Keeper) Holder() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.holder
}

func (k *Keeper) holds(is bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.holder = is
}

// Differs says what is wrong with the database while it is another than the lease was kept for, or an older state of
// it, and the site owns buckets; else nil. Its changes are not to be handed to anybody meanwhile.
func (k *Keeper) Differs() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.differ
}

func (k *Keeper) differs(problem error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.differ = problem
}

// Rebuilt says that the adopted database has been settled with the sites that own its buckets: the next renewal takes
// Rebuild out of the record.
func (k *Keeper) Rebuilt() { k.rebuilds(false, false) }

// Rebuilds says that the database is to be rebuilt, and with anew, that the other sites may let go of its former stream:
// they have the same of it. The next renewal writes it into the record.
func (k *Keeper) Rebuilds(anew bool) { k.rebuilds(true, anew) }

func (k *Keeper) rebuilds(is, anew bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.rebuild, k.mu.anew = is, anew
}

func (k *Keeper) sayClock(text string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.status.Clock = text
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
