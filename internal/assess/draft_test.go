package assess

import (
	"strings"
	"testing"
)

func TestDraft_AssessesAsItIs(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]*Draft{
		"as it comes": NewDraft(),
		"one site":    {Title: "x", Sites: []DraftSite{{"a", "", Cloud}}, Services: []DraftService{{"s", "1.2k"}}},
		"three sites, texts that would be YAML": {Title: "a: [b # \"c\" \\\n- {", Currency: "€ {{.}}", Sites: []DraftSite{{"a", "x: y", Own}, {"b", "x: y", Own}, {"c", "\u2028ü\x00", Cloud}},
			Services: []DraftService{{"s", "1..2..3"}, {"t", ""}, {"ü", "~5"}}},
	} {
		text, err := d.Text()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		e, err := Read("draft.yaml", strings.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		if len(e.Services) != len(d.Services) || len(e.Sites) != len(d.Sites)+1 {
			t.Errorf("%s: %d services at %d sites", name, len(e.Services), len(e.Sites))
		}
		if r, err := Assess(e, Options{}); err != nil || r.Verdict == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDraft_Refuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		d    Draft
		want string
	}{
		{Draft{}, "needs a site"},
		{Draft{Sites: []DraftSite{{"a b", "", Own}}, Services: []DraftService{{"s", ""}}}, `site name "a b"`},
		{Draft{Sites: []DraftSite{{"a", "", Witness}}, Services: []DraftService{{"s", ""}}}, "want own or cloud"},
		{Draft{Sites: []DraftSite{{"a", "", Own}}, Services: []DraftService{{"s", "much"}}}, "revenue of s"},
		{Draft{Sites: []DraftSite{{"a", "", Own}}, Services: []DraftService{{"s", ""}, {"s", ""}}}, "two services"},
	} {
		if _, err := c.d.Text(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v; want %q", err, c.want)
		}
	}
}

func TestTree(t *testing.T) {
	t.Parallel()
	e := small(t)
	for _, c := range []struct {
		services []string
		top      string
	}{{nil, "any service"}, {[]string{"shop"}, "service shop"}} {
		m, err := e.Tree(e.Today(), c.services...)
		if err != nil || m.Top != c.top || m.Check() != nil {
			t.Errorf("%v: %v, top %q", c.services, err, m.Top)
		}
	}
	if _, err := e.Tree(e.Today(), "shpo"); err == nil || !strings.Contains(err.Error(), `did you mean "shop"?`) {
		t.Errorf("%v", err)
	}
}
