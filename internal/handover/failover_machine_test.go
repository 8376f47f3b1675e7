package handover

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// testFailover is a record as a takeover writes it.
func testFailover() Record {
	l := lookoutIn(Taking)
	l, _ = Observe(l, TakeStands{5, testTaken}, noon.Add(5*time.Second))
	return l.Record
}

func testSight() Sight {
	return Sight{At: noon, ID: "h1", Lease: LeaseSeen{Exists: true, Revision: 10, Duration: 3 * time.Second},
		Facts: Facts{Began: noon, Owns: 32, OwnLease: true, Known: true, History: true}}
}

// lookoutIn walks a lookout to a stage.
func lookoutIn(stage Stage) Lookout {
	l := NewLookout(testPolicy(ModeAutomatic), noon)
	late := noon.Add(5 * time.Second)
	renewed := testSight()
	renewed.Lease.Revision, renewed.At = 11, late
	walk := []struct {
		ev Event
		at time.Time
	}{{testSight(), noon}, {Tick{}, noon.Add(3100 * time.Millisecond)}, {Tick{}, noon.Add(3600 * time.Millisecond)}, {Halted{Position: 100}, noon.Add(3600 * time.Millisecond)},
		{Tick{}, late}, {Conflict{Take}, late}, {Observed{}, late}, {renewed, late}, {GivenUp{}, late}}
	if stage == TakenOver {
		walk[5].ev = TakeStands{5, testTaken}
	}
	for _, step := range walk {
		if l.Stage == stage {
			return l
		}
		l, _ = Observe(l, step.ev, step.at)
	}
	if l.Stage != stage {
		panic(fmt.Sprintf("the walk does not come to %s", stage))
	}
	return l
}

// TestLookoutTableIsWhole tries every event in every stage: a row that is not in the table is a panic that says BUG, and
// the list of those is what this test pins.
func TestLookoutTableIsWhole(t *testing.T) {
	t.Parallel()
	events := map[string]Event{"Tick": Tick{}, "Sight": testSight(), "Unseen": Unseen{"no answer"}, "Order": Order{ID: "h9", Who: "ann"},
		"Halted": Halted{Position: 100}, "Unhalted": Unhalted{}, "TakeStands": TakeStands{5, testTaken}, "GivenUp": GivenUp{}, "Conflict": Conflict{Take},
		"Refused": Refused{[]Problem{{Check: "x", Text: "y"}}}, "Observed": Observed{}, "Claimed": Claimed{8}}
	for _, v := range []Verb{Halt, Unhalt, Take, GiveUp, Reread, Commit} {
		events["Failed "+string(v)] = Failed{Do: v, Text: "away"}
	}
	for stage, allowed := range map[Stage][]string{
		Watching: nil, Expired: nil, Waiting: nil, TakenOver: nil,
		Halting:   {"Halted", "Failed halt"},
		Taking:    {"TakeStands", "Conflict", "Refused", "Failed take"},
		Unsure:    {"Observed", "Failed reread"},
		GivingUp:  {"GivenUp", "Conflict", "Failed give-up"},
		Unhalting: {"Unhalted", "Failed unhalt"},
	} {
		for name, ev := range events {
			want := slices.Contains(append([]string{"Tick", "Sight", "Unseen", "Order"}, allowed...), name)
			t.Run(fmt.Sprintf("%s/%s", stage, name), func(t *testing.T) {
				t.Parallel()
				l := lookoutIn(stage)
				defer func() {
					p := recover()
					if got := p == nil; got != want {
						t.Fatalf("in the table: %v, want %v (%v)", got, want, p)
					}
					if p != nil && !strings.HasPrefix(p.(string), "BUG: ") {
						t.Fatalf("panic %v; want BUG: …", p)
					}
				}()
				before := fmt.Sprintf("%+v %s", l, l.Record.Encode())
				Observe(l, ev, noon.Add(5*time.Second))
				if after := fmt.Sprintf("%+v %s", l, l.Record.Encode()); after != before {
					t.Errorf("Observe changed the state that it was given:\n%s\n%s", before, after)
				}
			})
		}
	}
}

// TestFailoverIsDriven: from TAKEN on a failover is a handover like any other.
func TestFailoverIsDriven(t *testing.T) {
	t.Parallel()
	r := testFailover()
	taken := noon.Add(5 * time.Second)
	s, todo := Finish(r, taken)
	if len(todo) != 1 || todo[0].Do != Open || todo[0].Site != "b" || todo[0].Version != 5 {
		t.Fatalf("actions %v", todo)
	}
	s, _ = Next(s, Failed{Do: Open, Site: "b", Text: "lease not in force"}, taken)
	s, todo = Next(s, Tick{}, taken.Add(retryEvery))
	if len(todo) != 1 || todo[0].Do != Open {
		t.Fatalf("actions %v", todo)
	}
	s, todo = Next(s, Reached{"b", 5}, taken.Add(250*time.Millisecond))
	if len(todo) != 1 || todo[0].Do != AwaitRelease || todo[0].Site != "b" || s.Record.Phase != Opened {
		t.Fatalf("actions %v in %s", todo, s.Record.Phase)
	}
	if f := s.Record.Failover; f.OpenUS != f.WaitedUS+250_000 || r.Failover.OpenUS != 0 {
		t.Errorf("times %+v; in what was given %d", f, r.Failover.OpenUS)
	}
	s, _ = Next(s, Released{Site: "b"}, taken.Add(time.Second))
	s, _ = Next(s, Saved{OutcomeDone}, taken.Add(time.Second))
	if !s.Over() || s.Record.Phase != Done || s.Record.Outcome != OutcomeDone {
		t.Errorf("ended in %s, %q", s.Record.Phase, s.Record.Outcome)
	}
	if _, err := DecodeRecord(s.Record.Encode()); err != nil {
		t.Error(err)
	}
}

