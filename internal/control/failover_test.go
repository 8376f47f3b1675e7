package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// unplanted skips a test that says what the planted build does not do.
func unplanted(t *testing.T) {
	t.Helper()
	if plant.TakeoverUnconditional {
		t.Skip("this build has the planted bug")
	}
}

func explained(t *testing.T, c *Controller) api.SiteExplanation {
	t.Helper()
	e, err := c.Explain(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	return e.Sites[0]
}

func unmet(e api.SiteExplanation) (rules []string) {
	for _, r := range e.Reasons {
		if !r.Met {
			rules = append(rules, r.Rule)
		}
	}
	return rules
}

func TestFailoverByItself(t *testing.T) {
	t.Parallel()
	unplanted(t)
	w := newFlood(t)
	c := w.controller("1", w.store)
	w.run(c)
	w.eventually("a is seen to be well", 5*time.Second, func() bool { return strings.HasPrefix(explained(t, c).Verdict, "a is not lost") })
	// Four leases of renewals: nothing happens.
	began := time.Now()
	w.eventually("four leases have passed", 10*time.Second, func() bool { return time.Since(began) > 4*testD })
	w.checkUntouched()

	last := w.kill()
	rec := w.done(10 * time.Second)
	w.checkTaken(rec.ID)
	w.taker.mu.Lock()
	opened := w.taker.opened[0].Sub(last)
	w.taker.mu.Unlock()
	if least := testD + testD/100 + testW; opened < least {
		t.Errorf("opened %s after the last renewal was sent; at least %s have to pass", opened, least)
	}
	t.Logf("opened %s after the last renewal was sent; D %s, W %s", opened, testD, testW)
	f := rec.Failover
	if !f.Automatic || f.Position != 4711 || f.WaitedUS < (testD+testW).Microseconds() || f.OpenUS < f.WaitedUS || f.LossMS != 20 || rec.Who != "automatic" || len(f.Taken) != 2 {
		t.Errorf("record %+v", f)
	}
	lease, _, err := w.store.Lease(t.Context(), "a")
	if err != nil || !lease.Revoked || lease.RevokedBy != rec.ID || lease.Holder != "keeper-of-a" {
		t.Errorf("lease %+v, %v", lease, err)
	}
	h, err := c.Handover(t.Context(), rec.ID, 0)
	if err != nil || h.Kind != "failover" || h.Buckets != "catalog 0, users 0-31" || h.Count != 33 || h.Failover == nil || h.Failover.OpenMS == 0 || h.From != "a" || h.To != "b" {
		t.Errorf("as operators see it: %+v, %v", h, err)
	}
	w.eventually("the verdict is that it is done", 5*time.Second, func() bool {
		e := explained(t, c)
		return strings.Contains(e.Verdict, "failover "+string(rec.ID)+" took over from a") && e.Last != nil && e.Last.ID == rec.ID && len(e.History) > 0
	})
	lines := strings.Join(w.audit(), "\n")
	for _, want := range []string{"b takes over from a", "failover " + string(rec.ID) + ": TAKEN: catalog 0, users 0-31 from a to b", "outcome done"} {
		if !strings.Contains(lines, want) {
			t.Errorf("audit lacks %q:\n%s", want, lines)
		}
	}
}

// TestFrozenWatch: this controller alone reads an old lease for one and a half leases, while a renews. Its takeover
// compares the revision that it timed, and fails.
func TestFrozenWatch(t *testing.T) {
	t.Parallel()
	w := newFlood(t)
	var frozen atomic.Bool
	var tries atomic.Int64
	h := &hindered{Client: w.store}
	var old struct {
		lease store.Lease
		rev   store.Revision
	}
	h.lease = func(ctx context.Context, site topo.SiteID) (store.Lease, store.Revision, error) { // the looker's goroutine only
		if frozen.Load() && old.rev != 0 {
			return old.lease, old.rev, nil
		}
		l, rev, err := w.store.Lease(ctx, site)
		if err == nil {
			old.lease, old.rev = l, rev
		}
		return l, rev, err
	}
	h.commit = func(_ context.Context, ch store.Change) (store.Revision, error, bool) {
		if ch.Ownership != nil {
			tries.Add(1)
		}
		return 0, nil, false
	}
	c := w.controller("1", h)
	w.run(c)
	w.eventually("a is seen", 5*time.Second, func() bool { return strings.HasPrefix(explained(t, c).Verdict, "a is not lost") })
	frozen.Store(true)
	began := time.Now()
	w.eventually("one and a half leases have passed", 5*time.Second, func() bool { return time.Since(began) > 3*testD/2 })
	frozen.Store(false)
	w.eventually("it ends", 10*time.Second, func() bool {
		all := w.failovers()
		return len(all) == 1 && all[0].Outcome != "" && (w.b.haltedBy() == "" || all[0].Outcome == handover.OutcomeDone)
	})
	if r := w.failovers()[0]; r.Outcome != handover.OutcomeRefused {
		w.mu.Lock()
		defer w.mu.Unlock()
		t.Fatalf("outcome %s: b has taken over from a, whose lease is in force after %d renewals", r.Outcome, w.lease.Sequence)
	}
	if tries.Load() == 0 {
		t.Error("no takeover was tried: nothing was tested")
	}
	w.checkUntouched()
	if r := w.failovers()[0]; !strings.Contains(r.Reasons[0], "renewed its lease") {
		t.Errorf("reasons %q", r.Reasons)
	}
	if w.kill(); !strings.Contains(strings.Join(w.audit(), "\n"), "ABORTED: nothing from a to b, outcome refused; a renewed its lease") {
		t.Errorf("audit %q", w.audit())
	}
}

func TestVetoes(t *testing.T) {
	t.Parallel()
	unplanted(t)
	w := newFlood(t)
	w.b.set(func() { w.b.standing.Linked, w.b.standing.Serving, w.b.standing.RemainingMS = true, true, 500 })
	c := w.controller("1", w.store)
	w.run(c)
	last := w.kill()
	w.eventually("the veto is told", 5*time.Second, func() bool {
		e := explained(t, c)
		return slices.Contains(unmet(e), handover.RuleVetoServing) && strings.Contains(e.Verdict, "does not take over from a because of veto-serving")
	})
	w.done(15 * time.Second)
	if waited := time.Since(last); waited < testD+3*testD {
		t.Errorf("took over after %s; the veto holds for %s behind the lease", waited, 3*testD)
	}
}

func TestFailoverByOrder(t *testing.T) {
	t.Parallel()
	unplanted(t)
	w := newFlood(t)
	w.policy.Mode, w.policy.MaxLoss = handover.ModeManual, 10*time.Millisecond
	c := w.controller("1", w.store)
	w.run(c)
	ask := func(r api.FailoverRequest) (api.FailoverAnswer, error) {
		r.Site, r.To, r.Why = "a", "b", "flood"
		return c.Failover(t.Context(), "operator ann", r)
	}
	refused := func(err error, rules ...string) {
		t.Helper()
		var coded *api.Error
		if !errors.As(err, &coded) || coded.Code != api.CodeRefused {
			t.Fatalf("error %v; want a refusal", err)
		}
		var got []string
		for _, p := range coded.Problems {
			got = append(got, p.Check)
		}
		if !slices.Equal(got, rules) {
			t.Errorf("refused because of %v; want %v", got, rules)
		}
	}
	_, err := ask(api.FailoverRequest{})
	refused(err, handover.RuleLease, handover.RuleMaxLoss)
	for _, r := range []api.FailoverRequest{{Site: "a", To: "a"}, {Site: "b", To: "b"}, {Site: "x", To: "b"}, {Site: "a", To: "b", Override: []string{"lease"}}} {
		var coded *api.Error
		if _, err := c.Failover(t.Context(), "operator ann", r); !errors.As(err, &coded) || coded.Code != api.CodeBadRequest {
			t.Errorf("%+v: %v", r, err)
		}
	}
	w.kill()
	w.eventually("only the mode and the loss speak against it", 5*time.Second, func() bool {
		return slices.Equal(unmet(explained(t, c)), []string{handover.RuleMaxLoss, handover.RuleMode})
	})
	_, err = ask(api.FailoverRequest{DryRun: true})
	refused(err, handover.RuleMaxLoss)
	set := []string{handover.RuleMaxLoss}
	dry, err := ask(api.FailoverRequest{DryRun: true, Override: set})
	if err != nil || dry.Standing.LossMS != 20 || dry.Handover.Outcome != "ready" || dry.Handover.Failover.LossMS != 20 || dry.ID != "" {
		t.Fatalf("dry run: %+v, %v", dry, err)
	}
	w.checkUntouched()
	if w.b.halts > 0 {
		t.Error("a dry run halted")
	}
	answer, err := ask(api.FailoverRequest{Override: set})
	if err != nil || answer.Handover.Phase == "PREPARE" || answer.Standing.LossMS != 20 {
		t.Fatalf("answer %+v, %v", answer, err)
	}
	rec := w.done(5 * time.Second)
	if rec.ID != answer.ID || rec.Failover.Automatic || !slices.Equal(rec.Failover.Override, set) || rec.Who != "operator ann" || rec.Why != "flood" {
		t.Errorf("record %+v", rec)
	}
	w.checkTaken(rec.ID)
	_, err = ask(api.FailoverRequest{})
	refused(err, handover.RuleBuckets)
	w.eventually("everything is in the audit", 5*time.Second, func() bool {
		lines := strings.Join(w.audit(), "\n")
		return strings.Contains(lines, "refused (by operator ann); lease: ") && strings.Contains(lines, "set aside: max-loss (by operator ann: flood)")
	})
}

func TestObserveOnlySays(t *testing.T) {
	t.Parallel()
	unplanted(t)
	w := newFlood(t)
	w.policy.Mode = handover.ModeObserve
	c := w.controller("1", w.store)
	w.run(c)
	w.kill()
	would := func() (n int) {
		for _, line := range w.audit() {
			if strings.Contains(line, "b would take over from a now") {
				n++
			}
		}
		return n
	}
	w.eventually("it is said", 5*time.Second, func() bool { return would() == 1 })
	began := time.Now()
	w.eventually("a lease has passed", 5*time.Second, func() bool { return time.Since(began) > testD })
	if n := would(); n != 1 || len(w.failovers()) > 0 || w.b.halts > 0 {
		t.Errorf("said %d times, %d failovers, halted %d times", n, len(w.failovers()), w.b.halts)
	}
	w.checkUntouched()
}

// TestTakeoverWithoutAnAnswer: the store has the takeover, and nobody says so.
func TestTakeoverWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	unplanted(t)
	w := newFlood(t)
	h := &hindered{Client: w.store}
	var lost atomic.Bool
	h.commit = func(ctx context.Context, ch store.Change) (store.Revision, error, bool) {
		if ch.Lease == nil || lost.Swap(true) {
			return 0, nil, false
		}
		_, err := w.store.Commit(ctx, ch)
		return 0, errors.Join(store.ErrOutcomeUnknown, err), true
	}
	w.run(w.controller("1", h))
	w.kill()
	rec := w.done(10 * time.Second)
	w.checkTaken(rec.ID)
	if n := len(w.failovers()); n != 1 {
		t.Errorf("%d failovers", n)
	}
}

