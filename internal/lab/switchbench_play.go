package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/atollhq/atoll/topo"
)

const (
	mostPerSwitch  = 64 // buckets
	shareTries     = 6
	triesPerSwitch = 2               // in all at most so many times the switches that are wanted
	afterTakeover  = 3 * time.Second // load on the survivors alone, so that every bucket is written before the lost site is back
)

// share gives every other site its part of the users, each as soon as the deployment has come to its pace.
func (b *switchBench) share(ctx context.Context) error {
	sites := b.demo.opts.Sites
	for bucket := range topo.BucketID(b.demo.opts.Buckets) {
		b.owned[sites[0]] = append(b.owned[sites[0]], bucket)
	}
	b.catalogAt = sites[0]
	if err := rest(ctx, 3*time.Second); err != nil {
		return err
	}
	b.switching[0] = time.Now()
	n := len(sites)
	for _, site := range sites[1:] {
		for try := 1; len(b.owned[site]) == 0; try++ {
			if try > shareTries {
				return fmt.Errorf("lab: site %s could not be given its part of the users; the last try: %w", site, b.switches[len(b.switches)-1].err)
			}
			err := b.moveReady(ctx, switchRun{phase: spreading, keyspace: users, buckets: b.next(sites[0], b.demo.opts.Buckets/n), from: sites[0], to: site, what: fmt.Sprintf("spread: 1/%d of the users", n)})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// moveReady is move for somebody who is in no hurry: it waits longer for sites that are behind.
func (b *switchBench) moveReady(ctx context.Context, s switchRun) error {
	began := time.Now()
	if err := b.awaitCaughtUp(ctx, catchUpBound); err != nil {
		return err
	}
	if time.Since(began) > time.Second {
		b.waited++
	}
	if err := b.moveNow(ctx, s); err != nil {
		return err
	}
	return rest(ctx, breath)
}

// switchAround moves random ranges of buckets from random owners to random sites until enough have moved. A switch that
// is refused or aborted is in the report, and another one is drawn.
func (b *switchBench) switchAround(ctx context.Context) error {
	began, done := time.Now(), 0
	for tried := 1; done < b.opts.Switches; tried++ {
		if tried > triesPerSwitch*b.opts.Switches {
			return fmt.Errorf("%d of %d switches were not done", tried-1-done, tried-1)
		}
		s := drawSwitch(b.random, b.demo.opts.Sites, b.owned)
		s.what = fmt.Sprintf("switch %d of %d%s", done+1, b.opts.Switches, left(time.Since(began), done, b.opts.Switches))
		if err := b.moveReady(ctx, s); err != nil {
			return err
		}
		if b.switches[len(b.switches)-1].err == nil {
			done++
		} else if err := b.lookWhoOwns(ctx); err != nil {
			return err
		}
	}
	b.switching[1] = time.Now()
	return nil
}

// drawSwitch picks a range of what a random owner has, and another site for it.
func drawSwitch(random *rand.Rand, sites []topo.SiteID, owned map[topo.SiteID][]topo.BucketID) switchRun {
	owners := slices.DeleteFunc(slices.Clone(sites), func(s topo.SiteID) bool { return len(owned[s]) == 0 })
	from := owners[random.IntN(len(owners))]
	others := slices.DeleteFunc(slices.Clone(sites), func(s topo.SiteID) bool { return s == from })
	has := slices.Sorted(slices.Values(owned[from]))
	first := random.IntN(len(has))
	n := 1 + random.IntN(min(mostPerSwitch, len(has)-first))
	return switchRun{phase: nominal, keyspace: users, buckets: topo.SpansOf(has[first : first+n]...), from: from, to: others[random.IntN(len(others))]}
}

// left says for a message how much longer it will take, by what was done so far.
func left(took time.Duration, done, of int) string {
	if done == 0 {
		return ""
	}
	return fmt.Sprintf(" (about %v left)", (took / time.Duration(done) * time.Duration(of-done)).Round(time.Second))
}

// lookWhoOwns asks the product who owns what, after something that did not go as it was meant to.
func (b *switchBench) lookWhoOwns(ctx context.Context) error {
	owners, err := b.d.owners(ctx, users)
	if err != nil {
		return err
	}
	homes, err := b.d.owners(ctx, catalog)
	if err != nil {
		return err
	}
	for _, site := range b.demo.opts.Sites {
		b.owned[site] = owners[site].Buckets()
		if homes[site].Len() > 0 {
			b.catalogAt = site
		}
	}
	return nil
}

// loseAround kills everything at a random owner at a random moment of its lease, again and again: each time another site
// takes over by itself, the lost one returns, all is settled, and its users go home.
func (b *switchBench) loseAround(ctx context.Context) error {
	began := time.Now()
	for n := range b.opts.Failovers {
		owners := slices.DeleteFunc(slices.Clone(b.demo.opts.Sites), func(s topo.SiteID) bool { return len(b.owned[s]) == 0 })
		lost, wait := owners[b.random.IntN(len(owners))], time.Duration(b.random.Int64N(int64(b.part.lease.Duration)))
		b.screen.say("failover %d of %d%s: %s", n+1, b.opts.Failovers, left(time.Since(began), n, b.opts.Failovers), lost)
		if err := b.loseOne(ctx, fmt.Sprintf("failover %d", n+1), lost, wait); err != nil {
			return err
		}
	}
	return nil
}

// loseOne loses a site once it has been well for the given time, and returns when all is well again.
func (b *switchBench) loseOne(ctx context.Context, name string, lost topo.SiteID, wait time.Duration) error {
	o, err := b.lose(ctx, name, lost)
	if err != nil || o.trigger != nil {
		return errors.Join(err, o.trigger)
	}
	if err := rest(ctx, wait); err != nil {
		return err
	}
	everything := b.d.LoseSite(lost)
	if err := b.kill(ctx, o, everything); err != nil {
		return err
	}
	if err := b.awaitTakeover(ctx, o); err != nil {
		return err
	}
	if err := rest(ctx, max(time.Until(o.killed.Add(downTime)), afterTakeover)); err != nil {
		return err
	}
	if err := b.comeHome(ctx, o, everything); err != nil {
		return err
	}
	if err := b.awaitWell(ctx, name); err != nil {
		return err
	}
	if o.settled.IsZero() && !o.seen.IsZero() {
		return fmt.Errorf("lab: %s: the tail of %s was not settled", name, lost)
	}
	return b.lookWhoOwns(ctx)
}

// awaitWell waits, bounded, until leases, links, handovers and tails are in order. What is not by then is told, and ends
// nothing: a busy machine may leave a site a second behind for as long as the load lasts.
func (b *switchBench) awaitWell(ctx context.Context, name string) error {
	bounded, cancel := context.WithTimeout(ctx, returnBound)
	defer cancel()
	var last string
	err := every(bounded, 300*time.Millisecond, func() (bool, error) {
		now := b.d.unsettled(bounded)
		if bounded.Err() == nil { // else it says only that the time was over
			last = now
		}
		return now == "", nil
	})
	if err != nil && ctx.Err() == nil {
		b.unwell = append(b.unwell, name+": "+last)
		b.screen.say("  %s", b.screen.paint(yellow, fmt.Sprintf("not well again after %v more: %s", returnBound, last)))
	}
	return ctx.Err()
}
