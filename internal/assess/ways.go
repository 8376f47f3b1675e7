package assess

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
)

const (
	pilots   = 20    // rounds in which ways to fail are looked for, at most
	pilot    = 1000  // states drawn in each
	enough   = .0005 // three rounds that add less than this share each are the last
	mostWays = 4000
)

// ways are the ways to fail that pilots came across: sets of atoms each of which is enough, and none of whose members
// can be spared. They are found by asking the model alone. To draw a state around them is the coverage sampler of Karp
// and Luby (1983): one is chosen by how often it happens, the rest is drawn as it happens. A state with n of the known
// ways in it is drawn n/Σ P(way) times as often as it happens, so that weights cannot be large.
//
// What pilots miss is drawn too rarely to be seen, and the interval does not say so: on random estates that happened to
// probabilities below 1e-15 only, which no clock can tell from never.
//
// Atoms that are alike, as servers of one group are, are counted instead of named: thousands of ways are one.
type ways struct {
	all    []wayDown
	sums   []float64 // of how often they happen, up to each
	total  float64
	kinds  [][]int   // kind → its atoms
	kind   []int     // atom → its kind
	first  [][]int   // kind → the ways whose first it is
	downOf []float64 // kind → how many are down in the state that is looked at
	known  map[string]bool
}

// wayDown is so many atoms of each of some kinds, the rarest first.
type wayDown struct {
	parts []kindDown
	p     float64 // Σ over all that it stands for
}

type kindDown struct{ kind, count int }

// learn looks for ways to fail: of states in which few or many things are down, whichever, it repairs one after the
// other that the failure does not need. Rare ones first, more or less, so that what is left is probable; few at once, as
// many likely ones are less probable than one that is rare.
func (s *sampler) learn() {
	start := math.Min(.5, 2.5/float64(len(s.q)))
	wide := slices.Clone(s.q)
	for i, q := range s.q {
		wide[i] = max(q, start)
	}
	s.wide = s.biased(wide)
	s.ways = ways{kinds: s.kinds(), known: map[string]bool{}, kind: make([]int, len(s.q))}
	for k, atoms := range s.ways.kinds {
		for _, a := range atoms {
			s.ways.kind[a] = k
		}
	}
	s.ways.first, s.ways.downOf = make([][]int, len(s.ways.kinds)), make([]float64, len(s.ways.kinds))
	for quiet, round := 0, 0; round < pilots && quiet < 3; round++ {
		before := s.ways.total
		for range pilot {
			p := math.Pow(start, s.rng.Float64())
			for i, q := range s.q {
				s.down[i] = s.rng.Float64() < max(p, q)
			}
			if !s.works() {
				s.reduce()
				s.found()
			}
		}
		if quiet++; s.ways.total-before > enough*before {
			quiet = 0
		}
	}
}

// reduce repairs what the failure does not need.
func (s *sampler) reduce() {
	type key struct {
		atom int
		at   float64
	}
	var order []key
	chance := 5 * s.rng.Float64()
	for i, down := range s.down {
		if down {
			order = append(order, key{i, math.Log(s.q[i]) + chance*s.rng.NormFloat64()})
		}
	}
	slices.SortFunc(order, func(a, b key) int {
		if a.at < b.at {
			return -1
		}
		return 1
	})
	for _, k := range order {
		s.down[k.atom] = false
		if s.works() {
			s.down[k.atom] = true
		}
	}
}

// kinds groups atoms that are alike: those whose order does not matter to anything.
func (w *world) kinds() [][]int {
	var out [][]int
	alike := map[int]int{}
	for i, a := range w.atoms {
		if a.group == 0 {
			out = append(out, []int{i})
			continue
		}
		k, known := alike[a.group]
		if !known {
			k = len(out)
			alike[a.group] = k
			out = append(out, nil)
		}
		out[k] = append(out[k], i)
	}
	return out
}

// found adds the way that is down now.
func (s *sampler) found() {
	counts := map[int]int{}
	for i, down := range s.down {
		if down {
			counts[s.ways.kind[i]]++
		}
	}
	x := wayDown{p: 1}
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		x.parts = append(x.parts, kindDown{k, counts[k]})
		x.p *= choose(len(s.ways.kinds[k]), counts[k]) * math.Pow(s.q[s.ways.kinds[k][0]], float64(counts[k]))
	}
	name := fmt.Sprint(x.parts)
	if s.ways.known[name] || x.p == 0 || len(s.ways.all) >= mostWays {
		return
	}
	s.ways.known[name] = true
	rare := func(a kindDown) float64 { return s.q[s.ways.kinds[a.kind][0]] }
	slices.SortStableFunc(x.parts, func(a, b kindDown) int {
		if rare(a) < rare(b) {
			return -1
		}
		return 1
	})
	s.ways.first[x.parts[0].kind] = append(s.ways.first[x.parts[0].kind], len(s.ways.all))
	s.ways.all = append(s.ways.all, x)
	s.ways.total += x.p
	s.ways.sums = append(s.ways.sums, s.ways.total)
}

// choose is how many ways there are to choose k of n.
func choose(n, k int) float64 {
	out := 1.0
	for i := range k {
		out *= float64(n-i) / float64(i+1)
	}
	return out
}

// pick chooses a way by how often it happens.
func (w *ways) pick(rng *rand.Rand) *wayDown {
	at, _ := slices.BinarySearch(w.sums, rng.Float64()*w.total)
	return &w.all[min(at, len(w.all)-1)]
}

// set lets a way be there: of each kind, so many of its atoms, whichever.
func (w *ways) set(x *wayDown, down []bool, rng *rand.Rand) {
	for _, part := range x.parts {
		atoms := w.kinds[part.kind]
		left, open := part.count, len(atoms)
		for _, a := range atoms {
			if rng.IntN(open) < left {
				down[a] = true
				left--
			}
			open--
		}
	}
}

// in counts the known ways that are in a state.
func (w *ways) in(down []bool) (n float64) {
	clear(w.downOf)
	for i, d := range down {
		if d {
			w.downOf[w.kind[i]]++
		}
	}
	for k, d := range w.downOf {
		if d == 0 {
			continue
		}
		for _, at := range w.first[k] {
			here := 1.0
			for _, part := range w.all[at].parts {
				if here *= choose(int(w.downOf[part.kind]), part.count); here == 0 {
					break
				}
			}
			n += here
		}
	}
	return n
}
