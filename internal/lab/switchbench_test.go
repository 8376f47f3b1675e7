package lab

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// A drawn switch moves a range of what one site owns to another one, and follows from the seed.
func TestDrawSwitch(t *testing.T) {
	t.Parallel()
	sites := []topo.SiteID{"a", "b", "c"}
	owned := map[topo.SiteID][]topo.BucketID{"a": {9, 3, 4, 200}, "c": {7}}
	play := func(seed uint64) []switchRun {
		random := rand.New(rand.NewPCG(seed, 0))
		var out []switchRun
		for range 200 {
			out = append(out, drawSwitch(random, sites, owned))
		}
		return out
	}
	var from, to = map[topo.SiteID]int{}, map[topo.SiteID]int{}
	lengths := map[int]bool{}
	for _, s := range play(1) {
		has := slices.Sorted(slices.Values(owned[s.from]))
		got := s.buckets.Buckets()
		first := slices.Index(has, got[0])
		if first < 0 || !slices.Equal(has[first:first+len(got)], got) || s.from == s.to || s.keyspace != users || s.phase != nominal {
			t.Fatalf("%+v", s)
		}
		from[s.from]++
		to[s.to]++
		lengths[len(got)] = true
	}
	if len(from) != 2 || len(to) != 3 || len(lengths) != 4 {
		t.Errorf("from %v to %v, lengths %v: not all that could be drawn was", from, to, lengths)
	}
	texts := func(runs []switchRun) (out []string) { return describe(runs, time.Time{}) }
	if !slices.Equal(texts(play(7)), texts(play(7))) || slices.Equal(texts(play(7)), texts(play(8))) {
		t.Error("what is drawn does not follow from the seed")
	}
}

// The steps of a switch, from what its record says of them; one that did not come to its end says nothing.
func TestStepsOf(t *testing.T) {
	t.Parallel()
	at := func(ms int) time.Time { return time.UnixMilli(int64(1000 + ms)) }
	whole := api.Handover{Steps: []api.Step{{Phase: "PREPARE", At: at(-50)}, {Phase: "MOVING", At: at(0), Facts: map[string]string{"closing after": "40ms"}},
		{Phase: "FENCED", At: at(70)}, {Phase: "CAUGHT_UP", At: at(110)}, {Phase: "COMMITTED", At: at(160)}, {Phase: "OPEN", At: at(180)}, {Phase: "DONE", At: at(300)}}}
	cut, other := whole, whole
	cut.Steps = whole.Steps[:4]
	other.Steps = slices.Clone(whole.Steps)
	other.Steps[1].Facts = nil // another driver went on
	got := stepsOf([]switchRun{{record: whole}, {}, {record: cut}, {record: other}})
	var ms []float64
	for _, s := range got {
		if s.Count != 1 {
			t.Errorf("%s: %d switches, want 1", s.Step, s.Count)
		}
		ms = append(ms, s.P50)
	}
	if want := []float64{40, 30, 40, 50, 20}; !slices.Equal(ms, want) {
		t.Errorf("%v, want %v", ms, want)
	}
}

func TestLeft(t *testing.T) {
	t.Parallel()
	if got := left(time.Minute, 0, 10); got != "" {
		t.Errorf("%q before anything was done", got)
	}
	if got := left(time.Minute, 4, 10); got != " (about 1m30s left)" {
		t.Errorf("%q", got)
	}
}

// aBench is aDemo as the part of switches, or of failovers.
func aBench(failover bool) *switchBench {
	b := &switchBench{demo: aDemo(), part: benchParts[0]}
	if failover {
		b.part = benchParts[1]
	}
	b.cut, b.loaded = [2]time.Time{}, [2]time.Time{second(0), second(40)}
	return b
}

