package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/topo"
)

// askBound is how long another survivor may take to stop applying. It leaves time to catch up with it.
const askBound = 2 * time.Second

// halt settles where the lost site's changes end: every survivor stops applying them, this site takes what another one
// has and it lacks, and stops itself. Where it stands then is the cut: no survivor that was asked stands beyond it.
func (l *lookout) halt(ctx context.Context, s handover.Lookout) (handover.Halted, error) {
	id, none := s.Record.ID, handover.Halted{}
	asked := l.others()
	survivors, silent, err := l.haltOthers(ctx, s, asked)
	if err != nil {
		return none, err
	}
	l.mu.Lock()
	l.mu.asked = asked
	l.mu.Unlock()
	for _, site := range slices.Sorted(maps.Keys(survivors)) {
		if err := l.c.cfg.Survivor.CatchUp(ctx, l.of, site, survivors[site]); err != nil {
			return none, fmt.Errorf("what site %s has of the changes of %s is not here yet: %w", site, l.of, err)
		}
	}
	own, err := l.c.cfg.Sites[l.c.cfg.Site].Halt(ctx, api.HaltRequest{Handover: id, Of: l.of, For: l.c.cfg.Site, BoundMS: boundMS(ctx)})
	if err != nil {
		return none, err
	}
	for site, at := range survivors {
		if at > own.Position {
			return none, fmt.Errorf("site %s has the changes of %s up to %d, this one up to %d", site, l.of, at, own.Position)
		}
	}
	return handover.Halted{Position: own.Position, Survivors: survivors, Silent: silent}, nil
}

// haltOthers asks every other site. Those that are not lost have to answer, until they have put the failover off for as
// long as a veto may: what they have beyond the cut is then decided like the rest of the tail.
func (l *lookout) haltOthers(ctx context.Context, s handover.Lookout, asked []topo.SiteID) (survivors map[topo.SiteID]uint64, silent []topo.SiteID, err error) {
	ctx, cancel := context.WithTimeout(ctx, askBound)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	failed := map[topo.SiteID]error{}
	for _, site := range asked {
		wg.Go(func() {
			var answer api.HaltAnswer
			err := fmt.Errorf("it is a member, and not in the spec of site %s", l.c.cfg.Site)
			if other := l.c.cfg.Sites[site]; other != nil {
				answer, err = other.Halt(ctx, api.HaltRequest{Handover: s.Record.ID, Of: l.of, For: l.c.cfg.Site, BoundMS: askBound.Milliseconds()})
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[site] = err
				return
			}
			if survivors == nil {
				survivors = map[topo.SiteID]uint64{}
			}
			survivors[site] = answer.Position
		})
	}
	wg.Wait()
	var left []error
	for _, site := range slices.Sorted(maps.Keys(failed)) {
		if slices.Contains(s.Facts.Others, site) && !s.VetoOver(time.Now()) {
			left = append(left, fmt.Errorf("site %s has not stopped applying changes of %s: %w", site, l.of, failed[site]))
			continue
		}
		silent = append(silent, site)
	}
	return survivors, silent, errors.Join(left...)
}

// unhalt lets all go on. A survivor that is not reached finds out by itself.
func (l *lookout) unhalt(ctx context.Context, id topo.HandoverID) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, site := range l.others() {
		if l.c.cfg.Sites[site] == nil {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askBound)
			defer cancel()
			if _, err := l.c.cfg.Sites[site].Unhalt(ctx, api.UnhaltRequest{Handover: id, Of: l.of}); err != nil {
				l.c.log.Warn("a survivor goes on by itself later", "site", site, "handover", id, "error", oneLine(err))
			}
		})
	}
	_, err := l.c.cfg.Sites[l.c.cfg.Site].Unhalt(ctx, api.UnhaltRequest{Handover: id, Of: l.of})
	return err
}

// others are the members besides this site and the one that is watched; those that are joining, too: they are asked like
// the rest, and not waited for.
func (l *lookout) others() []topo.SiteID { return l.othersOf(l.c.document()) }

func (l *lookout) othersOf(o topo.Ownership) []topo.SiteID {
	return slices.DeleteFunc(o.TakingPart(l.c.sites(), true), func(s topo.SiteID) bool { return s == l.of || s == l.c.cfg.Site })
}

// present lists those of the others that have joined and are not lost, as far as this controller sees.
func (l *lookout) present() []topo.SiteID {
	o := l.c.document()
	return slices.DeleteFunc(l.others(), func(s topo.SiteID) bool {
		if !o.Full(s) {
			return true
		}
		other := l.c.lookout(s)
		if other == nil {
			return false
		}
		state, _ := other.snapshot()
		return other.isLost(state) || !state.Looked.IsZero() && !state.Lease.Exists
	})
}

func boundMS(ctx context.Context) int64 {
	until, bounded := ctx.Deadline()
	if !bounded {
		return storeBound.Milliseconds()
	}
	return max(1, time.Until(until).Milliseconds())
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
