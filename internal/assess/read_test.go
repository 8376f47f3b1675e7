package assess

import (
	"math"
	"os"
	"strings"
	"testing"
)

func small(t *testing.T) *Estate {
	t.Helper()
	e, err := Load("testdata/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestRead(t *testing.T) {
	t.Parallel()
	e := small(t)
	if c := e.Components["feed"]; c.Every.Mean() != 3000*hour || c.Lasts.Low != hour || c.Lasts.High != 6*hour || c.Every.Line != 14 || c.Every.Path != "components.feed.every" {
		t.Errorf("feed: %+v", c)
	}
	if u := e.Components["ups"]; u.Every.Source != "vendor" || u.Every.Assumed {
		t.Errorf("ups: %+v", u)
	}
	g := e.Components["generator"]
	if down := g.Lasts.Mean() / (g.Every.Mean() + g.Lasts.Mean()); math.Abs(down-.02) > 1e-12 || !g.Every.Assumed {
		t.Errorf("generator is down %v of the time; want 2 %% (assumed %v)", down, g.Every.Assumed)
	}
	if c := e.Components["chiller"]; !c.Lasts.Assumed || c.Lasts.Source != "default" || c.Lasts.Line != 0 {
		t.Errorf("what the file leaves out: %+v", c.Lasts)
	}
	if s := e.Services["shop"]; s.Calls[0].Times.Mean() != 3 || s.Revenue.Minute.Mean() != 400 || s.Wants.Availability.Mean() != .9995 || *s.Now.Automatic {
		t.Errorf("shop: %+v", s)
	}
	if got := e.Sites["dc1"].Needs.Names(); len(got) != 6 {
		t.Errorf("dc1 needs %v", got)
	}
	if p := e.Prices.Person.Mean(); p != 9000 {
		t.Errorf("9k is %v", p)
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		unit Unit
		mean float64
		show string
	}{
		{"90s", Duration, 90, "90s"}, {"~2h", Duration, 7200, "~2h"}, {"1h..3h", Duration, 7200, "60min..2h..3h"}, {"1.5ms", Duration, .0015, "1.5ms"},
		{"5min", Duration, 300, "5min"}, {"3d", Duration, 3 * day, "3d"}, {"0", Duration, 0, "0s"}, {"95%", Ratio, .95, "95%"}, {"0.5", Ratio, .5, "50%"},
		{"1..2..6", Count, 3, "1..2..6"}, {"12k", Money, 12000, "12000"}, {"2.5GB", Data, 2.5e9, "2.5GB"}, {"2MB/s", DataRate, 2e6, "2MB/s"},
	} {
		n, err := parseNumber(c.text, c.unit)
		if err != nil || math.Abs(n.Mean()-c.mean) > 1e-9 || n.String() != c.show {
			t.Errorf("%q: mean %v, shown as %q, %v; want %v and %q", c.text, n.Mean(), n.String(), err, c.mean, c.show)
		}
	}
	for text, unit := range map[string]Unit{"5": Duration, "5 parsecs": Duration, "-2h": Duration, "3h..1h": Duration, "120%": Ratio, "": Count, "1..2..3..4": Count,
		"NaN": Count, "inf": Count, "1e400": Count, "5GB": Duration, "10": Data, "~": Ratio} {
		if n, err := parseNumber(text, unit); err == nil {
			t.Errorf("%q as %s was read as %v", text, unit, n)
		}
	}
	n, _ := parseNumber("1..2..6", Count)
	for _, u := range []float64{0, .1, .2, .5, .9, 1} {
		if v := n.At(u); v < 1 || v > 6 || u == 0 && v != 1 || u == 1 && v != 6 {
			t.Errorf("quantile %v of %v is %v", u, n, v)
		}
	}
}

func TestExpressions(t *testing.T) {
	t.Parallel()
	e, err := parseExpression("a and (b or c) and 2 of (d, e, f and g)")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		down  string
		works bool
	}{{"", true}, {"b", true}, {"b c", false}, {"a", false}, {"d", true}, {"d f", false}, {"g", true}, {"g e", false}} {
		if got := e.Works(func(name string) bool { return !strings.Contains(c.down, name) }); got != c.works {
			t.Errorf("with %q down it works: %v; want %v", c.down, got, c.works)
		}
	}
	for _, bad := range []string{"", "a and", "and a", "a b", "(a", "a)", "4 of (a, b)", "0 of (a)", "x of (a, b)", "2 of a", "a & b", "2 of (a, b", strings.Repeat("(", 500) + "a"} {
		if _, err := parseExpression(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// Each wrong line is told with its place and what to write instead.
func TestBadEstates(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile("testdata/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"wrong unit", "every: 200d, lasts: 4h}\n  carrier-2", "every: 200, lasts: 4h}\n  carrier-2", `18:37: every: "200" has no unit; write for example 90s`},
		{"unknown key", "kind: own,", "kin: own,", `unknown key "kin" (did you mean "kind"?)`},
		{"unknown component", "needs: region", "needs: regoin", `component "regoin" does not exist (did you mean "region"?)`},
		{"unknown site", "sites: [cloud1]", "sites: [cloud2]", `site "cloud2" does not exist (did you mean "cloud1"?)`},
		{"unknown service", "to: stock", "to: stuck", `service "stuck" does not exist (did you mean "stock"?)`},
		{"circle", "  advice:\n", "  advice:\n    calls: [{to: shop}]\n", "advice → shop → advice"},
		{"reversed", "1h..2h..6h", "6h..2h..1h", "is reversed"},
		{"more than all", "by_user: 95%", "by_user: 950%", "more than 100%"},
		{"no price", "  own_core_month: 9\n", "", "the price own_core_month is missing (write own_core_month:"},
		{"two sites without a witness", "now: {pattern: single, sites: [dc1]}\n    calls", "now: {pattern: one-writer, sites: [dc1, cloud1], automatic: true}\n    calls", "two sites cannot tell a lost site from a cut line"},
		{"witness that serves", "sites: [cloud1]}", "sites: [w]}", `site "w" is a witness`},
		{"expression", "(carrier-1 or carrier-2), cores", "(carrier-1 or), cores", "want a name or ( here"},
		{"single at two", "sites: [cloud1]}", "sites: [cloud1, dc1]}", "pattern single at 2 sites"},
		{"neither", "every: ~2y", "label: x", "does not say how often it fails"},
		{"no list", "calls: [{to: stock, times: 3}, {to: advice, optional: true, parallel: true}]", "calls: stock", "wants a list"},
		{"alias", "title: A shop", "title: &x A shop", "anchors"},
		{"twice", "title: A shop in two cities", "title: a\ntitle: b", "title"},
		{"not YAML", "estate: 1", "estate: [", "testdata"},
		{"no crew", "{count: 6, need: 4}", "{count: 6, need: 4, crews: 0}", `33:34: 0 crews repair nothing (write crews: 1`},
		{"more crews than servers", "{count: 6, need: 4}", "{count: 6, need: 4, crews: 8}", "8 crews for 6 servers (leave crews out"},
		{"more crews than there are by default", "{count: 6, need: 4}", "{crews: 3}", "3 crews for 2 servers"},
		{"covers more than all", "{count: 6, need: 4}", "{count: 6, need: 4, coverage: 101%}", `33:44: coverage: "101%" is more than 100%`},
		{"servers that never work", "{count: 6, need: 4}", "{count: 6, need: 4, every: 0}", "servers fail all the time"},
		{"version", "estate: 1", "estate: 7", "this build reads 1"},
	} {
		text := strings.Replace(string(good), c.old, c.new, 1)
		if text == string(good) {
			t.Errorf("%s: nothing was replaced", c.name)
		}
		_, err := Read("testdata/x.yaml", strings.NewReader(text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	good, err := os.ReadFile("testdata/small.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(good))
	f.Add("estate: 1\nsites: {a: {kind: cloud, needs: 2 of (a, b)}}\n")
	f.Add("- &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		e, err := Read("x", strings.NewReader(text))
		if err == nil && (len(e.Sites) == 0 || len(e.Services) == 0) {
			t.Fatal("an empty estate was accepted")
		}
	})
}
