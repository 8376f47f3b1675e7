package assess

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const examples = "../../examples/estates/"

// exampleFiles are all estates that ship.
func exampleFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(examples + "*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v: %v", files, err)
	}
	return files
}

func shipped(t *testing.T, name string, change ...string) *Estate {
	t.Helper()
	text, err := os.ReadFile(examples + name)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(change); i += 2 {
		if !strings.Contains(string(text), change[i]) {
			t.Fatalf("%s has no %q to change", name, change[i])
		}
	}
	e, err := Read(name, strings.NewReader(strings.NewReplacer(change...).Replace(string(text))))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func assessedExample(t *testing.T, name string, change ...string) *Report {
	t.Helper()
	r, err := Assess(shipped(t, name, change...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Every example says where its numbers come from, and leaves nothing out that never fails.
func TestExamplesAreComplete(t *testing.T) {
	t.Parallel()
	for _, file := range exampleFiles(t) {
		e := shipped(t, filepath.Base(file))
		if len(e.Notes) > 0 {
			t.Errorf("%s: %v", file, e.Notes)
		}
		sources := 0
		for _, k := range newEvaluator(e).knobs() {
			if n := k.get(); n.Line > 0 && n.Source != "" {
				sources++
			}
		}
		if sources < 4 {
			t.Errorf("%s names %d sources", file, sources)
		}
	}
}

// The second engine, which draws states, holds the exact value in its 99 % interval, for every service of every example.
func TestEnginesAgreeOnExamples(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	inside, wide, all := 0, 0, 0
	t.Run("files", func(t *testing.T) {
		for _, file := range exampleFiles(t) {
			t.Run(filepath.Base(file), func(t *testing.T) {
				t.Parallel()
				e := shipped(t, filepath.Base(file))
				estimates, err := Simulate(e, e.Today(), Simulation{Seed: e.Seed})
				if err != nil {
					t.Fatal(err)
				}
				v := newEvaluator(e)
				for i, name := range v.services {
					s, err := v.everywhere(v.today, i)
					if err != nil {
						t.Fatal(err)
					}
					est, exact := estimates[name], v.ask(s).down
					mu.Lock()
					all++
					if est.Holds(exact) {
						inside++
					} else {
						t.Logf("%s: %v to %v does not hold %v", name, est.Low, est.High, exact)
					}
					if !(est.High-est.Mean <= .2*est.Mean) {
						wide++
					}
					mu.Unlock()
				}
			})
		}
	})
	t.Logf("%d of %d intervals hold the exact value; %d are wider than 20 %%", inside, all, wide)
	if float64(inside) < .97*float64(all) || wide > all/20 {
		t.Errorf("%d of %d intervals hold the exact value; %d are wider than 20 %%", inside, all, wide)
	}
}

// A substation that both centres hang on turns four nines into two and a half, and is the first thing that the answer
// names; a second one brings them back.
func TestExampleOfCorrelation(t *testing.T) {
	t.Parallel()
	shared := assessedExample(t, "two-zones.yaml")
	apart := assessedExample(t, "two-zones.yaml", "needs: substation and west-chiller", "needs: substation-2 and west-chiller",
		"\n  east-chiller:", "\n  substation-2: {kind: power, every: 2900h, lasts: 2h..6h..19h}\n  east-chiller:")
	nines := func(r *Report) float64 { return -math.Log10(r.of("booking").Now.Availability.Structural.V) }
	if x := nines(apart); x < 3.9 || x > 4.3 {
		t.Errorf("with a feed each: %v nines", x)
	}
	if x := nines(shared); x < 2.4 || x > 2.6 {
		t.Errorf("with one feed: %v nines", x)
	}
	if f := shared.Fixes[0]; f.Event != "substation" || f.Share < .5 || len(f.Services) != len(shared.Services) || !strings.Contains(shared.Verdict, "First mend substation") {
		t.Errorf("the first thing to mend: %+v\n%s", f, shared.Verdict)
	}
	if singles := shared.of("booking").Now.Availability.Singles; len(singles) == 0 || singles[0].Event != "substation" {
		t.Errorf("booking's single points: %+v", singles)
	}
	for _, f := range apart.Fixes {
		if strings.HasPrefix(f.Event, "substation") && slices.Contains(f.Services, "booking") {
			t.Errorf("with a feed each, booking still hangs on one: %+v", f)
		}
	}
}
