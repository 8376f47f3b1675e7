package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// SwitchBenchOptions say how to measure handovers.
type SwitchBenchOptions struct {
	Options
	Out       string // folder of the report
	Switches  int    // default 200
	Failovers int    // of each lease, default 15
	Seed      uint64 // which buckets go where, which site dies when
	Rate      float64
	Part      string // one of benchParts; "" for all of them
	Commit    string // of what is measured
	JSON      bool   // print the report as JSON to Stdout, the progress to Stderr
	Stdout    io.Writer
	Stderr    io.Writer
}

// What has to be measured at least, and how much at most; the lab's flags may ask for less while something is developed,
// which then misses it.
const (
	mustSwitches  = 200
	mustFailovers = 15
)

// benchSeats last for the longest part: a sold-out shop would write less.
const benchSeats = 40_000

// benchRegisters are for K4 in the part of switches. That one has the demonstration's load while it switches, and these on
// top; the other parts have the demonstration's load while it loses sites.
const benchRegisters = 12

// benchPart is one deployment and what is measured on it.
type benchPart struct {
	name      string
	lease     spec.LeasePolicy
	store     spec.StorePolicy
	registers int
	failover  bool // sites are lost; else buckets are switched
}

// benchParts are played in this order. The longer lease is the default profile, with the store's own default times.
var benchParts = []benchPart{
	{name: "switches", lease: fastLease, store: fastStore, registers: benchRegisters},
	{name: "failovers-3", lease: fastLease, store: fastStore, registers: registers, failover: true},
	{name: "failovers-10", lease: spec.LeasePolicy{Duration: 10 * time.Second, W: 2 * time.Second}, registers: registers, failover: true},
}

func partNames() string {
	var out []string
	for _, p := range benchParts {
		out = append(out, p.name)
	}
	return strings.Join(out, ", ")
}

func (o *SwitchBenchOptions) setDefaults() {
	o.Options.setDefaults()
	if o.Switches == 0 {
		o.Switches = mustSwitches
	}
	if o.Failovers == 0 {
		o.Failovers = mustFailovers
	}
	if o.Rate == 0 {
		o.Rate = 300 / float64(len(o.Sites))
	}
	o.Shape = Shape{Customers: 1000, Seats: benchSeats, Events: 4}
	o.directDatabase = true
	o.reshape = func(s *spec.Spec) { s.Policies.Failover.PerHour = perHour }
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

// parts are those that shall be played.
func (o *SwitchBenchOptions) parts() ([]benchPart, error) {
	if o.Part == "" {
		return benchParts, nil
	}
	i := slices.IndexFunc(benchParts, func(p benchPart) bool { return p.name == o.Part })
	if i < 0 {
		return nil, fmt.Errorf("lab: the measurement has no part %q; there are %s", o.Part, partNames())
	}
	return benchParts[i : i+1], nil
}

// switchBench is one part of the measurement under way.
type switchBench struct {
	*demo
	opts   SwitchBenchOptions
	part   benchPart
	random *rand.Rand
	broken error    // why the part ended before its time
	waited int      // switches that were put off because a site was behind
	cpu    CPU      // while the part's work was done
	unwell []string // losses after which something was not in order for long, and what
}

// SwitchBench measures what handovers cost: pauses and holds of switches, and the time without writes and the lost
// writes of failovers, each part on a deployment of its own and under the demonstration's load. It returns nil exactly
// if what it played has kept its bounds and passed every check; what other parts said before stays in the report.
func SwitchBench(ctx context.Context, o SwitchBenchOptions) error {
	o.setDefaults()
	parts, err := o.parts()
	if err != nil {
		return err
	}
	progress := o.Stdout
	if o.JSON {
		progress = o.Stderr
	}
	s := newScreen(progress)
	var missed []string
	for _, part := range parts {
		p, err := playPart(ctx, o, part, s)
		if err == nil {
			err = p.keep(o.Out)
		}
		if err != nil {
			return fmt.Errorf("part %s: %w", part.name, err)
		}
		if !p.OK {
			missed = append(missed, part.name+": "+strings.Join(p.missing(), ", "))
		}
	}
	s.done()
	r, err := mergeParts(o.Out)
	if err == nil {
		err = r.publish(&o, s)
	}
	if err != nil {
		return err
	}
	if len(missed) > 0 {
		return fmt.Errorf("%w or bounds missed: %s", errChecks, strings.Join(missed, "; "))
	}
	return nil
}

// playPart builds a deployment, plays a part on it and measures.
func playPart(ctx context.Context, o SwitchBenchOptions, part benchPart, s *screen) (_ *SwitchBenchPart, err error) {
	o.Lease, o.Store = part.lease, part.store
	b := &switchBench{opts: o, part: part, random: rand.New(rand.NewPCG(o.Seed, uint64(slices.IndexFunc(benchParts, func(p benchPart) bool { return p.name == part.name }))))}
	b.demo = &demo{opts: DemoOptions{Options: o.Options, Rate: o.Rate, registers: part.registers, Out: filepath.Join(o.Out, benchFolder, part.name)}, screen: s, began: time.Now(),
		loadBefore: loadAverage(), owned: map[topo.SiteID][]topo.BucketID{}}
	if err := os.MkdirAll(b.demo.opts.Out, 0o755); err != nil {
		return nil, fmt.Errorf("lab: folder of the part: %w", err)
	}
	s.say("%s, seed %d: %s; %v between any two; lease %v, W %v", part.name, o.Seed, o.places(), o.RTT, part.lease.Duration, part.lease.W)
	b.d, err = Build(ctx, o.Options, func(what string) { s.say("  building: %s", what) })
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.d.Close()) }()
	b.opts.Options, b.demo.opts.Options = b.d.opts, b.d.opts // paths made absolute
	beside, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { b.watchDeaths(beside); return nil })
	g.Go(func() error { b.watchStalls(beside); return nil })
	p, err := b.play(ctx)
	stop()
	return p, errors.Join(err, g.Wait(), b.keepLogs())
}

// play puts the load on, does the part's work, and measures. Work that breaks off is measured as far as it came.
func (b *switchBench) play(ctx context.Context) (*SwitchBenchPart, error) {
	for _, step := range []func(context.Context) error{b.startLoad, b.startRegisters, b.share} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	work := b.switchAround
	if b.part.failover {
		work = b.loseAround
	}
	before := readCPU()
	if b.broken = work(ctx); ctx.Err() != nil {
		return nil, ctx.Err()
	}
	b.cpu = before.until(readCPU())
	if b.broken != nil {
		b.screen.say("  %s", b.screen.paint(red, "the part ends before its time: "+b.broken.Error()))
	}
	if err := errors.Join(b.stopLoad(ctx), ctx.Err()); err != nil {
		return nil, err
	}
	if err := b.quiesce(ctx); err != nil {
		return nil, err
	}
	b.screen.say("looking at the evidence")
	return b.measure(ctx)
}
