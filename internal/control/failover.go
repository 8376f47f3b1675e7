package control

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// Survivor is what a failover needs of this site's own database and links.
type Survivor interface {
	// Standing says what this site knows of another one, and how fit it is to take over from it.
	Standing(ctx context.Context, of topo.SiteID) (api.Standing, error)
	// CatchUp waits until this site has applied the other one's changes as far as another survivor has, from which they are
	// taken.
	CatchUp(ctx context.Context, of, from topo.SiteID, position uint64) error
}

const (
	historySize = 50 // changes of mind that are remembered per site
	auditSize   = 64 // audit lines that wait for the store
)

// lookout watches one other site: being its observer is being inside run.
type lookout struct {
	c      *Controller
	of     topo.SiteID
	policy handover.Policy
	events chan handover.Event
	orders chan order
	pleas  chan plea
	nudge  chan struct{} // look now
	audits chan string
	eyes   eyes // the looker's goroutine only

	mu struct {
		sync.Mutex
		state    handover.Lookout
		standing api.Standing
		history  []api.Happening // newest first
		changed  chan struct{}   // closed and replaced at each event
		lease    store.Lease     // of the last look
		leaseRev store.Revision
		landed   *ledger       // of the last takeover that the store answered
		asked    []topo.SiteID // to halt, for the takeover under way
	}
}

// order is an operator's, with where to say what became of it.
type order struct {
	handover.Order
	reply chan handover.Lookout
}

func newLookout(c *Controller, of topo.SiteID) *lookout {
	l := &lookout{c: c, of: of, policy: c.cfg.Failover, events: make(chan handover.Event), orders: make(chan order), pleas: make(chan plea), nudge: make(chan struct{}, 1),
		audits: make(chan string, auditSize)}
	l.policy.Lost, l.policy.Taker, l.policy.Driver = of, c.cfg.Site, c.name
	l.mu.state = handover.NewLookout(l.policy, time.Now())
	l.mu.changed = make(chan struct{})
	return l
}

// run feeds the machine until ctx ends. It leaves nothing running: what is under way is cancelled, then joined; a
// failover in the middle is found by the next run in the database and in the store.
func (l *lookout) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait() // second: joins the looker, the audit and the action under way
	defer cancel()  // first
	wg.Go(func() { l.keepLooking(ctx) })
	wg.Go(func() { l.writeAudit(ctx) })
	state, _ := l.snapshot()
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	for {
		wake.Stop()
		var ring <-chan time.Time
		if at := state.Wake(); !at.IsZero() {
			wake.Reset(time.Until(at))
			ring = wake.C
		}
		var ev handover.Event
		var from order
		select {
		case ev = <-l.events:
		case from = <-l.orders:
			ev = from.Order
		case <-ring:
			ev = handover.Tick{}
		case p := <-l.pleas:
			var answer handover.Pledge
			state, answer = state.Promise(p.Plea, time.Now())
			l.publish(state, nil) // before the asking site counts on it
			p.reply <- answer     // has room
			continue
		case <-ctx.Done():
			return
		}
		stage, lost := state.Stage, l.isLost(state)
		var todo []handover.Action
		state, todo = handover.Observe(state, ev, time.Now())
		l.publish(state, todo)
		if from.reply != nil {
			from.reply <- state // has room
		}
		if state.Stage != stage {
			l.c.log.Info("lookout "+string(state.Stage), "lost", l.of, "was", stage, "failover", state.Record.ID, "unix_us", time.Now().UnixMicro())
		}
		for _, a := range todo {
			l.start(ctx, &wg, a, state)
		}
		if !lost && l.isLost(state) {
			l.c.rouse()
		}
	}
}

// isLost tells whether handovers that the site drives, or that need it, have to go on without it.
func (l *lookout) isLost(s handover.Lookout) bool {
	return s.Lease.Revoked || s.RunOut(time.Now())
}

func (l *lookout) snapshot() (handover.Lookout, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.state, l.mu.changed
}

// publish makes the state known, and what it has to say.
func (l *lookout) publish(s handover.Lookout, todo []handover.Action) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.state = s
	for _, a := range todo {
		if a.Do == handover.Say || a.Do == handover.Audit {
			l.mu.history = slices.Insert(l.mu.history, 0, api.Happening{At: time.Now().UTC(), Text: a.Text})
		}
	}
	l.mu.history = l.mu.history[:min(len(l.mu.history), historySize)]
	close(l.mu.changed)
	l.mu.changed = make(chan struct{})
}

// start begins an action. The machine has at most one under way besides what has no answer.
func (l *lookout) start(ctx context.Context, wg *sync.WaitGroup, a handover.Action, s handover.Lookout) {
	switch a.Do {
	case handover.Look:
		l.look()
	case handover.Say:
		l.c.log.Info(a.Text, "lost", l.of)
	case handover.Audit:
		l.c.log.Warn(a.Text, "lost", l.of)
		l.audit(a.Text)
	case handover.Drive:
		wg.Go(func() { l.drive(ctx, s.Record) })
	default:
		wg.Go(func() { l.send(ctx, l.act(ctx, a, s)) })
	}
}

func (l *lookout) send(ctx context.Context, ev handover.Event) {
	select {
	case l.events <- ev:
	case <-ctx.Done():
	}
}

