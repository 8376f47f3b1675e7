package assess

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// edit is a change of testdata/small.yaml.
type edit struct{ name, old, new string }

var smallEdits = []edit{
	{"moved feed", "(feed or (ups and generator)) and chiller", "feed and chiller"},
	{"price", "person_month: 9k", "person_month: 900k"},
	{"revenue", "minute: 400", "minute: 40000"},
	{"guess", "carrier-1: {kind: carrier, every: 200d", "carrier-1: {kind: carrier, every: ~200d"},
	{"source", `source: "vendor"`, `source: "incident log"`},
	{"new service", "  advice:\n", "  extra:\n    now: {pattern: single, sites: [dc1]}\n    data: {size: 20GB}\n  advice:\n"},
	{"removed witness", "  w: {kind: witness}\n", ""},
	{"wants less", "rto: 5m", "rto: 5h"},
	{"wants more", "    servers: {count: 6", "    consider: [single, warm-standby]\n    servers: {count: 6"},
	{"call", "{to: stock, times: 3}, ", ""},
	{"curve", "0.2, 0.1, 0.1,", "0.2, 0.3, 0.1,"},
	{"size", "size: 20GB", "size: 40GB"},
	{"cause", "hits: {services: [all]}}", "hits: {services: [shop, stock]}}\n  - {name: a deletion, every: ~5y, lasts: 1h, data: true, hits: {services: [shop]}}"},
}

