package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// renew writes the record. The deadline counts from before the request.
func (k *Keeper) renew(ctx context.Context, c *cycle, t task) error {
	ctx, cancel := context.WithDeadline(ctx, t.until)
	defer cancel()
	k.mu.Lock()
	t.renew.Rebuild, t.renew.Anew = k.mu.rebuild, k.mu.anew
	k.mu.Unlock()
	t.renew.Asks, t.renew.Keeps = k.asks(), k.cfg.Without == Kept
	start := time.Now()
	r, err := k.cfg.Store.RenewLease(ctx, k.cfg.Site, t.renew, t.expect)
	switch now := time.Now(); {
	case errors.Is(err, store.ErrConflict):
		c.refused()
	case err != nil: // also a renewal whose ownership cannot be read: what may stay open is not known
		c.unanswered(now)
	case r.Ownership.Generation < k.Ownership().Generation: // a store that was replaced: what it grants counts for nothing
		c.unanswered(now)
		return fmt.Errorf("the store that answers is of generation %d, and generation %d is known: %w", r.Ownership.Generation, k.Ownership().Generation, postgres.ErrFormerStore)
	default:
		if r.OwnershipRevision != 0 {
			k.note(r.Ownership)
		}
		c.renewed(start, now, r.Revision)
	}
	return err
}

// doubt reads the record to find out whose it is.
func (k *Keeper) doubt(ctx context.Context, c *cycle) error {
	l, rev, found, err := k.read(ctx)
	if err != nil {
		c.unanswered(time.Now())
		return err
	}
	c.read(l, rev, found)
	return nil
}

// enforce brings the fence in line with the newest ownership: restrict, extend, open; before the deadline.
func (k *Keeper) enforce(ctx context.Context, c *cycle, t task) error {
	ctx, cancel := context.WithDeadline(ctx, t.until)
	defer cancel()
	if err := k.lockFence(ctx); err != nil {
		c.failed(time.Now())
		return err
	}
	defer k.unlockFence()

	o, from := k.ownership()
	st, err := k.cfg.Fence.State(ctx)
	if err == nil {
		err = k.reign(ctx, o, st)
	}
	if err == nil {
		continuous := !c.returns && c.inForce(time.Now())
		p := planFence(k.cfg.Site, o, from, st, continuous)
		if p.surplus || !continuous { // without surplus too: it voids openings that an earlier keeper still has under way
			err = k.cfg.Fence.Restrict(ctx, p.keep)
		}
	}
	if err == nil {
		err = k.cfg.Fence.ExtendLease(ctx, c.deadline, k.t.margin)
	}
	if err != nil {
		c.failed(time.Now())
		return fmt.Errorf("the fence is not extended: %w", err)
	}
	c.enforced(time.Now())
	k.clock.extended()
	k.extended(c.until.Add(-k.t.margin))
	if err := k.open(ctx, o, from); err != nil {
		return err
	}
	c.lease.Generation, c.lease.Version = o.Generation, o.Version
	return nil
}

// reign tells the database of the ownership's generation before anything is extended or opened under it, and refuses to
// go on under one that is over.
func (k *Keeper) reign(ctx context.Context, o topo.Ownership, st postgres.FenceState) error {
	switch {
	case o.Generation < st.Generation:
		return fmt.Errorf("the ownership is of generation %d, and the database was told of generation %d: %w", o.Generation, st.Generation, postgres.ErrFormerStore)
	case o.Generation > st.Generation:
		return k.cfg.Fence.RaiseGeneration(ctx, o.Generation)
	}
	return nil
}

// open opens what o says is open here, and says so to those who wait for it. The fence's token is held.
func (k *Keeper) open(ctx context.Context, o topo.Ownership, from moves) error {
	if o.Version == 0 {
		return nil // not bootstrapped
	}
	st, err := k.cfg.Fence.State(ctx)
	if err == nil {
		err = k.reign(ctx, o, st)
	}
	if err != nil {
		return err
	}
	p := planFence(k.cfg.Site, o, from, st, true)
	errs := p.problems
	var unrecorded []topo.CutRange
	if cuts := cutsHere(k.cfg.Site, o); len(cuts) > 0 && !k.hasCuts(o) {
		if err := k.cfg.Fence.RecordCuts(ctx, cuts); err != nil { // buckets without a cut do not wait for it
			unrecorded, errs = cuts, append(errs, err)
		} else {
			k.cutsRecorded(o)
		}
	}
	for _, order := range p.open {
		if opensAny(order, unrecorded) {
			continue
		}
		if err := k.cfg.Fence.OpenBuckets(ctx, order); err != nil {
			errs = append(errs, err)
			continue
		}
		k.log.Info("buckets opened", "site", k.cfg.Site, "keyspace", order.Keyspace, "buckets", order.Buckets, "handover", order.Handover, "version", o.Version)
	}
	if len(errs) > 0 {
		return fmt.Errorf("not everything that ownership %d.%d opens here is open: %w", o.Generation, o.Version, errors.Join(errs...))
	}
	if k.sayOpened(o) {
		if err := k.cfg.Fence.RecordOwners(ctx, o); err != nil { // only for messages
			k.log.Warn("last known owners are not recorded in the database", "site", k.cfg.Site, "error", err)
		}
	}
	return nil
}

// cutsRecorded notes that the database has the cuts of an ownership.
func (k *Keeper) cutsRecorded(o topo.Ownership) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.cutsOf = [2]uint64{o.Generation, o.Version}
}

func (k *Keeper) hasCuts(o topo.Ownership) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.cutsOf == [2]uint64{o.Generation, o.Version}
}
