package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

type stepRow struct {
	Number                   int
	Text, Services           string
	Once, Month, Saves, Left number
	Worth, Stops             bool // Stops: the first that is not worth it
}

func (p *page) steps(r *assess.Report) {
	stopped := false
	for i, s := range r.Roadmap {
		id := fmt.Sprintf("step.%d.", i+1)
		row := stepRow{Number: i + 1, Text: line(s.Text), Worth: s.Worth, Stops: !s.Worth && !stopped,
			Once: p.number(money(s.Once), id+"once"), Month: p.number(signed(s.Month), id+"month"), Saves: p.number(money(s.Saves), id+"saves"), Left: number{Text: money(s.After.Loss)}}
		if len(s.Services) > 1 {
			row.Services = line(listed(s.Services, 12))
		}
		stopped = stopped || !s.Worth
		p.Steps = append(p.Steps, row)
	}
}

type planRow struct {
	Name           string
	Cost, Downtime number
	Loss           string
	OnFront        bool
}

func (p *page) plans(r *assess.Report) {
	for i, x := range r.Pareto {
		id := fmt.Sprintf("plan.%d.", i+1)
		p.Plans = append(p.Plans, planRow{line(x.Name), p.number(money(x.CostYear), id+"cost"), p.number(duration(x.Downtime), id+"downtime"), money(x.Loss), x.OnFront})
	}
}

type siteCard struct {
	Name, Text                                   string
	CanTakeOver                                  bool
	Unavailable, PerYear, Usual, AfterLoss, Hold number
	Lost                                         string
	Day                                          figurePair
	Singles                                      []string
}

func (p *page) sites(r *assess.Report) {
	for i := range r.Sites {
		s := &r.Sites[i]
		id := "site." + s.Site + "."
		c := siteCard{Name: line(s.Site), Text: line(s.Text), CanTakeOver: s.CanTakeOver, Lost: line(s.Day.Lost), Day: dayOf(s),
			Unavailable: p.number(duration(s.Unavailable.V*year), s.Unavailable.ID), PerYear: p.number(significant(s.PerYear.V, 3), s.PerYear.ID),
			Usual: p.number(percent(s.Load.Usual), id+"load"), AfterLoss: p.number(percent(s.Load.AfterLoss), id+"after-loss"), Hold: number{Text: money(s.Day.Cores)}}
		if s.Load.AfterLoss > .9 {
			c.AfterLoss.Tone = "warn"
		}
		for _, point := range s.Singles {
			c.Singles = append(c.Singles, line(point.Event))
		}
		p.Sites = append(p.Sites, c)
	}
}

type doubtRow struct {
	Path, Text, At, Factor, Service string
	Close                           bool
}

func (p *page) doubts(r *assess.Report) {
	for _, d := range r.Doubts {
		if d.Factor == 0 {
			p.Firm++
			continue
		}
		p.Doubts = append(p.Doubts, doubtRow{line(d.Input.Path), line(d.Input.Text), strings.Trim(lineOf(d.Input), " ()"), significant(d.Factor, 3), line(d.Service), d.Factor > .5 && d.Factor < 2})
	}
}

// singleGroup are the events that alone take a service down, each with why.
type singleGroup struct {
	Service string
	Points  []singleRow
}

type singleRow struct {
	Event, Kind, Path, Down, PerYear string
}

// shownSingles of each service; more is in the JSON.
const shownSingles = 6

func (p *page) singles(s *assess.ServiceAnswer) {
	g := singleGroup{Service: line(s.Service)}
	for i, x := range s.Now.Availability.Singles {
		if i == shownSingles {
			break
		}
		path := make([]string, len(x.Path))
		for k, step := range x.Path {
			path[k] = line(step)
		}
		g.Points = append(g.Points, singleRow{line(x.Event), line(x.Kind), strings.Join(path, " › "), duration(x.Unavailable * year), significant(x.PerYear, 2)})
	}
	if len(g.Points) > 0 {
		p.Singles = append(p.Singles, g)
	}
}

// bookGroup are the derivations of one service, site or sum.
type bookGroup struct {
	Name        string
	Derivations []derivation
}

type derivation struct {
	ID, What, Value, Method string
	Parts                   []partRow
	Set                     int // of inputs; 0: none
	Inputs, Assumed         int
}

type partRow struct {
	Name  string
	Value number
}

// inputSet is a list of inputs that several derivations share, so that the page does not repeat it.
type inputSet struct {
	Number int
	Rows   []inputRow
}

type inputRow struct {
	Path, Text, At, Wrong string
	Assumed               bool
}

func (p *page) appendix(r *assess.Report) {
	sets := map[string]int{}
	ids := slices.SortedFunc(maps.Keys(r.Book), func(a, b string) int {
		return cmp.Or(cmp.Compare(groupOf(a), groupOf(b)), cmp.Compare(a, b))
	})
	for _, id := range ids {
		if !p.Explained && ofOption(id) {
			continue
		}
		d, name := r.Book[id], line(groupOf(id))
		if n := len(p.Book); n == 0 || p.Book[n-1].Name != name {
			p.Book = append(p.Book, bookGroup{Name: name})
		}
		row := derivation{ID: line(id), What: line(d.What), Value: line(figure(d.Value, d.Unit, r.Currency)), Method: line(d.Method), Inputs: len(d.Inputs)}
		for _, x := range d.Parts {
			row.Parts = append(row.Parts, partRow{line(x.Name), p.number(line(figure(x.Value, x.Unit, r.Currency)), x.ID)})
		}
		for _, in := range d.Inputs {
			if in.Assumed {
				row.Assumed++
			}
		}
		row.Set = p.inputs(d.Inputs, sets)
		group := &p.Book[len(p.Book)-1]
		group.Derivations = append(group.Derivations, row)
	}
}

// groupOf is what an id belongs to: a service today, a service as proposed, a site, a step.
func groupOf(id string) string {
	name, rest, _ := strings.Cut(id, ".")
	switch second, _, _ := strings.Cut(rest, "."); {
	case name == "site", name == "total", name == "plan", name == "step", name == "fix", second == "proposed":
		return name + " " + second
	}
	return name
}

// inputs finds or makes the set of a list.
func (p *page) inputs(list []assess.Input, sets map[string]int) int {
	if len(list) == 0 {
		return 0
	}
	key := fmt.Sprint(list)
	if n, known := sets[key]; known {
		return n
	}
	s := inputSet{Number: len(p.Sets) + 1}
	sets[key] = s.Number
	for _, in := range list {
		row := inputRow{Path: line(in.Path), Text: line(in.Text), At: strings.Trim(lineOf(in), " ()"), Assumed: in.Assumed}
		if in.Source != "" && in.Line > 0 {
			row.At += ", " + line(in.Source)
		}
		if d, ok := p.doubted[in.Path]; ok && in.Assumed {
			row.Wrong = "tenfold either way changes no verdict"
			if d.Factor > 0 {
				row.Wrong = "× " + significant(d.Factor, 3) + " flips " + line(d.Service)
			}
		}
		s.Rows = append(s.Rows, row)
	}
	p.Sets = append(p.Sets, s)
	return s.Number
}
