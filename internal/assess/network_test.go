package assess

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/fault"
)

// bridge is the textbook's bridge of five edges, each available to p; its reliability is 2p²+2p³−5p⁴+2p⁵ (Barlow and
// Proschan, Statistical Theory of Reliability, 1975).
const bridge = `network: 1
nodes: [{name: s}, {name: a}, {name: b}, {name: t}]
edges:
  - {between: [s, a], available: 90%}
  - {between: [s, b], available: 90%}
  - {between: [a, b], available: 0.9}
  - {between: [a, t], available: 85%..95%}
  - {between: [b, t], available: 90%, name: last}
`

func TestReadNetwork_Bridge(t *testing.T) {
	t.Parallel()
	n, err := ReadNetwork("bridge.yaml", strings.NewReader(bridge))
	if err != nil {
		t.Fatal(err)
	}
	pairs, err := n.Pairs(fault.Options{})
	if err != nil || len(pairs) != 6 {
		t.Fatalf("%d pairs, %v", len(pairs), err)
	}
	p := .9
	want := 2*p*p + 2*p*p*p - 5*math.Pow(p, 4) + 2*math.Pow(p, 5)
	for _, pair := range pairs {
		if pair.From == "s" && pair.To == "t" && math.Abs(pair.Availability-want) > 1e-12 {
			t.Errorf("s to t: %v; want %v", pair.Availability, want)
		}
	}
	if n.Edges[4].Name != "last" || n.Edges[0].Name != "s-a" {
		t.Errorf("names: %+v", n.Edges)
	}
}

func TestReadNetwork_SaysWhereAndWhat(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ old, new, want string }{
		{"network: 1", "network: 2", "x.yaml:1:1: form 2; this build reads 1"},
		{"network: 1\n", "", "write network: 1"},
		{"{name: s}, ", "{name: s}, {name: s}, ", `two nodes are called "s"`},
		{"{name: s}, ", "{nam: s}, ", `x.yaml:2:10: unknown key "nam" (did you mean "name"?)`},
		{"[s, a], available: 90%", "[s, c], available: 90%", `x.yaml:4:6: node "c" does not exist`},
		{"[s, a], available: 90%", "[s], available: 90%", "write between: [a, b]"},
		{"[s, a], available: 90%", "[s, a]", "write available: 99.9%"},
		{"[s, a], available: 90%", "[s, a], available: 120%", `x.yaml:4:34: available: "120%" is more than 100%`},
		{"[s, a], available: 90%", "[s, a], available: 95%..90%", "reversed"},
		{"[s, b], available: 90%", "[s, a], available: 90%", "parallel edges"},
		{"name: last", `name: "a b"`, "want letters"},
	} {
		_, err := ReadNetwork("x.yaml", strings.NewReader(strings.Replace(bridge, c.old, c.new, 1)))
		var problems Problems
		if !errors.As(err, &problems) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q for %q: %v; want %q", c.new, c.old, err, c.want)
		}
	}
}

func FuzzReadNetwork(f *testing.F) {
	f.Add(bridge)
	f.Add("network: 1\nnodes:\n  - name: a\n    available: {value: 1, source: x}\nedges: [{}]")
	f.Add("network: [\n- ? :")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ReadNetwork("x", strings.NewReader(text))
		if err != nil {
			var problems Problems
			if !errors.As(err, &problems) || problems[0].Line < 1 || problems[0].Column < 1 {
				t.Errorf("an error without a place: %v", err)
			}
			return
		}
		if len(n.Nodes) > 6 || len(n.Edges) > 8 {
			return
		}
		if _, err := n.Pairs(fault.Options{}); err != nil {
			t.Errorf("what was read is refused: %v", err)
		}
	})
}

func TestLoadNetwork_SaysThatThereIsNone(t *testing.T) {
	t.Parallel()
	if _, err := LoadNetwork(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
