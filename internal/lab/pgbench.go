package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// PgbenchOptions say how to run the bank.
type PgbenchOptions struct {
	Options
	Out      string        // folder of the report
	Duration time.Duration // of the load, once both sites are there; default 60 s. A third is before the switch, two thirds before the failover
	Clients  int           // default 4
	Scale    int           // default 5
	Rate     int           // transactions a second of all clients, default 200; negative: as fast as they can
	JSON     bool          // print the report as JSON to Stdout, the progress to Stderr
	Stdout   io.Writer     // default os.Stdout
	Stderr   io.Writer     // default os.Stderr
}

func (o *PgbenchOptions) setDefaults() {
	o.reshape = asBank
	o.Options.setDefaults()
	if o.Duration == 0 {
		o.Duration = time.Minute
	}
	if o.Clients == 0 {
		o.Clients = 4
	}
	if o.Rate == 0 {
		o.Rate = 200
	}
	if o.Scale == 0 {
		o.Scale = 5
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

// bench is one run of pgbench's bank: a program that knows nothing of sites, adopted under its clients.
type bench struct {
	opts    PgbenchOptions
	pgbench string // the program
	d       *Deployment
	screen  *screen
	began   time.Time
	logs    string // folder of pgbench's logs
	clients benchClients

	loadBefore float64
	adopting   [2]time.Time // from the last moment without Atoll to two sites that are level
	span       [2]time.Time // of the load that follows
	move       benchMove
	loss       benchLoss
}

// benchMove is the switch in the middle of the load.
type benchMove struct {
	from, to   topo.SiteID
	start, end time.Time
	record     api.Handover
	err        error
}

// Pgbench fills a bank at one site, lets its clients work, adopts it, copies it to a second site, and moves it while
// the clients go on; then it loses the site where the bank is, and brings it back. It returns nil exactly if every check passed.
func Pgbench(ctx context.Context, o PgbenchOptions) (err error) {
	o.setDefaults()
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return fmt.Errorf("lab: folder of the report: %w", err)
	}
	progress := o.Stdout
	if o.JSON {
		progress = o.Stderr
	}
	b := &bench{opts: o, screen: newScreen(progress), began: time.Now(), loadBefore: loadAverage()}
	b.clients.n = o.Clients
	if b.pgbench, err = findPgbench(); err != nil {
		return err
	}
	b.screen.say("pgbench's bank, scale %d, %d clients, at %s; %v between any two", o.Scale, o.Clients, o.places(), o.RTT)
	defer func() {
		b.clients.kill()
		if b.d != nil {
			err = errors.Join(err, b.d.Close())
		}
	}()
	if err := b.build(ctx); err != nil {
		return err
	}
	b.opts.Options = b.d.opts // paths made absolute
	report, err := b.play(ctx)
	b.screen.done()
	keep := &demo{opts: DemoOptions{Options: b.d.opts, Out: o.Out}, d: b.d}
	if err = errors.Join(err, keep.keepLogs()); err != nil {
		return err
	}
	if err := b.publish(report); err != nil {
		return err
	}
	if !report.OK {
		return fmt.Errorf("%w: %v", errChecks, failingChecks(report.Details))
	}
	return nil
}

// play lets the clients work and moves their bank about.
func (b *bench) play(ctx context.Context) (*BenchReport, error) {
	now := time.Now()
	b.span = [2]time.Time{now, now.Add(b.opts.Duration)}
	b.screen.say("both sites are there; %v of load begin", b.opts.Duration)
	b.clients.endAt(b.span[1])
	for _, step := range []func(context.Context) error{b.switchOver, b.lose, b.settle} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	b.screen.say("looking at the evidence")
	return b.examine(ctx)
}

// switchOver moves the bank to the other site after a third of the time.
func (b *bench) switchOver(ctx context.Context) error {
	if err := rest(ctx, time.Until(b.span[0].Add(b.opts.Duration/3))); err != nil {
		return err
	}
	m := &b.move
	m.from, m.to = b.opts.Sites[0], b.opts.Sites[1]
	b.screen.say("switch: the bank moves, %s → %s", m.from, m.to)
	m.start = time.Now()
	out, err := b.d.Atoll(ctx, "switch", "--keyspace", string(bank), "--buckets", "all", "--to", string(m.to), "--json")
	m.end, m.err = time.Now(), err
	if err == nil {
		m.err = json.Unmarshal(out, &m.record)
	}
	if m.err != nil {
		b.screen.say("  the switch failed: %v", m.err)
	}
	return ctx.Err()
}

// settle ends the load and waits, bounded, until the sites stand still and are equal; what is not by then, the checks
// will say.
func (b *bench) settle(ctx context.Context) error {
	if err := rest(ctx, time.Until(b.span[1])); err != nil {
		return err
	}
	if err := b.clients.wait(); err != nil {
		return err
	}
	b.screen.say("the bank is closed; waiting until the sites are equal")
	bounded, cancel := context.WithTimeout(ctx, quiesceBound)
	defer cancel()
	err := every(bounded, time.Second, func() (bool, error) {
		e, err := b.evidence(ctx)
		if err != nil {
			return false, err
		}
		c := CheckEqual(e.hashes)
		return c.Passed(), nil
	})
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		b.screen.say("  they are not after %v", quiesceBound)
		return nil
	}
	return err
}

func (b *bench) publish(r *BenchReport) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic("BUG: report does not marshal: " + err.Error())
	}
	data = append(data, '\n')
	err = errors.Join(
		os.WriteFile(filepath.Join(b.opts.Out, "pgbench.json"), data, 0o644),
		os.WriteFile(filepath.Join(b.opts.Out, "pgbench.txt"), []byte(r.text(&screen{})), 0o644))
	if err != nil {
		return fmt.Errorf("lab: report: %w", err)
	}
	if b.opts.JSON {
		_, err = b.opts.Stdout.Write(data)
	} else {
		_, err = io.WriteString(b.opts.Stdout, r.text(b.screen))
	}
	return err
}
