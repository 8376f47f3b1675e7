package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/replicate"
	"github.com/atollhq/atoll/topo"
)

const askBound = 1500 * time.Millisecond // another site's agent, for its status

// status is what this agent knows; with self, of its own site only. What does not answer in time is said, not waited for.
func (a *agent) status(ctx context.Context, self bool) api.Status {
	st := api.Status{Deployment: a.cfg.Spec.Deployment, Site: a.site, At: time.Now().UTC(), Sites: []api.SiteStatus{}, Handovers: []api.Handover{}}
	if o, ok := a.hub.Ownership(); ok {
		st.Ownership = ownershipStatus(o)
	}
	sites := []topo.SiteID{a.site}
	var wg sync.WaitGroup
	if !self {
		sites = a.cfg.Spec.FullSites()
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askBound)
			defer cancel()
			list, err := a.controller.Handovers(ctx, 20)
			if err != nil {
				st.Problems = append(st.Problems, "store: "+err.Error())
				return
			}
			st.Handovers = list
		})
	}
	st.Sites = make([]api.SiteStatus, len(sites))
	for i, site := range sites {
		if site == a.site {
			wg.Go(func() { st.Sites[i] = a.ownStatus(ctx, self) })
			continue
		}
		wg.Go(func() { st.Sites[i] = askStatus(ctx, site, a.remote[site]) })
	}
	wg.Wait()
	st.Problems = append(st.Problems, problems(st)...)
	return st
}

// ownStatus is this site's: this agent's own, or while it stands by and another agent of the site is active, that
// one's.
func (a *agent) ownStatus(ctx context.Context, self bool) api.SiteStatus {
	if a.sibling != nil && !self && a.standby() != nil {
		ctx, cancel := context.WithTimeout(ctx, askBound)
		defer cancel()
		if theirs, err := a.sibling.ActiveStatus(ctx); err == nil && len(theirs.Sites) == 1 {
			return theirs.Sites[0]
		}
	}
	return a.selfStatus(ctx)
}

// askStatus asks a site's active agent, and where there is none, whoever answers.
func askStatus(ctx context.Context, site topo.SiteID, client *api.Client) api.SiteStatus {
	ctx, cancel := context.WithTimeout(ctx, askBound)
	defer cancel()
	theirs, err := client.ActiveStatus(ctx)
	if err != nil && ctx.Err() == nil {
		theirs, err = client.Status(ctx, true)
	}
	for _, s := range theirs.Sites {
		if s.Site == site {
			return s
		}
	}
	if err == nil {
		err = fmt.Errorf("its answer does not speak of %s", site)
	}
	return api.SiteStatus{Site: site, Error: err.Error()}
}

// selfStatus is this agent's own.
func (a *agent) selfStatus(ctx context.Context) api.SiteStatus {
	s := api.SiteStatus{Site: a.site, Agent: a.incarnation, Since: a.since.UTC(), Gateways: a.hub.Gateways(), Standby: a.database.Load() == nil}
	s.Lease.DurationMS = a.cfg.Spec.Policies.Lease.Duration.Milliseconds()
	if o, ok := a.hub.Ownership(); ok {
		s.Version = o.Version
	}
	k := a.kept.Load()
	if k == nil {
		s.Database.Error = a.whyAway()
		return s
	}
	if deadline, live := k.keeper.Deadline(); live {
		s.Lease.Live, s.Lease.RemainingMS = true, time.Until(deadline).Milliseconds()
	}
	s.Opened = k.keeper.OpenedVersion()
	st := k.keeper.Status()
	s.Keeper = &api.KeeperStatus{Doing: st.Doing, WMS: a.cfg.Spec.Policies.Lease.W.Milliseconds(), WritersEnded: st.WritersEnded,
		WritersLeft: st.WritersLeft, Clock: st.Clock, Rebuild: st.Rebuild}
	ctx, cancel := context.WithTimeout(ctx, askBound/2)
	defer cancel()
	if id, err := k.fence.Identity(ctx); err != nil {
		s.Database.Error = err.Error()
	} else {
		s.Database.Connected, s.Database.Identity = true, id.String()
	}
	if s.Database.Error == "" {
		s.Database.Error = st.Problem
	}
	if db := a.database.Load(); db != nil {
		s.Links, s.Returning = db.links(a.site), db.returns.Status()
		if err := markHalts(ctx, k.fence, s.Links, a.site); err != nil && s.Database.Error == "" {
			s.Database.Error = err.Error()
		}
	}
	return s
}

// markHalts says which links to this site are stopped for a failover.
func markHalts(ctx context.Context, fence *postgres.Fence, links []api.LinkStatus, here topo.SiteID) error {
	halts, err := fence.Halts(ctx)
	for i, l := range links {
		if l.Target == here {
			links[i].Halted = halts[l.Origin]
		}
	}
	return err
}

// links are the streams of changes to and from this site. The spec may still name a site that is no member any more:
// nothing is to come from there.
func (db *database) links(here topo.SiteID) (out []api.LinkStatus) {
	o := db.document()
	for _, origin := range sortedKeys(db.follows) {
		if o.Version > 0 && !o.Takes(origin) {
			continue
		}
		st := db.follows[origin].State()
		l := api.LinkStatus{Origin: origin, Target: here, Connected: st.Phase == replicate.Streaming, State: string(st.Phase),
			Position: uint64(st.Position), LagMS: -1}
		if st.LagKnown {
			l.LagMS = st.Lag.Milliseconds()
		}
		if !l.Connected {
			l.Error = st.Err
		}
		out = append(out, l)
	}
	for _, t := range db.serve.State() {
		if o.Version > 0 && !o.Takes(t.Target) {
			continue
		}
		out = append(out, api.LinkStatus{Origin: here, Target: t.Target, Connected: t.Connected, Position: uint64(t.Flushed), LagMS: -1, Error: t.Err})
	}
	return out
}

