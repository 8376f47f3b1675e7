package fault

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
)

// noBudget is a truncation that truncates nothing.
const noBudget = 1 << 20

// minimalKey is a function and how many more events its sets may have.
type minimalKey struct {
	f      ref
	budget int
}

// minimal builds the family of a function's minimal cut sets.
type minimal struct {
	d    *diagram // the function's
	z    *diagram // the family's
	memo map[minimalKey]ref
}

// of is Rauzy's decomposition: sets without the variable are the minimal ones of lo; those with it are the minimal
// ones of hi that none of lo's makes needless. It holds in trees that say "not" too, where a positive event may stand
// idle and those with the variable are of hi or lo: what lo adds to them is what lo's sets make needless.
func (m *minimal) of(f ref, budget int) ref {
	if f == zero || f == one {
		return f
	}
	key := minimalKey{f, budget}
	if out, ok := m.memo[key]; ok {
		return out
	}
	n := m.d.nodes[f]
	low := m.of(n.lo, budget)
	high := zero
	if budget > 0 {
		less := budget
		if budget != noBudget {
			less--
		}
		high = m.z.without(m.of(n.hi, less), low)
	}
	out := m.z.mk(n.level, high, low)
	m.memo[key] = out
	return out
}

// cutSets fills in all that a result says of cut sets.
func (c *compiled) cutSets(res *Result, o Options) (err error) {
	defer caught(&err)
	m := &minimal{d: c.d, z: newDiagram(true, o.MaxNodes), memo: map[minimalKey]ref{}}
	budget := noBudget
	if o.MaxOrder > 0 {
		budget = o.MaxOrder
	}
	root := m.of(c.root, budget)
	sets := &res.CutSets
	sets.MaxOrder = o.MaxOrder
	if root == one {
		sets.Certain, res.RareEventSum, res.UpperBound = true, 1, 1
		return nil
	}
	sets.ByOrder = m.z.countByOrder(root)
	for _, n := range sets.ByOrder {
		sets.Total += n
	}
	p := c.p
	if len(res.Unknown) > 0 { // sets are then listed by their order
		p = make([]float64, len(c.p))
		for i := range p {
			p[i] = 1
		}
	}
	res.RareEventSum = m.z.sumOfProducts(root, p)
	res.UpperBound = math.NaN()
	if sets.Total <= everySet {
		best := &probable{most: o.MaxSets}
		bound := 0.0 // of the logarithm of Π(1−P)
		m.z.each(root, p, func(levels []uint32, p float64) {
			bound += math.Log1p(-p)
			best.offer(levels, p)
		})
		res.UpperBound = -math.Expm1(bound)
		sets.Sets = best.sets(c.names)
	}
	if len(res.Unknown) > 0 {
		res.RareEventSum, res.UpperBound = math.NaN(), math.NaN()
		for i := range sets.Sets {
			sets.Sets[i].Probability = math.NaN()
		}
	}
	return nil
}

// countByOrder counts the sets of a family by their size, from 1 on.
func (d *diagram) countByOrder(root ref) []uint64 {
	counts := make([][]uint64, max(int(root)+1, 2))
	counts[one] = []uint64{1}
	for i := 2; i <= int(root); i++ {
		n := d.nodes[i]
		hi, lo := counts[n.hi], counts[n.lo]
		row := make([]uint64, max(len(hi)+1, len(lo)))
		copy(row, lo)
		for k, v := range hi {
			if row[k+1] > math.MaxUint64-v {
				row[k+1] = math.MaxUint64
				continue
			}
			row[k+1] += v
		}
		counts[i] = row
	}
	if len(counts[root]) == 0 {
		return nil
	}
	return counts[root][1:]
}

func (d *diagram) sumOfProducts(root ref, p []float64) float64 {
	sums := make([]float64, max(int(root)+1, 2))
	sums[one] = 1
	for i := 2; i <= int(root); i++ {
		n := d.nodes[i]
		sums[i] = p[n.level]*sums[n.hi] + sums[n.lo]
	}
	return sums[root]
}

// each goes through all sets of a family.
func (d *diagram) each(root ref, p []float64, visit func(levels []uint32, product float64)) {
	var path []uint32
	var walk func(f ref, product float64)
	walk = func(f ref, product float64) {
		for f != zero {
			if f == one {
				visit(path, product)
				return
			}
			n := d.nodes[f]
			path = append(path, n.level)
			walk(n.hi, product*p[n.level])
			path = path[:len(path)-1]
			f = n.lo
		}
	}
	walk(root, 1)
}

// probable keeps the most probable sets that it is offered; of equal ones, those with fewer events.
type probable struct {
	most int
	heap setHeap
}

type setOf struct {
	levels []uint32
	p      float64
}

func (a setOf) compare(b setOf) int {
	return cmp.Or(cmp.Compare(b.p, a.p), cmp.Compare(len(a.levels), len(b.levels)), slices.Compare(a.levels, b.levels))
}

// setHeap has the least wanted set on top.
type setHeap []setOf

func (h setHeap) Len() int           { return len(h) }
func (h setHeap) Less(i, j int) bool { return h[i].compare(h[j]) > 0 }
func (h setHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *setHeap) Push(x any)        { *h = append(*h, x.(setOf)) }
func (h *setHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}

func (b *probable) offer(levels []uint32, p float64) {
	s := setOf{levels, p}
	if len(b.heap) >= b.most {
		if b.most == 0 || s.compare(b.heap[0]) >= 0 {
			return
		}
		heap.Pop(&b.heap)
	}
	s.levels = slices.Clone(levels)
	heap.Push(&b.heap, s)
}

func (b *probable) sets(names []string) []CutSet {
	slices.SortFunc(b.heap, setOf.compare)
	out := make([]CutSet, len(b.heap))
	for i, s := range b.heap {
		out[i].Probability = s.p
		for _, level := range s.levels {
			out[i].Events = append(out[i].Events, names[level])
		}
		slices.Sort(out[i].Events)
	}
	return out
}
