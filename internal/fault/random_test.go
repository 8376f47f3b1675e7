package fault

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
)

// randomModel makes a tree over n events; coherent unless told otherwise.
func randomModel(r *rand.Rand, n int, coherent bool) *Model {
	m := &Model{Top: "g0", Gates: map[string]Formula{}, Events: map[string]Event{}, House: map[string]bool{"on": true, "off": false}}
	for i := range n {
		m.Events[fmt.Sprintf("e%d", i)] = Event{Probability: r.Float64(), Frequency: r.Float64() + .01}
	}
	gates := 2 + r.IntN(n)
	for g := range gates {
		var args []Formula
		for range 2 + r.IntN(3) {
			switch k := r.IntN(10); {
			case k < 4 && g+1 < gates:
				args = append(args, Ref(fmt.Sprintf("g%d", g+1+r.IntN(gates-g-1))))
			case k == 9:
				args = append(args, Ref([]string{"on", "off"}[r.IntN(2)]))
			default:
				args = append(args, Ref(fmt.Sprintf("e%d", r.IntN(n))))
			}
		}
		ops := []Op{And, Or, And, Or, AtLeast}
		if !coherent {
			ops = append(ops, Not, Xor, Nand, Nor, Iff, Imply, Between)
		}
		f := Formula{Op: ops[r.IntN(len(ops))], Args: args}
		switch f.Op {
		case AtLeast:
			f.K = 1 + r.IntN(len(args))
		case Between:
			f.K = r.IntN(len(args))
			f.Max = f.K + r.IntN(len(args)-f.K+1)
		case Not:
			f.Args = args[:1]
		case Xor, Iff, Imply:
			f.Args = args[:2]
		}
		m.Gates[fmt.Sprintf("g%d", g)] = f
	}
	return m
}

// holds evaluates a formula the slow way.
func (m *Model) holds(f Formula, on map[string]bool) bool {
	if f.Op == Name {
		if g, ok := m.Gates[f.Name]; ok {
			return m.holds(g, on)
		}
		return on[f.Name] || m.House[f.Name]
	}
	n := 0
	for _, a := range f.Args {
		if m.holds(a, on) {
			n++
		}
	}
	switch f.Op {
	case And:
		return n == len(f.Args)
	case Or:
		return n > 0
	case AtLeast:
		return n >= f.K
	case Not, Nor:
		return n == 0
	case Xor:
		return n == 1
	case Nand:
		return n < len(f.Args)
	case Iff:
		return n != 1
	case Imply:
		return !m.holds(f.Args[0], on) || m.holds(f.Args[1], on)
	case Between:
		return n >= f.K && n <= f.Max
	}
	return f.Op == True
}

// dumb goes through every state of the events.
func dumb(m *Model, n int) (p float64, sets []int, birnbaum []float64) {
	birnbaum = make([]float64, n)
	var true_ []int
	for state := range 1 << n {
		on, weight := map[string]bool{}, 1.0
		for i := range n {
			e := fmt.Sprintf("e%d", i)
			if state>>i&1 == 1 {
				on[e] = true
				weight *= m.Events[e].Probability
			} else {
				weight *= 1 - m.Events[e].Probability
			}
		}
		if !m.holds(Ref(m.Top), on) {
			continue
		}
		true_ = append(true_, state)
		p += weight
		for i := range n {
			q := m.Events[fmt.Sprintf("e%d", i)].Probability
			if state>>i&1 == 1 {
				birnbaum[i] += weight / q
			} else {
				birnbaum[i] -= weight / (1 - q)
			}
		}
	}
	for _, s := range true_ {
		if !slices.ContainsFunc(true_, func(o int) bool { return o != s && o&s == o }) {
			sets = append(sets, s)
		}
	}
	return p, sets, birnbaum
}

