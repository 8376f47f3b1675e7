package fault

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
)

// minimalKey is a function and how many events its sets may have.
type minimalKey struct {
	f      ref
	budget int
}

// minimal builds the family of a function's minimal cut sets.
type minimal struct {
	d    *diagram // the function's
	z    *diagram // the family's
	all  []ref    // by function, plus one; 0: not known yet
	some map[minimalKey]ref
}

// of is Rauzy's decomposition: sets without the variable are the minimal ones of lo; those with it are the minimal
// ones of hi that none of lo's makes needless. It holds in trees that say "not" too, where a positive event may stand
// idle and those with the variable are of hi or lo: what lo adds to them is what lo's sets make needless.
func (m *minimal) of(f ref) ref {
	if f == zero || f == one {
		return f
	}
	if out := m.all[f]; out != 0 {
		return out - 1
	}
	n := m.d.nodes[f]
	low := m.of(n.lo)
	out := m.z.mk(n.level, m.z.without(m.of(n.hi), low), low)
	m.all[f] = out + 1
	return out
}

// within is of for sets of at most budget events.
func (m *minimal) within(f ref, budget int) ref {
	if f == zero || f == one {
		return f
	}
	key := minimalKey{f, budget}
	if out, ok := m.some[key]; ok {
		return out
	}
	n := m.d.nodes[f]
	out := m.within(n.lo, budget)
	if budget > 0 {
		out = m.z.mk(n.level, m.z.without(m.within(n.hi, budget-1), out), out)
	}
	if len(m.some) >= m.z.limit {
		panic(overflow{m.z.limit})
	}
	m.some[key] = out
	return out
}

// cutSets fills in all that a result says of cut sets.
func (c *compiled) cutSets(res *Result, o Options) (err error) {
	defer caught(&err)
	m := &minimal{d: c.d, z: newDiagram(true, o.MaxNodes)}
	var root ref
	if o.MaxOrder == 0 {
		m.all = make([]ref, c.root+1)
		root = m.of(c.root)
	} else {
		m.some = map[minimalKey]ref{}
		root = m.within(c.root, o.MaxOrder)
	}
	m.all, m.some = nil, nil
	m.z.table, m.z.cache = nil, nil
	c.family(m.z, root, res, o)
	return nil
}

// family fills in what a result says of a family of cut sets.
func (c *compiled) family(z *diagram, root ref, res *Result, o Options) {
	sets := &res.CutSets
	sets.MaxOrder = o.MaxOrder
	if root == one {
		sets.Certain, res.RareEventSum, res.UpperBound = true, 1, 1
		return
	}
	sets.ByOrder = z.countByOrder(root)
	for _, n := range sets.ByOrder {
		sets.Total = addCounts(sets.Total, n)
	}
	p, known := c.p, len(res.Unknown) == 0
	if !known { // sets are then listed by their order
		p = slices.Repeat([]float64{1}, len(c.p))
	}
	sets.Sets = z.mostProbable(root, p, o.MaxSets, c.names)
	res.RareEventSum, res.UpperBound = math.NaN(), math.NaN()
	if !known {
		for i := range sets.Sets {
			sets.Sets[i].Probability = math.NaN()
		}
		return
	}
	res.RareEventSum = z.sumOfProducts(root, p)
	if sets.Total <= everySet {
		bound := 0.0 // of the logarithm of Π(1−P)
		z.each(root, p, func(p float64) { bound += math.Log1p(-p) })
		res.UpperBound = 0 - math.Expm1(bound)
	}
}

