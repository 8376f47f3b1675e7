package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atollhq/atoll/internal/lease"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

const (
	pollEvery = 2 * time.Second // watches are hints
	readBound = 3 * time.Second
)

// watchStore reads the ownership document, linearizably, at every hint and every two seconds, and passes it on to
// gateways and keeper, until ctx ends.
func (a *agent) watchStore(ctx context.Context) error {
	observe := make(chan topo.Ownership, 1) // the newest only
	ended := make(chan struct{})
	go func() { defer close(ended); a.observe(ctx, observe) }()
	defer func() { <-ended }()
	hints := a.store.Watch(ctx)
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	said := ""
	for {
		o, err := a.readOwnership(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			a.hub.Publish(o)
			select {
			case <-observe:
			default:
			}
			observe <- o
			said = ""
		case err.Error() != said:
			said = err.Error()
			a.log.Warn("the ownership cannot be read; going on with what is known", "error", err)
		}
		select {
		case <-hints:
		case <-poll.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// readOwnership reads the document; the seed's agent makes it where there is none.
func (a *agent) readOwnership(ctx context.Context) (topo.Ownership, error) {
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	o, _, err := a.store.Ownership(ctx)
	if !errors.Is(err, store.ErrNotFound) {
		return o, err
	}
	if a.site != a.cfg.Spec.Seed {
		return o, fmt.Errorf("there is no ownership document yet; the agent of the seed, %s, makes it: %w", a.cfg.Spec.Seed, err)
	}
	if err := a.unused(ctx); err != nil {
		return o, err
	}
	first := a.cfg.Spec.FirstOwnership()
	if err := a.store.Bootstrap(ctx, first); err != nil && !errors.Is(err, store.ErrConflict) {
		return o, err
	}
	a.log.Info("new deployment: every bucket is at the seed", "seed", a.site)
	o, _, err = a.store.Ownership(ctx)
	return o, err
}

// unused refuses to begin a deployment anew whose databases have been owned under later epochs than a first document has:
// then the store is not new, but lost.
func (a *agent) unused(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	k := a.kept.Load()
	for ; k == nil; k = a.kept.Load() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("there is no ownership document yet, and it is not made before this site's database has said that it is new: " + a.whyAway())
		}
	}
	e, err := k.fence.Evidence(ctx)
	if err != nil {
		return err
	}
	for _, r := range e.Rows {
		if r.Epoch > 1 || r.Site != a.site || !r.Open {
			return fmt.Errorf("the store is empty, and this database knows that %s held buckets %d-%d of %s under epoch %d: the store was lost; run `atoll store recover`", r.Site, r.First, r.Last, r.Keyspace, r.Epoch)
		}
	}
	return nil
}

// observe gives the keeper what was read. It waits for the fence's database, which must not hold up the views.
func (a *agent) observe(ctx context.Context, documents <-chan topo.Ownership) {
	for {
		select {
		case o := <-documents:
			k := a.kept.Load()
			if k == nil {
				continue // its keeper reads the document with its first renewal
			}
			if err := k.keeper.Observe(ctx, o); err != nil && !errors.Is(err, lease.ErrNotActive) && ctx.Err() == nil {
				a.log.Warn("not all that the ownership gives this site is open; the next renewal tries again", "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
