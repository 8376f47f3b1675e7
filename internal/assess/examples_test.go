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

// assessments are of examples as they are, each made once.
var assessments struct {
	sync.Mutex
	of map[string]*Report
}

func assessedExample(t *testing.T, name string, change ...string) *Report {
	t.Helper()
	assessments.Lock()
	defer assessments.Unlock()
	if r := assessments.of[name]; r != nil && len(change) == 0 {
		return r
	}
	r, err := Assess(shipped(t, name, change...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if assessments.of == nil {
		assessments.of = map[string]*Report{}
	}
	if len(change) == 0 {
		assessments.of[name] = r
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
	withoutDetector(t)
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

// Living through years agrees with the expected downtime, as things are and as they are proposed.
func TestLivingAgreesOnExamples(t *testing.T) {
	withoutDetector(t)
	t.Parallel()
	for file, services := range map[string][]string{
		"one-data-centre.yaml": {"shop"}, "two-zones.yaml": {"booking", "billing"}, "public-cloud.yaml": {"shop"}, "travel-tickets.yaml": {"booking", "trips", "places"},
	} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			e := shipped(t, file)
			v := newEvaluator(e)
			proposed := Plan{}
			for _, s := range assessedExample(t, file).Services {
				proposed[s.Service] = s.Proposed.Placement
			}
			for _, a := range []*arrangement{v.today, v.arrange(proposed)} {
				for _, name := range services {
					b, err := v.brief(a, v.service[name])
					if err != nil {
						t.Fatal(err)
					}
					expected := b.downtime - v.overload(a, v.service[name]).unserved
					est, err := Live(e, v.plan(a), name, 1000)
					if err != nil {
						t.Fatal(err)
					}
					if expected < .98*est.Low || expected > 1.02*est.High {
						t.Errorf("%s as %s: %.0f s a year expected; %+v", name, v.spot(a, v.service[name]).Placement, expected, est)
					}
				}
			}
		})
	}
}

// One data centre: no second site pays, and what exists once is what to mend.
func TestExampleOneDataCentre(t *testing.T) {
	t.Parallel()
	r := assessedExample(t, "one-data-centre.yaml")
	for _, s := range r.Services {
		if s.Answer.Worth {
			t.Errorf("%s: %+v", s.Service, s.Answer)
		}
	}
	once := map[string]bool{}
	for _, f := range r.Fixes[:4] {
		once[f.Event] = len(f.Services) == len(r.Services) || f.Event == "bad release"
	}
	if !once["chiller"] || !once["duct"] || !once["feed"] || r.Fixes[0].Event != "chiller" {
		t.Errorf("to mend: %v", once)
	}
	if w := r.of("shop").Wanted; *w.Availability > .9985 || r.of("shop").Now.Availability.Share.V > *w.Availability {
		t.Errorf("the shop has what is wanted: %v", r.of("shop").Now.Availability.Share.V)
	}
}

// A public cloud: a second zone for a service whose callees are in one buys nothing; the region is what zones share.
func TestExamplePublicCloud(t *testing.T) {
	t.Parallel()
	r := assessedExample(t, "public-cloud.yaml")
	shop := r.of("shop")
	if !shop.Answer.Worth || shop.Answer.Placement.Pattern != Single || !strings.Contains(shop.Answer.Text, "would do with less") {
		t.Errorf("the shop: %+v", shop.Answer)
	}
	if o := shop.with(SameCity); len(o.Along) != 4 || o.Net.V > 0 || o.Outcome.Availability.Downtime.V > .8*shop.Now.Availability.Downtime.V {
		t.Errorf("with all that it needs: %+v", o)
	}
	if !slices.ContainsFunc(r.Fixes, func(f Fix) bool { return f.Event == "region" && len(f.Services) == len(r.Services) }) {
		t.Errorf("the region: %+v", r.Fixes)
	}
	hall := assessedExample(t, "one-data-centre.yaml")
	if len(hall.Services) != len(r.Services) {
		t.Errorf("%d and %d services", len(hall.Services), len(r.Services))
	}
	for _, s := range r.Services { // the comparison rests on it
		a, b := shipped(t, "public-cloud.yaml").Services[s.Service], shipped(t, "one-data-centre.yaml").Services[s.Service]
		if b == nil || a.Revenue.Minute.Mean() != b.Revenue.Minute.Mean() || a.Demand.Cores.Mean() != b.Demand.Cores.Mean() || len(a.Calls) != len(b.Calls) {
			t.Errorf("%s is not the same in both files", s.Service)
		}
	}
}

// Tickets: forty services, and a different answer for each kind of them.
func TestExampleTravelTickets(t *testing.T) {
	t.Parallel()
	r := assessedExample(t, "travel-tickets.yaml")
	if len(r.Services) != 40 {
		t.Errorf("%d services", len(r.Services))
	}
	patterns, stay := map[Pattern]int{}, 0
	for _, s := range r.Services {
		if s.Proposed.Placement.key() == s.Now.Placement.key() {
			stay++
			continue
		}
		patterns[s.Proposed.Placement.Pattern]++
		if slices.Contains(s.Proposed.Placement.Sites, "sh") && !slices.Contains(s.Now.Placement.Sites, "sh") {
			t.Errorf("%s is proposed in Shanghai, which is full: %s", s.Service, s.Proposed.Placement)
		}
	}
	if stay != 11 || patterns[Partitioned] != 5 || patterns[SameCity] != 2 || patterns[PilotLight] < 15 {
		t.Errorf("%d stay; %v", stay, patterns)
	}
	for service, want := range map[string]Pattern{"trips": Partitioned, "order": Partitioned, "session": Partitioned, "reviews": Partitioned, "recommendation": Partitioned, "places": SameCity, "hotel-gateway": SameCity,
		"booking": PilotLight, "seat-lock": PilotLight, "flight-shop": PilotLight, "rail-shop": PilotLight, "hotel-shop": PilotLight, "analytics": Single, "invoicing": Single, "risk": Single, "loyalty": Single} {
		if p := r.of(service).Proposed.Placement.Pattern; p != want {
			t.Errorf("%s is proposed as %s; want %s", service, p, want)
		}
	}
	for _, p := range []Pattern{OneWriter, Partitioned} {
		if o := r.of("booking").with(p); !o.refused("latency-budget") {
			t.Errorf("booking as %s: %+v", p, o.Outcome.Impossible)
		}
	}
	if !r.of("trips").with(OneWriter).refused("latency-budget") || !strings.Contains(r.of("places").Answer.Purpose, "capacity") {
		t.Errorf("trips: %+v\nplaces: %+v", r.of("trips").with(OneWriter).Outcome.Impossible, r.of("places").Answer)
	}
	for _, s := range r.Sites {
		if s.CanTakeOver != (s.Site == "cloud") || s.Site == "sh" && !strings.Contains(s.Text, "capacity, not disaster recovery") {
			t.Errorf("%s: %+v", s.Site, s)
		}
	}
	// The page speaks of these steps by their numbers.
	for i, want := range map[int]string{1: "recommendation", 2: "places", 3: "hotel-gateway", 9: "trips"} {
		if s := r.Roadmap[i]; !s.Worth || !strings.HasPrefix(s.Text, want+" to ") {
			t.Errorf("step %d: %s", i+1, s.Text)
		}
	}
	if r.Fixes[0].Event != "bj-core" || r.Proposed.Loss > .6*r.Today.Loss || r.Proposed.CostMonth > 1.05*r.Today.CostMonth {
		t.Errorf("%+v\n%+v\n%+v", r.Fixes[0], r.Today, r.Proposed)
	}
}
