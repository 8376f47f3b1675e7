package rejoin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// returning closes what was taken over from this site, whenever a document says so.
func (r *Rejoin) returning(ctx context.Context) error {
	done := map[string]bool{}
	for {
		wait := lookEvery
		if o, known := r.cfg.Ownership(); known {
			named := map[topo.HandoverID]bool{}
			for _, c := range closings(r.cfg.Site, o) {
				named[c.handover] = true
				if done[c.String()] {
					continue
				}
				err := r.close(ctx, c)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					wait = retryEvery
					r.waits(returningFrom(c.handover), "%v", err)
					continue
				}
				done[c.String()] = true
				r.waits(returningFrom(c.handover), "the owners of its buckets to apply its tail")
				r.log.Info("closed for good", "site", r.cfg.Site, "handover", c.handover, "keyspace", c.keyspace, "buckets", c.count())
			}
			r.forget(named)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func returningFrom(id topo.HandoverID) string { return fmt.Sprintf("returning from failover %s", id) }

// forget ends the notes of failovers that are settled.
func (r *Rejoin) forget(named map[topo.HandoverID]bool) {
	still := map[string]bool{}
	for id := range named {
		still[returningFrom(id)] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for what := range r.mu.notes {
		if len(what) >= len(returningFrom("")) && what[:len(returningFrom(""))] == returningFrom("") && !still[what] {
			delete(r.mu.notes, what)
		}
	}
}

// close closes buckets at the epochs at which they were lost. It may be repeated.
func (r *Rejoin) close(ctx context.Context, c closing) error {
	for {
		_, err := r.cfg.Fence.CloseBuckets(ctx, c.order())
		var stale *postgres.StaleError
		if !errors.As(err, &stale) {
			return prepared(err)
		}
		l := c.late(stale.Late)
		switch {
		case l.other != nil:
			return err
		case len(l.regained) == c.count():
			return fmt.Errorf("keyspace %s: this site holds every bucket of the failover at a higher epoch, though its tail is not settled; "+
				"was the store restored from an old copy? %w", c.keyspace, err)
		case len(l.regained) > 0:
			c = c.without(l.regained)
		case l.closed == c.count():
			return r.cfg.Fence.Remark(ctx, c.order())
		default:
			return err
		}
	}
}

// prepared names what only an operator can end.
func prepared(err error) error {
	var remain *postgres.WritersRemainError
	if !errors.As(err, &remain) {
		return err
	}
	for _, b := range remain.Blockers {
		if b.GID != "" {
			return fmt.Errorf("prepared transactions of the lost epoch remain: as role %s or a superuser, in this database: ROLLBACK PREPARED '%s' (or COMMIT PREPARED: it will be part of the tail): %w",
				b.Role, strings.ReplaceAll(b.GID, "'", "''"), err)
		}
	}
	return err
}