// TestLateTakeover: the takeover is on its way when this site loses its own lease and gives up. It comes when nothing
// but the record stands in its way any more.
func TestLateTakeover(t *testing.T) {
	t.Parallel()
	unplanted(t)
	w := newFlood(t)
	h := &hindered{Client: w.store}
	kept := make(chan store.Change, 100)
	h.commit = func(_ context.Context, ch store.Change) (store.Revision, error, bool) {
		if ch.Lease == nil {
			return 0, nil, false
		}
		w.b.set(func() { w.b.standing.Lease = false })
		kept <- ch
		return 0, store.ErrOutcomeUnknown, true
	}
	w.run(w.controller("1", h))
	w.kill()
	late := <-kept
	w.eventually("it gives up", 5*time.Second, func() bool {
		all := w.failovers()
		return len(all) == 1 && all[0].Outcome == handover.OutcomeRefused && w.b.haltedBy() == ""
	})
	if _, err := w.store.Commit(t.Context(), late); !errors.Is(err, store.ErrConflict) {
		t.Errorf("late takeover: %v; want a conflict", err)
	}
	w.checkUntouched()
}

// TestTakerDies kills the taker's controller in the middle, and lets the next run of the agent go on.
func TestTakerDies(t *testing.T) {
	t.Parallel()
	unplanted(t)
	for _, c := range []struct {
		name string
		when func(w *flood, h *hindered) <-chan struct{} // closed when it is to die
		one  bool                                        // the first try goes on
	}{
		{"halted", func(w *flood, h *hindered) <-chan struct{} {
			die := make(chan struct{})
			go func() {
				w.eventually("halted", 10*time.Second, func() bool { return w.b.haltedBy() != "" })
				close(die)
			}()
			return die
		}, false},
		{"before the takeover lands", func(_ *flood, h *hindered) <-chan struct{} {
			die := make(chan struct{})
			h.commit = func(ctx context.Context, ch store.Change) (store.Revision, error, bool) {
				if ch.Lease == nil {
					return 0, nil, false
				}
				close(die)
				<-ctx.Done()
				return 0, store.ErrOutcomeUnknown, true
			}
			return die
		}, false},
		{"after the takeover landed", func(w *flood, h *hindered) <-chan struct{} {
			die := make(chan struct{})
			h.commit = func(ctx context.Context, ch store.Change) (store.Revision, error, bool) {
				if ch.Lease == nil {
					return 0, nil, false
				}
				if _, err := w.store.Commit(ctx, ch); err != nil {
					w.t.Error(err)
				}
				close(die)
				<-ctx.Done()
				return 0, store.ErrOutcomeUnknown, true
			}
			return die
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newFlood(t)
			h := &hindered{Client: w.store}
			die := c.when(w, h)
			kill := w.run(w.controller("1", h))
			w.kill()
			<-die
			kill()
			first := w.b.haltedBy()
			w.run(w.controller("2", w.store))
			rec := w.done(15 * time.Second)
			w.checkTaken(rec.ID)
			if (rec.ID == first) != c.one {
				t.Errorf("halted by %s, taken by %s", first, rec.ID)
			}
			for _, r := range w.failovers() {
				if !r.Over() || r.ID != rec.ID && (r.ID != first || r.Outcome != handover.OutcomeRefused) {
					t.Errorf("%s ended in %s, %q", r.ID, r.Phase, r.Outcome)
				}
			}
		})
	}
}

