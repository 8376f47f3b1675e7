package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

const (
	tailTime      = time.Second      // the replication is cut for so long before everything at the site is killed
	downTime      = 10 * time.Second // a lost site stays down at least so long
	takeoverBound = 25 * time.Second // or 4 leases, if they are longer
	returnBound   = 40 * time.Second
	registers     = 40
	registerEvery = 500 * time.Millisecond
	registersName = "registers"
	aliveFor      = 1500 * time.Millisecond // load on the survivor alone, before a drill goes on
)

func (o *Options) takeoverBound() time.Duration { return max(takeoverBound, 4*o.Lease.Duration) }

// outage is one loss of a site, as the lab made it and saw it from outside.
type outage struct {
	name        string
	lost, taker topo.SiteID                    // the taker is a guess until it is seen
	survivors   []topo.SiteID                  // of the full sites
	buckets     map[topo.KeyspaceID]topo.Spans // that the lost site owned

	cut       time.Time // when its last change could leave it
	killed    time.Time
	stoppedAt topo.SiteID // stopped applier: where it stood
	held      time.Time   // stopped applier: until when the site where it stood could not be sure of it
	seen      time.Time   // the taker's fence was open for all of the buckets; zero: not within the bound
	back      time.Time   // its processes were started again
	settled   time.Time   // zero: not within the bound
	home      time.Time   // its users were back, or were tried to be brought back

	record  api.Handover // of the failover, as the store has it
	trigger error        // why the fault could not be brought about; then the rest shows nothing
}

func (o *outage) bucketCount() int {
	n := 0
	for _, s := range o.buckets {
		n += s.Len()
	}
	return n
}

// lose begins an outage of a site, once both sites are level.
func (m *demo) lose(ctx context.Context, name string, lost topo.SiteID) (*outage, error) {
	if err := m.awaitCaughtUp(ctx, catchUpBound); err != nil {
		return nil, err
	}
	survivors := m.opts.others(lost)
	o := &outage{name: name, lost: lost, taker: survivors[0], survivors: survivors, buckets: map[topo.KeyspaceID]topo.Spans{}}
	if b := m.owned[lost]; len(b) > 0 {
		o.buckets[users] = topo.SpansOf(b...)
	}
	if m.catalogAt == lost {
		o.buckets[catalog] = topo.SpansOf(0)
	}
	if len(o.buckets) == 0 {
		o.trigger = fmt.Errorf("%s owns nothing that could be lost", lost)
		m.screen.say("%s is left out: %v", name, o.trigger)
	}
	m.outages = append(m.outages, o)
	return o, nil
}

// failOver is the accident that the rest is for: the replication from a site breaks (to one survivor after the other,
// where there are more), so that it has committed what no other site has; a moment later everything at the site is
// dead. Another site takes over by itself. Then the site comes back with what it had, and its users go home.
func (m *demo) failOver(ctx context.Context) error {
	o, err := m.lose(ctx, nominalLoss, m.a())
	if err != nil || o.trigger != nil {
		return err
	}
	m.screen.say("an accident at %s, which has %d buckets of users and the catalogue: its replication breaks; for %v more its users go on", o.lost, o.buckets[users].Len(), tailTime)
	faults := []Fault{m.d.LoseSite(o.lost)}
	for i, other := range slices.Backward(o.survivors) { // the first survivor hears of it for longest
		link := m.d.CutKinds(o.lost, other, Link)
		faults = append(faults, link)
		o.cut = time.Now()
		if err := link.Inject(ctx); err != nil {
			return err
		}
		wait := tailTime / 2
		if i == 0 {
			wait = tailTime
		}
		if err := rest(ctx, wait); err != nil {
			return err
		}
	}
	if err := m.kill(ctx, o, faults[0]); err != nil {
		return err
	}
	if err := m.awaitTakeover(ctx, o); err != nil {
		return err
	}
	if err := rest(ctx, time.Until(o.killed.Add(downTime))); err != nil {
		return err
	}
	return m.comeHome(ctx, o, faults...)
}

// kill injects the fault that ends a site or a part of it.
func (m *demo) kill(ctx context.Context, o *outage, f Fault) error {
	m.screen.say("  %s", f.Name)
	m.setLost(o.lost)
	o.killed = time.Now()
	if o.cut.IsZero() {
		o.cut = o.killed
	}
	return f.Inject(ctx)
}

func (m *demo) setLost(site topo.SiteID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = site
}

func (m *demo) isLost(site topo.SiteID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lost == site
}

