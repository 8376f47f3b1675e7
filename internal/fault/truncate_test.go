package fault

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
)

// Cut sets that are found without the diagram are those that going through every state finds, up to the order.
func TestTruncatedAgreesWithBruteForce(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 5))
	for i := range 500 {
		n := 2 + r.IntN(8)
		m := randomModel(r, n, true)
		_, sets, _ := dumb(m, n)
		for order := 1; order <= 4; order++ {
			c := newCircuit(m)
			out, root, err := c.truncate(m, order, 1_000_000)
			if err != nil {
				t.Fatalf("seed %d, model %d: %v", seed, i, err)
			}
			var res Result
			out.family(out.d, root, &res, Options{MaxOrder: order, MaxSets: 1000})
			var want []int
			for _, s := range sets {
				if bits.OnesCount(uint(s)) <= order {
					want = append(want, s)
				}
			}
			if have := statesOf(res.CutSets.Sets); !res.CutSets.Certain && !slices.Equal(have, want) || res.CutSets.Certain && !slices.Equal(want, []int{0}) {
				t.Fatalf("seed %d, model %d, order %d: cut sets %b; want %b", seed, i, order, have, want)
			}
		}
	}
}

func statesOf(sets []CutSet) []int {
	var out []int
	for _, s := range sets {
		state := 0
		for _, e := range s.Events {
			var i int
			fmt.Sscanf(e, "e%d", &i)
			state |= 1 << i
		}
		out = append(out, state)
	}
	slices.Sort(out)
	return out
}

// Where the diagram outgrows its limit, a truncation answers with the cut sets and no probability; a tree that says
// not is refused.
func TestTruncatedWithoutDiagram(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(11, 11))
	const n = 30
	m := &Model{Top: "top", Gates: map[string]Formula{}, Events: events(.01)}
	name := func(i int) string { return fmt.Sprintf("e%d", i) }
	for i := range n {
		m.Events[name(i)] = Event{Probability: .01}
	}
	var ways []Formula
	for i := range 60 { // pairs and triples without an order that suits them
		way := refs(name(r.IntN(n)), name(r.IntN(n)), name(r.IntN(n)))
		ways = append(ways, AllOf(way[:2+i%2]...))
	}
	m.Gates["top"] = AnyOf(ways...)
	if _, err := Analyse(m, Options{MaxNodes: 500}); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("%v; want that the model is too large", err)
	}
	got, err := Analyse(m, Options{MaxNodes: 500, MaxOrder: 2})
	if err != nil || !got.OnlyCutSets || !math.IsNaN(got.Probability) || len(got.Importance) != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	want, err := Analyse(m, Options{MaxOrder: 2})
	if err != nil || want.OnlyCutSets {
		t.Fatalf("%v", err)
	}
	if !slices.Equal(got.CutSets.ByOrder, want.CutSets.ByOrder) || got.RareEventSum == 0 || math.Abs(got.RareEventSum-want.RareEventSum) > 1e-12 {
		t.Errorf("cut sets %v, sum %v; want %v, %v", got.CutSets.ByOrder, got.RareEventSum, want.CutSets.ByOrder, want.RareEventSum)
	}
	m.Gates["top"] = AllOf(m.Gates["top"], Formula{Op: Not, Args: refs("e0")})
	if _, err := Analyse(m, Options{MaxNodes: 500, MaxOrder: 2}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v; want that the model is too large", err)
	}
}

// Very wide and very deep models are answered or refused, in little room: a chain of each kind, and one wide gate.
func TestWideAndDeep(t *testing.T) {
	t.Parallel()
	const n = 20_000
	m := &Model{Top: "top", Gates: map[string]Formula{}, Events: map[string]Event{}}
	var all []Formula
	for i := range n {
		e := fmt.Sprintf("e%05d", i)
		m.Events[e] = Event{Probability: 1e-6}
		all = append(all, Ref(e))
	}
	for _, f := range []Formula{AnyOf(all...), AllOf(all...), KOf(2, all[:1000]...)} {
		m.Gates["top"] = f
		r, err := Analyse(m, Options{})
		if err != nil {
			t.Fatal(err)
		}
		order := 1
		want := uint64(n)
		switch f.Op {
		case And:
			order, want = n, 1
		case AtLeast:
			order, want = 2, 1000*999/2
		}
		if r.CutSets.Total != want || r.CutSets.ByOrder[order-1] != want {
			t.Errorf("%s: %d cut sets", f.Op, r.CutSets.Total)
		}
	}
	for i := range maxNesting + 1 {
		m.Gates[fmt.Sprintf("g%d", i)] = Ref(fmt.Sprintf("g%d", i+1))
	}
	m.Gates[fmt.Sprintf("g%d", maxNesting+1)] = Ref("e00000")
	m.Gates["top"] = Ref("g0")
	if err := m.Check(); err == nil {
		t.Errorf("%d gates in a row were accepted", maxNesting+2)
	}
}
