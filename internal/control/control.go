// Package control drives handovers, watches the other sites and takes over from one that is lost, and serves the
// operator API of an agent.
//
// The main type is [Controller]: it does what package handover's state machines ask for (store transactions, and
// steps at sites), feeds the answers back, and takes over handovers whose driver has died. [Hub] passes the ownership
// document on to gateways and knows what they act on. [Server] is the HTTP side of both.
//
// It guarantees that a handover that is in the store goes on as long as one controller reaches the store, and that a
// controller that was deposed writes nothing more to the record: every write compares its revision. It holds no state
// that another controller would need: the record is in the store, what happened at a site is in its database.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// Store is what the controller needs of the store.
type Store interface {
	Ownership(ctx context.Context) (topo.Ownership, store.Revision, error)
	Handover(ctx context.Context, id topo.HandoverID) (json.RawMessage, store.Revision, error)
	Handovers(ctx context.Context) ([]store.Handover, error)
	Lease(ctx context.Context, site topo.SiteID) (store.Lease, store.Revision, error)
	// Heard is when a watch told of the lease that was read last, at this revision.
	Heard(site topo.SiteID, rev store.Revision) (time.Time, bool)
	Commit(ctx context.Context, ch store.Change) (store.Revision, error)
}

// Site is what the controller needs of a site, its own or another one ([api.Client]). Errors that the controller
// decides on are *api.Error.
type Site interface {
	Ready(ctx context.Context, r api.ReadyRequest) (api.ReadyAnswer, error)
	Settled(ctx context.Context, r api.SettleRequest) (api.SettleAnswer, error)
	CloseBuckets(ctx context.Context, r api.CloseRequest) (api.CloseAnswer, error)
	CaughtUp(ctx context.Context, r api.CaughtUpRequest) (api.CaughtUpAnswer, error)
	Open(ctx context.Context, r api.OpenRequest) (api.OpenAnswer, error)
	Abort(ctx context.Context, r api.OpenRequest) (api.OpenAnswer, error)
	Halt(ctx context.Context, r api.HaltRequest) (api.HaltAnswer, error)
	Unhalt(ctx context.Context, r api.UnhaltRequest) (api.UnhaltAnswer, error)
}

// Config is what a controller works with.
type Config struct {
	Site        topo.SiteID
	Incarnation string // of the agent, new with each start
	Store       Store
	Sites       map[topo.SiteID]Site // every full site of the spec, this one included
	// Ownership is the newest document that is known; nil: none is. It must not block.
	Ownership func() (topo.Ownership, bool)
	// Lead has the store led by a site's member, and says which one led before; nil: its leader is left alone.
	Lead     func(context.Context, topo.SiteID) (topo.SiteID, error)
	Bounds   handover.Bounds
	Survivor Survivor        // nil: no other site is watched
	Failover handover.Policy // but for the sites and the driver
	Lease    time.Duration   // of sites; they are looked at every twelfth of it, a third as often while they renew
	Logger   *slog.Logger
}

// Controller drives handovers. It is safe for concurrent use.
type Controller struct {
	cfg  Config
	name string // "a/INCARNATION": what records name as their driver
	log  *slog.Logger

	mu struct {
		sync.Mutex
		run      context.Context // nil: Run is not active
		drivers  map[topo.HandoverID]*driver
		lookouts map[topo.SiteID]*lookout // nil: Run is not active, or nobody is watched
	}
	roused chan struct{}  // look for handovers without a driver now
	wg     sync.WaitGroup // drivers
}

// New makes a controller; it does nothing before Run.
func New(cfg Config) *Controller {
	c := &Controller{cfg: cfg, name: string(cfg.Site) + "/" + cfg.Incarnation, log: cfg.Logger, roused: make(chan struct{}, 1)}
	c.mu.drivers = map[topo.HandoverID]*driver{}
	return c
}

// Run accepts switches, takes over those whose driver has died, and watches the other sites, until ctx ends. Drivers end
// with it, wherever they are: another controller goes on.
func (c *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	c.mu.run = ctx
	c.mu.Unlock()
	var lookouts sync.WaitGroup
	c.keepWatch(ctx, &lookouts)
	defer func() {
		c.mu.Lock()
		c.mu.run, c.mu.lookouts = nil, nil
		c.mu.Unlock()
		cancel()
		lookouts.Wait() // before the drivers: it starts some
		c.wg.Wait()
	}()
	return c.watch(ctx)
}

