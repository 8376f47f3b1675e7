package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

const (
	healthFresh = time.Second // who asks again so soon gets the same answer
	// gatewaysSettle is how long an agent that has just started may have no gateways before that says something: they come
	// back to it one after the other.
	gatewaysSettle = 5 * time.Second
)

// pulse is what is remembered between looks at who is well.
type pulse struct {
	looking chan struct{} // one look at a time
	at      time.Time
	health  api.Health
	leases  map[topo.SiteID]sighting[store.Revision]
	agents  map[topo.SiteID]sighting[string] // incarnations
}

// sighting is a value, and when it was first seen.
type sighting[T comparable] struct {
	value T
	first time.Time
	moved bool // another one was seen before it
}

// see notes what a site has now, and tells what is known of that.
func see[T comparable](m map[topo.SiteID]sighting[T], site topo.SiteID, value T, now time.Time) sighting[T] {
	before, ok := m[site]
	if !ok || before.value != value {
		m[site] = sighting[T]{value, now, ok}
	}
	return m[site]
}

func newPulse() pulse {
	return pulse{looking: make(chan struct{}, 1), leases: map[topo.SiteID]sighting[store.Revision]{}, agents: map[topo.SiteID]sighting[string]{}}
}

// health is which sites can serve users, as far as this agent knows: leases from the store, and where it does not answer
// from the sites' agents; gateways from the sites' agents. It is empty once ctx has ended.
func (a *agent) health(ctx context.Context) api.Health {
	p := &a.pulse
	select {
	case p.looking <- struct{}{}:
		defer func() { <-p.looking }()
	case <-ctx.Done():
		return api.Health{}
	}
	if !p.at.IsZero() && time.Since(p.at) < healthFresh {
		return p.health
	}
	type look struct {
		lease store.Lease
		rev   store.Revision
		err   error
		said  api.SiteStatus
	}
	sites := a.cfg.Spec.FullSites()
	looks := make([]look, len(sites))
	var wg sync.WaitGroup
	for i, site := range sites {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askBound)
			defer cancel()
			looks[i].lease, looks[i].rev, looks[i].err = a.store.Lease(ctx, site)
		})
		wg.Go(func() {
			if site == a.site {
				looks[i].said = a.ownStatus(ctx, false)
			} else {
				looks[i].said = askStatus(ctx, site, a.remote[site])
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return api.Health{} // what was broken off says nothing of the sites
	}
	now := time.Now()
	h := api.Health{Site: a.site, At: now.UTC()}
	_, h.Holds = a.deadline()
	h.Holds = h.Holds && a.standby() == nil
	o, documented := a.hub.Ownership()
	for i, site := range sites {
		l := looks[i]
		s := api.SiteHealth{Site: site, Member: !documented || o.Full(site)}
		var renewal sighting[store.Revision]
		if l.err == nil {
			renewal = see(p.leases, site, l.rev, now)
		}
		s.Lease = leaseHealth(l.lease, l.err, l.said, now.Sub(renewal.first), renewal.moved)
		s.Gateways, s.GatewaysKnown = gatewayHealth(l.said, now.Sub(see(p.agents, site, l.said.Agent, now).first))
		h.Sites = append(h.Sites, s)
	}
	p.at, p.health = now, h
	return h
}

// leaseHealth says what a lease is worth that has stood in the store as it is for so long, as far as this agent has seen.
// One that it has never seen renewed is good only by its holder's word: it may have been left long ago. What the site's
// active agent says counts against it too: it may have the record renewed and its database closed.
func leaseHealth(l store.Lease, err error, said api.SiteStatus, since time.Duration, renewed bool) string {
	active := said.Error == "" && !said.Standby
	switch {
	case errors.Is(err, store.ErrNotFound) || err == nil && (l.Revoked || since > l.Duration):
		return api.LeaseLapsed
	case active && !said.Lease.Live:
		return api.LeaseLapsed
	case active || err == nil && renewed:
		return api.LeaseLive
	}
	return api.LeaseUnknown
}

// gatewayHealth lists the gateways that are connected to a site's active agent, which has been known for so long.
func gatewayHealth(said api.SiteStatus, since time.Duration) (connected []string, known bool) {
	if said.Error != "" || said.Standby {
		return nil, false
	}
	for _, g := range said.Gateways {
		if g.Connected {
			connected = append(connected, g.Gateway)
		}
	}
	return connected, len(connected) > 0 || since >= gatewaysSettle
}
