package model

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/control"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/lease"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// simSite is a site: its database, and at most one agent. It is changed with the simulation locked.
type simSite struct {
	id    int
	db    *simDB
	agent *simAgent // nil: none runs
	runs  int       // of agents so far

	storeCut bool
	loss     int // per cent of calls to the store that are not answered
	dbLoss   int // and to the database
}

// simAgent is one run of a site's agent: the real keeper and the real controller, wired as internal/agent does it.
type simAgent struct {
	sim        *simulation
	site       *simSite
	p          *process
	name       string
	store      storeClient
	fence      *simFence
	keeper     *lease.Keeper
	controller *control.Controller
	stop       context.CancelFunc
	ended      chan struct{}
}

// startAgent runs an agent until it is stopped. The simulation is not locked.
func (s *simulation) startAgent(at int) {
	site := s.site[at]
	s.mu.Lock()
	if site.agent != nil || s.ending {
		s.mu.Unlock()
		return
	}
	site.runs++
	a := &simAgent{sim: s, site: site, p: &process{}, name: fmt.Sprint(site.runs), ended: make(chan struct{})}
	site.agent = a
	s.mu.Unlock()

	path := func(to string, cut func() bool, loss func() int) *way {
		return &way{sim: s, p: a.p, random: newSource(s.seed, fmt.Sprintf("%s/%s to %s", siteID(at), a.name, to)), cut: cut, loss: loss}
	}
	never, no := func() bool { return false }, func() int { return 0 }
	a.store = storeClient{path("store", func() bool { return site.storeCut || s.storeDown }, func() int { return site.loss }), make(chan struct{}, 1)}
	s.do(func() { s.store.watch = append(s.store.watch, a.store.watched) })
	voids := 0
	s.do(func() { voids = site.db.voids })
	a.fence = &simFence{way: path("database", never, func() int { return site.dbLoss }), d: site.db, seen: voids}
	cfg := lease.Config{Site: siteID(at), Store: a.store, Fence: a.fence, Duration: simD, W: simW, Incarnation: fmt.Sprintf("%s-%s", siteID(at), a.name)}
	if site.runs > 1 {
		cfg.Previous = fmt.Sprintf("%s-%d", siteID(at), site.runs-1)
	}
	keeper, err := lease.New(cfg)
	if err != nil {
		panic(err)
	}
	a.keeper = keeper
	sites := map[topo.SiteID]control.Site{siteID(at): siteClient{path("itself", never, no), at}}
	sites[siteID(other(at))] = siteClient{path("the other agent", func() bool { return s.agentsCut }, no), other(at)}
	w := simW
	if s.plant == GapIgnored {
		w = 0
	}
	a.controller = control.New(control.Config{Site: siteID(at), Incarnation: a.name, Store: a.store, Sites: sites, Survivor: a, Lease: simD,
		Bounds:   handover.Bounds{MaxLagMS: 1000, DrainMS: 1000, FenceMS: 5000, CatchMS: 10_000},
		Failover: handover.Policy{Mode: handover.ModeAutomatic, W: w, MaxLoss: time.Hour, VetoBound: time.Second, PerHour: 1 << 20},
		Logger:   slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	go func() {
		defer close(a.ended)
		_ = keeper.Run(ctx, a.active) // ends with ctx
	}()
}

// active is what the agent does while it has the site's lease.
func (a *simAgent) active(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = a.controller.Run(ctx) })
	wg.Go(func() { a.watch(ctx) })
	wg.Go(func() { a.apply(ctx) })
	wg.Go(func() { a.rejoin(ctx) })
	<-ctx.Done()
	return ctx.Err()
}

// kill ends an agent without a word to anybody.
func (s *simulation) kill(at int) {
	s.mu.Lock()
	a := s.site[at].agent
	s.mu.Unlock()
	if a == nil {
		return
	}
	s.thaw(at)
	a.p.mu.Lock()
	a.p.dead = true
	a.p.mu.Unlock()
	a.stop()
	<-a.ended
	s.do(func() { s.site[at].agent = nil })
}

func (s *simulation) freeze(at int) {
	s.mu.Lock()
	a := s.site[at].agent
	s.mu.Unlock()
	if a == nil {
		return
	}
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	if a.p.frozen == nil && !a.p.dead {
		a.p.frozen = make(chan struct{})
	}
}

