package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// faultWorld is the deployment that all tests of faults share: two sites and a witness, and load while a fault plays.
// What one test leaves is where the next begins; the history of all of them together has to hold.
type faultWorld struct {
	*demo
	t       *testing.T // of the fault that plays
	ops     []Operation
	losses  []Loss
	formers []*former
	gone    []topo.SiteID                     // for good
	clock   *setClock                         // of a site's database; nil: all have the machine's
	told    map[topo.HandoverID]time.Duration // of a failover: the most that it may have lost, by its record
}

var faults struct {
	once  sync.Once
	world *faultWorld
	dir   string
	err   error
}

const (
	faultRate    = 60.0
	recoverBound = 2 * time.Minute // machines that test are slow
)

// playFault runs one fault under load and judges what it left behind: every test ends with K1, K3, K6 and equal sites.
func playFault(t *testing.T, play func(context.Context, *faultWorld)) {
	alone(t)
	faults.once.Do(func() { faults.world, faults.err = newFaultWorld(t) })
	if faults.err != nil {
		t.Fatal(faults.err)
	}
	w := faults.world
	w.t = t
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	defer func() {
		if t.Failed() {
			w.logTails()
		}
	}()
	for _, name := range []string{loadName, registersName} { // of a test that failed
		if w.d.Processes.Running(name) {
			w.must(w.d.Processes.Stop(name))
		}
	}
	w.must(w.recover(ctx))
	w.must(w.share(ctx))
	w.play(ctx, play)
}

// alone skips a fault beside other tests: leases would run out without a fault.
func alone(t *testing.T) {
	t.Helper()
	if os.Getenv("ATOLL_FAULTS") == "" {
		t.Skip("plays on real sites under load and wants the machine to itself: make test-faults RUN=" + t.Name())
	}
}

// play has a fault under load, and judges.
func (w *faultWorld) play(ctx context.Context, play func(context.Context, *faultWorld)) {
	w.t.Helper()
	w.must(w.startLoad(ctx))
	w.must(w.startRegisters(ctx))
	w.eventually(ctx, "the load is answered", func() bool { return w.answered() > 20 })
	play(ctx, w)
	w.must(w.recover(ctx))
	w.must(w.stopLoad(ctx))
	w.must(w.quiesce(ctx))
	w.judge(ctx)
}

// ownWorld is a deployment for one test alone, with its users shared out. A test has one where the next is not to begin with
// what it leaves: other databases, other clocks, fewer sites.
func ownWorld(ctx context.Context, t *testing.T, options Options) *faultWorld {
	t.Helper()
	alone(t)
	dir, binaries, err := buildBinaries()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	options.Atoll, options.Tickets, options.Gateways, options.Buckets = binaries.atoll, binaries.tickets, 1, 64
	options.Shape = Shape{Customers: 200, Seats: 20000, Events: 4}
	o := DemoOptions{Options: options, Rate: faultRate, Out: dir}
	o.setDefaults()
	w := &faultWorld{demo: &demo{opts: o, screen: newScreen(io.Discard), began: time.Now()}, t: t}
	w.d, err = Build(ctx, o.Options, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			w.logTails()
		}
		if err := w.d.Close(); err != nil {
			t.Error(err)
		}
	})
	w.opts.Options = w.d.opts
	w.must(w.d.awaitHealthy(ctx))
	w.must(w.share(ctx))
	return w
}

func newFaultWorld(t *testing.T) (*faultWorld, error) {
	dir, binaries, err := buildBinaries()
	faults.dir = dir
	if err != nil {
		return nil, err
	}
	o := DemoOptions{Options: Options{Atoll: binaries.atoll, Tickets: binaries.tickets, Gateways: 1, Buckets: 64,
		Shape: Shape{Customers: 200, Seats: 20000, Events: 4}}, Rate: faultRate, Out: faults.dir}
	o.setDefaults()
	w := &faultWorld{demo: &demo{opts: o, screen: newScreen(io.Discard), began: time.Now()}}
	// Not the test's context: the deployment outlives the first test.
	w.d, err = Build(context.Background(), o.Options, func(string) {})
	if err != nil {
		return nil, err
	}
	w.opts.Options = w.d.opts
	return w, nil
}

type binaries struct{ atoll, tickets string }

// buildBinaries builds the ordinary binaries into a folder of their own, which is the caller's to remove.
func buildBinaries() (dir string, b binaries, err error) {
	if dir, err = os.MkdirTemp("", "atoll-faults-"); err != nil {
		return "", b, err
	}
	build := exec.Command("go", "build", "-o", dir+"/", "../../cmd/atoll", "../../examples/tickets")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, b, fmt.Errorf("%w\n%s", err, out)
	}
	return dir, binaries{dir + "/atoll", dir + "/tickets"}, nil
}

