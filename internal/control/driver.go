package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/topo"
)

// errDeposed ends a driver whose record another controller has taken over.
var errDeposed = errors.New("another controller drives this handover")

// driver drives one handover: being its driver is being inside run.
type driver struct {
	c      *Controller
	id     topo.HandoverID
	ledger ledger
	events chan handover.Event
	jobs   chan job    // for the ledger, one after the other
	saving atomic.Bool // a save is queued or under way

	mu struct {
		sync.Mutex
		state    handover.State
		problems []handover.Problem // of the last refusal
		changed  chan struct{}      // closed and replaced at each change
		end      error
		over     bool // run has returned
	}
}

// job is a store action and the state that asked for it.
type job struct {
	action handover.Action
	state  handover.State
}

func newDriver(c *Controller, id topo.HandoverID) *driver {
	d := &driver{c: c, id: id, events: make(chan handover.Event), jobs: make(chan job, 8)}
	d.ledger = ledger{store: c.cfg.Store, driver: c.name, id: id}
	d.mu.changed = make(chan struct{})
	return d
}

// run feeds the machine until the handover is over, the driver is deposed, or ctx ends. It leaves nothing running: the
// actions under way are cancelled, then joined.
func (d *driver) run(ctx context.Context, state handover.State, todo []handover.Action) error {
	ctx, stop := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait() // second: joins the ledger's worker and the actions at sites
	defer stop(nil) // first
	wg.Go(func() { d.work(ctx, stop) })
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	phase := state.Record.Phase
	d.log(state, "handover begins")
	for {
		for _, a := range todo {
			d.start(ctx, &wg, a, state)
		}
		if state.Over() {
			return nil
		}
		wake.Stop()
		var ring <-chan time.Time
		if at := state.Wake(); !at.IsZero() {
			wake.Reset(time.Until(at))
			ring = wake.C
		}
		var ev handover.Event
		select {
		case ev = <-d.events:
		case <-ring:
			ev = handover.Tick{}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if refused, ok := ev.(handover.Refused); ok {
			d.mu.Lock()
			d.mu.problems = refused.Problems
			d.mu.Unlock()
		}
		state, todo = handover.Next(state, ev, time.Now())
		d.publish(state)
		if state.Record.Phase != phase {
			phase = state.Record.Phase
			d.log(state, "handover "+string(phase))
		}
	}
}

// start begins an action; its answer comes as an event. Store actions go to one worker, in order: the record's
// revision is one chain. Actions at sites run side by side.
func (d *driver) start(ctx context.Context, wg *sync.WaitGroup, a handover.Action, state handover.State) {
	switch a.Do {
	case handover.Check, handover.Claim, handover.Commit, handover.Abort, handover.Reread, handover.Save:
		if a.Do == handover.Save && !d.saving.CompareAndSwap(false, true) {
			wg.Go(func() { d.send(ctx, handover.Failed{Do: handover.Save, Text: "a save is under way"}) })
			return
		}
		d.jobs <- job{a, state} // never full: one decision, one save
	default:
		wg.Go(func() { d.send(ctx, d.atSite(ctx, a, state.Record)) })
	}
}

func (d *driver) send(ctx context.Context, ev handover.Event) {
	select {
	case d.events <- ev:
	case <-ctx.Done():
	}
}

// work does store actions until ctx ends; it stops the driver when the record is another controller's.
func (d *driver) work(ctx context.Context, stop context.CancelCauseFunc) {
	for {
		var j job
		select {
		case j = <-d.jobs:
		case <-ctx.Done():
			return
		}
		ev, err := d.ledgerAction(ctx, j)
		if j.action.Do == handover.Save {
			d.saving.Store(false)
		}
		if err != nil {
			stop(err)
			return
		}
		d.send(ctx, ev)
	}
}

func (d *driver) ledgerAction(ctx context.Context, j job) (handover.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, storeBound)
	defer cancel()
	switch j.action.Do {
	case handover.Check:
		return d.check(ctx, j.state), nil
	case handover.Reread:
		return d.ledger.reread(ctx)
	case handover.Save:
		return d.ledger.save(ctx, j.state)
	default:
		return d.ledger.decide(ctx, j.action.Do, j.state), nil
	}
}

