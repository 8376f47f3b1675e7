package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// snapshot is what the gateway knows at one moment. It is immutable; every change makes a new one.
type snapshot struct {
	site   *route.Site   // nil before the first view
	opened uint64        // the site's fence is known to be open for the views up to this version
	label  string        // the view's version as headers carry it
	next   chan struct{} // closed when a newer snapshot is current
}

// version is the view's generation and version, zeros without a view.
func (s *snapshot) version() viewVersion {
	if s.site == nil {
		return viewVersion{}
	}
	return viewVersion{s.site.View.Ownership.Generation, s.site.View.Ownership.Version}
}

// viewVersion orders views (I8).
type viewVersion struct{ generation, version uint64 }

func (v viewVersion) String() string { return fmt.Sprintf("%d.%d", v.generation, v.version) }

// before tells whether v is an older view than o.
func (v viewVersion) before(o viewVersion) bool {
	if v.generation != o.generation {
		return v.generation < o.generation
	}
	return v.version < o.version
}

// errOlderView is returned for a view that would take the gateway back (I8).
var errOlderView = errors.New("the view is older than the one in use")

// views holds the current snapshot. Readers load it without a lock; changes are made one at a time.
type views struct {
	here    topo.SiteID
	current atomic.Pointer[snapshot]
	mu      sync.Mutex // orders changes and the calls of changed
	// changed is called after a new snapshot became current, in order; at is a moment just before it did.
	changed func(now *snapshot, at time.Time)
}

func newViews(here topo.SiteID, changed func(*snapshot, time.Time)) *views {
	v := &views{here: here, changed: changed}
	v.current.Store(&snapshot{next: make(chan struct{}), label: viewVersion{}.String()})
	return v
}

// load returns the current snapshot.
func (v *views) load() *snapshot { return v.current.Load() }

// restore takes the view that an earlier run left on disk. Its buckets count as open: nobody may be there to tell.
func (v *views) restore(view *topo.View) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.load().site == nil {
		v.swapLocked(&snapshot{site: route.First(v.here, view, false)})
	}
}

// apply takes one line of a view stream: a document, or none, and how far the fence of this site is open, which only
// the site's own agent knows.
func (v *views) apply(view *topo.View, opened uint64, own bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.load()
	next := &snapshot{site: old.site, opened: old.opened}
	if view != nil {
		o := view.Ownership
		switch {
		case old.site == nil:
			next.site = route.First(v.here, view, own)
		case o.Newer(old.site.View.Ownership) || plant.StaleView:
			next.site = old.site.Next(view)
			if o.Generation != old.site.View.Ownership.Generation {
				next.opened = 0
			}
		case o.Generation != old.version().generation || o.Version != old.version().version:
			return fmt.Errorf("%w: %d.%d after %s", errOlderView, o.Generation, o.Version, old.version())
		case o.Checksum != old.site.View.Ownership.Checksum:
			return fmt.Errorf("view %s came twice with different content", old.version())
		}
	}
	if own {
		next.opened = max(next.opened, opened)
	}
	if next.site != old.site || next.opened != old.opened {
		v.swapLocked(next)
	}
	return nil
}

func (v *views) swapLocked(next *snapshot) {
	next.next, next.label = make(chan struct{}), next.version().String()
	at := time.Now()
	old := v.current.Swap(next)
	close(old.next)
	v.changed(next, at)
}

// await returns the first snapshot for which ok holds, or the current one and false after the bound or at the end of
// ctx.
func (v *views) await(ctx context.Context, bound time.Duration, ok func(*snapshot) bool) (*snapshot, bool) {
	snap := v.load()
	if ok(snap) {
		return snap, true
	}
	timer := time.NewTimer(bound)
	defer timer.Stop()
	for {
		select {
		case <-snap.next:
			snap = v.load()
			if ok(snap) {
				return snap, true
			}
		case <-timer.C:
			return snap, false
		case <-ctx.Done():
			return snap, false
		}
	}
}