// share gives each site the same part of the users and the first one the catalogue, as every fault finds it.
func (w *faultWorld) share(ctx context.Context) error {
	type part struct {
		ks      topo.KeyspaceID
		buckets topo.Spans
		to      topo.SiteID
	}
	parts := []part{{catalog, topo.Spans{{First: 0, Last: 0}}, w.a()}}
	all, n := w.opts.Buckets, len(w.opts.Sites)
	for i, site := range w.opts.Sites {
		parts = append(parts, part{users, topo.Spans{{First: topo.BucketID((n - 1 - i) * all / n), Last: topo.BucketID((n-i)*all/n - 1)}}, site})
	}
	for _, want := range slices.Backward(parts) {
		bounded, cancel := context.WithTimeout(ctx, recoverBound)
		var last error
		err := every(bounded, 500*time.Millisecond, func() (bool, error) {
			missing := slices.DeleteFunc(want.buckets.Buckets(), w.owned(bounded, want.ks, want.to).Contains)
			if len(missing) == 0 {
				return true, nil
			}
			_, last = w.d.Atoll(bounded, "switch", "--keyspace", string(want.ks), "--buckets", topo.SpansOf(missing...).String(), "--to", string(want.to))
			return false, nil // looked at again
		})
		cancel()
		if err != nil {
			return fmt.Errorf("%s of %s cannot be brought to %s: %w; last: %w", want.buckets, want.ks, want.to, err, last)
		}
	}
	return nil
}

// closeFaultWorld ends the shared deployment, if a test has built it.
func closeFaultWorld() error {
	var err error
	if faults.world != nil {
		err = faults.world.d.Close()
	}
	if faults.dir != "" {
		err = errors.Join(err, os.RemoveAll(faults.dir))
	}
	return err
}

// leases is a number of lease durations.
func (w *faultWorld) leases(n float64) time.Duration {
	return time.Duration(n * float64(w.d.Spec.Policies.Lease.Duration))
}

func (w *faultWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// eventually waits for a condition of the deployment.
func (w *faultWorld) eventually(ctx context.Context, what string, ok func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, recoverBound)
	defer cancel()
	if err := every(ctx, 20*time.Millisecond, func() (bool, error) { return ok(), nil }); err != nil {
		w.t.Fatalf("not within %v: %s", recoverBound, what)
	}
}

// answered counts the answers of the running load.
func (w *faultWorld) answered() int {
	data, err := os.ReadFile(w.historyFile())
	if err != nil {
		return 0
	}
	return bytes.Count(data, []byte(`"outcome":"ok"`))
}

// recover undoes every fault and waits until no lost site is still to be settled.
func (w *faultWorld) recover(ctx context.Context) error {
	leave := []string{loadName, registersName}
	for _, site := range w.gone {
		leave = append(leave, w.d.processesOf(site)...)
	}
	return w.d.recover(ctx, recoverBound, leave...)
}

// judge reads the evidence of everything so far.
func (w *faultWorld) judge(ctx context.Context) {
	w.t.Helper()
	e, err := w.gather(ctx)
	w.must(err)
	if w.clock != nil {
		w.clock.correct(&e.Evidence)
	}
	w.ops = append(w.ops, e.ops...)
	w.noteLosses(ctx)
	e.Losses = openedAt(w.losses, e.Epochs)
	checks := []Check{CheckK1(e.Evidence, w.ops, w.opts.Buckets), CheckK3(w.ops, e.shops, e.Conflicts), CheckK6(w.ops), CheckEqual(e.hashes)}
	switch {
	case len(w.formers) > 0:
		checks = w.checksWithFormers(ctx, e)
	case w.clock != nil:
		registers := append(slices.Clone(w.ops), FinalReads(w.ops, e.shops, time.Now())...)
		checks = append(checks, CheckK4(registers, e.Conflicts, e.Losses))
	case w.opts.sessions > 0:
		checks = append(checks, w.checksWithSessions(e)...)
	}
	for _, c := range checks {
		if c.Passed() {
			w.t.Logf("%s passes: %s", c.Name, c.Looked)
			continue
		}
		w.t.Errorf("%s: %s; %s; %d found\n  %s", c.Name, c.Claim, c.Error, c.Violated, strings.Join(c.Examples, "\n  "))
	}
	n := count(e.ops)
	w.t.Logf("%d answered, %d failed (%d of unknown outcome)", n.OK, n.Failed, n.Unknown)
	if n.OK < 100 {
		w.t.Errorf("too little load for a verdict")
	}
}