// ownershipStatus sums a document up.
func ownershipStatus(o topo.Ownership) *api.OwnershipStatus {
	out := &api.OwnershipStatus{Generation: o.Generation, Version: o.Version, Members: o.Members}
	for _, ks := range sortedKeys(o.Keyspaces) {
		p := o.Keyspaces[ks]
		k := api.KeyspaceStatus{Keyspace: ks, Buckets: p.Buckets}
		owned, owners := map[topo.SiteID]topo.Spans{}, map[topo.SiteID]*api.OwnerStatus{}
		type route struct {
			id       topo.HandoverID
			from, to topo.SiteID
		}
		moving := map[route]topo.Spans{}
		for _, r := range p.Ranges {
			span := topo.Span{First: r.First, Last: r.Last}
			owned[r.Owner] = appendSpan(owned[r.Owner], span)
			if r.State == topo.Moving {
				key := route{r.Handover, r.Owner, r.Target}
				moving[key] = appendSpan(moving[key], span)
			}
			if s := owners[r.Owner]; s == nil {
				owners[r.Owner] = &api.OwnerStatus{Site: r.Owner, MinEpoch: r.Epoch, MaxEpoch: r.Epoch}
			} else {
				s.MinEpoch, s.MaxEpoch = min(s.MinEpoch, r.Epoch), max(s.MaxEpoch, r.Epoch)
			}
		}
		for _, site := range sortedKeys(owners) {
			s := owners[site]
			s.Count, s.Buckets = owned[site].Len(), owned[site].String()
			k.Owners = append(k.Owners, *s)
		}
		for r, spans := range moving {
			k.Moving = append(k.Moving, api.MovingStatus{Handover: r.id, Buckets: spans.String(), From: r.from, To: r.to})
		}
		slices.SortFunc(k.Moving, func(a, b api.MovingStatus) int { return strings.Compare(string(a.Handover), string(b.Handover)) })
		out.Keyspaces = append(out.Keyspaces, k)
	}
	out.Unsettled = unsettled(o)
	return out
}

// unsettled lists the failovers whose lost site is not settled, with who owns now what was taken.
func unsettled(o topo.Ownership) []api.UnsettledStatus {
	var out []api.UnsettledStatus
	for _, c := range o.Cuts() {
		cut := c.Cut
		if cut.Settled {
			continue
		}
		same := func(u api.UnsettledStatus) bool {
			return u.Handover == cut.Handover && u.Site == cut.From && u.Owner == c.Range.Owner
		}
		i := slices.IndexFunc(out, same)
		if i < 0 {
			i = len(out)
			out = append(out, api.UnsettledStatus{Handover: cut.Handover, Site: cut.From, Owner: c.Range.Owner, Position: cut.Position})
		}
		out[i].Buckets += int(c.Range.Last) - int(c.Range.First) + 1
	}
	return out
}

func appendSpan(s topo.Spans, span topo.Span) topo.Spans {
	if n := len(s); n > 0 && s[n-1].Last+1 == span.First {
		s[n-1].Last = span.Last
		return s
	}
	return append(s, span)
}

// problems is what an operator should look at.
func problems(st api.Status) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if st.Ownership == nil {
		add("the ownership document is not known yet")
	} else {
		for _, u := range st.Ownership.Unsettled {
			add("site %s was lost in failover %s and has not returned as an equal: %s owns %d bucket(s) of it, and what %s committed beyond the cut is not decided yet",
				u.Site, u.Handover, u.Owner, u.Buckets, u.Site)
		}
	}
	for _, s := range st.Sites {
		if s.Error != "" {
			add("site %s: %s", s.Site, s.Error)
			continue
		}
		if s.Keeper != nil && s.Keeper.Doing == "standby" {
			add("site %s: the agent that answers stands by, and no active one does", s.Site)
		} else if !s.Lease.Live {
			add("site %s: its lease is not in force, it accepts no writes", s.Site)
		}
		if s.Database.Error != "" {
			add("site %s: database: %s", s.Site, s.Database.Error)
		}
		if s.Keeper != nil && s.Keeper.WritersLeft != "" {
			add("site %s: transactions outlive the lease: %s", s.Site, s.Keeper.WritersLeft)
		}
		for _, text := range s.Returning {
			add("site %s: %s", s.Site, text)
		}
		if s.Keeper != nil && s.Keeper.Rebuild {
			add("site %s: its database is another one than before; run `atoll rebuild --site %s`", s.Site, s.Site)
		}
		for _, l := range s.Links {
			switch {
			case l.Halted != "":
				add("site %s applies nothing more of %s, for failover %s", s.Site, l.Origin, l.Halted)
			case !l.Connected && l.Target == s.Site:
				add("site %s: no changes come from %s (%s): %s", s.Site, l.Origin, l.State, orNone(l.Error))
			}
		}
	}
	return out
}
