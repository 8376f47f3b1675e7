package assess

import (
	"fmt"
	"io"
	"os"
	"reflect"

	"github.com/atollhq/atoll/internal/fault"
)

// network is the form of a network's file.
type network struct {
	Format int            `yaml:"network"` // version of the form: 1
	Nodes  []*networkNode `yaml:"nodes"`
	Edges  []*networkEdge `yaml:"edges"`
}

type networkNode struct {
	Name      string `yaml:"name"`
	Available Number `yaml:"available" unit:"ratio"` // default 100 %
}

type networkEdge struct {
	Name      string   `yaml:"name"` // default: the names of its ends
	Between   []string `yaml:"between"`
	OneWay    bool     `yaml:"one_way"` // from the first to the second only
	Available Number   `yaml:"available" unit:"ratio"`
}

// maxNetwork bounds how many nodes a network may have: every pair of them is answered.
const maxNetwork = 500

// LoadNetwork reads a file of nodes and edges with their availabilities; a range counts with its mean. What is wrong
// with its content comes back as [Problems].
func LoadNetwork(path string) (*fault.Network, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the network: %w", err)
	}
	defer f.Close()
	return ReadNetwork(path, f)
}

// ReadNetwork is LoadNetwork for a file that is open; name stands for it in errors.
func ReadNetwork(name string, r io.Reader) (*fault.Network, error) {
	body, err := document(name, r, "a network", "it has the keys network: 1, nodes: and edges:")
	if err != nil {
		return nil, err
	}
	n := &network{}
	d := &decoder{file: name, where: places{}, budget: maxNodes}
	d.value(body, reflect.ValueOf(n).Elem(), "", "")
	if len(d.problems) == 0 {
		d.network(n)
	}
	if len(d.problems) > 0 {
		return nil, d.problems
	}
	out := &fault.Network{}
	for _, x := range n.Nodes {
		out.Nodes = append(out.Nodes, fault.Node{Name: x.Name, Availability: x.Available.Mean()})
	}
	for _, x := range n.Edges {
		out.Edges = append(out.Edges, fault.Edge{Name: x.Name, From: x.Between[0], To: x.Between[1], Availability: x.Available.Mean(), OneWay: x.OneWay})
	}
	return out, nil
}

// network checks a network that was decoded, and fills in what may be left out.
func (d *decoder) network(n *network) {
	switch {
	case n.Format == 0:
		d.problem(d.where.of("network"), "write network: 1", "the version of the form is missing")
	case n.Format != Format:
		d.problem(d.where.of("network"), "", "form %d; this build reads %d", n.Format, Format)
	}
	if len(n.Nodes) < 2 {
		d.problem(d.where.of("nodes"), "write nodes: [{name: a}, {name: b}]", "%d nodes; want at least 2", len(n.Nodes))
	}
	if len(n.Nodes) > maxNetwork {
		d.problem(d.where.of("nodes"), "", "%d nodes; every pair is answered, so at most %d are read", len(n.Nodes), maxNetwork)
	}
	taken, nodes := map[string]bool{}, []string{}
	for i, x := range n.Nodes {
		at := d.where.of(fmt.Sprintf("nodes.%d", i))
		switch {
		case !validName(x.Name):
			d.problem(at, "want letters, digits, - and _", "a node with the name %q", x.Name)
		case taken[x.Name]:
			d.problem(at, "", "two nodes are called %q", x.Name)
		}
		taken[x.Name] = true
		nodes = append(nodes, x.Name)
		if !x.Available.Set {
			x.Available = assumed(Ratio, "", 1, 1, 1)
		}
	}
	for i, x := range n.Edges {
		d.networkEdge(fmt.Sprintf("edges.%d", i), x, nodes, taken)
	}
}

func (d *decoder) networkEdge(path string, x *networkEdge, nodes []string, taken map[string]bool) {
	at := d.where.of(path)
	if len(x.Between) != 2 || x.Between[0] == x.Between[1] {
		d.problem(at, "write between: [a, b]", "an edge joins two nodes; got %q", x.Between)
		return
	}
	for _, end := range x.Between {
		found := false
		for _, name := range nodes {
			found = found || name == end
		}
		if !found {
			d.problem(d.where.of(path+".between"), nearest(end, nodes), "node %q does not exist", end)
			return
		}
	}
	if !x.Available.Set {
		d.problem(at, "write available: 99.9%", "edge %s-%s does not say how available it is", x.Between[0], x.Between[1])
	}
	if x.Name == "" {
		x.Name = x.Between[0] + "-" + x.Between[1]
	} else if !validName(x.Name) {
		d.problem(at, "want letters, digits, - and _", "an edge with the name %q", x.Name)
	}
	if taken[x.Name] {
		d.problem(at, "give parallel edges names of their own", "%q names two things", x.Name)
	}
	taken[x.Name] = true
}
