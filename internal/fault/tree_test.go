package fault

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// A tree that is asked with other numbers answers what a new analysis of the same model with these numbers does.
func TestTreeWithOtherNumbers(t *testing.T) {
	t.Parallel()
	m := &Model{Top: "top", Gates: map[string]Formula{
		"top":  AnyOf(AllOf(Ref("left"), Ref("right")), Ref("feed")),
		"left": AnyOf(Ref("a"), KOf(2, Ref("b"), Ref("c"), Ref("d"))), "right": AnyOf(Ref("e"), Ref("c")),
	}, Events: map[string]Event{}}
	for _, name := range []string{"a", "b", "c", "d", "e", "feed"} {
		m.Events[name] = Event{Probability: .01, Frequency: .1}
	}
	tree, err := NewTree(m, 100)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(4, 4))
	for range 50 {
		other := *m
		other.Events = maps.Clone(m.Events)
		numbers := make([]Event, len(tree.Events()))
		for i, name := range tree.Events() {
			numbers[i] = Event{Probability: r.Float64(), Frequency: r.Float64()}
			other.Events[name] = numbers[i]
		}
		want, err := Analyse(&other, Options{})
		if err != nil {
			t.Fatal(err)
		}
		p, frequency, _ := tree.Evaluate(numbers)
		if math.Abs(p-want.Probability) > 1e-12 || math.Abs(frequency-want.Frequency) > 1e-12 {
			t.Fatalf("%v and %v; want %v and %v", p, frequency, want.Probability, want.Frequency)
		}
	}
	for i, set := range tree.Sets() {
		if !tree.Happens(func(e int) bool { return slices.Contains(set, e) }) {
			t.Errorf("cut set %v does not cut", tree.CutSets().Sets[i].Events)
		}
		for _, less := range set {
			if tree.Happens(func(e int) bool { return e != less && slices.Contains(set, e) }) {
				t.Errorf("cut set %v is not minimal", tree.CutSets().Sets[i].Events)
			}
		}
	}
}
