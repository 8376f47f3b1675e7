package fault

import (
	"fmt"
	"math"
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
	var out []Pair
	for i := range n.Nodes {
		first := i + 1
		if oneWay {
			first = 0
		}
		if first >= len(n.Nodes) {
			continue
		}
		lost, c, err := n.unreachable(i, o.MaxNodes)
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
// solution of the equations between neighbours, by going through them until nothing changes.
func (n *Network) unreachable(source int, limit int) (lost []ref, c *compiled, err error) {
	defer caught(&err)
	c = &compiled{model: &Model{Events: map[string]Event{}}, d: newDiagram(false, limit)}
	variable := func(name string, availability float64) ref {
		c.names, c.p = append(c.names, name), append(c.p, 1-availability)
		c.model.Events[name] = Event{Probability: 1 - availability}
		return c.d.variable(uint32(len(c.names) - 1))
	}
	index := make(map[string]int, len(n.Nodes))
	for i, node := range n.Nodes {
		index[node.Name] = i
	}
	type step struct {
		from int
		edge ref
	}
	into := make([][]step, len(n.Nodes))
	fails, known := make([]ref, len(n.Nodes)), make([]bool, len(n.Nodes))
	// Variables in the order of a breadth-first walk: what stands close in the network stands close in the diagram.
	named := make([]bool, len(n.Edges))
	queue := []int{source}
	known[source] = true
	for len(queue) > 0 || len(c.names) == 0 {
		at := queue[0]
		queue = queue[1:]
		fails[at] = variable(n.Nodes[at].Name, n.Nodes[at].Availability)
		for k, e := range n.Edges {
			from, to := index[e.From], index[e.To]
			if named[k] || from != at && to != at {
				continue
			}
			named[k] = true
			x := variable(e.label(), e.Availability)
			into[to] = append(into[to], step{from, x})
			if !e.OneWay {
				into[from] = append(into[from], step{to, x})
			}
			for _, next := range []int{from, to} {
				if !known[next] {
					known[next] = true
					queue = append(queue, next)
				}
			}
		}
	}
	lost = make([]ref, len(n.Nodes))
	for i := range lost {
		lost[i] = one
	}
	lost[source] = fails[source]
	for changed := true; changed; {
		changed = false
		for i := range n.Nodes {
			if i == source || !known[i] {
				continue
			}
			all := one
			for _, s := range into[i] {
				all = c.d.and(all, c.d.or(s.edge, lost[s.from]))
			}
			if next := c.d.or(fails[i], all); next != lost[i] {
				lost[i], changed = next, true
			}
		}
	}
	return lost, c, nil
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
