package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// Workloads of a random run.
const (
	workTickets  = "tickets"  // the shop's load: purchases, cancellations, reads
	workRegister = "register" // registers and lists: one value, or one growing list, per key, with strong reads; and sessions, which read at any site
)

// RandomOptions say how to run random schedules.
type RandomOptions struct {
	Options
	Out      string // folder of the report
	Seeds    []Seed
	Minutes  float64  // no episode begins after them; 0: Episodes of each seed
	Episodes int      // of each seed that names none, default 1; without meaning where Minutes are given
	Runs     int      // plays all of it so often, and goes on after a violation, default 1
	Workload []string // default both
	Rate     float64  // requests a second of the shop's load, default 60 at two sites
	JSON     bool     // print the report as JSON to Stdout, the progress to Stderr
	Stdout   io.Writer
	Stderr   io.Writer
}

const (
	defaultRandomRate = 60.0
	registersPerSite  = 6
	listsPerSite      = 3
	clientsPerKey     = 2
	randomEvery       = 400 * time.Millisecond // a client of a register or a list sends a request
	randomRound       = time.Second            // a session begins a round of four requests
	settleBound       = 90 * time.Second       // for everything to be well again once all faults are healed
	askBound          = 4 * time.Second        // for an agent's answer under faults
	perHour           = 1000                   // failovers: a random run loses its sites as often as it can
)

func (o *RandomOptions) setDefaults() error {
	o.Options.setDefaults()
	if len(o.Workload) == 0 {
		o.Workload = []string{workTickets, workRegister}
	}
	for _, w := range o.Workload {
		if w != workTickets && w != workRegister {
			return fmt.Errorf("lab: no workload is called %q; there are %s and %s", w, workTickets, workRegister)
		}
	}
	if len(o.Seeds) == 0 {
		return errors.New("lab: a random run needs a seed")
	}
	if o.Rate == 0 {
		o.Rate = 2 * defaultRandomRate / float64(len(o.Sites))
	}
	o.reshape = func(s *spec.Spec) { s.Policies.Failover.PerHour = perHour }
	o.Episodes, o.Runs = max(1, o.Episodes), max(1, o.Runs)
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Out == "" {
		o.Out = "out"
	}
	return nil
}

func (o *RandomOptions) has(workload string) bool { return slices.Contains(o.Workload, workload) }

// registers, lists and sessions are the customers that the register workload takes for itself.
func (o *RandomOptions) registers() (registers, lists, sessions int) {
	if !o.has(workRegister) {
		return 0, 0, 0
	}
	return registersPerSite * len(o.Sites), listsPerSite * len(o.Sites), sessionsPerSite * len(o.Sites)
}

// episode names the n-th that is played, from 0: first those that the seeds name, then the seeds that name none, each once in
// every round. With Minutes there is always another one, but for named ones.
func (o *RandomOptions) episode(n int) (Seed, bool) {
	var each []Seed
	for _, s := range o.Seeds {
		if s.Episode > 0 {
			each = append(each, s)
		}
	}
	plain := slices.DeleteFunc(slices.Clone(o.Seeds), func(s Seed) bool { return s.Episode > 0 })
	if n < len(each) {
		return each[n], true
	}
	if n -= len(each); len(plain) == 0 || o.Minutes == 0 && n/len(plain) >= o.Episodes {
		return Seed{}, false
	}
	return Seed{plain[n%len(plain)].Number, 1 + n/len(plain)}, true
}

// Schedules prints what a random run would do, without doing it.
func Schedules(out io.Writer, o RandomOptions) error {
	if err := o.setDefaults(); err != nil {
		return err
	}
	for n := 0; ; n++ {
		seed, more := o.episode(n)
		if !more || o.Minutes > 0 && n > int(o.Minutes) { // about one a minute
			return nil
		}
		s := draw(seed, o.layout())
		fmt.Fprintf(out, "%s\n  %s\n", s.title(), strings.Join(s.lines(), "\n  "))
	}
}

