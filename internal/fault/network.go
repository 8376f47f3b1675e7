package fault

import (
	"fmt"
	"math"
	"slices"
)

// Network is what carries traffic: nodes and edges that each work with a given availability, independently.
type Network struct {
	Nodes []Node
	Edges []Edge
}

// Node is a switch, a router, a site.
type Node struct {
	Name         string
	Availability float64
}

// Edge is a line between two nodes; OneWay carries only from From to To.
type Edge struct {
	Name         string // "" is From-To
	From, To     string
	Availability float64
	OneWay       bool
}

// Pair is the connection between two nodes, ends included.
type Pair struct {
	From, To     string
	Availability float64 // exact: both ends work and some path between them does
	RareEventSum float64
	CutSets      CutSets // of nodes and edges
	Importance   []Importance
}

// Pairs analyses the connection of every pair of nodes: From before To in the order of Nodes, and both ways where the
// network has one-way edges.
func (n *Network) Pairs(o Options) ([]Pair, error) {
	if err := n.check(); err != nil {
		return nil, err
	}
	if o.MaxNodes == 0 {
		o.MaxNodes = defaultNodes
	}
	if o.MaxSets == 0 {
		o.MaxSets = defaultSets
	}
	oneWay := false
	for _, e := range n.Edges {
		oneWay = oneWay || e.OneWay
	}
	arrangement := n.arrange()
	var out []Pair
	for i := range n.Nodes {
		first := i + 1
		if oneWay {
			first = 0
		}
		if first >= len(n.Nodes) {
			continue
		}
		lost, c, err := n.unreachable(i, arrangement, o.MaxNodes)
		if err != nil {
			return nil, fmt.Errorf("from %s: %w", n.Nodes[i].Name, err)
		}
		for j := first; j < len(n.Nodes); j++ {
			if j == i {
				continue
			}
			var r Result
			c.root = lost[j]
			r.Probability = c.d.probability(c.root, c.p)
			c.importance(&r)
			if err := c.cutSets(&r, o); err != nil {
				return nil, fmt.Errorf("from %s to %s: %w", n.Nodes[i].Name, n.Nodes[j].Name, err)
			}
			out = append(out, Pair{n.Nodes[i].Name, n.Nodes[j].Name, 1 - r.Probability, r.RareEventSum, r.CutSets, r.Importance})
		}
	}
	return out, nil
}

// unreachable builds, for every node, the function "it fails, or no working path leads to it from source": the greatest
// solution of the equations between neighbours, by going through them, away from the source, until nothing changes.
func (n *Network) unreachable(source int, arrangement []int, limit int) (lost []ref, c *compiled, err error) {
	defer caught(&err)
	c = &compiled{model: &Model{Events: map[string]Event{}}, d: newDiagram(false, limit)}
	fails, into := n.variables(c, arrangement)
	lost = make([]ref, len(n.Nodes))
	for i := range lost {
		lost[i] = one
	}
	lost[source] = fails[source]
	away := n.away(source)
	for changed := true; changed; {
		changed = false
		for _, i := range away[1:] {
			all := one
			for _, s := range into[i] {
				all = c.d.and(all, c.d.or(s.edge, lost[s.from]))
			}
			if next := c.d.or(fails[i], all); next != lost[i] {
				lost[i], changed = next, true
			}
		}
		slices.Reverse(away[1:]) // what was learnt at the far end comes back
		if len(c.d.nodes) > limit/8 {
			roots := make([]*ref, 0, 2*len(lost))
			for i := range lost {
				roots = append(roots, &lost[i], &fails[i])
				for k := range into[i] {
					roots = append(roots, &into[i][k].edge)
				}
			}
			c.d.collect(roots)
		}
	}
	return lost, c, nil
}

// step is a way into a node: an edge, by its failure, from another node.
type step struct {
	from int
	edge ref
}

// variables makes one of each node and edge: nodes as they are arranged, edges as soon as both of their ends stand.
func (n *Network) variables(c *compiled, arrangement []int) (fails []ref, into [][]step) {
	variable := func(name string, availability float64) ref {
		c.names, c.p = append(c.names, name), append(c.p, 1-availability)
		c.model.Events[name] = Event{Probability: 1 - availability}
		return c.d.variable(uint32(len(c.names) - 1))
	}
	fails, into = make([]ref, len(n.Nodes)), make([][]step, len(n.Nodes))
	index, placed := n.index(), make([]bool, len(n.Nodes))
	for _, at := range arrangement {
		fails[at] = variable(n.Nodes[at].Name, n.Nodes[at].Availability)
		placed[at] = true
		for i := range n.Edges {
			e := &n.Edges[i]
			from, to := index[e.From], index[e.To]
			if from != at && to != at || !placed[from] || !placed[to] {
				continue
			}
			x := variable(e.label(), e.Availability)
			into[to] = append(into[to], step{from, x})
			if !e.OneWay {
				into[from] = append(into[from], step{to, x})
			}
		}
	}
	return fails, into
}

