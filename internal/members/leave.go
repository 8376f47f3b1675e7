package members

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// letGo removes a site in good order, or forgets one that is gone for good.
func (c *change) letGo(ctx context.Context) error {
	if c.req.Site == c.cfg.Site {
		return &api.Error{Status: 400, Code: api.CodeBadRequest, Message: fmt.Sprintf("this is the agent of site %s; ask that of another site", c.cfg.Site)}
	}
	o, rev, err := c.document(ctx)
	if err != nil {
		return err
	}
	if !o.Takes(c.req.Site) {
		c.did("site %s is no member", c.req.Site)
		if c.req.DryRun {
			return nil
		}
		return c.cleanUp(ctx, o)
	}
	if err := c.mayLetGo(ctx, o); err != nil {
		return err
	}
	var lease *store.LeaseChange
	if c.req.Do == api.MemberForget {
		lease, err = c.dead(ctx)
	} else if !c.req.DryRun {
		err = c.handsOver(ctx, o)
	}
	if err != nil || c.req.DryRun {
		return err
	}
	if c.req.Do == api.MemberForget {
		if err := c.survivorsEqual(ctx, o); err != nil {
			return err
		}
	}
	next, err := o.Leave(c.req.Site, c.req.Do == api.MemberForget)
	if err != nil {
		return err
	}
	text := "site %s is let go"
	if c.req.Do == api.MemberForget {
		text = "site %s is gone for good: what it had committed and no other site has is given up"
	}
	if err := c.commit(ctx, next, rev, lease, text, c.req.Site); err != nil {
		return err
	}
	c.did(text, c.req.Site)
	return c.cleanUp(ctx, next)
}

// mayLetGo looks at the document and at the other members.
func (c *change) mayLetGo(ctx context.Context, o topo.Ownership) error {
	forever := c.req.Do == api.MemberForget
	if id := o.Unsettled(c.req.Site); id != "" {
		if !forever {
			return c.refused("settled", fmt.Sprintf("bring it back, or, if it never comes back: atoll site forget %s", c.req.Site), "it is lost, or returning from failover %s", id)
		}
		c.answer.Handover = id
	}
	if _, err := o.Leave(c.req.Site, forever); err != nil {
		hint := fmt.Sprintf("move its buckets first: atoll switch --keyspace NAME --buckets all --to ANOTHER (or, if it is lost: atoll failover --site %s)", c.req.Site)
		return c.refused("owns-nothing", hint, "%v", err)
	}
	for _, at := range c.others(o) {
		if _, err := c.cfg.Sites.Standing(ctx, at, c.req.Site); err != nil {
			return c.refused("every-site", fmt.Sprintf("bring site %s back first", at), "every other member takes part; site %s says: %v", at, err)
		}
	}
	return nil
}

// handsOver waits until every other member has all of the site's changes.
func (c *change) handsOver(ctx context.Context, o topo.Ownership) error {
	end, err := c.cfg.Sites.Point(ctx, c.req.Site)
	if err != nil {
		return c.refused("answers", fmt.Sprintf("start its agent; or, if it never comes back: atoll site forget %s", c.req.Site), "it does not say where its changes end: %v", err)
	}
	if err := c.applied(ctx, c.others(o), c.req.Site, end); err != nil {
		return err
	}
	c.did("every other member has its changes")
	return nil
}

// dead makes sure that the site's lease is renewed by nobody: for longer than it lasts, by this agent's own clock. The
// record is taken away with the change, if it is still the one that was watched.
func (c *change) dead(ctx context.Context) (*store.LeaseChange, error) {
	l, rev, err := c.cfg.Store.Lease(ctx, c.req.Site)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(l.Duration + l.Duration/50 + c.cfg.W)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	_, now, err := c.cfg.Store.Lease(ctx, c.req.Site)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if now != rev {
		return nil, c.refused("lease", fmt.Sprintf("if it is to go: stop its agents, or atoll site remove %s", c.req.Site), "its lease is being renewed: an agent of it runs")
	}
	return &store.LeaseChange{Site: c.req.Site, Expect: rev, Gone: true}, nil
}

// survivorsEqual waits until all have the same of what the site had sent to any of them: they take it from each other.
func (c *change) survivorsEqual(ctx context.Context, o topo.Ownership) error {
	err := until(ctx, func(ctx context.Context) (string, error) {
		var first api.Standing
		for i, at := range c.others(o) {
			st, err := c.cfg.Sites.Standing(ctx, at, c.req.Site)
			if err != nil {
				return "", fmt.Errorf("site %s does not say how far it is: %w", at, err)
			}
			switch {
			case st.Halted != "":
				return fmt.Sprintf("site %s has stopped for failover %s, and does not know its end yet", at, st.Halted), nil
			case i == 0:
				first, first.Site = st, at
			case st.Applied != first.Applied:
				return fmt.Sprintf("site %s has the changes of site %s up to %d, site %s up to %d", first.Site, c.req.Site, first.Applied, at, st.Applied), nil
			}
		}
		return "", nil
	})
	if err == nil {
		c.did("the other members have the same of its changes")
	}
	return err
}

// cleanUp has the others let go of what they keep of the site and for it, and takes its lease away. Each part may be
// repeated.
func (c *change) cleanUp(ctx context.Context, o topo.Ownership) error {
	for _, at := range c.others(o) {
		if err := c.cfg.Sites.Dismiss(ctx, at, c.req.Site); err != nil {
			return fmt.Errorf("site %s does not let go of what it keeps for it: %w", at, err)
		}
	}
	c.did("the other members keep nothing of it")
	lease, err := c.dead(ctx)
	var coded *api.Error
	switch {
	case errors.As(err, &coded):
		c.answer.Left = "its agent still runs and keeps a lease that lets it do nothing; stop it, take the site out of the spec, and run the same command again"
		return nil
	case err != nil || lease == nil:
		return err
	}
	_, err = c.cfg.Store.Commit(ctx, store.Change{Lease: lease, Audit: fmt.Sprintf("the lease of site %s, which is no member, is taken away (by %s)", c.req.Site, c.who)})
	if err == nil {
		c.did("its lease is taken away")
	}
	return err
}
