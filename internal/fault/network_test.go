package fault

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// randomNetwork has n nodes and some edges, some of them one-way or parallel.
func randomNetwork(r *rand.Rand, n, edges int, oneWay bool) *Network {
	net := &Network{}
	for i := range n {
		net.Nodes = append(net.Nodes, Node{fmt.Sprintf("n%d", i), []float64{1, r.Float64()}[r.IntN(2)]})
	}
	for i := range edges {
		a := r.IntN(n)
		b := (a + 1 + r.IntN(n-1)) % n
		net.Edges = append(net.Edges, Edge{fmt.Sprintf("l%d", i), net.Nodes[a].Name, net.Nodes[b].Name, r.Float64(), oneWay && r.IntN(3) == 0})
	}
	return net
}

// connected searches the network in one state of its components; bit i is component i (nodes, then edges) failing.
func (n *Network) connected(from, to string, failed int) bool {
	down := func(i int) bool { return failed>>i&1 == 1 }
	reached := map[string]bool{}
	for i, node := range n.Nodes {
		if node.Name == from && !down(i) {
			reached[from] = true
		}
	}
	for more := true; more; {
		more = false
		for i, e := range n.Edges {
			if down(len(n.Nodes) + i) {
				continue
			}
			for _, way := range [][2]string{{e.From, e.To}, {e.To, e.From}} {
				if e.OneWay && way[0] != e.From || !reached[way[0]] || reached[way[1]] {
					continue
				}
				at := slices.IndexFunc(n.Nodes, func(x Node) bool { return x.Name == way[1] })
				if !down(at) {
					reached[way[1]], more = true, true
				}
			}
		}
	}
	return reached[to]
}

func bruteForce(n *Network, from, to string) (availability float64, sets [][]string) {
	parts := len(n.Nodes) + len(n.Edges)
	name := func(i int) string {
		if i < len(n.Nodes) {
			return n.Nodes[i].Name
		}
		return n.Edges[i-len(n.Nodes)].label()
	}
	up := func(i int) float64 {
		if i < len(n.Nodes) {
			return n.Nodes[i].Availability
		}
		return n.Edges[i-len(n.Nodes)].Availability
	}
	var cuts []int
	for state := range 1 << parts {
		if !n.connected(from, to, state) {
			if !slices.ContainsFunc(cuts, func(c int) bool { return c&state == c }) { // states grow: subsets come first
				cuts = append(cuts, state)
			}
			continue
		}
		w := 1.0
		for i := range parts {
			if state>>i&1 == 1 {
				w *= 1 - up(i)
			} else {
				w *= up(i)
			}
		}
		availability += w
	}
	for _, c := range cuts {
		var s []string
		for i := range parts {
			if c>>i&1 == 1 {
				s = append(s, name(i))
			}
		}
		slices.Sort(s)
		sets = append(sets, s)
	}
	return availability, sets
}

func joined(sets [][]string) []string {
	out := make([]string, len(sets))
	for i, s := range sets {
		out[i] = strings.Join(s, " ")
	}
	slices.Sort(out)
	return out
}

func TestNetworksAgreeWithBruteForce(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 2))
	for i := range 60 {
		n := 2 + r.IntN(5)
		net := randomNetwork(r, n, min(r.IntN(2*n+1), 13-n), i%3 == 0)
		pairs, err := net.Pairs(Options{MaxSets: 10000})
		if err != nil {
			t.Fatalf("seed %d, network %d: %v", seed, i, err)
		}
		for _, p := range pairs {
			want, sets := bruteForce(net, p.From, p.To)
			var have [][]string
			for _, s := range p.CutSets.Sets {
				have = append(have, s.Events)
			}
			if p.CutSets.Certain {
				have = [][]string{nil}
			}
			if math.Abs(p.Availability-want) > 1e-12 || !slices.Equal(joined(have), joined(sets)) {
				t.Fatalf("seed %d, network %d %+v, %s to %s: availability %v, cuts %v; want %v, %v", seed, i, net, p.From, p.To, p.Availability, have, want, sets)
			}
		}
	}
}

// Twelve nodes: two-terminal availability by going through the edges' states, with perfect nodes.
func TestTwelveNodes(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 3))
	for i := range 3 {
		net := randomNetwork(r, 12, 15, false)
		for j := range net.Nodes {
			net.Nodes[j].Availability = 1
		}
		pairs, err := net.Pairs(Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pairs[:2] {
			want := 0.0
			for state := range 1 << 15 {
				if !net.connected(p.From, p.To, state<<12) {
					continue
				}
				w := 1.0
				for k, e := range net.Edges {
					if state>>k&1 == 1 {
						w *= 1 - e.Availability
					} else {
						w *= e.Availability
					}
				}
				want += w
			}
			if math.Abs(p.Availability-want) > 1e-12 {
				t.Fatalf("seed %d, network %d, %s to %s: %v; want %v", seed, i, p.From, p.To, p.Availability, want)
			}
		}
	}
}

// The bridge as a network is the bridge as a tree.
func TestBridgeNetwork(t *testing.T) {
	t.Parallel()
	net := &Network{Nodes: []Node{{"s", 1}, {"u", 1}, {"v", 1}, {"t", 1}}, Edges: []Edge{
		{"1", "s", "u", .9, false}, {"2", "s", "v", .9, false}, {"3", "u", "v", .9, false}, {"4", "u", "t", .9, false}, {"5", "v", "t", .9, false}}}
	pairs, err := net.Pairs(Options{})
	if err != nil {
		t.Fatal(err)
	}
	st := pairs[2]
	if st.From != "s" || st.To != "t" || math.Abs(st.Availability-.97848) > 1e-12 {
		t.Errorf("%s to %s is available with %v; want s to t with .97848", st.From, st.To, st.Availability)
	}
	// With nodes: the two ends are single points of failure, both middle nodes together a cut.
	if got := st.CutSets.ByOrder; got[0] != 2 || st.CutSets.Total < 5 {
		t.Errorf("cut sets by order %v", got)
	}
}

func TestBadNetworks(t *testing.T) {
	t.Parallel()
	ok := []Node{{"a", .9}, {"b", .9}}
	for _, n := range []Network{
		{}, {Nodes: ok[:1]},
		{Nodes: []Node{{"a", 1.5}, {"b", 1}}}, {Nodes: []Node{{"a", 1}, {"a", 1}}}, {Nodes: []Node{{"", 1}, {"a", 1}}},
		{Nodes: ok, Edges: []Edge{{From: "a", To: "c", Availability: 1}}}, {Nodes: ok, Edges: []Edge{{From: "a", To: "a", Availability: 1}}},
		{Nodes: ok, Edges: []Edge{{From: "a", To: "b", Availability: math.NaN()}}},
		{Nodes: ok, Edges: []Edge{{From: "a", To: "b", Availability: 1}, {From: "a", To: "b", Availability: 1}}},
	} {
		if _, err := n.Pairs(Options{}); err == nil {
			t.Errorf("%+v was accepted", n)
		}
	}
}