// look asks for a look at once.
func (l *lookout) look() {
	select {
	case l.nudge <- struct{}{}:
	default:
	}
}

// act does one action. A failure, whatever it is, is an event: the machine knows what to do.
func (l *lookout) act(ctx context.Context, a handover.Action, s handover.Lookout) handover.Event {
	bound := storeBound
	if a.Bound > 0 {
		bound = a.Bound
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	failed := func(err error) handover.Event { return handover.Failed{Do: a.Do, Site: l.of, Text: err.Error()} }
	id := s.Record.ID
	switch a.Do {
	case handover.Halt:
		halted, err := l.halt(ctx, s)
		if err != nil {
			return failed(err)
		}
		return halted
	case handover.Unhalt:
		if err := l.unhalt(ctx, id); err != nil {
			return failed(err)
		}
		return handover.Unhalted{}
	case handover.Take:
		return l.take(ctx, s)
	case handover.Reread:
		rec, _, err := l.record(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			return handover.Observed{}
		}
		if err != nil {
			return failed(err)
		}
		return handover.Observed{Exists: true, Record: rec}
	case handover.GiveUp:
		_, err := l.c.cfg.Store.Commit(ctx, store.Change{Handover: &store.HandoverChange{ID: id, Expect: 0, Body: s.Record.Encode()}, Audit: audit(s.Record)})
		switch {
		case err == nil:
			return handover.GivenUp{}
		case errors.Is(err, store.ErrConflict):
			return handover.Conflict{Do: handover.GiveUp}
		}
		return failed(err)
	}
	panic("BUG: no lookout does " + string(a.Do))
}

func (l *lookout) record(ctx context.Context, id topo.HandoverID) (handover.Record, store.Revision, error) {
	body, rev, err := l.c.cfg.Store.Handover(ctx, id)
	if err != nil {
		return handover.Record{}, 0, err
	}
	rec, err := handover.DecodeRecord(body)
	return rec, rev, err
}

// drive has a failover that stands driven to its end: by this controller if it took it just now, or if whoever did is
// gone. One that another controller drives and that stands still is found by the watch.
func (l *lookout) drive(ctx context.Context, rec handover.Record) {
	if l.c.drives(rec.ID) {
		return
	}
	l.mu.Lock()
	landed := l.mu.landed
	l.mu.Unlock()
	if landed != nil && landed.id == rec.ID {
		d := newDriver(l.c, rec.ID)
		d.ledger.rev, d.ledger.written = landed.rev, landed.written
		d.ledger.learn(landed.owners, landed.ownersRev)
		state, todo := handover.Finish(rec, time.Now())
		if err := l.c.launch(d, state, todo); err != nil {
			l.c.log.Warn("failover is left to another controller", "handover", rec.ID, "error", err)
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeBound)
	defer cancel()
	rec, rev, err := l.record(ctx, rec.ID)
	if err != nil {
		l.c.log.Warn("failover cannot be read; the watch of handovers finds it", "handover", rec.ID, "error", err)
		return
	}
	if !rec.Over() {
		l.c.takeOver(ctx, rec, rev)
	}
}

// audit queues a line; the store may be away, and nothing waits for it.
func (l *lookout) audit(text string) {
	select {
	case l.audits <- text:
	default:
		l.c.log.Warn("audit line dropped: too many wait for the store", "text", text)
	}
}

// writeAudit writes what is queued, however long the store is away, until ctx ends. A lost answer may write a line twice.
func (l *lookout) writeAudit(ctx context.Context) {
	for {
		select {
		case text := <-l.audits:
			for ctx.Err() == nil && l.c.writeAudit(ctx, text) != nil {
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

func (c *Controller) writeAudit(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, storeBound)
	defer cancel()
	_, err := c.cfg.Store.Commit(ctx, store.Change{Audit: text})
	return err
}

// lost tells whether a site's lease has run out as this controller sees it.
func (c *Controller) lost(site topo.SiteID) bool {
	l := c.lookout(site)
	if l == nil {
		return false
	}
	s, _ := l.snapshot()
	return l.isLost(s)
}

// holds tells whether this site's lease is this agent's, as of the last look.
func (c *Controller) holds() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.mu.lookouts {
		if s, _ := l.snapshot(); s.Facts.OwnLease {
			return true
		}
	}
	return false
}

func (c *Controller) lookout(site topo.SiteID) *lookout {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.lookouts[site]
}

// keepWatch starts a lookout for every other full site; the caller joins them.
func (c *Controller) keepWatch(ctx context.Context, wg *sync.WaitGroup) {
	if c.cfg.Survivor == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.lookouts = map[topo.SiteID]*lookout{}
	for site := range c.cfg.Sites {
		if site == c.cfg.Site {
			continue
		}
		l := newLookout(c, site)
		c.mu.lookouts[site] = l
		wg.Go(func() { l.run(ctx) })
	}
}

// underWay finds a failover that is not in the store yet.
func (c *Controller) underWay(id topo.HandoverID) (handover.Record, <-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.mu.lookouts {
		if s, changed := l.snapshot(); s.UnderWay() && s.Record.ID == id {
			return s.Record, changed, true
		}
	}
	return handover.Record{}, nil, false
}
