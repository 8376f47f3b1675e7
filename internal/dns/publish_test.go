package dns

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// publishSpec is a spec of two sites with two names in two zones.
func publishSpec(t *testing.T) *spec.Spec {
	t.Helper()
	s, err := spec.Parse("atoll.yaml", []byte(strings.Replace(string(spec.Sample()), "\npolicies:\n", `
dns:
  zones: [live.shop.example, shop.test]
  names: [live.shop.example, www.shop.test]
  sites:
    a: {addresses: [192.0.2.1, "2001:db8::1"]}
    b: {addresses: [198.51.100.1]}
  publish: {hook: {command: [/bin/true]}}
policies:
`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTurn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		me    string
		holds bool
		now   string
		want  bool
	}{
		"the first":                     {"a", true, "a:live:g1 b:live:g1", true},
		"the first without a lease":     {"a", false, "a:lapsed:g1 b:live:g1", false},
		"the second":                    {"b", true, "a:live:g1 b:live:g1", false},
		"the second after the first":    {"b", true, "a:lapsed:- b:live:g1", true},
		"the first may still hold its":  {"b", true, "a:unknown:? b:live:g1", false},
		"the first is no member":        {"b", true, "!a:live:g1 b:live:g1", true},
		"the second without its lease":  {"b", false, "a:lapsed:- b:lapsed:g1", false},
		"the first, others not known":   {"a", true, "a:live:g1 b:unknown:?", true},
		"alone":                         {"a", true, "a:live:g1", true},
		"nothing is known of any other": {"a", true, "", true},
	} {
		h := told(c.now)
		h.Site, h.Holds = topo.SiteID(c.me), c.holds
		if got := Turn(h); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func brief(d Document) string {
	var out []string
	for _, r := range d.Records {
		out = append(out, r.Name+"/"+r.Type+"="+strings.Join(r.Values, ","))
	}
	return strings.Join(out, " ")
}

const (
	both  = "live.shop.example/A=192.0.2.1,198.51.100.1 live.shop.example/AAAA=2001:db8::1 www.shop.test/A=192.0.2.1,198.51.100.1 www.shop.test/AAAA=2001:db8::1"
	onlyB = "live.shop.example/A=198.51.100.1 live.shop.example/AAAA= www.shop.test/A=198.51.100.1 www.shop.test/AAAA="
)

// TestPublisher: what changed is published once, what is only guessed never; after another site's turn it is published
// anew; what failed is tried again, later and later.
func TestPublisher(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var got []string
		var fail error
		var now string
		holds := true
		p := &Publisher{Spec: publishSpec(t), Site: "b", Log: slog.New(slog.DiscardHandler),
			Health: func(context.Context) api.Health { h := told(now); h.Site, h.Holds = "b", holds; return h },
			Publish: func(_ context.Context, d Document) error {
				if d.Format != 1 || d.Deployment != "tickets" || d.Site != "b" {
					t.Errorf("%+v", d)
				}
				got = append(got, brief(d))
				return fail
			}}
		step := func(what, health string, wait time.Duration, want ...string) {
			t.Helper()
			now, got = health, nil
			if w := p.step(t.Context()); w != wait || strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("%s: again in %v, published %q\nwant %v, %q", what, w, got, wait, want)
			}
		}
		const aLost, aBack, none = "a:lapsed:- b:live:g1", "a:live:g1 b:live:g1", "a:lapsed:- b:lapsed:-"
		step("a has its lease: a publishes", aBack, AskEvery)
		step("a is lost", aLost, publishGap, onlyB)
		step("nothing changed", aLost, AskEvery)
		step("nobody is well", none, AskEvery)
		step("a's turn again", aBack, AskEvery)
		fail = errors.New("SERVFAIL")
		step("after a's turn anew, and it fails", aLost, 4*time.Second, onlyB)
		step("it fails again", aLost, 8*time.Second, onlyB)
		for range 20 {
			p.step(t.Context())
		}
		step("it fails for long", aLost, longestRetry, onlyB)
		fail = nil
		step("at last", aLost, publishGap, onlyB)
		holds = false
		step("without the lease nothing", "a:lapsed:- b:lapsed:g1", AskEvery)
	})
}

// TestPublisher_First: the first site in order publishes what is known of all, over the life of its role.
func TestPublisher_First(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		health := script("a:live:g1,g2 b:unknown:?", "a:live:g1 b:live:g1", "a:live:g1 b:live:g1", "a:live:g1 b:lapsed:-")
		var got []string
		p := &Publisher{Spec: publishSpec(t), Site: "a", Log: slog.New(slog.DiscardHandler),
			Health:  func(ctx context.Context) api.Health { h, _ := health(ctx); h.Site, h.Holds = "a", true; return h },
			Publish: func(_ context.Context, d Document) error { got = append(got, brief(d)); return nil }}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		time.Sleep(time.Minute) // of the bubble's clock
		cancel()
		<-ended
		onlyA := strings.ReplaceAll(both, ",198.51.100.1", "")
		if want := strings.Join([]string{onlyA, both, onlyA}, "\n"); strings.Join(got, "\n") != want {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
		}
	})
}