func TestSwitchFigures(t *testing.T) {
	t.Parallel()
	story := goodMove()
	for i := range story.e.Epochs {
		story.e.Epochs[i].Handover = map[bool]topo.HandoverID{false: "h1", true: ""}[story.e.Epochs[i].Open]
	}
	hold := func(at float64, begin bool) Hold {
		return Hold{Gateway: "a/g1", Begin: begin, Handover: "h1", Keyspace: users, Buckets: topo.SpansOf(7), At: second(at)}
	}
	impatient := request(30, 31, keyIn(8), 0, 0)
	impatient.Op, impatient.Error = registerRead, "context deadline exceeded"
	e := &evidence{Evidence: story.e, holds: []Hold{hold(2.8, true), hold(4.05, false)}, ops: []Operation{
		request(3, 4.1, keyIn(7), 200, 900), request(3, 4.1, keyIn(8), 200, 700), // held for another reason than this switch
		request(20, 21, keyIn(8), 503, 0), request(22, 23, keyIn(8), 409, 0), impatient,
	}}
	b := aBench(false)
	f := b.switchFigures(e)
	if f.Count != 1 || f.FailedRequests != 1 || f.GaveUp != 1 || f.WritePauseMS.P99 != 1250 || f.Held != (Quantiles{900, 900, 900, 1}) {
		t.Errorf("%+v", f)
	}
	if len(f.Slowest) != 1 || f.Slowest[0].PauseMS != 1250 || f.Slowest[0].Handover != "h1" || len(f.Run) != 1 {
		t.Errorf("slowest %+v, run %v", f.Slowest, f.Run)
	}
	want(t, checkPauses(f), "")
	want(t, checkPauses(b.switchFigures(&evidence{Evidence: story.e})), "pauses of 0 buckets")
	want(t, checkPauses(aBench(false).switchFigures(&evidence{})), "nothing was moved")
}

func TestFailoverFigures(t *testing.T) {
	t.Parallel()
	b := aBench(true)
	o, epochs := anOutage("failover 1")
	never, _ := anOutage("failover 2")
	never.killed, never.seen, never.back, never.settled = second(30), time.Time{}, second(38), time.Time{}
	unborn, _ := anOutage("failover 3") // the part ended before its kill
	unborn.killed = time.Time{}
	o.record = api.Handover{ID: "f1", Steps: []api.Step{{At: second(13.5)}}, Failover: &api.Failover{Automatic: true, WaitedMS: 4000}}
	b.outages = []*outage{o, never, unborn}
	write := func(op string, bucket topo.BucketID, from, to float64, site topo.SiteID, outcome Outcome) Operation {
		r := request(from, to, keyIn(bucket), 200, 0)
		r.Op, r.Site, r.Outcome, r.Write = op, site, outcome, true
		return r
	}
	e := &evidence{Evidence: Evidence{Epochs: epochs}, ops: []Operation{
		write(registerWrite, 7, 9, 9.5, "a", OK), write(registerWrite, 7, 14, 14.8, "b", OK), write(buyOp, 7, 12, 14.3, "b", OK),
		write(registerWrite, 8, 14, 15, "b", OK), write(registerWrite, 7, 31, 36, "", Unknown),
		write(buyOp, 1023, 14, 19, "b", OK), // nobody's register
	}}
	f := b.failoverFigures(e)
	if f.Lost != 2 || f.Count != 1 || f.LeaseS != 3 || f.WS != 1 || f.Opened != (Quantiles{4000, 4000, 4000, 1}) {
		t.Errorf("%+v", f)
	}
	// The first loss: 4.3 s by a purchase, and 5 s; the second: at least 6 s for the one bucket that was tried.
	if f.RTO != (Quantiles{5000, 6000, 6000, 3}) {
		t.Errorf("RTO %+v", f.RTO)
	}
	if got := f.BySite[0].SinceRenewalMS; got != 500 {
		t.Errorf("killed %d ms after the renewal, want 500", got)
	}
	want(t, checkReturns(f), "did not open all buckets of a")
	f.BySite = f.BySite[:1]
	want(t, checkReturns(f), "")
	f.BySite[0].Automatic = false
	want(t, checkReturns(f), "no record of an automatic failover")
	if c := checkReturns(&FailoverFigures{}); c.Passed() {
		t.Error("a check of nothing passes")
	}
}

