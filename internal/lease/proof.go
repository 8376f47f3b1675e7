package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// prove has the database complete a durable write, and makes sure that it is the database that the lease is kept for,
// no older than it was, with a clock that can be relied on.
func (k *Keeper) prove(ctx context.Context, c *cycle, t task) error {
	ctx, cancel := context.WithDeadline(ctx, t.until)
	defer cancel()
	sent := time.Now()
	p, err := k.cfg.Fence.Heartbeat(ctx, c.lease.Beat)
	answered := time.Now()
	switch {
	case errors.Is(err, postgres.ErrWentBack) || err == nil && p.Database != c.lease.Database:
		return k.another(ctx, c, p, err)
	case err != nil:
		c.failed(time.Now())
		return fmt.Errorf("the database completes no write: %w", err)
	}
	k.differs(nil)
	if err := k.checkClock(ctx, c, p, k.clock.look(clockReading{p.Clock, sent, answered}, k.cfg.Margin/4)); err != nil {
		return err
	}
	c.proven(p.Beat)
	return nil
}

// another is what to do with a database that is not the one of the lease, or not any more: it may lack writes of the
// epochs at which the site owns its buckets, so it stays closed for as long as the site owns any. The record is not
// renewed meanwhile; another site takes over. When nothing is owned any more, the database is adopted.
func (k *Keeper) another(ctx context.Context, c *cycle, p postgres.Pulse, old error) error {
	c.rest(time.Now())
	problem := fmt.Errorf("%w: it is %s, and the lease was kept for %s (system identifier/timeline): a promoted standby, or a copy; "+
		"it may lack writes of this site, so nothing is opened; bring the former database back, or wait until another site has taken over: "+
		"then this one is adopted", ErrDatabaseChanged, p.Database, c.lease.Database)
	if p.Database == c.lease.Database {
		problem = fmt.Errorf("%w: %w: a restored copy or an old snapshot of its disk; it lacks writes of this site, so nothing is opened; "+
			"bring the newest state back, or wait until another site has taken over: then this one is adopted", ErrDatabaseChanged, old)
	}
	k.differs(problem)
	if !c.shut {
		if err := k.cfg.Fence.Restrict(ctx, nil); err != nil {
			return errors.Join(problem, err)
		}
		k.shut(c)
	}
	free, err := k.ownsNothing(ctx)
	if err != nil || !free {
		return errors.Join(problem, err)
	}
	if err := k.cfg.Fence.ForgetMoments(ctx); err != nil {
		return err
	}
	k.log.Warn("the site's database is another one; the site owns no bucket, so it is adopted", "site", k.cfg.Site, "was", c.lease.Database, "is", p.Database)
	c.adopt(p.Database)
	k.cutsRecorded(topo.Ownership{})
	k.mu.Lock()
	k.mu.rebuild = true
	k.mu.Unlock()
	k.clock = clockWatch{}
	k.differs(nil)
	return nil
}

// checkClock closes everything if the database's clock was set back, or has lagged: the moments in the fence then come
// later than they were meant to. Nothing is opened before the clock has passed the last of them. The record is not
// renewed meanwhile: a small step is over before the lease is; behind a large one another site takes over, and when
// this one owns nothing, the clock counts as it is. A step forward only closes early, and is reported.
func (k *Keeper) checkClock(ctx context.Context, c *cycle, p postgres.Pulse, jump time.Duration) error {
	if jump > 0 {
		k.log.Warn("the database's clock was set forward; the fence closes early until the next renewal", "site", k.cfg.Site, "by", jump.Round(time.Millisecond))
		k.sayClock(fmt.Sprintf("set forward by %s at %s", jump.Round(time.Millisecond), time.Now().UTC().Format(time.RFC3339)))
	}
	if jump < 0 {
		k.log.Warn("the database's clock was set back or lags; everything is closed", "site", k.cfg.Site, "by", (-jump).Round(time.Millisecond))
		k.sayClock(fmt.Sprintf("set back by %s, or slow, at %s", (-jump).Round(time.Millisecond), time.Now().UTC().Format(time.RFC3339)))
	}
	if jump >= 0 && p.Behind() == 0 {
		return nil
	}
	c.failed(time.Now())
	problem := fmt.Errorf("the database's clock was set back or stood still: it says %s, and nothing is opened before it has passed the last moment up to which "+
		"writes were allowed, %s or later; if it was wrong before and is right now, and no other site can take over, run in that database: %s",
		p.Clock.UTC().Format(time.RFC3339), p.Reached.UTC().Format(time.RFC3339), postgres.ForgetMomentsSQL)
	if jump < 0 || !c.shut {
		if err := k.cfg.Fence.DistrustClock(ctx); err != nil {
			return errors.Join(problem, err)
		}
		k.shut(c)
	}
	free, err := k.ownsNothing(ctx)
	if err != nil || !free {
		return errors.Join(problem, err)
	}
	return k.cfg.Fence.ForgetMoments(ctx)
}

// shut takes note that every bit was turned off before the lease's time.
func (k *Keeper) shut(c *cycle) {
	c.closed()
	k.extended(time.Time{})
}

// ownsNothing asks the store, linearizably: what is known here may be old.
func (k *Keeper) ownsNothing(ctx context.Context) (bool, error) {
	o, _, err := k.cfg.Store.Ownership(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	k.note(o)
	return !owns(o, k.cfg.Site), nil
}
