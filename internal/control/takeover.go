package control

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

const (
	lookEvery = time.Second
	// Handovers whose buckets are moving are found through the ownership document at each look; the rest, which hold
	// nobody up, in the list of all records at every listEvery-th.
	listEvery = 10
	// A driver saves its record every second. One that has not for this long, on our own clock, counted from when we
	// read the record linearizably, is taken for dead. A mistake costs nothing but a change of drivers.
	deadAfter = 5 * time.Second
	// A handover with a lost site waits this long for that site's part, whatever its bounds: a marker that has not
	// come by now will not.
	lostBoundMS = 1000
)

// sighting is a record's revision and when this controller read it first.
type sighting struct {
	rev   store.Revision
	since time.Time
}

// watch takes over handovers that nobody drives, until ctx ends.
func (c *Controller) watch(ctx context.Context) error {
	seen, over := map[topo.HandoverID]sighting{}, map[topo.HandoverID]bool{}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		look, cancel := context.WithTimeout(ctx, storeBound)
		records, err := c.unfinished(look, seen, over, n%listEvery == 0)
		if err == nil {
			c.look(look, records, seen, over)
		} else {
			clear(seen) // what was not seen all the time does not count
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			c.log.Debug("handovers cannot be read", "error", err)
		}
		select {
		case <-tick.C:
		case <-c.roused:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// rouse has handovers looked at at once: a site is lost.
func (c *Controller) rouse() {
	select {
	case c.roused <- struct{}{}:
	default:
	}
}

// unfinished reads, linearizably, the records of others that may need a driver: those seen before, those whose buckets
// move, failovers that are not settled and not known to be over, and with list all there are.
func (c *Controller) unfinished(ctx context.Context, seen map[topo.HandoverID]sighting, over map[topo.HandoverID]bool, list bool) ([]store.Handover, error) {
	if list {
		return c.cfg.Store.Handovers(ctx)
	}
	o, _, err := c.cfg.Store.Ownership(ctx)
	if err != nil {
		return nil, err
	}
	ids := map[topo.HandoverID]bool{}
	for id := range seen {
		ids[id] = true
	}
	for _, p := range o.Keyspaces {
		for _, r := range p.Ranges {
			if r.State == topo.Moving && !c.drives(r.Handover) {
				ids[r.Handover] = true
			}
			if r.Cut != nil && !over[r.Cut.Handover] && !c.drives(r.Cut.Handover) {
				ids[r.Cut.Handover] = true
			}
		}
	}
	var out []store.Handover
	for id := range ids {
		body, rev, err := c.cfg.Store.Handover(ctx, id)
		if err != nil {
			return nil, err
		}
		out = append(out, store.Handover{ID: id, Revision: rev, Body: body})
	}
	return out, nil
}

// look compares the records with those of the last look, and takes over what has not changed for too long.
func (c *Controller) look(ctx context.Context, records []store.Handover, seen map[topo.HandoverID]sighting, over map[topo.HandoverID]bool) {
	now := time.Now()
	open := map[topo.HandoverID]bool{}
	for _, h := range records {
		if c.drives(h.ID) {
			continue
		}
		rec, err := handover.DecodeRecord(h.Body)
		if err != nil { // a newer version's is that version's to drive
			c.log.Debug("handover record is left alone", "handover", h.ID, "error", err)
			continue
		}
		if rec.Over() {
			if rec.Kind == handover.KindFailover {
				over[h.ID] = true
			}
			continue
		}
		open[h.ID] = true
		s, known := seen[h.ID]
		if c.abandoned(rec.Driver) {
			delete(seen, h.ID)
			c.takeOver(ctx, rec, h.Revision)
			continue
		}
		if !known || s.rev != h.Revision {
			seen[h.ID] = sighting{h.Revision, now}
			continue
		}
		if now.Sub(s.since) >= deadAfter {
			delete(seen, h.ID)
			c.takeOver(ctx, rec, h.Revision)
		}
	}
	for id := range seen {
		if !open[id] {
			delete(seen, id)
		}
	}
}

// abandoned tells of a driver that it cannot be going on: its site is lost, or it is an earlier run of this site's agent.
// A mistake costs a change of drivers.
func (c *Controller) abandoned(driver string) bool {
	site, _, _ := strings.Cut(driver, "/")
	if topo.SiteID(site) == c.cfg.Site {
		return driver != c.name && c.holds()
	}
	return c.lost(topo.SiteID(site))
}

// takeOver puts this controller's name into the record, and goes on from there. Of two that try, one wins.
func (c *Controller) takeOver(ctx context.Context, rec handover.Record, rev store.Revision) {
	d := newDriver(c, rec.ID)
	dead := rec.Driver
	rec.Driver = c.name
	if c.lost(rec.Move.From) || c.lost(rec.Move.To) {
		rec.Bounds.FenceMS, rec.Bounds.CatchMS = min(rec.Bounds.FenceMS, lostBoundMS), min(rec.Bounds.CatchMS, lostBoundMS)
	}
	next, err := c.cfg.Store.Commit(ctx, store.Change{
		Handover: &store.HandoverChange{ID: rec.ID, Expect: rev, Body: rec.Encode()},
		Audit:    "handover " + string(rec.ID) + ": " + c.name + " takes over from " + dead + " in " + string(rec.Phase),
	})
	if err != nil {
		if !errors.Is(err, store.ErrConflict) {
			c.log.Warn("handover cannot be taken over", "handover", rec.ID, "error", err)
		}
		return
	}
	d.ledger.rev, d.ledger.written = next, rec
	if err := d.ledger.readOwnership(ctx); err != nil {
		c.log.Warn("handover is taken over, but the ownership cannot be read; the next look tries again", "handover", rec.ID, "error", err)
		return
	}
	c.log.Warn("handover taken over", "handover", rec.ID, "phase", rec.Phase, "from", dead)
	state, todo := handover.Resume(rec, c.name, time.Now())
	if err := c.launch(d, state, todo); err != nil {
		c.log.Warn("handover is left to another controller", "handover", rec.ID, "error", err)
	}
}
