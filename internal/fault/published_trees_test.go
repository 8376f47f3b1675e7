package fault

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// among is an Or of the events named, "1 2 3", each with prefix e.
func among(numbers string) Formula {
	var out []Formula
	for n := range strings.FieldsSeq(numbers) {
		out = append(out, Ref("e"+n))
	}
	return AnyOf(out...)
}

// chinese is Aralia's "chinese tree", 25 events of .02 each: two sides of the same make guard each other, and both stand
// behind a third guard made of the same two.
func chinese() *Model {
	near := AllOf(AnyOf(among("9 10 11"), AllOf(among("17 18"), among("19 20 21"))), among("12 13"))
	far := AllOf(AnyOf(among("14 15 16"), AllOf(among("17 18 21"), among("19 20"))), among("22 23"), among("24 25"))
	m := &Model{Top: "top", Events: map[string]Event{}, Gates: map[string]Formula{
		"one":   AnyOf(among("1 2 3"), near),
		"other": AnyOf(among("4 5 6 7"), far),
		"third": AnyOf(Ref("e8"), AllOf(AnyOf(among("1 2 3"), far), AnyOf(among("4 5 6 7"), near))),
		"top":   AllOf(refs("one", "other", "third")...),
	}}
	for i := range 25 {
		m.Events["e"+strconv.Itoa(i+1)] = Event{Probability: .02}
	}
	return m
}

