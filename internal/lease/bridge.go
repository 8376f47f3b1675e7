package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Without says what a keeper does while the store does not answer.
type Without string

const (
	Stopped  Without = ""        // the lease runs out
	Promised Without = "promise" // every site that could take over is asked not to, and the lease lasts as long as all promise
	Kept     Without = "keep"    // the lease is extended all the same: no site may take over by itself
)

// asks names the sites whose promises the lease rests on while the store is away.
func (k *Keeper) asks() string {
	if k.cfg.Without != Promised {
		return ""
	}
	peers := k.peers()
	names := make([]string, len(peers))
	for i, s := range peers {
		names[i] = string(s)
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// peers are the other members that have joined, as of the newest ownership that is known; before the first, those of the
// configuration. A site that is joining cannot take over before this keeper has acknowledged that it is there.
func (k *Keeper) peers() []topo.SiteID {
	o, _ := k.ownership()
	return slices.DeleteFunc(o.TakingPart(k.cfg.Peers, false), func(s topo.SiteID) bool { return s == k.cfg.Site })
}

// bridge extends the lease without the store, whose problem is given, once in a quarter of it. It asks no less of the
// database than a renewal does: a durable write first, then bits that are a subset of the newest ownership that is
// known. What it returns is what is wrong all the same.
func (k *Keeper) bridge(ctx context.Context, c *cycle, problem error) error {
	now := time.Now()
	if k.cfg.Without == Stopped || ctx.Err() != nil || !c.mayBridge(now) {
		return problem
	}
	wake := c.wake
	if err := k.prove(ctx, c, task{until: now.Add(k.t.every)}); err != nil || c.phase != renewing {
		return errors.Join(problem, err)
	}
	start := time.Now()
	long, err := k.promised(ctx)
	if err != nil {
		c.unanswered(time.Now())
		return errors.Join(problem, err)
	}
	c.bridging(start, long)
	err = k.enforce(ctx, c, task{until: c.deadline.Add(-k.t.margin)})
	if err != nil && c.phase != resting { // the fence is not extended; what is not open does not matter here
		return errors.Join(problem, err)
	}
	c.bridged(wake)
	return fmt.Errorf("writes go on without the store, by %s: %w", k.leave(), problem)
}

func (k *Keeper) leave() string {
	if k.cfg.Without == Kept {
		return "on_quorum_loss: keep"
	}
	return "promises of " + k.asks()
}

// promised is for how long every site that could take over promises not to.
func (k *Keeper) promised(ctx context.Context) (time.Duration, error) {
	if k.cfg.Without == Kept {
		return k.t.duration, nil
	}
	ctx, cancel := context.WithTimeout(ctx, k.t.every)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	long := k.t.duration
	failed := map[topo.SiteID]error{}
	peers := k.peers()
	for _, site := range peers {
		wg.Go(func() {
			granted, err := k.cfg.Ask(ctx, site, k.cfg.Incarnation, k.t.duration)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[site] = err
				cancel() // one is enough
				return
			}
			long = min(long, granted)
		})
	}
	wg.Wait()
	for _, site := range peers {
		if err := failed[site]; err != nil && !errors.Is(err, context.Canceled) {
			return 0, fmt.Errorf("site %s promises nothing: %w", site, err)
		}
	}
	for site, err := range failed {
		return 0, fmt.Errorf("site %s promises nothing: %w", site, err)
	}
	return long, nil
}