func (s *simulation) thaw(at int) {
	s.mu.Lock()
	a := s.site[at].agent
	s.mu.Unlock()
	if a == nil {
		return
	}
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	if a.p.frozen != nil {
		close(a.p.frozen)
		a.p.frozen = nil
	}
}

func (a *simAgent) acts() bool {
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	return !a.p.dead && a.p.frozen == nil
}

// watch reads the ownership at every hint and every two seconds.
func (a *simAgent) watch(ctx context.Context) {
	for ctx.Err() == nil {
		if o, _, err := a.store.Ownership(within(ctx, 3*time.Second)); err == nil {
			_ = a.keeper.Observe(within(ctx, simD), o)
		}
		timer := time.NewTimer(2 * time.Second)
		select {
		case <-a.store.watched:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func within(ctx context.Context, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(ctx, d)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// apply applies the other site's changes, one by one.
func (a *simAgent) apply(ctx context.Context) {
	d, from := a.site.db, a.sim.site[other(a.site.id)]
	for ctx.Err() == nil {
		var mine *simApply
		a.sim.do(func() {
			there := from.agent
			if d.runs() && from.db.runs() && !a.sim.linkCut && a.acts() && there != nil && there.acts() && d.busy == nil && d.halted == "" && d.done < len(from.db.log) {
				it := from.db.log[d.done]
				c, cut := d.cuts[it.bucket]
				mine = &simApply{stale: it.kind == write && cut && c.From == siteID(from.id) && c.Epoch >= it.epoch && uint64(d.done) >= c.Position && a.sim.plant != EpochIgnored}
				d.busy = mine
			}
		})
		if mine == nil {
			timer := time.NewTimer(time.Second)
			select {
			case <-from.db.changed:
			case <-timer.C:
			case <-ctx.Done():
			}
			timer.Stop()
			continue
		}
		long := a.fence.random.between(200*time.Microsecond, 3*time.Millisecond)
		if a.fence.random.chance(2) {
			long = a.fence.random.between(0, time.Second)
		}
		time.Sleep(long)
		a.sim.do(func() {
			if d.busy == mine {
				a.sim.checkApply(d, from.db.log[d.done], mine.stale)
				d.busy = nil
				d.done++
			}
		})
	}
}

// rejoin closes for good what was taken over from this site, and settles the other's tail when it is here.
func (a *simAgent) rejoin(ctx context.Context) {
	d, from := a.site.db, a.sim.site[other(a.site.id)].db
	for ctx.Err() == nil {
		_ = pause(ctx, 700*time.Millisecond)
		lost := func(o topo.Ownership, site int) (id topo.HandoverID, ranges []topo.Range) {
			for _, c := range o.Cuts() {
				if c.Range.Cut.From == siteID(site) && (id == "" || id == c.Range.Cut.Handover) {
					id = c.Range.Cut.Handover
					ranges = append(ranges, c.Range)
				}
			}
			return id, ranges
		}
		if o := a.keeper.Ownership(); o.Version != 0 {
			if id, ranges := lost(o, a.site.id); id != "" {
				_ = a.fence.ask(within(ctx, time.Second), func() error { d.closeForGood(id, ranges); return nil })
			}
		}
		o, rev, err := a.store.Ownership(within(ctx, time.Second))
		if err != nil {
			continue
		}
		id, _ := lost(o, other(a.site.id))
		if id == "" {
			continue
		}
		whole := false
		a.sim.do(func() { end := from.marker(id); whole = end >= 0 && d.done > end })
		if next, err := o.Settle(id, true); whole && err == nil {
			_, _ = a.store.Commit(within(ctx, time.Second), store.Change{Ownership: &store.OwnershipChange{Expect: rev, Next: next}})
		}
	}
}

// closeForGood waits for no writer: the lease has run out, and they are ended.
func (d *simDB) closeForGood(id topo.HandoverID, ranges []topo.Range) {
	if d.marker(id) >= 0 || len(d.tx) > 0 {
		return
	}
	for _, r := range ranges {
		for b := r.First; b <= r.Last; b++ {
			if row := d.row[b]; row.Epoch <= r.Cut.Epoch {
				delete(d.bits, b)
				delete(d.closing, b)
				row.Bucket, row.Epoch, row.State, row.Handover = b, r.Cut.Epoch, "closed", id
				d.row[b] = row
			}
			d.append(simItem{closed, b, r.Cut.Epoch, id})
		}
	}
	d.hint()
}

// Standing and CatchUp are control.Survivor.
func (a *simAgent) Standing(_ context.Context, of topo.SiteID) (api.Standing, error) {
	st := api.Standing{Site: siteID(a.site.id), Of: of, Known: true, HeardMS: -1, WroteMS: -1}
	_, st.Lease = a.keeper.Deadline()
	a.sim.do(func() {
		st.Halted = a.site.db.halted
		if !a.site.db.runs() {
			st.Problem = "the database is away"
		}
	})
	return st, nil
}

// CatchUp has nothing to wait for: of two sites there is no other survivor.
func (a *simAgent) CatchUp(context.Context, topo.SiteID, topo.SiteID, uint64) error { return nil }

func (a *simAgent) halt(ctx context.Context, id topo.HandoverID) (uint64, error) {
	if _, live := a.keeper.Deadline(); !live {
		return 0, errors.New("not active")
	}
	var position uint64
	err := a.fence.locking(ctx, func() error {
		d := a.site.db
		for _, c := range d.cuts {
			if c.Handover == id {
				position = c.Position
				return nil
			}
		}
		if position = uint64(d.done); a.sim.plant == OpenBeforeApplierIdle {
			return nil
		}
		if d.halted != "" && d.halted != id {
			return errors.New("halted by another failover")
		}
		d.halted = id
		return nil
	})
	if err != nil {
		return 0, err
	}
	return position, nil
}

func (a *simAgent) unhalt(ctx context.Context, id topo.HandoverID) error {
	return a.fence.ask(ctx, func() error {
		if a.site.db.halted == id {
			a.site.db.halted = ""
			a.sim.site[other(a.site.id)].db.hint()
		}
		return nil
	})
}

// siteClient asks the agent of a site, from another process or the same. It satisfies control.Site.
type siteClient struct {
	*way
	at int
}

// there is the agent that answers, if one does and its lease is in force.
func (c siteClient) there(ctx context.Context) (*simAgent, error) {
	var a *simAgent
	if err := c.call(ctx, func() { a = c.sim.site[c.at].agent }); err != nil {
		return nil, err
	}
	if a == nil {
		return nil, errors.New("connection refused")
	}
	if err := a.p.held(ctx); err != nil {
		return nil, err
	}
	if _, live := a.keeper.Deadline(); !live {
		return nil, &api.Error{Status: 503, Code: api.CodeUnavailable, Message: "the lease is not in force"}
	}
	return a, nil
}

// Halt and Unhalt are asked of this site itself; the agent need not have the lease for the second.
func (c siteClient) Halt(ctx context.Context, r api.HaltRequest) (api.HaltAnswer, error) {
	a, err := c.there(ctx)
	if err != nil {
		return api.HaltAnswer{}, err
	}
	at, err := a.halt(ctx, r.Handover)
	return api.HaltAnswer{Position: at}, err
}

func (c siteClient) Unhalt(ctx context.Context, r api.UnhaltRequest) (api.UnhaltAnswer, error) {
	var a *simAgent
	if err := c.call(ctx, func() { a = c.sim.site[c.at].agent }); err != nil {
		return api.UnhaltAnswer{}, err
	}
	if a == nil {
		return api.UnhaltAnswer{}, errors.New("connection refused")
	}
	return api.UnhaltAnswer{}, a.unhalt(ctx, r.Handover)
}

func (c siteClient) Ready(ctx context.Context, r api.ReadyRequest) (api.ReadyAnswer, error) {
	a, err := c.there(ctx)
	if err != nil {
		return api.ReadyAnswer{}, err
	}
	var out api.ReadyAnswer
	err = a.fence.ask(ctx, func() error {
		for _, sp := range r.Buckets {
			for b := sp.First; b <= sp.Last; b++ {
				if row := a.site.db.row[b]; r.From == siteID(c.at) && (!a.site.db.bits[b] || row.Epoch != sp.Epoch || row.State != "open") {
					out.Problems = append(out.Problems, api.Problem{Check: "fence-open", Text: "not as the store says"})
				}
			}
		}
		return nil
	})
	if err != nil {
		return api.ReadyAnswer{}, err
	}
	return out, nil
}

func (c siteClient) Settled(ctx context.Context, _ api.SettleRequest) (api.SettleAnswer, error) {
	_, err := c.there(ctx)
	return api.SettleAnswer{}, err
}

func (c siteClient) CloseBuckets(ctx context.Context, r api.CloseRequest) (api.CloseAnswer, error) {
	a, err := c.there(ctx)
	if err != nil {
		return api.CloseAnswer{}, err
	}
	return a.closeBuckets(ctx, r)
}

func stale() error { return &api.Error{Status: 409, Code: api.CodeStale, Message: "stale"} }

func (a *simAgent) closeBuckets(ctx context.Context, r api.CloseRequest) (api.CloseAnswer, error) {
	d := a.site.db
	answer := api.CloseAnswer{Marker: change.Marker{Kind: change.MarkerClosed, Site: siteID(a.site.id), Handover: r.Handover, Keyspace: r.Keyspace, Buckets: r.Buckets, Vector: topo.Vector{}}}
	var left map[*simTx]bool
	var attempt int
	done := false
	err := a.fence.ask(ctx, func() (err error) { done, attempt, err = d.beginClose(r); return err })
	if err != nil || done {
		return answer, err
	}
	if err := a.fence.ask(ctx, func() error { left = d.writers(r); return nil }); err != nil {
		return answer, err
	}
	if a.sim.plant == WaitOutRemoved {
		left = nil
	}
	for end := time.Now().Add(time.Duration(r.BoundMS) * time.Millisecond); len(left) > 0; {
		if time.Now().After(end) {
			if err := a.fence.ask(ctx, func() error { d.abandonClose(a.sim, r.Handover); return nil }); err != nil {
				return answer, err
			}
			return answer, &api.Error{Status: 409, Code: api.CodeWritersRemain, Message: "a transaction"}
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return answer, err
		}
		if err := a.fence.ask(ctx, func() error {
			for t := range left {
				if !d.tx[t] {
					delete(left, t)
				}
			}
			return nil
		}); err != nil {
			return answer, err
		}
	}
	return answer, a.fence.ask(ctx, func() error { return d.finishClose(a.sim, r, attempt) })
}

func each(spans []topo.EpochSpan, f func(topo.BucketID, topo.Epoch)) {
	for _, sp := range spans {
		for b := sp.First; b <= sp.Last; b++ {
			f(b, sp.Epoch)
		}
	}
}

func (d *simDB) beginClose(r api.CloseRequest) (done bool, attempt int, err error) {
	if d.marker(r.Handover) >= 0 {
		return true, 0, nil
	}
	each(r.Buckets, func(b topo.BucketID, e topo.Epoch) {
		row, c := d.row[b], d.closing[b]
		if row.Epoch > e || row.Epoch == e && row.State == "closed" || c.epoch >= e && c.handover != r.Handover {
			err = stale()
		}
	})
	if err != nil {
		return false, 0, err
	}
	joined := true
	each(r.Buckets, func(b topo.BucketID, e topo.Epoch) {
		if c := d.closing[b]; c.handover != r.Handover || c.epoch != e {
			joined = false
			d.closing[b] = simClosing{epoch: e, handover: r.Handover, reopen: d.bits[b]}
		}
		delete(d.bits, b)
	})
	if !joined {
		d.tries++
	}
	each(r.Buckets, func(b topo.BucketID, _ topo.Epoch) {
		c := d.closing[b]
		if !joined {
			c.attempt = d.tries
			d.closing[b] = c
		}
		attempt = c.attempt
	})
	return false, attempt, nil
}

// writers are the transactions that hold a lock on the tables: of every bucket.
func (d *simDB) writers(api.CloseRequest) map[*simTx]bool {
	left := map[*simTx]bool{}
	for t := range d.tx {
		left[t] = true
	}
	return left
}

func (d *simDB) finishClose(s *simulation, r api.CloseRequest, attempt int) (err error) {
	if d.marker(r.Handover) >= 0 {
		return nil
	}
	each(r.Buckets, func(b topo.BucketID, e topo.Epoch) {
		c := d.closing[b]
		switch {
		case c.handover != r.Handover || c.epoch != e || c.attempt != attempt && s.plant != AttemptIgnored:
			err = stale()
		case d.bits[b]:
			s.fail("I6: a bit is on while bucket %d is being closed at %s", b, siteID(d.id))
		}
	})
	if err != nil {
		return err
	}
	each(r.Buckets, func(b topo.BucketID, e topo.Epoch) {
		row := d.row[b]
		row.Bucket, row.Epoch, row.State, row.Handover = b, e, "closed", r.Handover
		d.row[b] = row
		delete(d.closing, b)
		d.append(simItem{closed, b, e, r.Handover})
	})
	d.hint()
	return nil
}

func (d *simDB) abandonClose(s *simulation, id topo.HandoverID) {
	for b, c := range d.closing {
		if c.handover != id {
			continue
		}
		delete(d.closing, b)
		if row := d.row[b]; c.reopen && row.Epoch == c.epoch && row.State == "open" && !d.bits[b] {
			d.bits[b] = true
			s.checkOpen(d.id, b)
		}
	}
}

func (c siteClient) CaughtUp(ctx context.Context, r api.CaughtUpRequest) (api.CaughtUpAnswer, error) {
	a, err := c.there(ctx)
	if err != nil {
		return api.CaughtUpAnswer{}, err
	}
	from := a.sim.site[siteOf(r.From)].db
	for end := time.Now().Add(time.Duration(r.BoundMS) * time.Millisecond); time.Now().Before(end); {
		var answer api.CaughtUpAnswer
		found := false
		err := a.fence.ask(ctx, func() error {
			if end := from.marker(r.Handover); end < 0 || a.site.db.done <= end {
				return nil
			}
			for _, it := range from.log {
				if it.kind == closed && it.handover == r.Handover {
					found = true
					answer.Marker = change.Marker{Kind: change.MarkerClosed, Site: r.From, Handover: r.Handover, Keyspace: keyspace,
						Buckets: append(answer.Marker.Buckets, topo.EpochSpan{First: it.bucket, Last: it.bucket, Epoch: it.epoch}), Vector: topo.Vector{}}
				}
			}
			return nil
		})
		if err != nil {
			return api.CaughtUpAnswer{}, err
		}
		if found {
			answer.Marker.Buckets = joinSpans(answer.Marker.Buckets)
			return answer, nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return answer, err
		}
	}
	return api.CaughtUpAnswer{}, &api.Error{Status: 504, Code: api.CodeNotYet, Message: "no marker"}
}

func joinSpans(in []topo.EpochSpan) (out []topo.EpochSpan) {
	for _, sp := range in {
		if n := len(out); n > 0 && out[n-1].Last+1 == sp.First && out[n-1].Epoch == sp.Epoch {
			out[n-1].Last = sp.Last
			continue
		}
		out = append(out, sp)
	}
	return out
}

func (c siteClient) Open(ctx context.Context, r api.OpenRequest) (api.OpenAnswer, error) {
	a, err := c.there(ctx)
	if err != nil {
		return api.OpenAnswer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.BoundMS)*time.Millisecond)
	defer cancel()
	o, err := topo.DecodeOwnership(r.Ownership)
	if len(r.Ownership) == 0 {
		o, _, err = a.store.Ownership(ctx)
	}
	if err != nil {
		return api.OpenAnswer{}, err
	}
	for {
		changed := a.keeper.Opened()
		if err := a.keeper.Observe(ctx, o); err != nil && !errors.Is(err, lease.ErrNotActive) {
			return api.OpenAnswer{}, err
		}
		if v := a.keeper.OpenedVersion(); v >= r.Version {
			return api.OpenAnswer{Version: v}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return api.OpenAnswer{}, ctx.Err()
		}
	}
}

func (c siteClient) Abort(ctx context.Context, r api.OpenRequest) (api.OpenAnswer, error) {
	return c.Open(ctx, r)
}
