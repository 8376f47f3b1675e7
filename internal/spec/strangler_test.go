package spec

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

func TestRouteTable_MovesAndShadows(t *testing.T) {
	t.Parallel()
	text := strings.ReplaceAll(string(Sample()), "      shop: http://127.0.0.1:9000", "      basket: http://127.0.0.1:9001\n      shop: http://127.0.0.1:9000")
	text = strings.Replace(text, "upstream: shop         #", `upstream: shop
    move: {to: basket, share: 0.25, errors: 0.01, window: 30s}
    shadow: {to: basket, share: 1, ignore: [/at], timeout: 1s}         #`, 1)
	s, err := Parse("s.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.RouteTable() {
		if r.Name != "events" {
			if r.Move != nil || r.Shadow != nil {
				t.Errorf("route %s: %+v, %+v", r.Name, r.Move, r.Shadow)
			}
			continue
		}
		if want := (topo.Move{To: "basket", Share: 0.25, Errors: 0.01, Window: 30 * time.Second}); *r.Move != want {
			t.Errorf("%+v", r.Move)
		}
		if want := (&topo.Shadow{To: "basket", Share: 1, Timeout: time.Second, Compare: &topo.Comparison{Ignore: []string{"/at"}}}); !reflect.DeepEqual(r.Shadow, want) {
			t.Errorf("%+v", r.Shadow)
		}
	}
	no := false
	if (&Shadow{Compare: &no}).declared().Compare != nil {
		t.Error("compares though it should not")
	}
}

// TestRoutes_TheDocumentsExample: what docs/strangler.md shows is taken.
func TestRoutes_TheDocumentsExample(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/strangler.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(text), "```yaml\nroutes:\n")
	example, _, found := strings.Cut(example, "```")
	if !found {
		t.Fatal("no example")
	}
	sample := strings.ReplaceAll(string(Sample()), "      shop: http://127.0.0.1:9000", "      monolith: http://127.0.0.1:9002\n      basket: http://127.0.0.1:9001\n      shop: http://127.0.0.1:9000")
	sample = strings.Replace(sample, "  - name: customer\n", example+"  - name: customer\n", 1)
	s, err := Parse("strangler.md", []byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if r := s.RouteTable()[0]; r.Name != "basket" || r.Move.Share != 0.05 || len(r.Shadow.Compare.Ignore) != 2 {
		t.Errorf("%+v", r)
	}
}