func TestDecodeFailoverRefuses(t *testing.T) {
	t.Parallel()
	good := string(testFailover().Encode())
	if _, err := DecodeRecord([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"a phase of switches", `"TAKEN"`, `"FENCED"`, "none of a failover's"},
		{"to itself", `"to":"b"`, `"to":"a"`, "without a lost site or a taker"},
		{"with buckets in its move", `"buckets":null`, `"buckets":[{"first":0,"last":1}]`, "not in its move"},
		{"nothing taken", `"taken":[{"keyspace":"users","buckets":[{"first":0,"last":31,"epoch":7}]}],`, ``, "what it took"},
		{"taken without an epoch", `"epoch":7`, `"epoch":0`, "are not a set"},
		{"taken without a keyspace", `"taken":[{"keyspace":"users"`, `"taken":[{"keyspace":""`, "without a name"},
		{"no version", `"decided":5`, `"decided":0`, "without the ownership version"},
		{"times", `"waited_us":5000000`, `"waited_us":-1`, "times of"},
		{"outcome too early", `"decided":5`, `"decided":5,"outcome":"done"`, "with outcome"},
		{"a switch that speaks of one", `"kind":"failover"`, `"kind":"switch"`, "speaks of a failover"},
		{"unknown kind", `"kind":"failover"`, `"kind":"flood"`, "this build knows"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			body := strings.ReplaceAll(good, c.old, c.new)
			if body == good {
				t.Fatalf("%q is not in %s", c.old, good)
			}
			if _, err := DecodeRecord([]byte(body)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
}

// TestLossStopsAtTheEndOfTheLease: silence behind the end of the lease holds no accepted write.
func TestLossStopsAtTheEndOfTheLease(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		after time.Duration // since the lease was last seen renewed
		loss  time.Duration // as measured then
		heard time.Duration // ago; 0: never
		want  time.Duration
	}{
		{"within the lease", 2 * time.Second, 1500 * time.Millisecond, 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"far beyond it", 24*time.Second + 30*time.Millisecond, 25 * time.Second, 25 * time.Second, 5 * time.Second},
		{"heard all the time", 24 * time.Second, 300 * time.Millisecond, 200 * time.Millisecond, 100 * time.Millisecond},
		{"after a restart", 34*time.Second + 30*time.Millisecond, 40 * time.Second, 0, 10 * time.Second},
		{"not known", 24 * time.Second, -1, 0, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l, _ := Observe(NewLookout(testPolicy(ModeManual), noon), testSight(), noon)
			s := testSight()
			s.At = noon.Add(c.after)
			s.Facts.Began, s.Facts.Loss = s.At, c.loss
			if c.heard > 0 {
				s.Facts.Heard = s.At.Add(-c.heard)
			}
			l, _ = Observe(l, s, s.At)
			if got := l.Loss(s.At); got != c.want {
				t.Errorf("loss %s; want %s", got, c.want)
			}
		})
	}
}

// TestOverridesAreFew: whatever an operator sets aside, facts stay.
func TestOverridesAreFew(t *testing.T) {
	t.Parallel()
	l := NewLookout(testPolicy(ModeManual), noon)
	s := testSight()
	s.Facts = Facts{Began: noon, Unsettled: topo.HandoverID("h0"), Serving: true, Until: noon.Add(time.Hour), Wrote: noon.Add(19900 * time.Millisecond), Loss: -1}
	l, _ = Observe(l, s, noon)
	l.Policy.VetoBound = time.Hour
	var all, left []string
	for _, c := range l.Conditions(Ask{}, noon.Add(20*time.Second)) {
		all = append(all, c.Rule)
	}
	for _, c := range Unmet(l.Conditions(Ask{Manual: true, Override: all}, noon.Add(20*time.Second))) {
		left = append(left, c.Rule)
	}
	if want := []string{RuleBuckets, RuleOwnLease, RuleStanding}; !slices.Equal(left, want) {
		t.Errorf("left are %v; want %v", left, want)
	}
	if got := Unmet(l.Conditions(Ask{Manual: true, Override: all}, noon))[1].Rule; got != RuleLease {
		t.Errorf("with the lease in force, %s is left; want %s", got, RuleLease)
	}
}
