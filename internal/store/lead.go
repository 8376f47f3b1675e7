package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/atollhq/atoll/topo"
)

// A commit at the leader's site takes one round trip between sites, elsewhere two. While its leader changes, the store
// takes nothing new for about two round trips; if the change fails, for one election time-out, as if the leader had died.
const (
	leadRest   = 3 * time.Second // a client asks no more often
	leadRepent = time.Minute     // after one that failed
	leadBehind = 100             // entries that the next leader may lack; it gets them before it leads
)

// ErrLeaderStays: the store was not asked to change its leader, because something could be lost by it, or could not.
var ErrLeaderStays = errors.New("the store's leader stays")

// Lead has the store led by a site's member. It waits, bounded, until that one leads, and returns the site that led
// before: the same one where nothing had to be done. Nothing is asked for unless every member answers, all name the same
// leader, and the site's member has what the leader has. An external etcd, which others may use too, is left alone.
func (c *Client) Lead(ctx context.Context, site topo.SiteID) (topo.SiteID, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*c.cfg.Try)
	defer cancel()
	was, err := c.lead(ctx, site)
	if err != nil {
		return "", fmt.Errorf("store: lead at %s: %w", site, err)
	}
	return was, nil
}

func (c *Client) lead(ctx context.Context, site topo.SiteID) (topo.SiteID, error) {
	next := c.memberOf(site)
	if next == nil {
		return "", fmt.Errorf("%w: %w", ErrLeaderStays, ErrNoMember)
	}
	s, err := c.statusOf(ctx, next)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %s does not answer: %w", ErrLeaderStays, site, err)
	case s.Leader == s.Header.MemberId:
		return site, nil
	}
	if err := c.mayAskForLead(time.Now()); err != nil {
		return "", err
	}
	leader, err := c.leaderFor(ctx, next)
	if err != nil {
		return "", err
	}
	c.askedForLead(time.Now().Add(leadRepent))
	ask, cancel := context.WithTimeout(ctx, 2*c.cfg.Try) // the default is longer than most election time-outs: it is over by then, or has failed
	defer cancel()
	if _, err := leader.etcd.MoveLeader(ask, s.Header.MemberId); err != nil {
		return "", fmt.Errorf("ask %s to hand over: %w", leader.Site, err)
	}
	c.askedForLead(time.Now().Add(leadRest))
	return leader.Site, nil
}

// leaderFor returns the member that leads, if it may hand over to next.
func (c *Client) leaderFor(ctx context.Context, next *clientMember) (*clientMember, error) {
	said, failed := make([]*etcdserverpb.StatusResponse, len(c.members)), make([]error, len(c.members))
	var wg sync.WaitGroup
	for i, m := range c.members {
		wg.Go(func() { said[i], failed[i] = c.statusOf(ctx, m) })
	}
	wg.Wait()
	var mine, first *etcdserverpb.StatusResponse
	var leader *clientMember
	reached := uint64(0)
	for i, m := range c.members {
		s := said[i]
		if failed[i] != nil {
			return nil, fmt.Errorf("%w: %s does not answer: %w", ErrLeaderStays, m.Site, failed[i])
		}
		if first == nil {
			first = s
		}
		switch {
		case len(s.Errors) > 0 || s.IsLearner:
			return nil, fmt.Errorf("%w: %s is not well: learner %v, %q", ErrLeaderStays, m.Site, s.IsLearner, s.Errors)
		case s.Leader == 0 || s.Leader != first.Leader || s.Header.ClusterId != first.Header.ClusterId:
			return nil, fmt.Errorf("%w: members do not agree on who leads", ErrLeaderStays)
		}
		if m == next {
			mine = s
		}
		if s.Header.MemberId == s.Leader {
			leader = m
		}
		reached = max(reached, s.RaftIndex)
	}
	switch {
	case leader == nil:
		return nil, fmt.Errorf("%w: member %x leads, which is not in this configuration", ErrLeaderStays, first.Leader)
	case leader == next:
		return nil, fmt.Errorf("%w: it has just begun to lead", ErrLeaderStays)
	case reached-mine.RaftAppliedIndex > leadBehind:
		return nil, fmt.Errorf("%w: %s is %d entries behind", ErrLeaderStays, next.Site, reached-mine.RaftAppliedIndex)
	}
	return leader, nil
}

func (c *Client) memberOf(site topo.SiteID) *clientMember {
	for _, m := range c.members {
		if m.Site == site && site != "" {
			return m
		}
	}
	return nil
}

// statusOf asks on the connection that is there; etcd's own client makes a new one each time.
func (c *Client) statusOf(ctx context.Context, m *clientMember) (*etcdserverpb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Try)
	defer cancel()
	return etcdserverpb.NewMaintenanceClient(m.etcd.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
}

func (c *Client) mayAskForLead(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Before(c.mu.leadAgain) {
		return fmt.Errorf("%w: it is asked again in %s", ErrLeaderStays, c.mu.leadAgain.Sub(now).Round(time.Millisecond))
	}
	return nil
}

func (c *Client) askedForLead(again time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.leadAgain = again
}