func smallText(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (e edit) apply(t *testing.T, text string) string {
	t.Helper()
	out := strings.Replace(text, e.old, e.new, 1)
	if out == text {
		t.Fatalf("%s: nothing was replaced", e.name)
	}
	return out
}

func edited(t *testing.T, name string) *Report {
	t.Helper()
	i := slices.IndexFunc(smallEdits, func(e edit) bool { return e.name == name })
	return assessed(t, smallEdits[i].apply(t, smallText(t)))
}

func differ(t *testing.T, before, after *Report) *Difference {
	t.Helper()
	d, err := Diff(before, after)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *Difference) input(path string) *InputChange {
	i := slices.IndexFunc(d.Inputs, func(c InputChange) bool { return c.Path == path })
	if i < 0 {
		return nil
	}
	return &d.Inputs[i]
}

func (d *Difference) verdict(service string) string {
	i := slices.IndexFunc(d.Verdicts, func(c VerdictChange) bool { return c.Service == service })
	if i < 0 {
		return ""
	}
	return d.Verdicts[i].Change
}

// What is written otherwise and says the same is no difference: comments, layout, order, units, parentheses.
func TestDiff_LayoutIsNoDifference(t *testing.T) {
	t.Parallel()
	text := smallText(t)
	other := text
	for _, e := range []edit{
		{"comment", "estate: 1", "# what there is\n\nestate: 1"},
		{"unit", "every: 3000h", "every: 125d"},
		{"parentheses", "(feed or (ups and generator)) and chiller and (carrier-1 or carrier-2)", "((feed or ((ups and generator)))  and (chiller) and (carrier-1  or carrier-2))"},
		{"object", "lasts: 1h..2h..6h", "lasts: {value: 60m..120m..6h}"},
		{"keys", "{pattern: single, sites: [cloud1]}", "{sites: [cloud1], pattern: single}"},
		{"line", "between: [dc1, cloud1]", "between: [cloud1, dc1]"},
		{"calls", "[{to: stock, times: 3}, {to: advice, optional: true, parallel: true}]", "[{to: advice, parallel: true, optional: true}, {to: stock, times: 3}]"},
		{"what is so anyway", "  cloud1: {kind: cloud,", "  cloud1: {kind: cloud, exists: true,"},
		{"ratio", "by_user: 95%", "by_user: 0.95"},
	} {
		other = e.apply(t, other)
	}
	if d := differ(t, assessed(t, text), assessed(t, other)); !d.Same || len(d.Inputs) > 0 || len(d.Verdicts) > 0 {
		t.Errorf("%s\n%+v", d.Text, d.Inputs)
	}
}

func TestDiff_Changes(t *testing.T) {
	t.Parallel()
	before := assessed(t, smallText(t))
	of := func(name string) *Difference { return differ(t, before, edited(t, name)) }

	d := of("moved feed")
	if len(d.Singles) != 1 || d.Singles[0].Event != "feed" || !d.Singles[0].New || !slices.Equal(d.Singles[0].Services, []string{"shop", "stock"}) {
		t.Errorf("a moved feed: %+v", d.Singles)
	}
	if in := d.input("sites.dc1.needs"); len(d.Inputs) != 1 || in == nil || in.Before.Text != "(feed or (ups and generator)) and chiller and (carrier-1 or carrier-2)" || in.After.Line != 22 {
		t.Errorf("its input: %+v", d.Inputs)
	}
	if !d.Mend.Changed || d.Mend.Before[0].Event != "bad release" || d.Mend.After[0].Event != "feed" {
		t.Errorf("what to mend: %+v", d.Mend)
	}
	if len(d.Services) != 2 || len(d.Totals) != 10 || !d.Totals[0].Changed || *d.Totals[0].After < *d.Totals[0].Before {
		t.Errorf("numbers: %+v %+v", d.Services, d.Totals)
	}

	if d = of("price"); d.verdict("shop") != Lost || len(d.Roadmap) == 0 || d.Roadmap[0].Change != "went" || !strings.Contains(d.Text, "2 verdicts change") || d.verdict("stock") != Carried {
		t.Errorf("a price: %s %+v %+v", d.Text, d.Verdicts, d.Roadmap)
	}
	if d = of("revenue"); d.input("services.shop.revenue.minute") == nil || d.Inputs[0].Before.Text != "400" {
		t.Errorf("revenue: %+v", d.Inputs)
	}
	if d = of("guess"); d.Text != "1 input differs; nothing in the answer does." || d.Same || d.Inputs[0].Before.Assumed || !d.Inputs[0].After.Assumed {
		t.Errorf("a guess: %s %+v", d.Text, d.Inputs)
	}
	if d = of("source"); len(d.Inputs) != 1 || d.Inputs[0].After.Source != "incident log" {
		t.Errorf("a source: %+v", d.Inputs)
	}
	d = of("new service")
	if !slices.Equal(d.Added, []Thing{{"service", "extra"}}) || d.verdict("extra") != Added || len(d.Removed) > 0 || len(d.Singles) > 0 || d.Flipped() > 0 && d.verdict("stock") == "" {
		t.Errorf("a service: %+v %+v", d.Added, d.Verdicts)
	}
	d = of("removed witness")
	if !slices.Equal(d.Removed, []Thing{{"site", "w"}}) || !slices.ContainsFunc(d.Refusals, func(r RefusalChange) bool {
		return r.New && !r.Today && r.Pattern == Partitioned && r.Refusal.Rule == "two-site-quorum"
	}) {
		t.Errorf("no witness: %+v %+v", d.Removed, d.Refusals)
	}
	d = of("wants less")
	if len(d.Wants) != 1 || d.Wants[0].Change != "met" || d.Wants[0].Objective != "rto" || *d.Wants[0].Wanted.Before != 300 || d.Wants[0].Has.ID != "shop.rto" {
		t.Errorf("wants: %+v", d.Wants)
	}
	if d = of("call"); d.input("services.shop.calls.stock.to") == nil || d.input("services.shop.calls.stock.bytes") != nil || d.input("services.shop.calls.advice.to") != nil {
		t.Errorf("a call: %+v", d.Inputs)
	}
	if d = of("curve"); len(d.Inputs) != 1 || d.input("curves.web.hours.1") == nil {
		t.Errorf("an hour: %+v", d.Inputs)
	}
	if d = of("size"); d.input("services.stock.data.restore") == nil || !d.input("services.stock.data.restore").Filled || !strings.HasPrefix(d.Text, "1 input differs") {
		t.Errorf("a size: %s %+v", d.Text, d.Inputs)
	}
	if d = of("cause"); !slices.Equal(d.Added, []Thing{{"cause", "a deletion"}}) || d.input("shared.bad release.hits.services") == nil {
		t.Errorf("a cause: %+v %+v", d.Added, d.Inputs)
	}
}

// What was recommended and has been done is not lost.
func TestDiff_WhatIsDoneIsNotLost(t *testing.T) {
	t.Parallel()
	before := assessed(t, pair(rich))
	best := before.of("shop").Answer.Placement
	done := strings.Replace(rich, "{pattern: single, sites: [a]}", fmt.Sprintf("{pattern: %s, sites: [%s], quorum: w}", best.Pattern, strings.Join(best.Sites, ", ")), 1)
	d := differ(t, before, assessed(t, pair(done)))
	if d.verdict("shop") != Done || len(d.Roadmap) == 0 || d.Roadmap[0].Change != "went" {
		t.Errorf("%+v", d.Verdicts)
	}
	poor := differ(t, before, assessed(t, pair(strings.Replace(rich, "minute: 500", "minute: 0.01", 1))))
	if poor.verdict("shop") != Lost {
		t.Errorf("%+v", poor.Verdicts)
	}
}

// A service under another name is another one; its servers are no new single point of failure.
func TestDiff_NamesAreWhatThingsAre(t *testing.T) {
	t.Parallel()
	before := assessed(t, pair(rich))
	d := differ(t, before, assessed(t, pair(strings.Replace(rich, "shop:", "store:", 1))))
	if !slices.Equal(d.Added, []Thing{{"service", "store"}}) || !slices.Equal(d.Removed, []Thing{{"service", "shop"}}) || len(d.Singles) > 0 || len(d.Services) > 0 {
		t.Errorf("%+v %+v %+v", d.Added, d.Removed, d.Singles)
	}
	moved := differ(t, before, assessed(t, pair(strings.Replace(rich, "sites: [a]", "sites: [b]", 1))))
	for _, s := range moved.Singles {
		if s.Kind == "servers" {
			t.Errorf("at another site: %+v", moved.Singles)
		}
	}
	if len(moved.Singles) != 2 {
		t.Errorf("x went, y came: %+v", moved.Singles)
	}
}

func TestDiff_AnotherCurrencyIsRefused(t *testing.T) {
	t.Parallel()
	_, err := Diff(assessed(t, pair(rich)), assessed(t, pair(rich, "currency: EUR", "currency: CNY")))
	var other *CurrencyError
	if !errors.As(err, &other) || other.After != "CNY" || !strings.Contains(err.Error(), "cannot be compared") {
		t.Errorf("%v", err)
	}
}

// mirrored is a difference seen from the other side.
func mirrored(d *Difference) *Difference {
	out := *d
	out.Before, out.After, out.Added, out.Removed, out.Text = d.After, d.Before, d.Removed, d.Added, ""
	turn := func(x Delta) Delta { x.Before, x.After = x.After, x.Before; return x }
	out.Verdicts, out.Totals, out.Singles, out.Roadmap, out.Refusals, out.Wants, out.Services, out.Inputs = nil, nil, nil, nil, nil, nil, nil, nil
	for _, v := range d.Verdicts {
		v.Before, v.After = v.After, v.Before
		v.Change = v.change()
		out.Verdicts = append(out.Verdicts, v)
	}
	for _, x := range d.Totals {
		out.Totals = append(out.Totals, turn(x))
	}
	for _, s := range d.Singles {
		s.New = !s.New
		out.Singles = append(out.Singles, s)
	}
	out.Mend.Before, out.Mend.After = d.Mend.After, d.Mend.Before
	for _, s := range d.Roadmap {
		s.Before, s.After, s.Saves = s.After, s.Before, 0 // where it stands on the newer side
		s.Change = map[string]string{"came": "went", "went": "came", "moved": "moved"}[s.Change]
		out.Roadmap = append(out.Roadmap, s)
	}
	for _, r := range d.Refusals {
		r.New = !r.New
		out.Refusals = append(out.Refusals, r)
	}
	for _, w := range d.Wants {
		w.Has, w.Wanted = turn(w.Has), turn(w.Wanted)
		w.Change = map[string]string{"met": "missed", "dropped": "missed", "missed": "met"}[w.Change]
		if w.Change == "met" && w.Wanted.After == nil {
			w.Change = "dropped"
		}
		out.Wants = append(out.Wants, w)
	}
	for _, s := range d.Services {
		var numbers []Delta
		for _, n := range s.Numbers {
			numbers = append(numbers, turn(n))
		}
		out.Services = append(out.Services, ServiceChange{s.Service, numbers})
	}
	for _, i := range d.Inputs {
		out.Inputs = append(out.Inputs, InputChange{i.Path, i.After, i.Before, i.Filled})
	}
	return &out
}

// canonical writes a difference so that two can be compared whatever the order of their lists.
func canonical(t *testing.T, d *Difference) string {
	t.Helper()
	copied := *d
	copied.Text = ""
	copied.Roadmap = slices.Clone(d.Roadmap)
	for i := range copied.Roadmap {
		copied.Roadmap[i].Saves = 0
	}
	var out []string
	v := reflect.ValueOf(copied)
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() != reflect.Slice {
			text, _ := json.Marshal(f.Interface())
			out = append(out, v.Type().Field(i).Name+" "+string(text))
			continue
		}
		for j := range f.Len() {
			text, err := json.Marshal(f.Index(j).Interface())
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, v.Type().Field(i).Name+" "+string(text))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// An estate does not differ from itself, and what differs one way differs the other way, mirrored.
func TestDiff_Mirrors(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	text := smallText(t)
	some := func() (string, []string) {
		out, names := text, []string(nil)
		for _, i := range rng.Perm(len(smallEdits))[:1+rng.IntN(5)] {
			out = smallEdits[i].apply(t, out)
			names = append(names, smallEdits[i].name)
		}
		return out, names
	}
	for range 5 {
		x, xs := some()
		y, ys := some()
		a, b := assessed(t, x), assessed(t, y)
		if d := differ(t, a, assessed(t, x)); !d.Same || d.Text != "Nothing differs: both files say the same." {
			t.Errorf("%v differs from itself: %+v", xs, d)
		}
		there, back := differ(t, a, b), differ(t, b, a)
		if p, q := canonical(t, mirrored(there)), canonical(t, back); p != q {
			t.Errorf("%v and %v do not mirror:\n%s\n\n%s", xs, ys, p, q)
		}
		again, err := json.Marshal(differ(t, assessed(t, x), assessed(t, y)))
		if first, _ := json.Marshal(there); err != nil || string(first) != string(again) {
			t.Errorf("%v and %v: other bytes for the same files, %v", xs, ys, err)
		}
	}
}

// Every number that an answer is made of is among the inputs.
func TestEntries_HoldEveryInput(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"small": smallText(t), "travel": travel(8, 3)} {
		e := estate(t, text)
		before := &Report{Entries: e.Entries()}
		for path, k := range newEvaluator(e).knobs() {
			was := k.get()
			n := scaled(was, .5)
			if n.High == 0 {
				n.Low, n.Mode, n.High = .5, .5, .5
			}
			k.set(n)
			changes := inputChanges(before, &Report{Entries: e.Entries()})
			k.set(was)
			if strings.HasPrefix(path, "components.") && strings.HasSuffix(path, ".down") {
				continue // turned by how often that means
			}
			if len(changes) != 1 {
				t.Errorf("%s: %s is turned, and %d inputs differ", name, path, len(changes))
			}
		}
		seen := map[string]bool{}
		for _, x := range before.Entries {
			if seen[x.Path] {
				t.Errorf("%s: %s is there twice", name, x.Path)
			}
			seen[x.Path] = true
		}
	}
}

// Amounts that a text rounds to the same are written out.
func TestDiff_SmallChangesAreShownInFull(t *testing.T) {
	t.Parallel()
	text := pair(rich)
	d := differ(t, assessed(t, text), assessed(t, strings.Replace(text, "minute: 500", "minute: 500.01", 1)))
	if len(d.Inputs) != 1 || d.Inputs[0].Before.Text != "500" || d.Inputs[0].After.Text != "500.01" {
		t.Errorf("%+v %+v", d.Inputs[0].Before, d.Inputs[0].After)
	}
}