// awaitTakeover waits, bounded, until a survivor's database has opened its fence for every bucket of the lost site. It
// asks the databases, and nobody else.
func (m *demo) awaitTakeover(ctx context.Context, o *outage) error {
	bounded, cancel := context.WithTimeout(ctx, m.opts.takeoverBound())
	defer cancel()
	err := every(bounded, 100*time.Millisecond, func() (bool, error) {
		for _, site := range o.survivors {
			opened, err := m.openedSince(ctx, site, o)
			if err != nil || opened >= o.bucketCount() {
				o.taker = site
				return err == nil, err
			}
		}
		return false, nil
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bounded.Err() != nil:
		m.screen.say("  %s", m.screen.paint(red, fmt.Sprintf("no site took over within %v", m.opts.takeoverBound())))
		return nil
	case err != nil:
		return err
	}
	o.seen = time.Now()
	for b := range topo.BucketID(m.opts.Buckets) { // in order, as they will go home
		if o.buckets[users].Contains(b) {
			m.owned[o.taker] = append(m.owned[o.taker], b)
		}
	}
	m.owned[o.lost] = nil
	m.catalogAt = o.taker
	if o.record, err = m.failoverRecord(ctx, o); err != nil {
		return err
	}
	m.screen.say("  %s took over %.1f s after that: %d buckets of users and the catalogue, by failover %s", o.taker, o.seen.Sub(o.killed).Seconds(), o.buckets[users].Len(), o.record.ID)
	return nil
}

// openedSince counts the lost buckets that a site has opened since the kill.
func (m *demo) openedSince(ctx context.Context, at topo.SiteID, o *outage) (opened int, err error) {
	err = m.d.onDatabase(ctx, at, func(db *pgx.Conn) error {
		for ks, buckets := range o.buckets {
			rows, err := db.Query(ctx, `SELECT DISTINCT bucket FROM lab.epoch WHERE site = $1 AND keyspace = $2 AND state = 'open' AND at > $3`,
				string(at), string(ks), o.killed)
			if err != nil {
				return err
			}
			seen, err := pgx.CollectRows(rows, pgx.RowTo[topo.BucketID])
			if err != nil {
				return err
			}
			for _, b := range seen {
				if buckets.Contains(b) {
					opened++
				}
			}
		}
		return nil
	})
	return opened, err
}

// status asks one site's agent for what an operator would see.
func (d *Deployment) status(ctx context.Context, at topo.SiteID) (api.Status, error) {
	var s api.Status
	out, err := d.Atoll(ctx, "status", "--json", "--at", string(at))
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	if err != nil {
		return s, fmt.Errorf("lab: status of site %s: %w", at, err)
	}
	return s, nil
}

// failoverRecord finds the record of the newest failover from the lost site to its taker that no earlier outage had;
// none is an empty one.
func (m *demo) failoverRecord(ctx context.Context, o *outage) (api.Handover, error) {
	s, err := m.d.status(ctx, o.taker)
	if err != nil {
		return api.Handover{}, err
	}
	earlier := func(h api.Handover) bool {
		return slices.ContainsFunc(m.outages, func(other *outage) bool { return other != o && other.record.ID == h.ID })
	}
	for _, h := range s.Handovers {
		if h.Kind == failoverKind && h.From == o.lost && h.To == o.taker && !earlier(h) {
			return h, nil
		}
	}
	return api.Handover{}, nil
}

const failoverKind = "failover"

// comeHome heals the faults, waits until what the site had committed alone is decided and both sites are level, and
// brings its users back by a switch.
func (m *demo) comeHome(ctx context.Context, o *outage, faults ...Fault) error {
	m.screen.say("  %s is started again, with its database as the crash left it", o.lost)
	for _, f := range faults {
		if err := f.Heal(ctx); err != nil {
			return err
		}
	}
	o.back = time.Now()
	m.setLost("")
	if o.seen.IsZero() { // it was never replaced
		return nil
	}
	if err := m.awaitSettled(ctx, o); err != nil {
		return err
	}
	if err := m.awaitServing(ctx, o.lost); err != nil {
		return err
	}
	if err := m.awaitCaughtUp(ctx, catchUpBound); err != nil {
		return err
	}
	defer func() { o.home = time.Now() }()
	for _, ks := range slices.Backward(slices.Sorted(maps.Keys(o.buckets))) { // users first
		what := map[topo.KeyspaceID]string{users: "the users of " + string(o.lost) + " go home", catalog: "the catalogue too"}[ks]
		if err := m.move(ctx, switchRun{phase: homeward, keyspace: ks, buckets: o.buckets[ks], from: o.taker, to: o.lost, what: what}); err != nil {
			return err
		}
	}
	return nil
}

// awaitSettled waits, bounded, until the store says that the tail of the lost site is decided.
func (m *demo) awaitSettled(ctx context.Context, o *outage) error {
	bounded, cancel := context.WithTimeout(ctx, returnBound)
	defer cancel()
	err := every(bounded, 300*time.Millisecond, func() (bool, error) {
		h, err := m.failoverRecord(ctx, o)
		if err != nil {
			return false, nil // agents may be starting; the bound holds
		}
		o.record = h
		return h.Failover != nil && h.Failover.Return != nil, nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		m.screen.say("  %s", m.screen.paint(red, fmt.Sprintf("its tail is not settled after %v", returnBound)))
		return nil
	}
	o.settled = time.Now()
	r := o.record.Failover.Return
	m.screen.say("  %s is back: of what it had committed alone, %d row changes stand and %d gave way; each is in the conflict log", o.lost, r.Applied, r.Kept)
	return nil
}

// awaitServing waits, bounded, until a site's gateways answer.
func (m *demo) awaitServing(ctx context.Context, site topo.SiteID) error {
	bounded, cancel := context.WithTimeout(ctx, returnBound)
	defer cancel()
	err := every(bounded, 200*time.Millisecond, func() (bool, error) {
		for _, g := range m.d.at[site].gateways {
			if probe(bounded, g.listen) != nil {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil && ctx.Err() == nil {
		m.screen.say("  the gateways of %s do not answer after %v", site, returnBound)
		return nil
	}
	return ctx.Err()
}

// startRegisters adds customers who write a value and read it back in turn, and go to another gateway when theirs does
// not answer: the history in which a lost, doubled or old value shows.
func (m *demo) startRegisters(context.Context) error {
	m.screen.say("%d customers write values and read them back, at whichever gateway answers", m.opts.registers)
	history, err := filepath.Abs(m.registersFile())
	if err != nil {
		return err
	}
	args := append([]string{"load", "--gateways", m.d.gatewayURLs(), "--rate", "0.1", "--clients", "1", "--registers", strconv.Itoa(m.opts.registers), "--register-every", registerEvery.String(),
		"--duration", "0s", "--timeout", loadTimeout.String(), "--history", history}, m.d.shapeFlags(0)...)
	return m.d.Processes.Start(Command{Name: registersName, Path: m.d.opts.Tickets, Args: args, Dir: m.d.Dir, Env: m.d.env("")})
}
