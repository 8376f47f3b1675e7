package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/internal/store"
)

// take is the takeover: one transaction that compares the ownership with what it was made of, and the lost site's
// lease with the one whose end was timed, so that a renewal in flight fails, or lets this fail.
func (l *lookout) take(ctx context.Context, s handover.Lookout) handover.Event {
	failed := func(err error) handover.Event {
		return handover.Failed{Do: handover.Take, Site: l.of, Text: err.Error()}
	}
	l.mu.Lock()
	lease, leaseRev := l.mu.lease, l.mu.leaseRev
	l.mu.Unlock()
	if int64(leaseRev) != s.Lease.Revision && !plant.TakeoverUnconditional { // a later look has seen another one
		return handover.Conflict{Do: handover.Take}
	}
	lease.Sequence++
	lease.Revoked, lease.RevokedBy = true, s.Record.ID
	for {
		o, rev, err := l.c.cfg.Store.Ownership(ctx)
		if err != nil {
			return failed(err)
		}
		l.mu.Lock()
		asked := l.mu.asked
		l.mu.Unlock()
		if now := l.othersOf(o); !slices.Equal(asked, now) { // one that has come since the halt may stand beyond the cut
			return handover.Refused{Problems: []handover.Problem{{Check: "members", Text: fmt.Sprintf("members came or went: %v were asked to stop, and there are %v", asked, now)}}}
		}
		next, taken, err := o.TakeOver(l.of, l.c.cfg.Site, s.Record.ID, s.Record.Failover.Position)
		if err != nil {
			return handover.Refused{Problems: []handover.Problem{{Check: "ownership", Text: err.Error()}}}
		}
		stands := handover.TakeStands{Version: next.Version, Taken: taken}
		after, _ := handover.Observe(s, stands, time.Now())
		change := store.Change{
			Ownership: &store.OwnershipChange{Expect: rev, Next: next},
			Handover:  &store.HandoverChange{ID: s.Record.ID, Expect: 0, Body: after.Record.Encode()},
			Lease:     &store.LeaseChange{Site: l.of, Expect: leaseRev, Next: lease},
			Audit:     audit(after.Record),
		}
		if plant.TakeoverUnconditional {
			change.Lease = nil
		}
		at, err := l.c.cfg.Store.Commit(ctx, change)
		switch {
		case err == nil:
			l.mu.Lock()
			l.mu.landed = &ledger{id: s.Record.ID, rev: at, written: after.Record, owners: next, ownersRev: at}
			l.mu.Unlock()
			return stands
		case errors.Is(err, store.ErrConflict) && plant.TakeoverUnconditional:
		case errors.Is(err, store.ErrConflict):
			return handover.Conflict{Do: handover.Take}
		default:
			return failed(err)
		}
	}
}
