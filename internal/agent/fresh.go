package agent

import (
	"context"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// freshEvery is how often another site is asked where its change stream ends, where a route bounds the age of copies.
const freshEvery = time.Second

// fresh is how old this site's copies of other sites' changes are, on this process's clock alone: the other site is asked
// where its stream ends, and once that is applied here, everything is here that it had committed when it was asked.
type fresh struct {
	mu   sync.Mutex
	asOf map[topo.SiteID]time.Time
}

// ages are how old the copies are at most.
func (f *fresh) ages(now time.Time) map[topo.SiteID]time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[topo.SiteID]time.Duration, len(f.asOf))
	for site, at := range f.asOf {
		out[site] = now.Sub(at)
	}
	return out
}

func (f *fresh) note(site topo.SiteID, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asOf == nil {
		f.asOf = make(map[topo.SiteID]time.Time)
	}
	if at.After(f.asOf[site]) {
		f.asOf[site] = at
	}
}

func (f *fresh) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asOf = nil
}

// boundsAge tells whether any route bounds the age of copies.
func (a *agent) boundsAge() bool {
	for _, r := range a.cfg.Spec.RouteTable() {
		if r.MaxStaleness > 0 {
			return true
		}
	}
	return false
}

// keepFresh asks a site again and again, until ctx ends. One question is under way at a time: while the answer is not
// applied, the copy grows older.
func (a *agent) keepFresh(ctx context.Context, db *database, site topo.SiteID) error {
	tick := time.NewTicker(freshEvery)
	defer tick.Stop()
	for {
		asked := time.Now()
		if end, err := askEnd(ctx, a.remote[site]); err == nil {
			db.follows[site].Want(change.Position(end.Position))
			if db.applied.WaitApplied(ctx, site, change.Position(end.Position)) == nil && db.whole() == nil {
				a.fresh.note(site, asked)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func askEnd(ctx context.Context, of *api.Client) (api.EndAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, askBound)
	defer cancel()
	return of.End(ctx)
}