func TestDocument_NeverNothing(t *testing.T) {
	t.Parallel()
	s := publishSpec(t)
	if _, err := newDocument(s, "a", SitesOf(s), Choice{}); err == nil || !strings.Contains(err.Error(), "nothing is never published") {
		t.Errorf("an empty choice: %v", err)
	}
	if _, err := newDocument(s, "a", nil, Choice{}); err == nil {
		t.Error("no sites, and a document")
	}
	for name, text := range map[string]string{
		"no JSON": "{", "another format": `{"format": 2}`, "no records": `{"format": 1}`,
		"nothing left":  `{"format": 1, "records": [{"zone": "z.test", "name": "z.test", "type": "A", "ttl": 30, "values": []}]}`,
		"other zone":    `{"format": 1, "records": [{"zone": "z.test", "name": "y.test", "type": "A", "ttl": 30, "values": ["192.0.2.1"]}]}`,
		"other type":    `{"format": 1, "records": [{"zone": "z.test", "name": "z.test", "type": "NS", "ttl": 30, "values": ["192.0.2.1"]}]}`,
		"other family":  `{"format": 1, "records": [{"zone": "z.test", "name": "z.test", "type": "AAAA", "ttl": 30, "values": ["192.0.2.1"]}]}`,
		"not canonical": `{"format": 1, "records": [{"zone": "z.test", "name": "z.test", "type": "AAAA", "ttl": 30, "values": ["2001:DB8::1"]}]}`,
		"no ttl":        `{"format": 1, "records": [{"zone": "z.test", "name": "z.test", "type": "A", "values": ["192.0.2.1"]}]}`,
		"twice":         `{"format": 1, "records": [{"zone": "z.test", "name": "z.test", "type": "A", "ttl": 30, "values": ["192.0.2.1"]}, {"zone": "z.test", "name": "z.test", "type": "A", "ttl": 30, "values": ["192.0.2.1"]}]}`,
	} {
		if d, err := ReadDocument(strings.NewReader(text)); err == nil {
			t.Errorf("%s was taken: %+v", name, d)
		}
	}
}

func FuzzReadDocument(f *testing.F) {
	f.Add([]byte(`{"format":1,"deployment":"d","site":"a","at":"2026-01-02T03:04:05Z","records":[{"zone":"z.test","name":"www.z.test","type":"A","ttl":30,"values":["192.0.2.1"]}],"sites":[{"site":"a","weight":100,"addresses":["192.0.2.1"]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ReadDocument(strings.NewReader(string(data)))
		if err != nil {
			return
		}
		again, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ReadDocument(strings.NewReader(string(again)))
		if err != nil || !back.Same(d) {
			t.Fatalf("%s\ncame back as %+v, %v", again, back, err)
		}
	})
}

// TestDocument_AsDocumented: what docs/dns.md shows is a document.
func TestDocument_AsDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/dns.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(text), "```json\n")
	example, _, _ = strings.Cut(example, "```")
	d, err := ReadDocument(strings.NewReader(example))
	if err != nil || len(d.Records) != 1 || len(d.Sites) != 2 {
		t.Errorf("%+v, %v", d, err)
	}
}
