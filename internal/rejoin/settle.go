package rejoin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// errWaits: something that is not an error has not come about yet.
var errWaits = errors.New("not yet")

// receiving settles the failovers in whose buckets this site follows a lost one: one goroutine for each, which ends
// with the failover's last cut.
func (r *Rejoin) receiving(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	under := map[topo.HandoverID]context.CancelFunc{}
	defer func() {
		for _, end := range under {
			end()
		}
	}()
	for {
		if o, known := r.cfg.Ownership(); known {
			still := map[topo.HandoverID]bool{}
			for _, a := range arrears(r.cfg.Site, o) {
				still[a.handover] = true
				if under[a.handover] != nil {
					continue
				}
				one, end := context.WithCancel(ctx)
				under[a.handover] = end
				wg.Go(func() { r.settle(one, a) })
			}
			for id, end := range under {
				if !still[id] {
					end()
					delete(under, id)
				}
			}
		}
		if err := sleep(ctx, lookEvery); err != nil {
			return err
		}
	}
}

// settle tries until the failover is settled, by this agent or another.
func (r *Rejoin) settle(ctx context.Context, a arrear) {
	what := fmt.Sprintf("site %s returns from failover %s", a.from, a.handover)
	defer r.over(what)
	for {
		err := r.settleOnce(ctx, a, what)
		if err == nil {
			r.log.Info("settled", "site", r.cfg.Site, "handover", a.handover, "lost", a.from)
			return
		}
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, errWaits) {
			r.waits(what, "%v", err)
		}
		if sleep(ctx, retryEvery) != nil {
			return
		}
	}
}

func (r *Rejoin) settleOnce(ctx context.Context, a arrear, what string) error {
	if a.settled {
		return r.decide(ctx, a, what)
	}
	if len(a.others) > 0 {
		return fmt.Errorf("two-sites: its buckets are owned by %s too, and a return to more than one owner is not supported", join(a.others))
	}
	r.waits(what, "the end of its tail: the closing markers of %s", join(a.keyspaces))
	if err := r.cfg.WaitMarkers(ctx, a.from, a.handover, a.keyspaces); err != nil {
		return err
	}
	// Every change of the tail stands before the markers, so it is decided; the decisions are transactions of this
	// database that have committed.
	at, err := r.cfg.Fence.Point(ctx)
	if err != nil {
		return err
	}
	for r.cfg.Flushed(a.from) < at {
		r.waits(what, "it to have the decisions about its tail on disk")
		if err := sleep(ctx, lookEvery/4); err != nil {
			return err
		}
	}
	r.waits(what, "the store")
	return r.decide(ctx, a, what)
}

// decide settles the cuts, in one transaction with the record, and takes them away once every other site has taken note of
// them: one that has not would take the tail for ordinary changes. Whatever the answer, the next try reads first.
func (r *Rejoin) decide(ctx context.Context, a arrear, what string) error {
	o, rev, err := r.cfg.Store.Ownership(ctx)
	if err != nil {
		return err
	}
	cuts := slices.DeleteFunc(o.Cuts(), func(c topo.CutRange) bool { return c.Cut.Handover != a.handover })
	if len(cuts) == 0 { // no cut of it is left: done
		return nil
	}
	l, _, err := r.cfg.Store.Lease(ctx, a.from)
	if err != nil {
		return err
	}
	if l.Rebuild {
		r.waits(what, "an operator: its database is another one than before; run `atoll rebuild --site %s`", a.from)
		return errWaits
	}
	body, recRev, err := r.cfg.Store.Handover(ctx, a.handover)
	if err != nil {
		return err
	}
	rec, err := handover.DecodeRecord(body)
	switch {
	case err != nil:
		return err
	case rec.Failover == nil:
		return fmt.Errorf("handover %s is no failover", a.handover)
	case !rec.Over():
		r.waits(what, "the failover itself, which is in phase %s", rec.Phase)
		return errWaits
	}
	unaware, err := r.unaware(ctx, a, o.Generation, rec.Decided)
	if err != nil {
		return err
	}
	settled := cuts[0].Cut.Settled
	if settled && len(unaware) > 0 {
		r.waits(what, "site %s to take note of where its epochs ended", join(unaware))
		return errWaits
	}
	next, err := o.Settle(a.handover, len(unaware) == 0)
	if err != nil {
		return err
	}
	change := store.Change{Ownership: &store.OwnershipChange{Expect: rev, Next: next}}
	if !settled {
		if change.Handover, change.Audit, err = r.returned(ctx, a, rec, recRev); err != nil {
			return err
		}
	}
	if _, err = r.cfg.Store.Commit(ctx, change); err == nil && len(unaware) > 0 {
		return errWaits
	}
	return err
}

// returned writes down what became of the tail.
func (r *Rejoin) returned(ctx context.Context, a arrear, rec handover.Record, rev store.Revision) (*store.HandoverChange, string, error) {
	applied, kept, err := r.cfg.Fence.Tail(ctx, a.handover)
	if err != nil {
		return nil, "", err
	}
	f := *rec.Failover
	f.Return = &handover.Return{At: time.Now().UTC(), Applied: applied, Kept: kept}
	rec.Failover = &f
	return &store.HandoverChange{ID: a.handover, Expect: rev, Body: rec.Encode()},
		fmt.Sprintf("failover %s: site %s is back and settled: of its tail %d row changes were applied and %d were not; all are in the conflict log of %s",
			a.handover, a.from, applied, kept, r.cfg.Site), nil
}

// unaware lists the other full sites whose databases may not know the failover's cuts yet.
func (r *Rejoin) unaware(ctx context.Context, a arrear, generation, version uint64) ([]topo.SiteID, error) {
	var out []topo.SiteID
	for _, site := range r.peers() {
		if site == a.from {
			continue
		}
		l, _, err := r.cfg.Store.Lease(ctx, site)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if l.Generation < generation || l.Generation == generation && l.Version < version {
			out = append(out, site)
		}
	}
	return out, nil
}