func (n *Network) index() map[string]int {
	index := make(map[string]int, len(n.Nodes))
	for i, node := range n.Nodes {
		index[node.Name] = i
	}
	return index
}

// neighbours lists for every node those that share an edge with it.
func (n *Network) neighbours() [][]int {
	index, out := n.index(), make([][]int, len(n.Nodes))
	for _, e := range n.Edges {
		a, b := index[e.From], index[e.To]
		out[a], out[b] = append(out[a], b), append(out[b], a)
	}
	return out
}

// away lists the nodes that hang together with a first one, near ones first.
func (n *Network) away(first int) []int {
	near, seen := n.neighbours(), make([]bool, len(n.Nodes))
	out := []int{first}
	seen[first] = true
	for i := 0; i < len(out); i++ {
		for _, next := range near[out[i]] {
			if !seen[next] {
				seen[next] = true
				out = append(out, next)
			}
		}
	}
	return out
}

// arrange puts nodes in a line such that few stand between neighbours at any place: the diagram of a path is as wide as
// there are ways to be connected across. From a node at the edge on, always the one that leaves the fewest open.
func (n *Network) arrange() []int {
	near := n.neighbours()
	placed, open := make([]bool, len(n.Nodes)), make([]int, len(n.Nodes))
	left := func(at int) (count int) {
		seen := map[int]bool{}
		for _, x := range near[at] {
			if !placed[x] && !seen[x] {
				seen[x] = true
				count++
			}
		}
		return count
	}
	var out []int
	place := func(at int) {
		placed[at] = true
		out = append(out, at)
		open[at] = left(at)
		for _, x := range near[at] {
			if placed[x] {
				open[x] = left(x)
			}
		}
	}
	for first := range n.Nodes {
		if placed[first] {
			continue
		}
		part := n.away(first)
		part = n.away(part[len(part)-1]) // from its far end
		place(part[0])
		for range part[1:] {
			best, least := -1, 0
			for _, at := range part {
				if placed[at] {
					continue
				}
				// How many placed nodes wait for others once this one is placed; of equal ones the one longest waited for.
				waits := 0
				if left(at) > 0 {
					waits++
				}
				touches := false
				for _, x := range out {
					rest := open[x]
					if slices.Contains(near[x], at) {
						rest, touches = rest-1, true
					}
					if rest > 0 {
						waits++
					}
				}
				if touches && (best < 0 || waits < least) {
					best, least = at, waits
				}
			}
			place(best)
		}
	}
	return out
}

func (e *Edge) label() string {
	if e.Name != "" {
		return e.Name
	}
	return e.From + "-" + e.To
}

func (n *Network) check() error {
	if len(n.Nodes) < 2 {
		return fmt.Errorf("a network of %d nodes; want at least 2", len(n.Nodes))
	}
	seen := map[string]bool{}
	nodes := map[string]bool{}
	for _, node := range n.Nodes {
		switch {
		case node.Name == "":
			return fmt.Errorf("a node without a name")
		case seen[node.Name]:
			return fmt.Errorf("two nodes are called %q", node.Name)
		case math.IsNaN(node.Availability) || node.Availability < 0 || node.Availability > 1:
			return fmt.Errorf("node %q has availability %v; want 0 to 1", node.Name, node.Availability)
		}
		seen[node.Name], nodes[node.Name] = true, true
	}
	for i := range n.Edges {
		e := &n.Edges[i]
		switch {
		case !nodes[e.From] || !nodes[e.To]:
			return fmt.Errorf("edge %q joins %q and %q; both must be nodes", e.label(), e.From, e.To)
		case e.From == e.To:
			return fmt.Errorf("edge %q joins %q with itself", e.label(), e.From)
		case seen[e.label()]:
			return fmt.Errorf("%q names two things; give parallel edges names of their own", e.label())
		case math.IsNaN(e.Availability) || e.Availability < 0 || e.Availability > 1:
			return fmt.Errorf("edge %q has availability %v; want 0 to 1", e.label(), e.Availability)
		}
		seen[e.label()] = true
	}
	return nil
}
