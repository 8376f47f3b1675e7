package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/members"
	"github.com/atollhq/atoll/internal/replicate"
	"github.com/atollhq/atoll/topo"
)

// lookAtMembers is how often it is looked whether somebody has come or gone. What counts of that at once is asked of the
// document itself.
const lookAtMembers = 100 * time.Millisecond

// document is the newest ownership that this agent knows, no older than the one that its keeper has acknowledged; zero
// before the first.
func (a *agent) document() topo.Ownership {
	o, _ := a.hub.Ownership()
	if k := a.kept.Load(); k != nil {
		if known := k.keeper.Ownership(); known.Newer(o) {
			o = known
		}
	}
	return o
}

// peers are the other members, those that are joining included, whether or not the spec names them.
func (a *agent) peers() []topo.SiteID {
	o := a.document()
	return slices.DeleteFunc(o.TakingPart(a.cfg.Spec.FullSites(), true), func(s topo.SiteID) bool { return s == a.site })
}

// takesPart tells whether changes pass between this site and another one: both are members, or this one has been rebuilt
// and is about to join. Before there is a document nothing is begun: a stream that begins afresh misses what was before.
func (a *agent) takesPart(other topo.SiteID) bool {
	o := a.document()
	return o.Version > 0 && o.Takes(other) && (o.Takes(a.site) || a.rebuilt.Load())
}

// followMember follows an origin while it is a member. When members come or go it begins anew with the link: from there
// on it keeps for those that there are.
func (a *agent) followMember(ctx context.Context, f *replicate.Follow) error {
	tick := time.NewTicker(lookAtMembers)
	defer tick.Stop()
	for ctx.Err() == nil {
		if !a.takesPart(f.Origin) {
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
			continue
		}
		one, end := context.WithCancel(ctx)
		ended := make(chan error, 1)
		peers := a.peers()
		go func() { ended <- f.Run(one) }()
		for a.takesPart(f.Origin) && slices.Equal(peers, a.peers()) && one.Err() == nil {
			select {
			case <-tick.C:
			case <-ctx.Done():
			case err := <-ended: // it runs until its context ends; this is a fault of ours
				end()
				return err
			}
			if ctx.Err() != nil {
				break
			}
		}
		end()
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

// keepOut has a site that is no member say that its database is to be rebuilt: it is new, or was let go.
func (a *agent) keepOut(ctx context.Context, db *database) error {
	tick := time.NewTicker(lookAtMembers)
	defer tick.Stop()
	for {
		if o := a.document(); o.Version > 0 && !o.Takes(a.site) && !a.rebuilt.Load() && !db.keeper.Status().Rebuild {
			a.log.Warn("this site is no member: its database is to be rebuilt when it is taken in", "command", "atoll site add "+string(a.site))
			db.keeper.Rebuilds(false)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// atSites reaches the agents of sites, this one without a detour. It satisfies members.Sites.
type atSites struct{ *agent }

func (s atSites) Standing(ctx context.Context, at, of topo.SiteID) (api.Standing, error) {
	ctx, cancel := context.WithTimeout(ctx, askBound)
	defer cancel()
	st, err := api.Standing{}, error(nil)
	if at == s.site {
		st, err = localSite(s).Standing(ctx, of)
	} else if client := s.remote[at]; client != nil {
		st, err = client.Standing(ctx, api.StandingRequest{Of: of})
	} else {
		err = fmt.Errorf("site %s is not in the spec of site %s", at, s.site)
	}
	if err == nil && st.Problem != "" {
		err = errors.New(st.Problem)
	}
	return st, err
}

func (s atSites) Point(ctx context.Context, at topo.SiteID) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	if at == s.site {
		answer, err := returns(s).Point(ctx, api.PointRequest{})
		return answer.Position, err
	}
	client := s.remote[at]
	if client == nil {
		return 0, fmt.Errorf("site %s is not in the spec of site %s", at, s.site)
	}
	answer, err := client.Point(ctx)
	return answer.Position, err
}

func (s atSites) Dismiss(ctx context.Context, at, gone topo.SiteID) error {
	r := api.DismissRequest{Site: gone}
	if at == s.site {
		_, err := returns(s).Dismiss(ctx, r)
		return err
	}
	client := s.remote[at]
	if client == nil {
		return fmt.Errorf("site %s is not in the spec of site %s", at, s.site)
	}
	_, err := client.Dismiss(ctx, r)
	return err
}

// Point is a position behind all that is committed at this site.
func (r returns) Point(ctx context.Context, _ api.PointRequest) (api.PointAnswer, error) {
	db := r.database.Load()
	if db == nil {
		return api.PointAnswer{}, unavailable(errors.New("the database is away: " + r.whyAway()))
	}
	at, err := db.fence.Point(ctx)
	if err != nil {
		return api.PointAnswer{}, unavailable(err)
	}
	return api.PointAnswer{Position: uint64(at)}, nil
}

// Dismiss lets go of a site that the store says is no member: its slot here, how far its stream is applied, what is kept
// of it.
func (r returns) Dismiss(ctx context.Context, req api.DismissRequest) (api.DismissAnswer, error) {
	none := api.DismissAnswer{}
	db := r.database.Load()
	if db == nil {
		return none, unavailable(errors.New("the database is away: " + r.whyAway()))
	}
	if err := topo.CheckName(string(req.Site)); err != nil || req.Site == r.site {
		return none, &api.Error{Status: 400, Code: api.CodeBadRequest, Message: fmt.Sprintf("site %q is none that site %s could let go", req.Site, r.site)}
	}
	o, _, err := r.store.Ownership(ctx)
	if err != nil {
		return none, unavailable(err)
	}
	if o.Takes(req.Site) {
		return none, &api.Error{Status: 409, Code: api.CodeRefused, Message: fmt.Sprintf("site %s is a member", req.Site)}
	}
	r.hub.Publish(o)
	err = r.afresh(ctx, db, func() error {
		if err := db.fence.Dismiss(ctx, req.Site); err != nil {
			return err
		}
		db.applied.Drop(req.Site)
		source, err := r.capture(ctx, req.Site)
		if err != nil {
			return err
		}
		defer source.Close()
		return source.Drop(ctx)
	})
	if err != nil {
		return none, unavailable(err)
	}
	r.log.Info("nothing is kept any more of or for a site that is no member", "gone", req.Site)
	return none, nil
}

// ChangeMember takes a site in, or lets one go.
func (r returns) ChangeMember(ctx context.Context, who string, req api.MemberRequest) (api.MemberAnswer, error) {
	return members.New(members.Config{Site: r.site, Listed: r.cfg.Spec.FullSites(), Store: r.store, Sites: atSites(r), Rebuild: r.Rebuild,
		W: r.cfg.Spec.Policies.Lease.W, Logger: r.log}).Change(ctx, who, req)
}