// Switch starts a switch and waits until it is claimed or refused; with DryRun it stops there.
func (c *Controller) Switch(ctx context.Context, who string, r api.SwitchRequest) (api.SwitchAnswer, error) {
	o, _, err := c.cfg.Store.Ownership(ctx)
	if err != nil {
		return api.SwitchAnswer{}, unavailable("the ownership document", err)
	}
	p, ok := o.Keyspaces[r.Keyspace]
	if !ok {
		return api.SwitchAnswer{}, badRequest(fmt.Sprintf("keyspace %q does not exist", r.Keyspace), fmt.Sprintf("keyspaces: %v", slices.Sorted(maps.Keys(o.Keyspaces))))
	}
	buckets, err := topo.ParseSpans(r.Buckets, p.Buckets)
	if err != nil {
		return api.SwitchAnswer{}, badRequest(err.Error(), "")
	}
	if c.cfg.Sites[r.To] == nil {
		return api.SwitchAnswer{}, badRequest(fmt.Sprintf("site %q does not exist or has no database", r.To), fmt.Sprintf("sites: %v", c.sites()))
	}
	rec := handover.Record{ID: newID(), Driver: c.name, Who: who, Why: r.Why, Sites: c.sites(), Bounds: c.cfg.Bounds,
		Move: handover.Move{Keyspace: r.Keyspace, Buckets: buckets, To: r.To}}
	d := newDriver(c, rec.ID)
	state, todo := handover.Start(rec, r.DryRun, time.Now())
	if err := c.launch(d, state, todo); err != nil {
		return api.SwitchAnswer{}, err
	}
	rec, err = d.wait(ctx, func(r handover.Record) bool { return r.Phase != handover.Prepare || r.Over() })
	if err != nil {
		return api.SwitchAnswer{}, unavailable("the switch is being prepared; see atoll status", err)
	}
	if rec.Outcome == handover.OutcomeRefused {
		return api.SwitchAnswer{}, &api.Error{Status: 409, Code: api.CodeRefused, Message: "the switch is refused; nothing was changed", Problems: d.refusal(rec)}
	}
	return api.SwitchAnswer{ID: rec.ID, DryRun: r.DryRun, Handover: wire(rec)}, nil
}

// Handover reads one handover and waits, at most that long, until it is over.
func (c *Controller) Handover(ctx context.Context, id topo.HandoverID, wait time.Duration) (api.Handover, error) {
	ctx, cancel := context.WithTimeout(ctx, max(wait, 0)+3*time.Second)
	defer cancel()
	bound := time.NewTimer(wait)
	defer bound.Stop()
	look := time.NewTicker(250 * time.Millisecond) // for those that another controller drives
	defer look.Stop()
	for past := wait <= 0; ; {
		rec, changed, err := c.lookUp(ctx, id)
		if err != nil {
			return api.Handover{}, err
		}
		if rec.Over() || past {
			return wire(rec), nil
		}
		select {
		case <-changed: // nil, and never, where it is not ours
		case <-look.C:
		case <-bound.C:
			past = true
		case <-ctx.Done():
			return api.Handover{}, context.Cause(ctx)
		}
	}
}

func (c *Controller) lookUp(ctx context.Context, id topo.HandoverID) (handover.Record, <-chan struct{}, error) {
	c.mu.Lock()
	d := c.mu.drivers[id]
	c.mu.Unlock()
	if d != nil {
		rec, changed := d.record()
		return rec, changed, nil
	}
	if rec, changed, ok := c.underWay(id); ok {
		return rec, changed, nil
	}
	body, _, err := c.cfg.Store.Handover(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return handover.Record{}, nil, &api.Error{Status: 404, Code: api.CodeNotFound, Message: fmt.Sprintf("handover %s does not exist", id), Hint: "atoll status lists the last ones"}
	}
	if err != nil {
		return handover.Record{}, nil, unavailable("the handover's record", err)
	}
	rec, err := handover.DecodeRecord(body)
	return rec, nil, err
}

// Handovers lists the newest handovers.
func (c *Controller) Handovers(ctx context.Context, limit int) ([]api.Handover, error) {
	all, err := c.cfg.Store.Handovers(ctx)
	if err != nil {
		return nil, unavailable("the list of handovers", err)
	}
	out := make([]api.Handover, 0, min(limit, len(all)))
	for _, h := range all[:min(limit, len(all))] {
		rec, err := handover.DecodeRecord(h.Body)
		if err != nil { // one that a newer version wrote must not hide the others
			out = append(out, api.Handover{ID: h.ID, Reasons: []string{err.Error()}})
			continue
		}
		out = append(out, wire(rec))
	}
	return out, nil
}

// document is the newest that is known; zero before the first.
func (c *Controller) document() (o topo.Ownership) {
	if c.cfg.Ownership != nil {
		o, _ = c.cfg.Ownership()
	}
	return o
}

// sites are those of the spec that take part, joining or not.
func (c *Controller) sites() []topo.SiteID {
	o := c.document()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(c.cfg.Sites)), func(s topo.SiteID) bool { return !o.Takes(s) })
}

// launch starts a driver. Whoever ends Run joins it.
func (c *Controller) launch(d *driver, state handover.State, todo []handover.Action) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.run == nil || c.mu.run.Err() != nil {
		return &api.Error{Status: 503, Code: api.CodeUnavailable, Message: "this agent is stopping or not active", Hint: "ask another site's agent"}
	}
	ctx := c.mu.run
	c.mu.drivers[d.id] = d
	d.publish(state)
	c.wg.Go(func() {
		err := d.run(ctx, state, todo)
		c.mu.Lock()
		delete(c.mu.drivers, d.id)
		c.mu.Unlock()
		d.ended(err)
	})
	return nil
}

func (c *Controller) drives(id topo.HandoverID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.drivers[id] != nil
}

// newID makes an id that sorts by start time.
func newID() topo.HandoverID {
	return topo.HandoverID(fmt.Sprintf("%s-%04x", time.Now().UTC().Format("20060102-150405.000"), rand.N(1<<16)))
}

func badRequest(message, hint string) error {
	return &api.Error{Status: 400, Code: api.CodeBadRequest, Message: message, Hint: hint}
}

func unavailable(what string, err error) error {
	var coded *api.Error
	if errors.As(err, &coded) {
		return coded
	}
	return &api.Error{Status: 503, Code: api.CodeUnavailable, Message: what + ": " + err.Error()}
}
