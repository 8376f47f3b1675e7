package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// DemoOptions say how to run the demonstration.
type DemoOptions struct {
	Options
	Out      string    // folder of the report
	Rate     float64   // requests a second, default 150 at two sites: each further one has to apply all of it too
	JSON     bool      // print the report as JSON to Stdout, the progress to Stderr
	Stdout   io.Writer // default os.Stdout
	Stderr   io.Writer // default os.Stderr
	Switches int       // at the nominal round trip, default 10
	Part     string    // one of parts

	registers int // customers who write a value and read it back, default registers
	sessions  int // clients that carry a session, default none
}

const (
	bucketsPerSwitch = 25
	extraLinkDelay   = 500 * time.Millisecond
	extraSeatDelay   = 1500 * time.Millisecond // longer than the drain bound
	circleDelay      = 2 * time.Second         // below what a switch waits for
	cutTime          = 10 * time.Second
	breath           = 1200 * time.Millisecond // between two switches
	catchUpBound     = 20 * time.Second        // after something that put the sites behind
	readyBound       = 5 * time.Second         // before each switch
	quiesceBound     = 2 * time.Minute         // what looks at tails and at equal sites looks at sites that stand still; a slow machine has its outboxes to empty first
)

// parts of the demonstration that can be played alone; "" is all of it.
const (
	partSwitches = "switches" // no site is lost
	partFailover = "failover" // the switches and the cut are left out
)

func (o *DemoOptions) setDefaults() {
	o.Options.setDefaults()
	if o.Rate == 0 {
		o.Rate = 300 / float64(len(o.Sites))
	}
	if o.Switches == 0 {
		o.Switches = 10
	}
	if o.registers == 0 {
		o.registers = registers
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Out == "" {
		o.Out = "out"
	}
}

// phase groups switches by the conditions under which they ran.
type phase string

const (
	spreading  phase = "spread"
	nominal    phase = "nominal"
	underLag   phase = "under_lag"
	slowWriter phase = "slow_writers"
	inCircle   phase = "in_circle"
	afterCut   phase = "after_cut"
	homeward   phase = "home" // what a failover took goes back
)

// switchRun is one `atoll switch` as the lab saw it from outside.
type switchRun struct {
	phase      phase
	keyspace   topo.KeyspaceID
	buckets    topo.Spans
	from, to   topo.SiteID
	what       string
	start, end time.Time
	record     api.Handover // zero: it was not told
	err        error
}

// demo is one run of the demonstration.
type demo struct {
	opts   DemoOptions
	d      *Deployment
	screen *screen
	began  time.Time

	loadBefore float64

	owned     map[topo.SiteID][]topo.BucketID // who should have which users; the longest unmoved first
	catalogAt topo.SiteID
	switches  []switchRun
	switching [2]time.Time // from the first switch to the end of the last before the cut
	cut       [2]time.Time
	caughtUp  time.Time // after the cut
	loaded    [2]time.Time
	outages   []*outage
	straggler stragglers

	mu    sync.Mutex
	died  []string
	lost  topo.SiteID   // that is dead at this moment
	stall time.Duration // the longest time during which the machine gave the lab no time
}

// errChecks is returned when the demonstration ran to its end and a check failed.
var errChecks = errors.New("checks failed")

// Demo runs the demonstration and writes its report: sites and a witness, load, users moved between the sites under
// harder and harder conditions, a cut path, a site that dies and comes back, and then the evidence. It returns nil
// exactly if every check passed.
func Demo(ctx context.Context, o DemoOptions) (err error) {
	o.setDefaults()
	o.sessions = sessionsPerSite * len(o.Sites)
	if !slices.Contains([]string{"", partSwitches, partFailover}, o.Part) {
		return fmt.Errorf("lab: the demonstration has no part %q; there are %q and %q", o.Part, partSwitches, partFailover)
	}
	if err := o.enter(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return fmt.Errorf("lab: folder of the report: %w", err)
	}
	progress := o.Stdout
	if o.JSON {
		progress = o.Stderr
	}
	m := &demo{opts: o, screen: newScreen(progress), began: time.Now(), loadBefore: loadAverage(), owned: map[topo.SiteID][]topo.BucketID{}}
	m.screen.say("a ticket shop at %s; %v between any two", o.places(), o.RTT)
	m.d, err = Build(ctx, o.Options, func(what string) { m.screen.say("  building: %s", what) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.d.Close()) }()
	m.opts.Options = m.d.opts // paths made absolute
	report, err := m.run(ctx)
	m.screen.done()
	err = errors.Join(err, m.keepLogs())
	if err != nil {
		return err
	}
	if err := m.publish(report); err != nil {
		return err
	}
	if !report.OK {
		return fmt.Errorf("%w: %v", errChecks, report.failing())
	}
	return nil
}

// run puts load on the deployment, plays the phases, and gathers the evidence. The display and the watch over the
// processes run beside it and end with it.
func (m *demo) run(ctx context.Context) (*Report, error) {
	beside, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return m.display(beside) })
	g.Go(func() error { m.watchDeaths(beside); return nil })
	g.Go(func() error { m.watchStalls(beside); return nil })
	report, err := m.play(ctx)
	stop()
	return report, errors.Join(err, g.Wait())
}

