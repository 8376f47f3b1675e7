package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/atollhq/atoll/internal/assess"
)

var rewrite = flag.Bool("rewrite", false, "write testdata anew, after a change that is meant")

// compared is small.yaml against itself with some things changed, each old text for the new one behind it.
func compared(t *testing.T, changes ...string) *Compared {
	t.Helper()
	before := assessed(t, "../assess/testdata/small.yaml")
	text, err := os.ReadFile("../assess/testdata/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	e, err := assess.Read("estate.yaml", strings.NewReader(strings.NewReplacer(changes...).Replace(string(text))))
	if err != nil {
		t.Fatal(err)
	}
	after, err := assess.Assess(e, assess.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := assess.Diff(before, after)
	if err != nil {
		t.Fatal(err)
	}
	return &Compared{before, after, d}
}

// much is a change of nearly everything.
var much = []string{
	"(feed or (ups and generator)) and chiller", "feed and chiller",
	"cloud_core_month: ~25", "cloud_core_month: {value: 60, source: offer of May}",
	"minute: 400", "minute: 300",
	"rto: 5m", "rto: 5h",
	"  w: {kind: witness}\n", "",
	"size: 20GB", "size: ~40GB",
	"  advice:\n", "  extra:\n    now: {pattern: single, sites: [dc1]}\n    data: {size: 20GB}\n    revenue: {minute: 50}\n    wants: {rto: 1m}\n  advice:\n",
}

// TestDiff_Golden: one difference, word for word.
func TestDiff_Golden(t *testing.T) {
	t.Parallel()
	c := compared(t, much...)
	for name, write := range map[string]func(*bytes.Buffer) error{
		"testdata/diff.txt": func(b *bytes.Buffer) error { return DiffText(b, c.Difference, false) },
		"testdata/diff.md":  func(b *bytes.Buffer) error { return DiffMarkdown(b, c.Difference) },
	} {
		var out bytes.Buffer
		if err := write(&out); err != nil {
			t.Fatal(err)
		}
		if *rewrite {
			if err := os.WriteFile(name, out.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(want, out.Bytes()) {
			t.Errorf("%s: %v; go test ./internal/report -run TestDiff_Golden -rewrite, if it is meant:\n%s", name, err, out.String())
		}
	}
}

// stretched is a difference with long names and many of everything.
func stretched(t *testing.T) *assess.Difference {
	t.Helper()
	d := *compared(t, much...).Difference
	d.Mend.Before = slices.Clone(d.Mend.Before)
	const long = "-with-a-name-that-is-as-long-as-names-may-be-and-then-some-more-of-it"

	for i := range 50 {
		v := d.Verdicts[i%len(d.Verdicts)]
		v.Service += long
		d.Verdicts = append(d.Verdicts, v)
		in := d.Inputs[i%len(d.Inputs)]
		in.Path += long
		d.Inputs = append(d.Inputs, in)
		d.Added = append(d.Added, assess.Thing{Kind: "service", Name: fmt.Sprint(i) + long})
		d.Services = append(d.Services, assess.ServiceChange{Service: fmt.Sprint(i) + long, Numbers: d.Services[0].Numbers})
	}
	d.Before.File += long
	d.Mend.Before[0].Event += long
	return &d
}

func TestDiffText_FitsEightyColumns(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]*assess.Difference{"small": compared(t, much...).Difference, "stretched": stretched(t), "same": compared(t).Difference} {
		var plainly, colored bytes.Buffer
		if err := DiffText(&plainly, d, false); err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(plainly.String()) {
			words := strings.Fields(l)
			if l = strings.TrimRight(l, "\n"); runes(l) > width && len(words) > 1 && runes(words[len(words)-1]) < width/2 {
				t.Errorf("%s: %d columns: %s", name, runes(l), l)
			}
		}
		if err := DiffText(&colored, d, true); err != nil || regexp.MustCompile("\x1b\\[[0-9]+m").ReplaceAllString(colored.String(), "") != plainly.String() {
			t.Errorf("%s: colours change more than colours, %v", name, err)
		}
	}
}

// poisonedDiff is a difference in which every text from a file is hostile: the program's own words stay.
func poisonedDiff(t *testing.T, with string) *assess.Difference {
	t.Helper()
	d := &assess.Difference{} // a copy: a difference shares texts with its reports
	if text, err := json.Marshal(compared(t, much...).Difference); err != nil || json.Unmarshal(text, d) != nil {
		t.Fatal("it does not come back from JSON")
	}
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			if v.Type() == reflect.TypeFor[string]() {
				v.SetString(v.String() + with)
			}
		case reflect.Struct:
			for i := range v.NumField() {
				switch name := v.Type().Field(i).Name; {
				case name == "ID", name == "Change", name == "Objective", name == "Rule", name == "Kind" && v.Type() != reflect.TypeFor[assess.SingleChange](), v.Type() == reflect.TypeFor[assess.Difference]() && name == "Text":
				default:
					walk(v.Field(i))
				}
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		case reflect.Pointer:
			if !v.IsNil() {
				walk(v.Elem())
			}
		}
	}
	walk(reflect.ValueOf(d).Elem())
	return d
}

const hostileMarkdown = "` ``` | \\` \\| **bold** [x](javascript:alert(1)) ![i](http://e.org/i.png) @atollhq/team #1 http://e.org www.e.org <b>b</b> <!-- --> </details> &lt;i&gt; :tada: ~~s~~ $x$\n\n# title\n- item\n> quote" + hostile

// TestDiffText_ObeysNothing: see TestTerminal_ObeysNothing.
func TestDiffText_ObeysNothing(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := DiffText(&out, poisonedDiff(t, hostile), false); err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexFunc(out.String(), func(r rune) bool { return unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Cf, r) }); i >= 0 {
		t.Errorf("%q", out.String()[max(0, i-60):i+10])
	}
	if !strings.Contains(out.String(), "<script>") {
		t.Error("the test poisons nothing")
	}
}

// TestDiffMarkdown_HoldsOnlyItsOwnMarkup: without its code spans, which are closed on the line where they begin, a
// comment holds nothing that a file says, and its tables keep their columns.
func TestDiffMarkdown_HoldsOnlyItsOwnMarkup(t *testing.T) {
	t.Parallel()
	spans := regexp.MustCompile("`[^`\n]+`")
	bare := func(with string) string {
		var out bytes.Buffer
		if err := DiffMarkdown(&out, poisonedDiff(t, with)); err != nil {
			t.Fatal(err)
		}
		if with != "" && !strings.Contains(out.String(), "@atollhq") {
			t.Error("the test poisons nothing")
		}
		if i := strings.IndexFunc(out.String(), func(r rune) bool { return unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Cf, r) }); i >= 0 {
			t.Errorf("a control character: %q", out.String()[max(0, i-60):i+10])
		}
		columns := 0
		for l := range strings.Lines(spans.ReplaceAllString(out.String(), "")) {
			n := strings.Count(l, "|")
			if n > 0 && columns > 0 && n != columns {
				t.Errorf("%d bars, not %d: %s", n, columns, l)
			}
			columns = n
		}
		return spans.ReplaceAllString(out.String(), "`x`")
	}
	if was, is := bare(""), bare(hostileMarkdown); was != is {
		t.Errorf("what a file says is outside code:\n%s\n\n%s", was, is)
	}
	for text, want := range map[string]string{"": "–", " \n": "–", "`": "`ʼ`", "a|b": "`a¦b`", "``` x": "`ʼʼʼ x`", "\\": "`\\`", "a\nb": "`a b`"} {
		if got := quoted(text); got != want {
			t.Errorf("%q: %q; want %q", text, got, want)
		}
	}
}