func TestFailoverFiguresAccount(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		f    FailoverFigures
		want string
	}{
		{FailoverFigures{RPO: 5, Applied: 3, Logged: 2}, ""},
		{FailoverFigures{RPO: 5, Applied: 3, Logged: 1}, "1 writes are neither"},
		{FailoverFigures{RPO: 5, Applied: 3, Logged: 1, Missing: 1, examples: []string{"buy x is gone"}}, "buy x is gone"},
	} {
		c := Check{Name: "tail"}
		test.f.account(&c)
		want(t, c, test.want)
	}
	c := Check{Name: "tail"}
	(&FailoverFigures{RPO: 12, Missing: 12, examples: []string{"one"}}).account(&c)
	if c.Violated != 12 {
		t.Errorf("%d violations, want 12", c.Violated)
	}
}

// aPart is a part's report with bounds that are all kept.
func aPart(part benchPart) *SwitchBenchPart {
	p := &SwitchBenchPart{Part: part.name, Commit: "abc", Seed: 1, RTTms: 30, Requests: Requests{Counts: Counts{OK: 1000}, PerSecond: 180}}
	good := Check{Name: "K1"}
	p.Details, p.Checks = []Check{good}, map[string]string{good.Name: good.Result()}
	if part.failover {
		p.Failover = &FailoverFigures{LeaseS: part.lease.Duration.Seconds(), WS: part.lease.W.Seconds(), Lost: 15, Count: 15,
			RTO: Quantiles{P99: 1000 * (1.01*part.lease.Duration.Seconds() + part.lease.W.Seconds() + 1), Count: 150}, BySite: make([]LossFigures, 15)}
	} else {
		p.Switch = &SwitchFigures{Switches: Switches{Count: 200, WritePauseMS: Quantiles{P99: 200, Count: 5000}}}
	}
	p.judge()
	return p
}

func TestSwitchBenchJudge(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		what   string
		part   int
		change func(*SwitchBenchPart)
		missed string // "" none
	}{
		{"switches", 0, func(*SwitchBenchPart) {}, ""},
		{"too few switches", 0, func(p *SwitchBenchPart) { p.Switch.Count = 199 }, "switches"},
		{"a failed request", 0, func(p *SwitchBenchPart) { p.Switch.FailedRequests = 1 }, "failed requests"},
		{"the longest pause", 0, func(p *SwitchBenchPart) { p.Switch.WritePauseMS.P99 = 310 }, ""},
		{"too long a pause", 0, func(p *SwitchBenchPart) { p.Switch.WritePauseMS.P99 = 310.1 }, "write pause"},
		{"no pause", 0, func(p *SwitchBenchPart) { p.Switch.WritePauseMS = Quantiles{} }, "write pause"},
		{"no request", 0, func(p *SwitchBenchPart) { p.Requests.Counts = Counts{} }, "failed requests"},
		{"a check", 0, func(p *SwitchBenchPart) { p.Details[0].Violated = 1 }, "checks K1"},
		{"broken off", 0, func(p *SwitchBenchPart) { p.Broken = "no agent answers" }, "no agent answers"},
		{"failovers, 3 s", 1, func(*SwitchBenchPart) {}, ""},
		{"failovers, 10 s", 2, func(*SwitchBenchPart) {}, ""},
		{"too few failovers", 1, func(p *SwitchBenchPart) { p.Failover.Lost, p.Failover.Count = 14, 14 }, "lease 3 s: failovers"},
		{"never taken over", 2, func(p *SwitchBenchPart) { p.Failover.Lost = 16 }, "lease 10 s: sites that nobody took over"},
		{"RTO, 3 s", 1, func(p *SwitchBenchPart) { p.Failover.RTO.P99 = 5030.1 }, "first write"},
		{"RTO, 10 s", 2, func(p *SwitchBenchPart) { p.Failover.RTO.P99 = 13100.1 }, "first write"},
		{"no RTO", 1, func(p *SwitchBenchPart) { p.Failover.RTO = Quantiles{} }, "first write"},
	} {
		p := aPart(benchParts[test.part])
		test.change(p)
		p.judge()
		missing := strings.Join(p.missing(), "; ")
		if p.OK != (test.missed == "") || !strings.Contains(missing, test.missed) || test.missed == "" && missing != "" {
			t.Errorf("%s: ok %v, missing %q, want %q", test.what, p.OK, missing, test.missed)
		}
	}
	p := aPart(benchParts[0])
	if p.Switch.WritePauseMS.P99 = 201; !p.Goals[0].Met {
		t.Errorf("goal %+v", p.Goals)
	}
	if p.judge(); p.Goals[0].Met || !p.OK {
		t.Errorf("a missed goal: ok %v, %+v", p.OK, p.Goals)
	}
}