func (m *demo) play(ctx context.Context) (*Report, error) {
	for _, step := range m.steps() {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	m.screen.say("looking at the evidence")
	return m.examine(ctx)
}

// steps are what the chosen part plays.
func (m *demo) steps() []func(context.Context) error {
	type list = []func(context.Context) error
	moves := list{m.moveAround, m.moveUnderLag, m.moveSlowWriters, m.moveInCircle, m.cutAndHeal, m.moveAfterCut}
	losses := list{m.startRegisters, m.failOver, m.stopApplier}
	if !m.opts.Netns { // the drill looks into what passes, which only a proxy can
		losses = append(losses, m.holdLease)
	}
	var play list
	switch m.opts.Part {
	case partSwitches:
		play = append(list{m.startRegisters}, moves...)
	case partFailover:
		play = losses
	default:
		play = append(moves, losses...)
	}
	return slices.Concat(list{m.startLoad, m.spread}, play, list{m.stopLoad, m.quiesce})
}

func (m *demo) a() topo.SiteID { return m.opts.Sites[0] }
func (m *demo) b() topo.SiteID { return m.opts.Sites[1] }

// others lists the full sites but one.
func (o *Options) others(site topo.SiteID) []topo.SiteID {
	return slices.DeleteFunc(slices.Clone(o.Sites), func(s topo.SiteID) bool { return s == site })
}

// spread gives every other site its part of the users.
func (m *demo) spread(ctx context.Context) error {
	if err := rest(ctx, 3*time.Second); err != nil {
		return err
	}
	for b := range topo.BucketID(m.opts.Buckets) {
		m.owned[m.a()] = append(m.owned[m.a()], b)
	}
	m.catalogAt = m.a()
	m.switching[0] = time.Now()
	n := len(m.opts.Sites)
	for _, site := range m.opts.others(m.a()) {
		s := switchRun{phase: spreading, keyspace: users, buckets: m.next(m.a(), m.opts.Buckets/n), from: m.a(), to: site, what: fmt.Sprintf("spread: 1/%d of the users", n)}
		if err := m.move(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// moveAround moves buckets at the nominal round trip, from each site to the next in turn.
func (m *demo) moveAround(ctx context.Context) error {
	n := len(m.opts.Sites)
	for i := range m.opts.Switches {
		from, to := m.opts.Sites[i%n], m.opts.Sites[(i+1)%n]
		s := switchRun{phase: nominal, keyspace: users, buckets: m.next(from, bucketsPerSwitch), from: from, to: to, what: fmt.Sprintf("switch %d of %d", i+1, m.opts.Switches)}
		if err := m.move(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// moveUnderLag switches while only the replication is late: a switch that does not wait for the marker would show.
func (m *demo) moveUnderLag(ctx context.Context) error {
	var ways []Way // from each site to the next
	for i, site := range m.opts.Sites {
		ways = append(ways, Way{site, m.opts.Sites[(i+1)%len(m.opts.Sites)]})
	}
	for _, w := range ways {
		m.d.Network.Delay(w, Link, extraLinkDelay)
		defer m.d.Network.Delay(w, Link, 0)
	}
	if err := rest(ctx, time.Second); err != nil {
		return err
	}
	for _, w := range ways {
		s := switchRun{phase: underLag, keyspace: users, buckets: m.next(w.From, bucketsPerSwitch), from: w.From, to: w.To, what: fmt.Sprintf("replication %v late", extraLinkDelay)}
		if err := m.move(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// moveSlowWriters switches while writers take longer than the gateways wait for: one time with transactions that stay
// open after their write, one time with requests that come to their first write late.
func (m *demo) moveSlowWriters(ctx context.Context) error {
	if err := m.awaitCaughtUp(ctx, catchUpBound); err != nil {
		return err
	}
	buckets := m.next(m.a(), bucketsPerSwitch)
	if err := m.straggler.bulkNotes(ctx, m, m.a(), m.b(), buckets); err != nil {
		return err
	}
	if err := m.move(ctx, switchRun{phase: slowWriter, keyspace: users, buckets: buckets, from: m.a(), to: m.b(), what: "transactions that stay open"}); err != nil {
		return err
	}
	toSeats := Way{m.b(), m.a()}
	m.d.Network.Delay(toSeats, GatewayPeer, extraSeatDelay)
	defer m.d.Network.Delay(toSeats, GatewayPeer, 0)
	buckets = m.next(m.b(), bucketsPerSwitch)
	if err := m.straggler.buys(ctx, m, m.b(), buckets); err != nil {
		return err
	}
	err := m.move(ctx, switchRun{phase: slowWriter, keyspace: users, buckets: buckets, from: m.b(), to: m.a(), what: fmt.Sprintf("seats %v away", extraSeatDelay)})
	m.straggler.wait()
	return err
}

func (m *demo) cutAndHeal(ctx context.Context) error {
	// What was sent while switches were made shall be answered before the cut, or the cut's failures would be theirs.
	if err := rest(ctx, 2*extraSeatDelay); err != nil {
		return err
	}
	m.screen.say("the path between %s and %s is cut both ways for %v", m.a(), m.b(), cutTime)
	m.cut[0] = time.Now()
	m.d.Network.Cut(m.a(), m.b())
	err := rest(ctx, cutTime)
	m.d.Network.Heal(m.a(), m.b())
	m.cut[1] = time.Now()
	if err != nil {
		return err
	}
	m.screen.say("healed; the sites catch up")
	if err := m.awaitCaughtUp(ctx, catchUpBound); err != nil {
		return err
	}
	m.caughtUp = time.Now()
	return rest(ctx, 3*time.Second)
}

// awaitCaughtUp waits, bounded, until every site is less than a second behind; an operator would not switch before.
func (m *demo) awaitCaughtUp(ctx context.Context, bound time.Duration) error {
	bounded, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	err := every(bounded, 500*time.Millisecond, func() (bool, error) {
		lags, err := m.d.lags(ctx) // not bounded: a dial that the bound ends is no failure
		for _, l := range lags {
			if l.age > time.Second {
				return false, err
			}
		}
		return err == nil, err
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bounded.Err() != nil:
		m.screen.say("  they are still behind after %v", bound)
		return nil
	}
	return err
}

// moveAfterCut waits, bounded, for what an operator would see in atoll status before: with a third site, both may have
// each other's changes from there, and be behind nobody, while the link between them is not back yet.
func (m *demo) moveAfterCut(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, catchUpBound)
	defer cancel()
	var last string
	err := every(bounded, 500*time.Millisecond, func() (bool, error) {
		last = m.d.unsettled(bounded)
		return last == "", nil
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		m.screen.say("  not well yet after %v: %s", catchUpBound, last)
	}
	return m.move(ctx, switchRun{phase: afterCut, keyspace: users, buckets: m.next(m.b(), bucketsPerSwitch), from: m.b(), to: m.a(), what: "after the cut"})
}

// moveInCircle needs three sites: the same buckets move c → a → b while c's changes come late to b, over their own link.
// What c wrote does not stand in a's stream, so a's marker alone says nothing of it: b must wait for c's, too.
func (m *demo) moveInCircle(ctx context.Context) error {
	if len(m.opts.Sites) < 3 {
		m.switching[1] = time.Now()
		return nil
	}
	c := m.opts.Sites[2]
	late := Way{c, m.b()}
	m.d.Network.Delay(late, Link, circleDelay)
	defer m.d.Network.Delay(late, Link, 0)
	if err := rest(ctx, circleDelay/2); err != nil { // what c writes now is at a, and not at b
		return err
	}
	buckets := m.next(c, bucketsPerSwitch)
	for _, w := range []Way{{c, m.a()}, {m.a(), m.b()}} {
		s := switchRun{phase: inCircle, keyspace: users, buckets: buckets, from: w.From, to: w.To, what: fmt.Sprintf("in a circle, %s %v late", late, circleDelay)}
		if err := m.moveNow(ctx, s); err != nil {
			return err
		}
	}
	m.switching[1] = time.Now()
	return nil
}

// next picks the buckets of a site that have not moved for longest.
func (m *demo) next(site topo.SiteID, n int) topo.Spans {
	return topo.SpansOf(m.owned[site][:min(n, len(m.owned[site]))]...)
}

// move runs one switch. One that fails is evidence, not the end: the next ones are still worth seeing.
func (m *demo) move(ctx context.Context, s switchRun) error {
	if err := m.awaitCaughtUp(ctx, readyBound); err != nil {
		return err
	}
	if err := m.moveNow(ctx, s); err != nil {
		return err
	}
	return rest(ctx, breath)
}

// moveNow is move without waiting for anything, before or behind.
func (m *demo) moveNow(ctx context.Context, s switchRun) error {
	m.screen.say("%s: %s %s, %s → %s", s.what, map[topo.KeyspaceID]string{users: "buckets", catalog: "bucket"}[s.keyspace], s.buckets, s.from, s.to)
	s.start = time.Now()
	if len(s.buckets) == 0 {
		s.err = fmt.Errorf("%s has nothing that could be moved", s.from)
	} else {
		var out []byte
		out, s.err = m.d.Atoll(ctx, "switch", "--keyspace", string(s.keyspace), "--buckets", s.buckets.String(), "--to", string(s.to), "--json")
		if s.err == nil {
			s.err = json.Unmarshal(out, &s.record)
		}
	}
	s.end = time.Now()
	m.switches = append(m.switches, s)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.err != nil {
		m.screen.say("  the switch failed: %v", s.err)
	}
	m.own(s)
	return nil
}

// own notes what a switch changed.
func (m *demo) own(s switchRun) {
	to := s.to
	if s.err != nil {
		to = s.from
	}
	if s.keyspace == catalog {
		m.catalogAt = to
		return
	}
	m.owned[s.from] = slices.DeleteFunc(m.owned[s.from], s.buckets.Contains)
	m.owned[to] = append(m.owned[to], s.buckets.Buckets()...)
}

func (m *demo) watchDeaths(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case name := <-m.d.deaths:
			m.mu.Lock()
			m.died = append(m.died, name)
			m.mu.Unlock()
			m.screen.say("%s ended by itself; its log ends:\n%s", name, m.d.Processes.Tail(name, 5))
		}
	}
}

// publish writes the report to its folder and shows it.
func (m *demo) publish(r *Report) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic("BUG: report does not marshal: " + err.Error())
	}
	data = append(data, '\n')
	text := r.text(&screen{})
	err = errors.Join(
		os.WriteFile(filepath.Join(m.opts.Out, "demo.json"), data, 0o644),
		os.WriteFile(filepath.Join(m.opts.Out, "report.txt"), []byte(text), 0o644))
	if err != nil {
		return fmt.Errorf("lab: report: %w", err)
	}
	if m.opts.JSON {
		_, err = m.opts.Stdout.Write(data)
	} else {
		_, err = io.WriteString(m.opts.Stdout, r.text(m.screen))
	}
	return err
}

// keepLogs copies the processes' logs beside the report.
func (m *demo) keepLogs() error {
	to := filepath.Join(m.opts.Out, "logs")
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	err := os.CopyFS(to, os.DirFS(filepath.Join(m.d.Dir, "logs")))
	for _, site := range m.opts.Sites {
		if data, e := os.ReadFile(m.d.databases[site].LogFile()); e == nil {
			err = errors.Join(err, os.WriteFile(filepath.Join(to, string(site)+"-db.log"), data, 0o644))
		}
	}
	return err
}

func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// of lists the runs of a phase.
func (m *demo) of(p phase) []switchRun {
	return slices.DeleteFunc(slices.Clone(m.switches), func(s switchRun) bool { return s.phase != p })
}