func TestDiffMarkdown_FitsAComment(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := DiffMarkdown(&out, stretched(t)); err != nil || out.Len() > 65536 {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
}

func TestDiffGates(t *testing.T) {
	t.Parallel()
	same, worse := compared(t), compared(t, much...)
	better := compared(t, "bad release, every: ~60d", "bad release, every: ~90d", "minute: 400", "minute: 401")
	for text, want := range map[string][3]string{ // same, worse, better: "" passes
		"no-worse":                         {"", "shop: downtime 8.26 h", ""},
		"no-worse<=+1000%":                 {"", "", ""},
		"no-new-singles":                   {"", "feed alone takes down shop, stock", ""},
		"no-new-misses":                    {"", "extra: RTO (P95)", ""},
		"total.today.downtime<=+0":         {"", "allowed is at most 8.26 h", ""},
		"total.today.downtime<=+1000%":     {"", "", ""},
		"total.today.downtime<=-30m":       {"allowed is", "allowed is", ""},
		"shop.availability>=+0":            {"", "allowed is at least", ""},
		"total.proposed.loss <= +5%":       {"", "allowed is at most", ""},
		"total.today.downtime<=9h":         {"", "16.8 h", ""},
		"possible":                         {"", "", ""},
		"shop.availability>=-1%":           {"", "", ""},
		"total.today.cost>=+1%":            {"allowed is at least", "", "allowed is at least"},
		"site.dc1.after-loss<=+0.0000001%": {"", "allowed is at most 30 %", ""},
	} {
		g, err := ParseDiffGate(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		for i, c := range []*Compared{same, worse, better} {
			why, err := g.Check(c)
			if err != nil || (len(why) > 0) != (want[i] != "") || !strings.Contains(strings.Join(why, "\n"), want[i]) {
				t.Errorf("%s, %d: %q, %v; want %q", text, i, why, err, want[i])
			}
		}
	}
	lost, err := (&DiffGate{id: "no-lost-verdict"}).Check(compared(t, "person_month: 9k", "person_month: 900k"))
	if none, _ := (&DiffGate{id: "no-lost-verdict"}).Check(same); err != nil || len(none) > 0 || len(lost) != 1 || !strings.Contains(lost[0], "shop: pilot light at dc1, cloud1 was worth it; now worth it from") {
		t.Errorf("%q %q %v", none, lost, err)
	}
	for text, want := range map[string]string{"": "no-worse", "worse": "no-new-singles", "no-worse<=-5%": "no-worse<=+2%", "no-worse>=+5%": "no-worse<=+2%", "no-worse<=+5": "no-worse<=+2%", "no-worse<=+1%..2%": "no-worse<=+2%"} {
		if _, err := ParseDiffGate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, want := range map[string]string{"shop.downtme<=+1h": "shop.downtime", "shop.downtime<=+5EUR": "no duration", "shop.downtime<=+1h..2h": "one value", "shop.downtime<=+~1h": "one value",
		"extra.downtime<=+1h": "small.yaml", "no-worse<=5%": "nothing is called"} {
		g, err := ParseDiffGate(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := CheckDiff(worse, []DiffGate{g}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestDiffGate_RTOOfOneSite: with fewer short outages the rest are longer in the mean, which is not worse.
func TestDiffGate_RTOOfOneSite(t *testing.T) {
	t.Parallel()
	c := compared(t, "hits: {services: [all]}", "hits: {services: [advice]}")
	if was, is := c.Before.Book["stock.rto"].Value, c.After.Book["stock.rto"].Value; is <= was {
		t.Fatalf("this shows nothing: %v → %v", was, is)
	}
	g, err := ParseDiffGate("no-worse")
	if err != nil {
		t.Fatal(err)
	}
	if why, err := g.Check(c); err != nil || len(why) > 0 {
		t.Errorf("%q, %v", why, err)
	}
}