// TestAnotherControllerFinishes: the taker's agent does not come back; the lost site's does, and sees that it is open.
func TestAnotherControllerFinishes(t *testing.T) {
	t.Parallel()
	unplanted(t)
	w := newFlood(t)
	h := &hindered{Client: w.store}
	die := make(chan struct{})
	h.commit = func(ctx context.Context, ch store.Change) (store.Revision, error, bool) {
		if ch.Lease == nil {
			return 0, nil, false
		}
		if _, err := w.store.Commit(ctx, ch); err != nil {
			t.Error(err)
		}
		close(die)
		<-ctx.Done()
		return 0, store.ErrOutcomeUnknown, true
	}
	kill := w.run(w.controller("1", h))
	w.kill()
	<-die
	kill()
	other := w.controller("9", w.store)
	other.cfg.Site, other.name, other.cfg.Survivor = "a", "a/9", nil
	w.run(other)
	rec := w.done(20 * time.Second)
	w.checkTaken(rec.ID)
	if rec.Driver != "a/9" || rec.Failover.OpenUS < rec.Failover.WaitedUS {
		t.Errorf("record %+v", rec)
	}
}

// TestMovingBucketsFollow: buckets that the dead site was moving are left to their handover, which this site takes over
// at once; what it leaves with the dead site is taken by a further failover.
func TestMovingBucketsFollow(t *testing.T) {
	t.Parallel()
	unplanted(t)
	w := newFlood(t)
	w.policy.QuietTime, w.policy.PerHour = time.Hour, 1
	o, rev, err := w.store.Ownership(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	move := handover.Move{Keyspace: "users", Buckets: topo.Spans{{First: 8, Last: 15}}, From: "a", To: "b", Epochs: []topo.EpochSpan{{First: 8, Last: 15, Epoch: 3}}}
	next, err := o.StartMove(move.Keyspace, move.Buckets, "s1", "b")
	if err != nil {
		t.Fatal(err)
	}
	rec := handover.Record{Format: handover.Format, ID: "s1", Kind: handover.Switch, Move: move, Sites: []topo.SiteID{"a", "b"}, Who: "ann",
		Bounds: handover.Bounds{FenceMS: 60_000, CatchMS: 60_000}, Phase: handover.Moving, Driver: "a/1", Claimed: next.Version,
		Steps: []handover.Step{{Phase: handover.Moving, At: time.Now(), Driver: "a/1"}}}
	if _, err := w.store.Commit(t.Context(), store.Change{Ownership: &store.OwnershipChange{Expect: rev, Next: next}, Handover: &store.HandoverChange{ID: "s1", Body: rec.Encode()}}); err != nil {
		t.Fatal(err)
	}
	c := w.controller("1", w.store)
	w.run(c)
	w.taker.Site = noMarker{}
	w.kill()
	w.eventually("a owns nothing", 15*time.Second, func() bool {
		o := w.ownership()
		return len(o.EpochsAt("users", "a")) == 0 && o.Keyspaces["users"].Ranges[0].Owner == "b" && !slices.ContainsFunc(o.Keyspaces["users"].Ranges, func(r topo.Range) bool { return r.Owner == "a" })
	})
	w.eventually("all failovers are over", 5*time.Second, func() bool {
		return !slices.ContainsFunc(w.failovers(), func(r handover.Record) bool { return !r.Over() })
	})
	o = w.ownership()
	r, _ := o.At("users", 10)
	if r.Epoch != 5 || r.Cut == nil || r.Cut.Epoch != 4 { // 3, aborted, taken
		t.Errorf("bucket 10: %+v", r)
	}
	taken := slices.DeleteFunc(w.failovers(), func(r handover.Record) bool { return r.Phase != handover.Done })
	if len(taken) == 2 && (taken[0].Failover.Incident != taken[1].ID || taken[1].Failover.Incident != "") {
		t.Errorf("incidents %q and %q", taken[0].Failover.Incident, taken[1].Failover.Incident)
	}
	t.Logf("%d failovers", len(taken))
}

// noMarker is a site at which nothing arrives.
type noMarker struct{ deadSite }

func (noMarker) CaughtUp(ctx context.Context, r api.CaughtUpRequest) (api.CaughtUpAnswer, error) {
	return api.CaughtUpAnswer{}, &api.Error{Status: 504, Code: api.CodeNotYet, Message: "no marker of " + string(r.Handover)}
}

// TestExplainWithoutTheStore: the explanation says so, and still says everything else.
func TestExplainWithoutTheStore(t *testing.T) {
	t.Parallel()
	w := newFlood(t)
	h := &hindered{Client: w.store}
	h.lease = func(context.Context, topo.SiteID) (store.Lease, store.Revision, error) {
		return store.Lease{}, 0, fmt.Errorf("%w: quorum lost", store.ErrUnavailable)
	}
	c := w.controller("1", h)
	if _, err := c.Explain(t.Context(), ""); err == nil {
		t.Error("a controller that does not run explains")
	}
	w.run(c)
	w.eventually("it is said that the store does not answer", 5*time.Second, func() bool {
		e, err := c.Explain(t.Context(), "")
		return err == nil && len(e.Sites) == 1 && e.Sites[0].Reasons[0].Rule == "store" && strings.Contains(e.Sites[0].Verdict, "quorum lost")
	})
	for _, site := range []topo.SiteID{"b", "x"} {
		if _, err := c.Explain(t.Context(), site); err == nil {
			t.Errorf("explains %s", site)
		}
	}
}

// A site that renewed lately is looked at less often; one that has not, or that cannot be read, as often as ever.
func TestPauseBetweenLooks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name  string
			lease time.Duration
			age   time.Duration // since a renewal was first seen
			sight func(*handover.Sight)
			want  time.Duration
		}{
			{"just renewed", 3 * time.Second, 0, nil, 750 * time.Millisecond},
			{"renewed, and soon to be doubted", 3 * time.Second, time.Second, nil, 500 * time.Millisecond},
			{"half a lease ago", 3 * time.Second, 1500 * time.Millisecond, nil, 250 * time.Millisecond},
			{"longer ago", 3 * time.Second, 10 * time.Second, nil, 250 * time.Millisecond},
			{"never there", 3 * time.Second, 0, func(s *handover.Sight) { s.Lease.Exists = false }, 250 * time.Millisecond},
			{"revoked", 3 * time.Second, 0, func(s *handover.Sight) { s.Lease.Revoked = true }, 250 * time.Millisecond},
			{"a long lease", 10 * time.Second, 0, nil, time.Second},
			{"a longer one", time.Minute, 0, nil, time.Second},
			{"a short one", 900 * time.Millisecond, 0, nil, 300 * time.Millisecond},
		} {
			l := newLookout(&Controller{cfg: Config{Site: "b", Lease: c.lease}}, "a")
			l.eyes.seen = time.Now().Add(-c.age)
			s := handover.Sight{Lease: handover.LeaseSeen{Exists: true, Duration: c.lease}}
			if c.sight != nil {
				c.sight(&s)
			}
			if got := l.pause(s); got != c.want {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
			}
			if got, often := l.pause(handover.Unseen{}), min(max(c.lease/12, lookLeast), lookMost); got != often {
				t.Errorf("%s, unseen: %v, want %v", c.name, got, often)
			}
		}
	})
}
