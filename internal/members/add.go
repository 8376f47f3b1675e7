package members

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// add takes this site in.
func (c *change) add(ctx context.Context) error {
	if c.req.Site != c.cfg.Site {
		return &api.Error{Status: 400, Code: api.CodeBadRequest, Message: fmt.Sprintf("this is the agent of site %s; ask that of site %q", c.cfg.Site, c.req.Site)}
	}
	o, _, err := c.document(ctx)
	if err != nil {
		return err
	}
	if o.Full(c.req.Site) {
		c.did("site %s is a member already", c.req.Site)
		return nil
	}
	if err := c.mayAdd(ctx, o); err != nil || c.req.DryRun && o.Takes(c.req.Site) {
		return err
	}
	if !o.Takes(c.req.Site) {
		answer, err := c.cfg.Rebuild(ctx, c.who, api.RebuildRequest{Site: c.req.Site, From: c.req.From, Why: c.req.Why, DryRun: c.req.DryRun})
		if c.answer.From = answer.From; err != nil || c.req.DryRun {
			return err
		}
		c.did("filled from site %s in %.1f s", answer.From, float64(answer.TookMS)/1000)
		if err := c.join(ctx, "is joining"); err != nil {
			return err
		}
	}
	return c.becomeMember(ctx)
}

// mayAdd refuses while another member does not answer or does not know this site: it would neither be asked to stop at a
// cut, nor be followed, there.
func (c *change) mayAdd(ctx context.Context, o topo.Ownership) error {
	for _, at := range c.others(o) {
		if !slices.Contains(c.cfg.Listed, at) {
			return c.refused("spec", "give this site's agent the spec of the others", "site %s is a member, and not in the spec of site %s", at, c.cfg.Site)
		}
		if _, err := c.cfg.Sites.Standing(ctx, at, c.req.Site); err != nil {
			return c.refused("every-site", fmt.Sprintf("give site %s the spec that names site %s and restart its agent; or bring it back first", at, c.req.Site),
				"every member takes part; site %s says: %v", at, err)
		}
	}
	return nil
}

// join is one step of topo.Ownership.Join.
func (c *change) join(ctx context.Context, now string) error {
	o, rev, err := c.document(ctx)
	if err != nil {
		return err
	}
	next, err := o.Join(c.req.Site)
	if err != nil {
		return err
	}
	if err := c.commit(ctx, next, rev, nil, "site %s %s", c.req.Site, now); err != nil {
		return err
	}
	c.did("site %s %s", c.req.Site, now)
	return nil
}

// becomeMember: from when every other member has acknowledged that this site is joining, each keeps for it what it lacks
// of the others. What may have been dropped before is behind the ends of their streams as they stand then: when this site
// has those, nothing that it could lack is gone.
func (c *change) becomeMember(ctx context.Context) error {
	o, _, err := c.document(ctx)
	if err != nil {
		return err
	}
	err = until(ctx, func(ctx context.Context) (string, error) {
		for _, at := range c.others(o) {
			l, _, err := c.cfg.Store.Lease(ctx, at)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return "", err
			}
			if l.Generation < o.Generation || l.Generation == o.Generation && l.Version < o.Version {
				return fmt.Sprintf("site %s has not acknowledged that site %s is joining", at, c.req.Site), nil
			}
		}
		return "", nil
	})
	if err != nil {
		return err
	}
	c.did("every other member has acknowledged it")
	for _, at := range c.others(o) {
		end, err := c.cfg.Sites.Point(ctx, at)
		if err != nil {
			return fmt.Errorf("where the stream of site %s ends: %w", at, err)
		}
		if err := c.applied(ctx, []topo.SiteID{c.req.Site}, at, end); err != nil {
			return err
		}
	}
	c.did("it has what every other member had then")
	return c.join(ctx, "is a member")
}