// checksWithSessions are what the demonstration looks at besides, where clients carry a session.
func (w *faultWorld) checksWithSessions(e *evidence) []Check {
	keyed := append(slices.Clone(w.ops), FinalReads(w.ops, e.shops, time.Now())...)
	seats, _ := CheckSeats(e.shops, e.Conflicts)
	k5, _ := CheckK5(e.Evidence, w.ops, w.opts.Buckets)
	checks := []Check{CheckK2(e.Evidence), CheckK4(keyed, e.Conflicts, e.Losses), k5, CheckLists(keyed, e.Conflicts, e.Losses), seats, CheckReleases(e.holds, e.Evidence)}
	if len(tailsOf(e.Evidence)) > 0 {
		checks = append(checks, CheckTail(e.Evidence))
	}
	return checks
}

// noteLosses remembers the failovers of this fault, by their records: the fault itself need not have been a loss.
func (w *faultWorld) noteLosses(ctx context.Context) {
	w.t.Helper()
	st, err := w.d.status(ctx, w.b())
	w.must(err)
	for _, h := range st.Handovers {
		known := slices.ContainsFunc(w.losses, func(l Loss) bool { return l.ID == h.ID })
		if h.Kind != failoverKind || h.Failover == nil || known || len(h.Steps) == 0 {
			continue
		}
		l := Loss{ID: h.ID, Lost: h.From, Taker: h.To, Killed: h.Steps[0].At, Opened: h.Steps[0].At}
		if h.Failover.Return != nil {
			l.Settled = h.Failover.Return.At
		}
		w.losses = append(w.losses, l)
		if w.told == nil {
			w.told = map[topo.HandoverID]time.Duration{}
		}
		w.told[h.ID] = time.Duration(h.Failover.LossMS) * time.Millisecond
		w.t.Logf("failover %s, %s → %s: %s, tail %+v", h.ID, h.From, h.To, h.Outcome, h.Failover.Return)
	}
}

// openedAt has losses opened when the databases say so.
func openedAt(losses []Loss, epochs []EpochRow) []Loss {
	out := slices.Clone(losses)
	for i := range out {
		l, first := &out[i], time.Time{}
		for _, r := range epochs {
			if r.Database == l.Taker && r.Site == l.Taker && r.Open && r.Handover == l.ID && (first.IsZero() || r.At.Before(first)) {
				first = r.At
			}
		}
		if first.After(l.Opened) {
			l.Opened = first
		}
	}
	return out
}

func (w *faultWorld) logTails() {
	for _, name := range w.d.Processes.Names() {
		if strings.HasSuffix(name, "/agent") {
			w.t.Logf("log of %s ends:\n%s", name, w.d.Processes.Tail(name, 25))
		}
	}
}

// owned lists a site's buckets of a keyspace.
func (w *faultWorld) owned(ctx context.Context, ks topo.KeyspaceID, site topo.SiteID) topo.Spans {
	w.t.Helper()
	st, err := w.d.status(ctx, site)
	w.must(err)
	for _, k := range st.Ownership.Keyspaces {
		for _, o := range k.Owners {
			if k.Keyspace == ks && o.Site == site {
				spans, err := topo.ParseSpans(o.Buckets, k.Buckets)
				w.must(err)
				return spans
			}
		}
	}
	return nil
}

func (w *faultWorld) ownedBy(ctx context.Context, site topo.SiteID) topo.Spans {
	w.t.Helper()
	return w.owned(ctx, users, site)
}

// awaitLine waits for a line in a process's log behind the given offset.
func (w *faultWorld) awaitLine(ctx context.Context, name string, from int64, text string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	path := w.d.Processes.LogFile(name)
	err := every(ctx, 2*time.Millisecond, func() (bool, error) {
		f, err := os.Open(path)
		if err != nil {
			return false, err
		}
		defer f.Close()
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return false, err
		}
		data, err := io.ReadAll(f)
		return bytes.Contains(data, []byte(text)), err
	})
	if err != nil {
		return fmt.Errorf("%s never logged %s: %w", name, text, err)
	}
	return nil
}

func (w *faultWorld) logSize(name string) int64 {
	info, err := os.Stat(w.d.Processes.LogFile(name))
	w.must(err)
	return info.Size()
}

func (w *faultWorld) storeLeader(ctx context.Context) topo.SiteID {
	w.t.Helper()
	leader, err := w.d.storeLeader(ctx)
	w.must(err)
	return leader
}