func (s *schedule) title() string {
	double := ""
	if s.Double {
		double = ", a double: two failure domains may be down at once, and only safety is expected"
	}
	return fmt.Sprintf("episode %s%s", s.Seed, double)
}

// random is one deployment under random schedules.
type random struct {
	*demo
	opts   RandomOptions
	counts historyTail
	report *RandomReport
}

// Random builds a deployment and plays random schedules on it under load, each episode judged by itself from the
// databases and the clients' history. The first violation ends a run, with the evidence kept. It returns nil exactly if
// there was none.
func Random(ctx context.Context, o RandomOptions) error {
	if err := o.setDefaults(); err != nil {
		return err
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
	s := newScreen(progress)
	report := newRandomReport(&o)
	s.say("random schedules at %s, %v between any two; seeds %s", o.places(), o.RTT, report.seedList())
	for run := range o.Runs {
		if o.Runs > 1 {
			s.say("run %d of %d", run+1, o.Runs)
		}
		one := o
		if o.Runs > 1 { // the evidence of each stays
			one.Out = filepath.Join(o.Out, fmt.Sprintf("run-%d", run+1))
			if err := os.MkdirAll(one.Out, 0o755); err != nil {
				return fmt.Errorf("lab: folder of the evidence: %w", err)
			}
		}
		if err := playRun(ctx, one, s, report); err != nil {
			if len(report.Episodes) > 0 { // what was judged so far is worth having
				err = errors.Join(err, report.publish(&o, s))
			}
			return err
		}
	}
	s.done()
	if err := report.publish(&o, s); err != nil {
		return err
	}
	if !report.OK {
		return fmt.Errorf("%w: %s", errChecks, strings.Join(report.failing(), ", "))
	}
	return nil
}

// playRun plays all episodes once, on a deployment of its own.
func playRun(ctx context.Context, o RandomOptions, s *screen, report *RandomReport) (err error) {
	r := &random{opts: o, report: report}
	r.demo = &demo{opts: DemoOptions{Options: o.Options, Out: o.Out}, screen: s, began: time.Now(), loadBefore: loadAverage(), owned: map[topo.SiteID][]topo.BucketID{}}
	r.d, err = Build(ctx, o.Options, func(what string) { s.say("  building: %s", what) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.d.Close()) }()
	r.opts.Options, r.demo.opts.Options = r.d.opts, r.d.opts // paths made absolute
	if report.Environment, err = r.environment(ctx); err != nil {
		return err
	}
	beside, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { r.watchDeaths(beside); return nil })
	g.Go(func() error { r.watchStalls(beside); return nil })
	err = r.play(ctx)
	stop()
	return errors.Join(err, g.Wait(), r.keepLogs())
}

func (r *random) play(ctx context.Context) error {
	began, ok := time.Now(), true
	for n := 0; ok; n++ {
		seed, more := r.opts.episode(n)
		if !more || r.opts.Minutes > 0 && time.Since(began).Minutes() >= r.opts.Minutes {
			break
		}
		e, err := r.playEpisode(ctx, draw(seed, r.opts.layout()))
		if err != nil {
			return fmt.Errorf("episode %s: %w", seed, err)
		}
		r.report.add(e)
		if ok = e.passed(); ok {
			err = r.emptyShop(ctx)
		}
		if err != nil {
			return fmt.Errorf("after episode %s: %w", seed, err)
		}
	}
	if p := r.d.packets(); p != nil {
		sum := p.plus(r.report.Packets)
		r.report.Packets = &sum
	}
	r.report.endRun(ok, time.Since(began))
	return nil
}

// playEpisode plays one schedule under load and judges it.
func (r *random) playEpisode(ctx context.Context, s schedule) (*episode, error) {
	e := &episode{schedule: s, began: time.Now()}
	if err := r.share(ctx); err != nil {
		return nil, err
	}
	e.began = time.Now()
	r.screen.say("%s", s.title())
	if err := r.open(ctx, e); err != nil {
		return nil, err
	}
	if err := r.startEpisodeLoad(e); err != nil {
		return nil, err
	}
	shown, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return r.show(shown, e) })
	err := r.playSteps(ctx, e)
	if err == nil {
		err = r.settle(ctx, e)
	}
	stop()
	if err = errors.Join(err, g.Wait()); err != nil {
		return nil, err
	}
	if err := r.judge(ctx, e); err != nil {
		return nil, err
	}
	r.screen.say("  %s", e.sentence())
	return e, nil
}