// The trees of published examples, their values as SCRAM's regression tests (tests/bench_*.cc) assert them; the models
// are written here from what they describe.
func TestPublishedTrees(t *testing.T) {
	t.Parallel()
	// Three motors (OpenFTA's example): a motor overheats if it runs too long and the relay or the switch does not open. The
	// three contacts of a test closed, as a house event each; what keeps them closed beyond the test fails by itself.
	motor := &Model{Top: "overrun", Events: events(.02, "K1", "K2", "K5", "S1", "T1", "T2", "T3", "T4", "C1", "C2", "C3", "S2", "S3", "S4", "S5"),
		House: map[string]bool{"KT1": true, "KT2": true, "KT3": true}, Gates: map[string]Formula{
			"overrun":  AllOf(AnyOf(Ref("K5"), AllOf(Ref("held"), AnyOf(refs("T2", "K5")...))), AnyOf(Ref("K2"), Ref("T1"), Ref("K1"), Ref("contacts"), AnyOf(refs("S1", "T3")...))),
			"contacts": AllOf(Ref("KT1"), Ref("KT3"), AnyOf(refs("KT2", "T4")...)),
			"held":     AnyOf(Ref("K1"), Ref("S1"), Ref("S2"), Ref("test")),
			"test":     AllOf(Ref("closed 1"), Ref("closed 2"), Ref("closed 3")),
			"closed 1": AnyOf(refs("C1", "S3")...),
			"closed 2": AnyOf(refs("C2", "S4")...),
			"closed 3": AnyOf(refs("C3", "S5")...),
		}}
	lift := &Model{Top: "lift", Events: events(1e-6, "position", "motion", "motion too", "motor", "supply", "detector", "other detector", "switch", "control", "other switch", "light", "other light", "door", "wiring"),
		Gates: map[string]Formula{}}
	lift.Gates["lift"] = AnyOf(
		AnyOf(Ref("motion"), Ref("position"), AllOf(Ref("motor"), Ref("position")), AnyOf(Ref("supply"), AnyOf(refs("detector", "door")...))),
		AnyOf(Ref("switch"), AllOf(AnyOf(refs("wiring", "control", "switch")...), AllOf(refs("motion", "motion too")...)), AllOf(Ref("control"), AllOf(refs("motion", "motion too")...))),
		AnyOf(refs("control", "other light", "light", "motor", "supply")...),
		AnyOf(refs("detector", "other detector", "other switch")...))
	fails := func(rate, hours float64) Event { return Event{Probability: -math.Expm1(-rate * hours)} }
	const year = 8760
	brakes := &Model{Top: "no braking", Gates: map[string]Formula{
		"no braking": AnyOf(Ref("monitor"), AllOf(refs("one", "two")...), Ref("switch")),
		"one":        AnyOf(refs("electronics 1", "supply 1")...),
		"two":        AnyOf(refs("electronics 2", "supply 2")...),
		"switch":     AnyOf(AllOf(refs("one", "stuck at 1")...), Ref("between"), AllOf(refs("two", "stuck at 2")...)),
	}, Events: map[string]Event{"monitor": fails(1.6e-7, year), "electronics 1": fails(3e-5, year), "electronics 2": fails(3e-5, year), "supply 1": fails(1.35e-5, year),
		"supply 2": fails(1.35e-5, year), "stuck at 1": fails(1.3e-7, 20*year), "stuck at 2": fails(1.3e-7, 20*year), "between": fails(1.3e-7, year)}}
	small := &Model{Top: "top", Gates: map[string]Formula{"top": AnyOf(AllOf(refs("a", "b")...), AllOf(refs("c", "d")...))},
		Events: map[string]Event{"a": fails(2e-5, year), "b": fails(1e-5, year), "c": fails(2e-5, year), "d": fails(1e-5, year)}}
	tested := func(rate, every float64) Event {
		return Event{Probability: periodicTest([]float64{rate, every, 0, year})}
	}
	hipps := &Model{Top: "pressure", Gates: map[string]Formula{
		"pressure": AnyOf(AnyOf(Ref("all sensors"), KOf(2, refs("sensor 1", "sensor 2", "sensor 3")...)), Ref("solver"), among("v1 s1"), among("v2 s2")),
	}, Events: map[string]Event{"sensor 1": tested(7e-7, 720), "sensor 2": tested(7e-7, 720), "sensor 3": tested(7e-7, 720), "all sensors": tested(3.5e-8, 720),
		"solver": {Probability: functions["GLM"].of([]float64{0, 1e-6, .1, year})},
		"ev1":    tested(4.1e-6, 2160), "ev2": tested(4.1e-6, 2160), "es1": tested(2.6e-6, 1440), "es2": tested(2.6e-6, 1440)}}
	for _, c := range []struct {
		name        string
		m           *Model
		exact, rare float64
		tolerance   float64
		byOrder     []uint64
	}{
		{"three motors", motor, .0211538, .0212013, 1e-7, []uint64{1, 3, 0, 8}},
		{"chinese tree", chinese(), .0045691, .004804, 1e-6, []uint64{0, 12, 0, 24, 188, 168}},
		{"lift", lift, 1.19999e-5, 1.2e-5, 1e-10, []uint64{12}},
		{"braking system control unit", brakes, .1124087, .135372, 1e-6, []uint64{2, 8}},
		{"small tree", small, .02678, .02696, 5e-6, []uint64{0, 2}},
		{"pressure protection", hipps, .0016209, .00162188, 1e-7, []uint64{6, 3}},
	} {
		r, err := Analyse(c.m, Options{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if math.Abs(r.Probability-c.exact) > c.tolerance || math.Abs(r.RareEventSum-c.rare) > c.tolerance {
			t.Errorf("%s: P %.9g, rare-event sum %.9g; want %v and %v", c.name, r.Probability, r.RareEventSum, c.exact, c.rare)
		}
		if !slices.Equal(r.CutSets.ByOrder, c.byOrder) {
			t.Errorf("%s: cut sets by order %v; want %v", c.name, r.CutSets.ByOrder, c.byOrder)
		}
	}
}

// Importances of the chinese tree: Birnbaum, criticality, RAW and RRW, as SCRAM's regression tests assert them.
func TestPublishedImportance(t *testing.T) {
	t.Parallel()
	r, err := Analyse(chinese(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range []struct {
		events                string
		birnbaum, criticality float64
		raw, rrw              float64
	}{
		{"1 2 3", .0745557, .326332, 16.9902, 1.48441},
		{"4 5 6 7", .0553923, .242453, 12.8802, 1.32005},
		{"8", .000181647, .000795073, 1.03896, 1.0008},
		{"9 10 11", 5.89643e-05, .000258088, 1.01265, 1.00026},
		{"12 13", 9.51481e-05, .000416465, 1.02041, 1.00042},
		{"14 15 16", 5.1467e-06, 2.25272e-05, 1.0011, 1.00002},
		{"17 18", 5.64596e-06, 2.47125e-05, 1.00121, 1.00002},
		{"19 20", 4.60982e-06, 2.01773e-05, 1.00099, 1.00002},
		{"21", 2.3919e-06, 1.04694e-05, 1.00051, 1.00001},
		{"22 23 24 25", 1.03582e-05, 4.5338e-05, 1.00222, 1.00005},
	} {
		for n := range strings.FieldsSeq(c.events) {
			at := slices.IndexFunc(r.Importance, func(i Importance) bool { return i.Event == "e"+n })
			if at < 0 {
				t.Errorf("no importance of e%s", n)
				continue
			}
			seen["e"+n] = true
			i := r.Importance[at]
			got, want := []float64{i.Birnbaum, i.Criticality, i.RAW, i.RRW}, []float64{c.birnbaum, c.criticality, c.raw, c.rrw}
			for k := range got {
				if math.Abs(got[k]-want[k]) > 6e-6*want[k] {
					t.Errorf("e%s: %s", n, fmt.Sprintf("%v; want %v", got, want))
					break
				}
			}
		}
	}
	if len(seen) != 25 {
		t.Errorf("%d events were compared", len(seen))
	}
}