// The diagrams agree with going through every state, for coherent and other trees: probability, cut sets, importance,
// frequency, truncation.
func TestAgreesWithBruteForce(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range 1500 {
		n := 2 + r.IntN(8)
		m := randomModel(r, n, i%2 == 0)
		got, err := Analyse(m, Options{MaxSets: 1000})
		if err != nil {
			t.Fatalf("seed %d, model %d: %v", seed, i, err)
		}
		p, sets, birnbaum := dumb(m, n)
		if math.Abs(got.Probability-p) > 1e-12 {
			t.Fatalf("seed %d, model %d: P %v; want %v", seed, i, got.Probability, p)
		}
		frequency := 0.0
		for j, b := range birnbaum {
			at := slices.IndexFunc(got.Importance, func(im Importance) bool { return im.Event == fmt.Sprintf("e%d", j) })
			switch {
			case at < 0 && math.Abs(b) > 1e-12:
				t.Fatalf("seed %d, model %d: e%d has no importance; want %v", seed, i, j, b)
			case at >= 0 && math.Abs(got.Importance[at].Birnbaum-b) > 1e-9:
				t.Fatalf("seed %d, model %d: e%d has importance %v; want %v", seed, i, j, got.Importance[at].Birnbaum, b)
			}
			frequency += b * m.Events[fmt.Sprintf("e%d", j)].Frequency
		}
		if math.Abs(got.Frequency-frequency) > 1e-9 {
			t.Fatalf("seed %d, model %d: frequency %v; want %v", seed, i, got.Frequency, frequency)
		}
		checkSets(t, fmt.Sprintf("seed %d, model %d", seed, i), m, got, sets)
	}
}

func checkSets(t *testing.T, where string, m *Model, got Result, want []int) {
	t.Helper()
	if got.CutSets.Certain {
		if len(want) != 1 || want[0] != 0 {
			t.Fatalf("%s: certain; want %v", where, want)
		}
		return
	}
	var have []int
	for _, s := range got.CutSets.Sets {
		state := 0
		for _, e := range s.Events {
			var i int
			fmt.Sscanf(e, "e%d", &i)
			state |= 1 << i
		}
		have = append(have, state)
	}
	slices.Sort(have)
	if !slices.Equal(have, want) || got.CutSets.Total != uint64(len(want)) {
		t.Fatalf("%s: cut sets %b (total %d); want %b", where, have, got.CutSets.Total, want)
	}
	for k := 1; k <= 3; k++ {
		cut, err := Analyse(m, Options{MaxOrder: k})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, s := range want {
			if bits.OnesCount(uint(s)) <= k {
				n++
			}
		}
		if cut.CutSets.Total != uint64(n) || cut.CutSets.MaxOrder != k {
			t.Fatalf("%s: %d cut sets up to order %d; want %d", where, cut.CutSets.Total, k, n)
		}
	}
}

// A model of 300 events with tens of thousands of cut sets is no effort.
func TestLargeModel(t *testing.T) {
	t.Parallel()
	m := &Model{Top: "top", Gates: map[string]Formula{}, Events: map[string]Event{}}
	var sides [3][]Formula
	for i := range 300 {
		e := fmt.Sprintf("e%d", i)
		m.Events[e] = Event{Probability: 1e-3}
		sides[i%3] = append(sides[i%3], Ref(e))
	}
	m.Gates["top"] = AnyOf(AllOf(AnyOf(sides[0]...), AnyOf(sides[1]...)), AllOf(KOf(2, sides[2][:90]...), Ref("e0")), KOf(3, sides[1][:40]...))
	r, err := Analyse(m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want := []uint64{0, 100 * 100, 90*89/2 + 40*39*38/6}; !slices.Equal(r.CutSets.ByOrder, want) || r.CutSets.Total != 23_885 {
		t.Errorf("%d cut sets, %v by order; want 23885, %v", r.CutSets.Total, r.CutSets.ByOrder, want)
	}
	if r.RareEventSum < r.Probability || r.UpperBound < r.Probability || r.UpperBound > r.RareEventSum {
		t.Errorf("P %v, upper bound %v, rare-event sum %v", r.Probability, r.UpperBound, r.RareEventSum)
	}
}

func TestLimitIsAnError(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(7, 7))
	m := randomModel(r, 40, true)
	var all []Formula
	for e := range m.Events {
		all = append(all, Ref(e))
	}
	m.Gates["g0"] = KOf(20, all...)
	if _, err := Analyse(m, Options{MaxNodes: 50}); err == nil {
		t.Error("50 nodes were enough for 20 of 40")
	}
}