// What the parts leave comes together again; a part that is missing, or whose report is broken, is not passed over.
func TestMergeParts(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	if err := os.Mkdir(filepath.Join(out, benchFolder), 0o755); err != nil {
		t.Fatal(err)
	}
	keep := func(p *SwitchBenchPart) {
		t.Helper()
		if err := p.keep(out); err != nil {
			t.Fatal(err)
		}
	}
	keep(aPart(benchParts[0]))
	keep(aPart(benchParts[2]))
	r, err := mergeParts(out)
	if err != nil || r.OK || !slices.Equal(r.Missing, []string{"failovers-3"}) || r.Switches != 200 || len(r.Losses) != 1 || r.Losses[0].BySite != nil || r.Checks["K1"] != "pass" {
		t.Fatalf("%+v, %v", r, err)
	}
	bad := aPart(benchParts[1])
	bad.Details[0].Violated, bad.Checks["K1"] = 1, "fail"
	bad.judge()
	keep(bad)
	if r, err = mergeParts(out); err != nil || r.OK || r.Checks["K1"] != "fail" || len(r.Missing) != 0 || len(r.Musts) != 9 || len(r.Losses) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	keep(aPart(benchParts[1])) // that part again, alone
	if r, err = mergeParts(out); err != nil || !r.OK || len(r.Parts) != 3 || r.Pause.P99 != 200 {
		t.Errorf("%+v, %v", r, err)
	}
	if text := r.text(&screen{}); !strings.Contains(text, "200 switches, 0 failed requests") || strings.Contains(text, "missed") || !strings.Contains(text, "15 of 15 lost sites") {
		t.Errorf("%s", text)
	}
	if err := os.WriteFile(filepath.Join(out, benchFolder, "switches.json"), []byte(`{"part":"failovers-3"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := mergeParts(out); err == nil || !strings.Contains(err.Error(), "switches.json") || !strings.Contains(err.Error(), "--part switches") {
		t.Errorf("%v", err)
	}
}

func TestSwitchBenchParts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		part string
		want int
	}{{"", 3}, {"switches", 1}, {"failovers-10", 1}, {"failover", -1}} {
		got, err := (&SwitchBenchOptions{Part: test.part}).parts()
		if (err != nil) != (test.want < 0) || err == nil && len(got) != test.want {
			t.Errorf("%q: %d parts, %v", test.part, len(got), err)
		}
	}
}

func FuzzParsePart(f *testing.F) {
	for _, part := range benchParts {
		f.Add(marshalReport(aPart(part)))
	}
	f.Add([]byte(`{"part":"switches","switch":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, part := range benchParts {
			p, err := parsePart(data, part)
			if err != nil {
				continue
			}
			if r := merge([]*SwitchBenchPart{p}); len(r.Parts) != 1 || r.OK || len(r.Missing) != 2 {
				t.Errorf("%+v", r)
			}
			if !json.Valid(marshalReport(p)) {
				t.Error("it does not come back")
			}
		}
	})
}