// check asks the sites concerned, side by side, whether the switch may start.
func (d *driver) check(ctx context.Context, s handover.State) handover.Event {
	if err := d.ledger.readOwnership(ctx); err != nil {
		return handover.Failed{Do: handover.Check, Text: "the store: " + err.Error()}
	}
	move, problems := handover.Plan(d.ledger.owners, s.Record.Move)
	facts := map[string]string{"version": fmt.Sprint(d.ledger.owners.Version)}
	if move.From == "" || move.From == move.To {
		return handover.Refused{Problems: problems}
	}
	request := api.ReadyRequest{Keyspace: move.Keyspace, Buckets: move.Epochs, From: move.From, To: move.To, MaxLagMS: s.Record.Bounds.MaxLagMS}
	type reply struct {
		answer api.ReadyAnswer
		err    error
	}
	sites := s.Record.Sites
	replies := make([]reply, len(sites))
	var wg sync.WaitGroup
	for i, site := range sites {
		wg.Go(func() {
			ask, cancel := context.WithTimeout(ctx, readyBound)
			defer cancel()
			r := &replies[i]
			if r.answer, r.err = d.c.cfg.Sites[site].Ready(ask, request); r.err != nil { // a connection may have died in silence
				r.answer, r.err = d.c.cfg.Sites[site].Ready(ask, request)
			}
		})
	}
	wg.Wait()
	absent := 0
	for i, site := range sites {
		r := replies[i]
		for k, v := range r.answer.Facts {
			facts[k] = v
		}
		for _, p := range r.answer.Problems {
			problems = append(problems, handover.Problem(p))
		}
		switch {
		case r.err == nil:
		case site == move.From || site == move.To:
			problems = append(problems, handover.Problem{Check: "agent", Site: site, Text: r.err.Error(), Hint: "start the agent, or heal the path to it"})
		default: // it only forwards
			absent++
			facts["agent of "+string(site)] = r.err.Error()
		}
	}
	if len(problems) > 0 {
		return handover.Refused{Problems: problems}
	}
	if d.c.cfg.Lead != nil && !s.DryRun {
		facts["store leader"] = d.lead(ctx, absent)
	}
	return handover.Ready{Move: move, Facts: facts}
}

// lead has the store led by this site's member, before the pause begins: the commit, within it, then takes one round trip
// instead of two. For a moment the store takes nothing new, so it is left alone while anything else is under way or a
// site is away. The switch does not depend on it.
func (d *driver) lead(ctx context.Context, absent int) string {
	site := d.c.cfg.Site
	if absent > 0 || d.ledger.owners.Busy() {
		return "stays: another handover is under way or not settled, or a site does not answer"
	}
	switch was, err := d.c.cfg.Lead(ctx, site); {
	case err != nil:
		return err.Error()
	case was == site:
		return string(site)
	default:
		return fmt.Sprintf("%s, before %s", site, was)
	}
}

func (d *driver) publish(s handover.State) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.state = s
	d.changedLocked()
}

func (d *driver) ended(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.over, d.mu.end = true, err
	d.changedLocked()
	if err != nil {
		d.c.log.Warn("handover is left to another controller", "handover", d.id, "phase", d.mu.state.Record.Phase, "cause", err)
	}
}

func (d *driver) changedLocked() {
	close(d.mu.changed)
	d.mu.changed = make(chan struct{})
}

func (d *driver) record() (handover.Record, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.state.Record, d.mu.changed
}

// wait blocks until the record is as wanted, or the driver has ended.
func (d *driver) wait(ctx context.Context, want func(handover.Record) bool) (handover.Record, error) {
	for {
		d.mu.Lock()
		r, changed, over, err := d.mu.state.Record, d.mu.changed, d.mu.over, d.mu.end
		d.mu.Unlock()
		switch {
		case want(r):
			return r, nil
		case over:
			return r, fmt.Errorf("the controller stopped: %w", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return r, context.Cause(ctx)
		}
	}
}

func (d *driver) refusal(r handover.Record) []api.Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []api.Problem
	for _, p := range d.mu.problems {
		out = append(out, api.Problem(p))
	}
	if len(out) == 0 {
		for _, reason := range r.Reasons {
			out = append(out, api.Problem{Check: "prepare", Text: reason})
		}
	}
	return out
}

func (d *driver) log(s handover.State, msg string) {
	r := s.Record
	attrs := []any{"handover", r.ID, "keyspace", r.Move.Keyspace, "buckets", r.Move.Buckets.String(), "from", r.Move.From, "to", r.Move.To,
		"phase", r.Phase, "unix_us", time.Now().UnixMicro()}
	if len(r.Reasons) > 0 {
		attrs = append(attrs, "reasons", r.Reasons)
	}
	d.c.log.Info(msg, attrs...)
}
