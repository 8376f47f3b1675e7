package report

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/assess"
	"github.com/atollhq/atoll/internal/fault"
)

func TestFigures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ got, want string }{
		{duration(0), "0"}, {duration(.004), "4 ms"}, {duration(59), "59 s"}, {duration(600), "10 min"}, {duration(29736), "8.26 h"}, {duration(10 * day), "10 d"},
		{money(0), "0"}, {money(614.8), "615"}, {money(999.9), "1k"}, {money(25200), "25.2k"}, {money(1.366e6), "1.37M"}, {money(-460), "−460"}, {signed(87.5), "+87.5"}, {signed(-87.5), "−87.5"},
		{share(.999057), "99.906 %"}, {share(.99999), "99.9990 %"}, {share(1), "100 %"}, {share(.5), "50.00 %"}, {share(1 - 1e-12), "> 99.99999999 %"},
		{percent(.72), "72 %"}, {percent(.016), "1.6 %"}, {percent(.0001), "< 0.1 %"},
		{grouped(1234567), "1\u202f234\u202f567"}, {grouped(-1234), "−1\u202f234"}, {significant(1997, 3), "2000"}, {significant(.0999999, 2), "0.1"},
	} {
		if c.got != c.want {
			t.Errorf("%q; want %q", c.got, c.want)
		}
	}
}

// TestText_FitsEightyColumns, in both looks, with long names too.
func TestText_FitsEightyColumns(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*assess.Report{"small": assessed(t, "../assess/testdata/small.yaml"), "wide": wide(t)} {
		var out bytes.Buffer
		if err := Text(&out, r, false); err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(out.String()) {
			if l = strings.TrimRight(l, "\n"); runes(l) > width {
				t.Errorf("%s: %d columns: %s", name, runes(l), l)
			}
		}
		for _, want := range []string{"Mend first", "Services that deserve another way of running", "Not worth it", "it stops here", "disaster recovery or capacity", "flips the verdict on"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s says nothing of %q", name, want)
			}
		}
		var colored bytes.Buffer
		if err := Text(&colored, r, true); err != nil || !strings.Contains(colored.String(), "\x1b[1m") {
			t.Errorf("%s: no colours, %v", name, err)
		}
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	r := assessed(t, "../assess/testdata/small.yaml")
	for id, want := range map[string][]string{
		"shop.downtime":            {"shop.downtime = ", "how: Σ", "bad release", "line 14  components.feed.every", "default"},
		"shop.proposed.loss":       {"shop.proposed.loss = ", " EUR"},
		"total.today.loss":         {"the sum over all services", "shop.loss = "},
		"step.1.saves":             {"loss a year before it"},
		"site.dc1.after-loss":      {"sites.dc1.cores"},
		"shop.backup-restore.net":  {"getting there"},
		"shop.warm-standby.rto":    {"promote"},
		"shop.flip":                {"revenue"},
		"fix.1.saves":              {"computed anew"},
		"plan.1.downtime":          {"today"},
		"shop.proposed.structural": {"exact"},
	} {
		var out bytes.Buffer
		if err := Explain(&out, r, id, false); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s does not say %q:\n%s", id, w, out.String())
			}
		}
	}
	if err := Explain(&bytes.Buffer{}, r, "shop.downtme", false); err == nil || !strings.Contains(err.Error(), "shop.downtime") {
		t.Errorf("%v", err)
	}
}

func TestGates(t *testing.T) {
	t.Parallel()
	r := assessed(t, "../assess/testdata/small.yaml")
	for text, fails := range map[string]bool{
		"wants": true, "possible": false, "done": true,
		"total.today.downtime<=4h": true, "total.today.downtime <= 9h": false, "total.today.loss<=250k": false, "shop.availability>=99.95%": true, "shop.availability>=99.9%": false,
	} {
		g, err := ParseGate(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		why, err := g.Check(r)
		if err != nil || len(why) > 0 != fails {
			t.Errorf("%s: %q, %v; want that it fails: %v", text, why, err, fails)
		}
	}
	for text, want := range map[string]string{"": "wants", "fine": "total.today.loss", "<=4h": "ID<=VALUE", "x<=": "ID<=VALUE"} {
		if _, err := ParseGate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, want := range map[string]string{"shop.downtme<=1h": "shop.downtime", "shop.downtime<=5EUR": "no duration", "shop.downtime<=1h..2h": "one value"} {
		g, err := ParseGate(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Check(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestFaults_JSON: the keys that others read, and nothing that JSON cannot hold.
func TestFaults_JSON(t *testing.T) {
	t.Parallel()
	m := &fault.Model{Top: "top", Gates: map[string]fault.Formula{"top": fault.KOf(2, fault.Ref("a"), fault.Ref("b"), fault.Ref("c"))},
		Events: map[string]fault.Event{"a": {Probability: .1}, "b": {Probability: .1}, "c": {Probability: .1}}}
	for order, want := range map[int]string{0: `"total":3,"by_order":[0,3],"most_probable"`, 1: `"total":0,"by_order":[],"max_order":1,"most_probable":[]`} {
		r, err := fault.Analyse(m, fault.Options{MaxOrder: order})
		if err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(Faults(m, r))
		if err != nil || !strings.Contains(string(out), want) || !strings.Contains(string(out), `"probability":0.028`) {
			t.Errorf("order %d: %v %s", order, err, out)
		}
	}
	certain := &fault.Model{Top: "top", Gates: map[string]fault.Formula{"top": fault.AnyOf(fault.Ref("a"), fault.Formula{Op: fault.True})}, Events: map[string]fault.Event{"a": {Probability: .1}}}
	r, err := fault.Analyse(certain, fault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a := Faults(certain, r)
	if _, err := json.Marshal(a); err != nil || a.Text(&bytes.Buffer{}, false) != nil {
		t.Errorf("what is certain: %v", err)
	}
}
