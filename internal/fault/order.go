package fault

import (
	"cmp"
	"slices"
)

// The orders of variables that are tried: a bad one can cost orders of magnitude, and none is always good. Most visit
// the tree from the top and note events as they meet them; they differ in which argument of a gate comes first. Events
// that stand close in the tree then stand close in the diagram.

// depthFirst are the events below the top, as they are met when arguments are taken as they are written.
func depthFirst(m *Model) []string {
	var order []string
	seen := map[string]bool{}
	var walk func(f Formula)
	walk = func(f Formula) {
		if f.Op != Name {
			for _, a := range f.Args {
				walk(a)
			}
			return
		}
		if seen[f.Name] {
			return
		}
		seen[f.Name] = true
		if g, gate := m.Gates[f.Name]; gate {
			walk(g)
		} else if _, house := m.House[f.Name]; !house {
			order = append(order, f.Name)
		}
	}
	walk(Ref(m.Top))
	return order
}

// orders lists the orders that are tried, best guess first; each is the variables from the root of the diagram down.
func (c *circuit) orders() []attempt {
	size, uses := c.sizes(), c.uses()
	written := c.visit(func(a, b signal) int { return 0 })
	small := c.visit(func(a, b signal) int { return cmp.Compare(size(a), size(b)) })
	n := signal(len(c.events))
	used := c.variableUses()
	shared := func(s signal) int {
		if s < n {
			return used[s]
		}
		return uses[s-n]
	}
	often := c.visit(func(a, b signal) int { return cmp.Compare(shared(b), shared(a)) })
	var out []attempt
	for _, order := range [][]signal{c.weighty(), small, often, written, c.pulled(written), c.pulled(small)} {
		if len(order) == len(written) { // weighty is not for every circuit
			out = append(out, attempt{order: order})
		}
	}
	return out
}

// visit walks the circuit from the top, the arguments of each gate in the order that compare gives.
func (c *circuit) visit(compare func(a, b signal) int) []signal {
	n := signal(len(c.events))
	seen := make([]bool, len(c.events)+len(c.gates))
	var order []signal
	var walk func(s signal)
	walk = func(s signal) {
		if s < 0 || seen[s] {
			return
		}
		seen[s] = true
		if s < n {
			order = append(order, s)
			return
		}
		args := slices.Clone(c.gate(s).args)
		slices.SortStableFunc(args, compare)
		for _, a := range args {
			walk(a)
		}
	}
	walk(c.top)
	return order
}

// sizes returns how many leaves stand below a signal, shared ones counted each time (as a float: it may be huge).
func (c *circuit) sizes() func(signal) float64 {
	n := signal(len(c.events))
	sizes := make([]float64, len(c.gates))
	size := func(s signal) float64 {
		if s < n {
			return 1
		}
		return sizes[s-n]
	}
	for i, g := range c.gates {
		for _, a := range g.args {
			sizes[i] += size(a)
		}
	}
	return size
}

// variableUses counts in how many gates a variable stands.
func (c *circuit) variableUses() []int {
	out := make([]int, len(c.events))
	for _, g := range c.gates {
		for _, a := range g.args {
			if int(a) < len(out) {
				out[a]++
			}
		}
	}
	return out
}

// weighty gives the top weight 1, which each gate shares out among its arguments, and takes the heaviest variable; then
// again without it (Minato, Ishiura and Yajima 1990).
func (c *circuit) weighty() []signal {
	const most = 50_000_000 // steps: it is quadratic
	n := signal(len(c.events))
	edges := 0
	for _, g := range c.gates {
		edges += len(g.args)
	}
	if c.top < n || edges*len(c.events) > most {
		return nil
	}
	gone := make([]bool, len(c.events)+len(c.gates))
	weight := make([]float64, len(gone))
	var order []signal
	used := c.variableUses()
	left := 0
	for _, u := range used {
		if u > 0 {
			left++
		}
	}
	for ; left > 0; left-- {
		clear(weight)
		weight[c.top] = 1
		for i := len(c.gates) - 1; i >= 0; i-- {
			g, w := c.gates[i], weight[int(n)+i]
			live := 0
			for _, a := range g.args {
				if !gone[a] {
					live++
				}
			}
			if live == 0 {
				gone[int(n)+i] = true
			}
			for _, a := range g.args {
				if !gone[a] {
					weight[a] += w / float64(live)
				}
			}
		}
		best := signal(-1)
		for v := range n {
			if !gone[v] && used[v] > 0 && (best < 0 || weight[v] > weight[best]) {
				best = v
			}
		}
		gone[best] = true
		order = append(order, best)
	}
	return order
}

// pulled moves the variables of an order to where the gates that hold them pull them, and they those gates (FORCE:
// Aloul, Markov and Sakallah 2003), and keeps the best order by the sum of the gates' spans.
func (c *circuit) pulled(order []signal) []signal {
	const rounds = 60
	n := len(c.events)
	place := make([]float64, n+len(c.gates))
	best, bestSpan := order, 0.0
	for round := range rounds {
		for i, v := range order {
			place[v] = float64(i)
		}
		for i, g := range c.gates { // arguments stand before their gate
			sum := 0.0
			for _, a := range g.args {
				sum += place[a]
			}
			place[n+i] = sum / float64(max(len(g.args), 1))
		}
		span := 0.0
		pull, pulls := make([]float64, n+len(c.gates)), make([]float64, n+len(c.gates))
		for i, g := range c.gates {
			low, high := place[n+i], place[n+i]
			for _, a := range g.args {
				low, high = min(low, place[a]), max(high, place[a])
			}
			span += high - low
			center := place[n+i]
			for _, a := range g.args {
				pull[a] += center
				pulls[a]++
			}
		}
		if round == 0 || span < bestSpan {
			best, bestSpan = order, span
		}
		next := slices.Clone(order)
		slices.SortStableFunc(next, func(a, b signal) int {
			return cmp.Compare(pull[a]/max(pulls[a], 1), pull[b]/max(pulls[b], 1))
		})
		if slices.Equal(next, order) {
			break
		}
		order = next
	}
	return best
}