// addCounts adds, up to the greatest count that there is.
func addCounts(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// sizes counts the sets of a family by their size: counts[i] have first+i events.
type sizes struct {
	first  int
	counts []uint64
}

// plus adds two of them, those of one having one event more.
func (a *sizes) plus(b *sizes) *sizes {
	switch {
	case a == nil && b == nil:
		return nil
	case a == nil:
		return &sizes{b.first, slices.Clone(b.counts)}
	case b == nil:
		return &sizes{a.first + 1, slices.Clone(a.counts)}
	}
	first := min(a.first+1, b.first)
	out := &sizes{first, make([]uint64, max(a.first+1+len(a.counts), b.first+len(b.counts))-first)}
	copy(out.counts[b.first-first:], b.counts)
	for i, n := range a.counts {
		at := a.first + 1 + i - first
		out.counts[at] = addCounts(out.counts[at], n)
	}
	return out
}

// countByOrder counts the sets of a family by their size, from 1 on. What no node above needs any more is let go.
func (d *diagram) countByOrder(root ref) []uint64 {
	uses := make([]uint32, max(int(root)+1, 2))
	uses[root] = 1
	for i := int(root); i >= 2; i-- {
		if uses[i] > 0 {
			uses[d.nodes[i].hi]++
			uses[d.nodes[i].lo]++
		}
	}
	rows := make([]*sizes, len(uses))
	rows[one] = &sizes{0, []uint64{1}}
	for i := 2; i <= int(root); i++ {
		if uses[i] == 0 {
			continue
		}
		n := d.nodes[i]
		rows[i] = rows[n.hi].plus(rows[n.lo])
		for _, child := range []ref{n.hi, n.lo} {
			if uses[child]--; uses[child] == 0 && child > one {
				rows[child] = nil
			}
		}
	}
	all := rows[root]
	if all == nil {
		return nil
	}
	return append(make([]uint64, all.first-1), all.counts...)
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
func (d *diagram) each(root ref, p []float64, visit func(product float64)) {
	var walk func(f ref, product float64)
	walk = func(f ref, product float64) {
		for f != zero {
			if f == one {
				visit(product)
				return
			}
			n := d.nodes[f]
			walk(n.hi, product*p[n.level])
			f = n.lo
		}
	}
	walk(root, 1)
}

// promise is the best that a family has: the greatest product of any set, and the fewest events of such.
type promise struct {
	p    float64
	size int
}

func (a promise) compare(b promise) int {
	return cmp.Or(cmp.Compare(b.p, a.p), cmp.Compare(a.size, b.size))
}

// partial is a set up to a node, and what it may become.
type partial struct {
	promise
	at      ref
	product float64
	size    int
	last    *chosen
	number  int
}

// chosen is an event of a set and those before it.
type chosen struct {
	level  uint32
	before *chosen
}

// partials has the most promising on top; of equal ones the newest, which is the furthest.
type partials []partial

func (h partials) Len() int { return len(h) }
func (h partials) Less(i, j int) bool {
	return cmp.Or(h[i].compare(h[j].promise), cmp.Compare(h[j].number, h[i].number)) < 0
}
func (h partials) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *partials) Push(x any)   { *h = append(*h, x.(partial)) }
func (h *partials) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}

// mostProbable lists the most probable sets of a family, of equal ones those with fewer events first, without going
// through the others: always on from the most promising node.
func (d *diagram) mostProbable(root ref, p []float64, most int, names []string) []CutSet {
	if root == zero || most == 0 {
		return nil
	}
	best := make([]promise, max(int(root)+1, 2))
	best[zero] = promise{-1, 0}
	best[one] = promise{1, 0}
	for i := 2; i <= int(root); i++ {
		n := d.nodes[i]
		with, without := best[n.hi], best[n.lo]
		with.p *= p[n.level]
		with.size++
		if best[i] = without; with.compare(without) < 0 {
			best[i] = with
		}
	}
	open := &partials{}
	number := 0
	push := func(x partial) {
		if x.at != zero {
			number++
			x.number, x.promise = number, promise{x.product * best[x.at].p, x.size + best[x.at].size}
			heap.Push(open, x)
		}
	}
	push(partial{at: root, product: 1})
	var out []CutSet
	for open.Len() > 0 && len(out) < most {
		x := heap.Pop(open).(partial)
		if x.at == one {
			out = append(out, CutSet{namesOf(x.last, names), x.product})
			continue
		}
		n := d.nodes[x.at]
		push(partial{at: n.lo, product: x.product, size: x.size, last: x.last})
		push(partial{at: n.hi, product: x.product * p[n.level], size: x.size + 1, last: &chosen{n.level, x.last}})
	}
	slices.SortStableFunc(out, func(a, b CutSet) int {
		return cmp.Or(cmp.Compare(b.Probability, a.Probability), cmp.Compare(len(a.Events), len(b.Events)), slices.Compare(a.Events, b.Events))
	})
	return out
}

func namesOf(last *chosen, names []string) []string {
	var out []string
	for at := last; at != nil; at = at.before {
		out = append(out, names[at.level])
	}
	slices.Sort(out)
	return out
}
