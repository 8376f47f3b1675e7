package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/topo"
)

// explainBound is how long an explanation waits for the store; it explains without it, too.
const explainBound = 2 * time.Second

// Explain says why this site took over from another one, would, or does not; from every other one if site is empty. It
// needs no store: what could not be read is part of the explanation.
func (c *Controller) Explain(ctx context.Context, site topo.SiteID) (api.Explanation, error) {
	c.mu.Lock()
	lookouts := maps.Clone(c.mu.lookouts)
	c.mu.Unlock()
	switch {
	case lookouts == nil:
		return api.Explanation{}, notActive()
	case site == c.cfg.Site:
		return api.Explanation{}, badRequest(fmt.Sprintf("this is %s itself: a site watches the others", site), "ask the agent of another site")
	case site != "" && lookouts[site] == nil:
		return api.Explanation{}, badRequest(fmt.Sprintf("site %q does not exist or has no database", site), fmt.Sprintf("sites: %v", c.sites()))
	}
	out := api.Explanation{Site: c.cfg.Site, At: time.Now().UTC(), Mode: string(c.cfg.Failover.Mode), Sites: []api.SiteExplanation{}}
	last := c.lastFailovers(ctx)
	for _, of := range slices.Sorted(maps.Keys(lookouts)) {
		if site != "" && of != site {
			continue
		}
		e := lookouts[of].explain(time.Now())
		if rec, ok := last[of]; ok {
			h := wire(rec)
			e.Last = &h
		}
		out.Sites = append(out.Sites, e)
	}
	return out, nil
}

// lastFailovers is the newest record of a failover per lost site, as far as the store says it in time.
func (c *Controller) lastFailovers(ctx context.Context) map[topo.SiteID]handover.Record {
	ctx, cancel := context.WithTimeout(ctx, explainBound)
	defer cancel()
	out := map[topo.SiteID]handover.Record{}
	all, err := c.cfg.Store.Handovers(ctx) // newest first
	if err != nil {
		return out
	}
	for _, h := range all {
		rec, err := handover.DecodeRecord(h.Body)
		if err != nil || rec.Kind != handover.KindFailover {
			continue
		}
		if _, have := out[rec.Move.From]; !have {
			out[rec.Move.From] = rec
		}
	}
	return out
}

func (l *lookout) explain(now time.Time) api.SiteExplanation {
	l.mu.Lock()
	s, standing, history := l.mu.state, l.mu.standing, slices.Clone(l.mu.history)
	l.mu.Unlock()
	e := api.SiteExplanation{Of: l.of, Verdict: s.Verdict(now), Standing: standing, History: history, Reasons: []api.Reason{}}
	if e.History == nil {
		e.History = []api.Happening{}
	}
	for _, c := range s.Conditions(handover.Ask{}, now) {
		e.Reasons = append(e.Reasons, api.Reason{Rule: c.Rule, Met: c.Met, Text: c.Text, Hint: c.Hint})
		if c.Rule == handover.RuleLease && s.Lease.Exists && !s.Lease.Revoked {
			e.Reasons = append(e.Reasons, l.waited(s, now))
		}
	}
	if s.Blind != "" {
		e.Reasons = append([]api.Reason{{Rule: "store", Text: fmt.Sprintf("what follows is as of %s ago, when the store last answered: %s", now.Sub(s.Looked).Round(100*time.Millisecond), s.Blind),
			Hint: "without the store nobody takes over: see atoll status"}}, e.Reasons...)
		if s.Looked.IsZero() {
			e.Reasons[0].Text = s.Blind
		}
	}
	return e
}

// waited is the bound between check and commit: not a rule that anybody could want to set aside, but part of why it
// takes as long as it does.
func (l *lookout) waited(s handover.Lookout, now time.Time) api.Reason {
	r := api.Reason{Rule: "w", Met: s.RunOut(now) && !now.Before(s.TakeAt())}
	switch left := s.TakeAt().Sub(now).Round(100 * time.Millisecond); {
	case r.Met:
		r.Text = fmt.Sprintf("what %s checked while its lease was in force has ended: policies.lease.w is %s", l.of, l.policy.W)
	case s.RunOut(now):
		r.Text = fmt.Sprintf("what %s checked while its lease was in force may commit for another %s: policies.lease.w is %s", l.of, left, l.policy.W)
	default:
		r.Text = fmt.Sprintf("behind the end of the lease, %s is waited for what was checked before it", l.policy.W)
	}
	return r
}
