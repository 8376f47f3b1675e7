package lab

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

func TestRandomOptions_Episodes(t *testing.T) {
	t.Parallel()
	play := func(o RandomOptions, most int) []string {
		if err := o.setDefaults(); err != nil {
			t.Fatal(err)
		}
		var out []string
		for n := range most {
			s, more := o.episode(n)
			if !more {
				break
			}
			out = append(out, s.String())
		}
		return out
	}
	seeds := func(text string) []Seed {
		s, err := ParseSeeds(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, test := range []struct {
		o    RandomOptions
		most int
		want string
	}{
		{RandomOptions{Seeds: seeds("2,87")}, 9, "2/1 87/1"},
		{RandomOptions{Seeds: seeds("2,87"), Episodes: 2}, 9, "2/1 87/1 2/2 87/2"},
		{RandomOptions{Seeds: seeds("7/12")}, 9, "7/12"},
		{RandomOptions{Seeds: seeds("7/12"), Minutes: 5}, 9, "7/12"},
		{RandomOptions{Seeds: seeds("1"), Minutes: 5}, 4, "1/1 1/2 1/3 1/4"},
		{RandomOptions{Seeds: seeds("1,7/3,2"), Minutes: 5}, 5, "7/3 1/1 2/1 1/2 2/2"},
	} {
		if got := strings.Join(play(test.o, test.most), " "); got != test.want {
			t.Errorf("%+v: %s, want %s", test.o.Seeds, got, test.want)
		}
	}
	for _, bad := range []RandomOptions{{}, {Seeds: seeds("1"), Workload: []string{"bank"}}} {
		if bad.setDefaults() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	var out bytes.Buffer
	if err := Schedules(&out, RandomOptions{Seeds: seeds("1,7/3")}); err != nil || strings.Count(out.String(), "episode ") != 2 || !strings.Contains(out.String(), goldenStep) {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// aFailover took bucket 7 from a at second 14, after it had last seen a renewal at 10.
func aFailover() api.Handover {
	return api.Handover{ID: "h1", Kind: failoverKind, From: "a", To: "b", Outcome: "done", Steps: []api.Step{{Phase: "TAKEN", At: second(14)}},
		Failover: &api.Failover{WaitedMS: 4000, Taken: []topo.Taken{{Keyspace: users, Buckets: []topo.EpochSpan{{First: 7, Last: 7, Epoch: 1}}}},
			Return: &api.Return{At: second(25)}}}
}

func TestLossIn(t *testing.T) {
	t.Parallel()
	story := new(story).open(0, "a", 1).open(14.1, "b", 2).open(30, "a", 3)
	l := lossIn(aFailover(), story.e.Epochs)
	if l.Lost != "a" || l.Taker != "b" || !l.Killed.Equal(second(10)) || !l.Opened.Equal(second(14.1)) || !l.Settled.Equal(second(25)) {
		t.Errorf("%+v", l)
	}
	if l = lossIn(aFailover(), story.e.Epochs[:1]); !l.Opened.IsZero() {
		t.Errorf("nobody opened: %+v", l)
	}
}

// lost is an episode in which everything at a was killed at 10, for so long.
func lostEpisode(lasts time.Duration, more ...played) *episode {
	p := planned{Do: actLoseSite, At: 9 * time.Second, Lasts: lasts, Site: "a", Alone: true}
	return &episode{steps: append([]played{{planned: p, owned: 128, began: second(10), ended: second(10).Add(lasts)}}, more...), failovers: []failoverSeen{{record: aFailover()}}}
}

func TestCheckTakeovers(t *testing.T) {
	t.Parallel()
	long := expectTakeover
	want(t, lostEpisode(long).checkTakeovers(), "")
	alone := func(e *episode) *episode {
		e.failovers = nil
		return e
	}
	want(t, alone(lostEpisode(long)).checkTakeovers(), "nobody took over its 128 buckets")
	other := played{planned: planned{Do: actStopAgent, At: 3 * time.Second, Site: "b"}, began: second(4), ended: second(7.5)}
	want(t, alone(lostEpisode(long, other)).checkTakeovers(), "") // b may not have been fit
	other.planned.Do = actSwitch
	want(t, alone(lostEpisode(long, other)).checkTakeovers(), "nobody took over")
	among := alone(lostEpisode(long))
	among.steps[0].Alone = false
	want(t, among.checkTakeovers(), "")
	early := lostEpisode(long)
	early.failovers[0].record.Steps[0].At = second(9)
	want(t, early.checkTakeovers(), "nobody took over")
}

func TestCheckRecovered(t *testing.T) {
	t.Parallel()
	want(t, (&episode{}).checkRecovered(), "")
	want(t, (&episode{stuck: errNothingThere}).checkRecovered(), errNothingThere.Error())
}

func TestReadHoldsFrom(t *testing.T) {
	t.Parallel()
	line := `{"msg":"hold begin","handover":"h1","keyspace":"users","buckets":"7","unix_us":1800000000000000}` + "\n"
	path := filepath.Join(t.TempDir(), "g1.log")
	if err := os.WriteFile(path, []byte(line+line), 0o644); err != nil {
		t.Fatal(err)
	}
	for offset, want := range map[int64]int{0: 2, int64(len(line)): 1, int64(2 * len(line)): 0} {
		if got, err := readHoldsFrom("a/g1", path, offset); err != nil || len(got) != want {
			t.Errorf("from %d: %d lines, %v", offset, len(got), err)
		}
	}
}

func TestRandomReport(t *testing.T) {
	t.Parallel()
	o := RandomOptions{Seeds: []Seed{{7, 0}}, Minutes: 1, Out: t.TempDir()}
	if err := o.setDefaults(); err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	o.Stdout = &shown
	r := newRandomReport(&o)
	e := lostEpisode(expectTakeover)
	e.schedule.Seed = Seed{7, 1}
	e.steps = append(e.steps, played{planned: planned{Do: actSwitch, Site: "b"}, outcome: "refused"}, played{planned: planned{Do: actCut, Site: "a", Other: "b"}, leftOut: "x"})
	e.handovers = []api.Handover{{Kind: "switch", Outcome: "done", Count: 9, Pause: &api.Pause{HoldMS: 250}}, {Kind: "switch", Outcome: "aborted"}}
	e.failovers[0].loss = lossIn(aFailover(), new(story).open(14.1, "b", 2).e.Epochs)
	e.failovers[0].rpo = Accounting{RPOWrites: 5, Applied: 3, Logged: 2}
	e.ops, e.reasons = Counts{OK: 10, Failed: 2}, map[string]int{"lease": 2}
	e.checks = []Check{{Name: "K1", Claim: "one"}, {Name: "K3", Claim: "three"}}
	r.add(e)
	r.endRun(true, time.Second)
	if !r.OK || r.Replay != "" || r.Checks["K1"] != "pass" || r.Runs[0].Episodes != 1 {
		t.Errorf("%+v", r)
	}
	bad := &episode{schedule: schedule{Seed: Seed{7, 2}}, checks: []Check{{Name: "K1", Claim: "one", Violated: 2, Examples: []string{"two sites"}}, {Name: "K2", Claim: "two", Error: "nothing to look at"}}}
	r.add(bad)
	r.endRun(false, time.Second)
	if err := r.publish(&o, &screen{}); err != nil {
		t.Fatal(err)
	}
	h := r.Handovers
	if r.OK || h.SwitchesDone != 1 || h.SwitchesAborted != 1 || h.SwitchesRefused != 1 || h.BucketsMoved != 9 || h.HeldMS.Max != 250 || h.Failovers != 1 || h.Returns != 1 ||
		h.OpenMS.Max != 4100 || h.RPOWrites != 5 || r.Faults[actLoseSite] != 1 || r.Faults[actCut] != 0 || r.LeftOut != 1 || r.Replay != "make lab-replay SEED=7/2 RUNS=5" ||
		!slices.Equal(r.failing(), []string{"K1", "K2"}) || r.Runs[1].Episodes != 1 {
		t.Errorf("%+v", r)
	}
	for _, part := range []string{"VIOLATED  K1, K2, in 1 of 2 runs", "two sites", "could not be done: nothing to look at", "rate of failures: 1 of 2 runs", "1  lose-site", "SEED=7/2"} {
		if !strings.Contains(shown.String(), part) {
			t.Errorf("the report lacks %q:\n%s", part, shown.String())
		}
	}
	var read struct {
		Checks   map[string]string
		Seeds    []string
		Episodes []struct {
			Seed     string
			Schedule []struct{ Kind string }
		}
	}
	data, err := os.ReadFile(filepath.Join(o.Out, "lab-random.json"))
	if err == nil {
		err = json.Unmarshal(data, &read)
	}
	if err != nil || read.Checks["K1"] != "fail" || read.Checks["K3"] != "pass" || read.Seeds[0] != "7" || read.Episodes[0].Seed != "7/1" || read.Episodes[0].Schedule[0].Kind != "lose-site" {
		t.Errorf("%v: %+v", err, read)
	}
	r.Sites, r.Workload, r.Environment.Planted = 3, []string{workRegister}, []string{"marker-skipped"}
	o.NoWitness, o.Gateways = true, 1
	if got := r.replay(Seed{7, 2}); got != `make lab-replay SEED=7/2 SITES=3 WORKLOAD=register PLANT=marker-skipped FLAGS="--no-witness --gateways 1" RUNS=5` {
		t.Error(got)
	}
}

func FuzzParseSeeds(f *testing.F) {
	for _, text := range []string{"7", "7/3", "1,2,3/4", "", "/", "9999999999999999999999"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		seeds, err := ParseSeeds(text)
		if err != nil {
			return
		}
		var parts []string
		for _, s := range seeds {
			parts = append(parts, s.String())
		}
		again, err := ParseSeeds(strings.Join(parts, ","))
		if err != nil || !slices.Equal(again, seeds) {
			t.Errorf("%q is %v, and read again %v (%v)", text, seeds, again, err)
		}
	})
}