// open begins the episode's evidence: what is in the databases' witnesses goes, but for the last word on each bucket.
func (r *random) open(ctx context.Context, e *episode) error {
	for _, site := range r.opts.Sites {
		err := r.d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			if err := forgetChanges(ctx, db); err != nil {
				return err
			}
			_, err := db.Exec(ctx, `DELETE FROM lab.epoch WHERE seq NOT IN (SELECT max(seq) FROM lab.epoch GROUP BY site, keyspace, bucket)`)
			return err
		})
		if err != nil {
			return err
		}
	}
	e.logFrom = map[string]int64{}
	for _, name := range r.d.Processes.Names() {
		if info, err := os.Stat(r.d.Processes.LogFile(name)); err == nil {
			e.logFrom[name] = info.Size()
		}
	}
	r.mu.Lock()
	r.died = nil
	r.mu.Unlock()
	return nil
}

// startEpisodeLoad starts the load generator with an empty history; what it asks for follows from the seed, too.
func (r *random) startEpisodeLoad(e *episode) error {
	history, err := filepath.Abs(r.historyFile())
	if err != nil {
		return err
	}
	if err := os.Remove(history); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("lab: history of an earlier episode: %w", err)
	}
	r.counts = historyTail{path: history, bySite: map[topo.SiteID]*Counts{}}
	rate := r.opts.Rate
	if !r.opts.has(workTickets) {
		rate = 0.1 // the generator wants some
	}
	registers, lists, sessions := r.opts.registers()
	args := append([]string{"load", "--gateways", r.d.gatewayURLs(), "--rate", strconv.FormatFloat(rate, 'f', -1, 64), "--duration", "0s",
		"--timeout", loadTimeout.String(), "--writes", strconv.FormatFloat(writeShare, 'f', -1, 64), "--draw", strconv.FormatUint(e.schedule.Seed.Number+uint64(e.schedule.Seed.Episode)<<32, 10),
		"--registers", strconv.Itoa(registers), "--lists", strconv.Itoa(lists), "--per-key", strconv.Itoa(clientsPerKey), "--register-every", randomEvery.String(),
		"--sessions", strconv.Itoa(sessions), "--session-every", randomRound.String(), "--history", history}, r.d.shapeFlags(0)...)
	e.loaded[0] = time.Now()
	return r.d.Processes.Start(Command{Name: loadName, Path: r.d.opts.Tickets, Args: args, Dir: r.d.Dir, Env: r.d.env("")})
}

// settle heals what is left, waits until everything is well, ends the load, and waits until the sites stand still.
func (r *random) settle(ctx context.Context, e *episode) error {
	began := time.Now()
	e.stuck = r.d.recover(ctx, settleBound, loadName)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e.settledAfter = time.Since(began)
	if e.stuck != nil {
		r.screen.say("  %s", r.screen.paint(red, "it does not come to be well again: "+e.stuck.Error()))
	}
	if err := r.d.Processes.Ask(loadName); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, loadTimeout+5*time.Second)
	defer cancel()
	if err := r.d.Processes.Wait(bounded, loadName); err != nil {
		return fmt.Errorf("%w; its log ends:\n%s", err, r.d.Processes.Tail(loadName, 3))
	}
	r.straggler.wait()
	e.loaded[1] = time.Now()
	return r.rest(ctx)
}

// rest waits, bounded, until nothing moves and the sites are equal. What is not by then, the checks will say.
func (r *random) rest(ctx context.Context) error {
	err := r.quiesce(ctx)
	if err != nil && ctx.Err() == nil {
		r.screen.say("  a site does not answer: %v", err)
		return nil
	}
	return err
}
