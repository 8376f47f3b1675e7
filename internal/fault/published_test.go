package fault

import (
	"math"
	"slices"
	"testing"
)

func refs(names ...string) []Formula {
	out := make([]Formula, len(names))
	for i, n := range names {
		out[i] = Ref(n)
	}
	return out
}

func events(p float64, names ...string) map[string]Event {
	out := map[string]Event{}
	for _, n := range names {
		out[n] = Event{Probability: p}
	}
	return out
}

// threeTrains: a system of three trains, each a pump and a valve in series; one group for pumps, one for valves.
func threeTrains(g Group) *Model {
	m := &Model{Top: "top", Gates: map[string]Formula{
		"top":   AllOf(refs("one", "two", "three")...),
		"one":   AnyOf(refs("v1", "p1")...),
		"two":   AnyOf(refs("v2", "p2")...),
		"three": AnyOf(refs("v3", "p3")...),
	}}
	pumps, valves := g, g
	pumps.Name, pumps.Members = "pumps", []string{"p1", "p2", "p3"}
	valves.Name, valves.Members = "valves", []string{"v1", "v2", "v3"}
	m.Groups = []Group{pumps, valves}
	return m
}

func bridge(q float64) *Model {
	return &Model{Top: "down", Gates: map[string]Formula{
		"down": AnyOf(AllOf(refs("1", "2")...), AllOf(refs("4", "5")...), AllOf(refs("1", "3", "5")...), AllOf(refs("2", "3", "4")...)),
	}, Events: events(q, "1", "2", "3", "4", "5")}
}

// The published values are those of the sources named; models are written here from the published structure.
func TestPublishedCases(t *testing.T) {
	t.Parallel()
	half := &Model{Top: "top", Gates: map[string]Formula{
		"top": AllOf(AnyOf(refs("v1", "p1")...), AnyOf(refs("v2", "p2")...)),
	}, Events: map[string]Event{"v1": {Probability: .5}, "v2": {Probability: .5}, "p1": {Probability: .7}, "p2": {Probability: .7}}}
	theatre := &Model{Top: "no supply", Gates: map[string]Formula{
		"no supply": AllOf(Ref("mains"), AnyOf(refs("generator", "relay")...)),
	}, Events: map[string]Event{"mains": {Probability: 3e-2}, "generator": {Probability: 2e-2}, "relay": {Probability: 5e-2}}}
	abc := events(0, "a", "b", "c")
	for i, n := range []string{"a", "b", "c"} {
		abc[n] = Event{Probability: []float64{.1, .2, .3}[i]}
	}
	one := func(f Formula) *Model { return &Model{Top: "top", Gates: map[string]Formula{"top": f}, Events: abc} }
	for _, c := range []struct {
		name, source string
		m            *Model
		exact, rare  float64
		tolerance    float64
		byOrder      []uint64
	}{
		{"any of three", "SCRAM's regression tests (abc)", one(AnyOf(refs("a", "b", "c")...)), .496, .6, 1e-12, []uint64{3}},
		{"shared event", "SCRAM's regression tests (ab_bc)", one(AnyOf(AllOf(refs("a", "b")...), AllOf(refs("b", "c")...))), .074, .08, 1e-12, []uint64{0, 2}},
		{"two of three", "SCRAM's regression tests (atleast)", one(KOf(2, refs("a", "b", "c")...)), .098, .11, 1e-12, []uint64{0, 3}},
		{"exactly one of two", "by hand: .1·.8 + .2·.9", one(Formula{Op: Xor, Args: refs("a", "b")}), .26, .3, 1e-12, []uint64{2}},
		{"operating theatre", "OpenFTA's Theatre, as plain probabilities", theatre, .00207, .0021, 1e-12, []uint64{0, 2}},
		{"two trains", "SCRAM's TwoTrain: (1−.5·.3)²", half, .7225, 1.44, 1e-12, []uint64{0, 4}},
		{"bridge", "textbook bridge network, p = .9 (availability .97848)", bridge(.1), 1 - .97848, .022, 1e-12, []uint64{0, 2, 2}},
		{"2 of 3 at .99", "textbook: 3p² − 2p³ = .999702", &Model{Top: "top", Gates: map[string]Formula{"top": KOf(2, refs("x", "y", "z")...)},
			Events: events(.01, "x", "y", "z")}, 1 - .999702, 3e-4, 1e-12, []uint64{0, 3}},
		{"beta factor", "SCRAM's CCF tests, three trains", threeTrains(Group{Model: BetaFactor, Probability: .1, Factors: []float64{.2}}), .0430804, .044096, 5e-8, []uint64{2, 0, 8}},
		{"multiple Greek letters", "SCRAM's CCF tests, three trains", threeTrains(Group{Model: MGL, Probability: .1, Factors: []float64{.2, .1}}), .0162948, .01771, 1e-5, []uint64{2, 24, 8}},
		{"alpha factors", "SCRAM's CCF tests, three trains", threeTrains(Group{Model: AlphaFactor, Probability: .1, Factors: []float64{.7, .2, .1}}), .0529814, .05488, 1e-5, []uint64{2, 24, 8}},
		{"phi factors", "SCRAM's CCF tests, three trains", threeTrains(Group{Model: PhiFactor, Probability: .1, Factors: []float64{.7, .2, .1}}), .0410393, .04434, 1e-5, []uint64{2, 24, 8}},
	} {
		r, err := Analyse(c.m, Options{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if math.Abs(r.Probability-c.exact) > c.tolerance || math.Abs(r.RareEventSum-c.rare) > max(c.tolerance, 1e-9) {
			t.Errorf("%s (%s): P %.9g, rare-event sum %.9g; want %v and %v", c.name, c.source, r.Probability, r.RareEventSum, c.exact, c.rare)
		}
		if !slices.Equal(r.CutSets.ByOrder, c.byOrder) {
			t.Errorf("%s: cut sets by order %v; want %v", c.name, r.CutSets.ByOrder, c.byOrder)
		}
	}
}

// A quorum of three sites, with and without an event that takes all of them.
func TestQuorumWithACommonEvent(t *testing.T) {
	t.Parallel()
	m := &Model{Top: "lost", Gates: map[string]Formula{"lost": KOf(2, refs("a", "b", "c")...)}, Events: events(1e-3, "a", "b", "c")}
	alone, err := Analyse(m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	m.Gates["lost"] = AnyOf(KOf(2, refs("a", "b", "c")...), Ref("release"))
	m.Events["release"] = Event{Probability: 1e-4}
	common, err := Analyse(m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(alone.Probability-2.998e-6) > 1e-9 || math.Abs(common.Probability-1.03e-4) > 1e-6 {
		t.Errorf("quorum lost with %.6g, with a common event %.6g; want 2.998e-06 and 1.03e-04", alone.Probability, common.Probability)
	}
	if first := common.Importance[0].Event; first != "release" || common.CutSets.ByOrder[0] != 1 {
		t.Errorf("first in importance is %s, single points of failure %d; want the common event", first, common.CutSets.ByOrder[0])
	}
}
