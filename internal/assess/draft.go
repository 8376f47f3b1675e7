package assess

import (
	_ "embed"
	"fmt"
	"strings"
	"text/template"
	"unicode"
)

//go:embed draft.yaml
var draftText string

var draftTemplate = template.Must(template.New("draft").Funcs(template.FuncMap{"yaml": quoted}).Parse(draftText))

// Draft is what a new estate's file begins with. Every text in it may be whatever somebody typed.
type Draft struct {
	Title    string
	Currency string
	Sites    []DraftSite    // at least one
	Services []DraftService // at least one, callees behind their callers or before them
}

// DraftSite is a site of a draft.
type DraftSite struct {
	Name, City string
	Kind       SiteKind // Own or Cloud
}

// DraftService is a service of a draft.
type DraftService struct {
	Name   string
	Minute string // revenue a minute, as a file has it; "" is 0
}

// quoted writes a text as YAML that stands for nothing but itself.
func quoted(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text)) + `"`
}

// Check says what cannot become a file.
func (d *Draft) Check() error {
	if len(d.Sites) == 0 || len(d.Services) == 0 {
		return fmt.Errorf("a draft needs a site and a service")
	}
	seen := map[string]bool{}
	for _, s := range d.Sites {
		switch {
		case !validName(s.Name):
			return fmt.Errorf("site name %q; want letters, digits, - and _, a letter first", s.Name)
		case seen[s.Name]:
			return fmt.Errorf("two sites are called %q", s.Name)
		case s.Kind != Own && s.Kind != Cloud:
			return fmt.Errorf("site %s is %q; want own or cloud", s.Name, s.Kind)
		}
		seen[s.Name] = true
	}
	seen = map[string]bool{}
	for _, s := range d.Services {
		switch {
		case !validName(s.Name):
			return fmt.Errorf("service name %q; want letters, digits, - and _, a letter first", s.Name)
		case seen[s.Name]:
			return fmt.Errorf("two services are called %q", s.Name)
		}
		if s.Minute != "" {
			if _, err := parseNumber(s.Minute, Money); err != nil {
				return fmt.Errorf("revenue of %s: %w", s.Name, err)
			}
		}
		seen[s.Name] = true
	}
	return nil
}

// NewDraft is a draft that says something without being asked: two cities and a cloud, a shop and its stock.
func NewDraft() *Draft {
	return &Draft{
		Title: "An estate", Currency: "EUR",
		Sites:    []DraftSite{{"dc1", "north", Own}, {"cloud1", "south", Cloud}},
		Services: []DraftService{{"shop", "~100"}, {"stock", ""}},
	}
}

// Text is the file: commented, and complete enough to be assessed as it is.
func (d *Draft) Text() (string, error) {
	if err := d.Check(); err != nil {
		return "", err
	}
	v := draftView{Draft: d, First: d.Sites[0].Name}
	city := func(s DraftSite) string {
		if s.City == "" {
			return s.Name
		}
		return s.City
	}
	for i, a := range d.Sites {
		for _, b := range d.Sites[i+1:] {
			rtt := "~25ms"
			if city(a) == city(b) {
				rtt = "~1ms"
			}
			v.Links = append(v.Links, draftLink{a.Name, b.Name, rtt})
		}
		v.Own, v.Cloud = v.Own || a.Kind == Own, v.Cloud || a.Kind == Cloud
	}
	var out strings.Builder
	if err := draftTemplate.Execute(&out, v); err != nil {
		return "", fmt.Errorf("write the draft: %w", err)
	}
	return out.String(), nil
}

type draftView struct {
	*Draft
	First      string
	Links      []draftLink
	Own, Cloud bool
}

type draftLink struct{ A, B, RTT string }
