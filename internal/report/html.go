package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

//go:embed page.html
var pageText string

//go:embed page.css
var pageCSS string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// HTML writes a report as one page that needs nothing but itself.
func HTML(w io.Writer, r *assess.Report) error {
	if err := pageTemplate.Execute(w, newPage(r)); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// number is a figure of the page; ID names its derivation in the appendix, "" where it has none.
type number struct{ Text, ID, Tone string }

// page is all that the template shows, in its order.
type page struct {
	CSS                             template.CSS
	Title, File, Currency, Verdict  string
	Seed                            int
	Keys                            []keyFigure
	Fixes                           []fixRow
	Moving                          []serviceCard
	Staying                         []stayRow
	Steps                           []stepRow
	Way, Pareto, Losses, CausesPlot figurePair
	Causes                          []legend
	Plans                           []planRow
	Sites                           []siteCard
	Doubts                          []doubtRow
	Firm                            int
	Notes                           []string
	Singles                         []singleGroup
	Book                            []bookGroup
	Sets                            []inputSet
	Simulated                       bool

	Explained bool // the appendix also explains the ways that are not proposed

	book    assess.Book
	doubted map[string]assess.Doubt
}

// keyFigure is one of the figures of the first screen.
type keyFigure struct {
	Name, Unit string
	Now, Then  number
}

type fixRow struct {
	Event, Services string
	Share, Saves    number
	Width           float64 // of its bar, percent
}

// maxExplained is up to how many services a page explains every way of each: more makes it too large for a telephone.
const maxExplained = 12

func newPage(r *assess.Report) *page {
	p := &page{CSS: template.CSS(pageCSS), Title: line(r.Title), File: line(r.File), Currency: line(r.Currency), Verdict: line(r.Verdict), Seed: r.Seed, //nolint:gosec // our own file
		book: r.Book, doubted: map[string]assess.Doubt{}, Explained: len(r.Services) <= maxExplained}
	for _, d := range r.Doubts {
		p.doubted[d.Input.Path] = d
	}
	p.keys(r)
	widest := 0.0
	for _, f := range r.Fixes {
		widest = max(widest, f.Share)
	}
	for i, f := range r.Fixes {
		if i > 0 && f.Share < .001 || i == 10 {
			break
		}
		p.Fixes = append(p.Fixes, fixRow{line(f.Event), line(listed(f.Services, 6)), p.number(percent(f.Share), fmt.Sprintf("fix.%d.share", i+1)),
			p.number(money(f.Saves), fmt.Sprintf("fix.%d.saves", i+1)), 100 * f.Share / widest})
	}
	for i := range r.Services {
		s := &r.Services[i]
		if moves(s) {
			p.Moving = append(p.Moving, p.serviceCard(s))
		} else {
			p.Staying = append(p.Staying, p.stayRow(s))
		}
		p.Simulated = p.Simulated || s.Now.Availability.Simulated != nil
		p.singles(s)
	}
	p.steps(r)
	p.Way, p.Pareto, p.Losses = way(r), pareto(r), losses(r)
	p.CausesPlot, p.Causes = causes(r)
	p.plans(r)
	p.sites(r)
	p.doubts(r)
	for _, n := range r.Notes {
		p.Notes = append(p.Notes, line(n))
	}
	if said := agreement(r); said != "" {
		p.Notes = append(p.Notes, said)
	}
	p.appendix(r)
	return p
}

// number links a figure to its derivation, if the book has it.
func (p *page) number(text, id string) number {
	if _, known := p.book[id]; !known || !p.Explained && ofOption(id) {
		id = ""
	}
	return number{Text: text, ID: line(id)}
}

// ofOption tells whether an id is that of a way that a service could be run, which may not be the proposed one.
func ofOption(id string) bool {
	_, rest, _ := strings.Cut(id, ".")
	second, _, _ := strings.Cut(rest, ".")
	return slices.Contains(assess.Patterns, assess.Pattern(second))
}

func (p *page) keys(r *assess.Report) {
	key := func(name, unit, id string, show func(float64) string, now, then float64) {
		k := keyFigure{name, unit, p.number(show(now), "total.today."+id), p.number(show(then), "total.proposed."+id)}
		switch {
		case k.Now.Text == k.Then.Text:
		case then < now:
			k.Then.Tone = "good"
		default:
			k.Then.Tone = "more"
		}
		p.Keys = append(p.Keys, k)
	}
	key("Downtime", "a year, weighed by revenue", "downtime", duration, r.Today.Downtime, r.Proposed.Downtime)
	key("Loss", p.Currency+" a year", "loss", money, r.Today.Loss, r.Proposed.Loss)
	key("Bad year", p.Currency+", one in twenty", "bad-year", money, r.Today.BadYear, r.Proposed.BadYear)
	key("Cost", p.Currency+" a month", "cost", money, r.Today.CostMonth, r.Proposed.CostMonth)
}

// outcomeRow is what a service gets one way.
type outcomeRow struct {
	Name                                                          string
	Available, Downtime, RTO, RPO, P99, Loss, Month, Net, BadYear number
	Refused                                                       []string
	Chosen                                                        bool
}

func (p *page) outcomeRow(name string, o *assess.Outcome, want assess.Wanted) outcomeRow {
	a, m, rec := &o.Availability, &o.Money, &o.Recovery
	row := outcomeRow{Name: name,
		Available: p.number(share(a.Share.V), a.Share.ID), Downtime: p.number(duration(a.Downtime.V), a.Downtime.ID),
		RTO: p.number(duration(rec.RTO.P95), rec.RTO.ID), RPO: p.number(duration(rec.RPO.P95), rec.RPO.ID),
		P99: p.number(duration(o.Latency.P99.V), o.Latency.P99.ID), BadYear: p.number(money(m.BadYear.V), m.BadYear.ID),
		Loss: p.number(money(m.Loss.V), m.Loss.ID), Month: p.number(money(m.Month.V), m.Month.ID)}
	if want.Availability != nil && a.Share.V < *want.Availability {
		row.Available.Tone = "warn"
	}
	if want.RTO != nil && rec.RTO.P95 > *want.RTO {
		row.RTO.Tone = "warn"
	}
	if want.RPO != nil && rec.RPO.P95 > *want.RPO {
		row.RPO.Tone = "warn"
	}
	for _, refusal := range o.Impossible {
		row.Refused = append(row.Refused, line(refusal.Text))
	}
	return row
}

type serviceCard struct {
	Name, Label, From, To, Purpose, Verdict, Simulated string
	Net, Flip                                          *number
	Rows                                               []outcomeRow
	Options                                            []outcomeRow
	Reasons                                            []string
	Along                                              bool
	LossNow, LossThen                                  string
}

func (p *page) serviceCard(s *assess.ServiceAnswer) serviceCard {
	c := serviceCard{Name: line(s.Service), Label: line(s.Label), From: line(where(s.Now.Placement)), To: line(where(s.Proposed.Placement)), Purpose: line(s.Answer.Purpose),
		Verdict: line(s.Answer.Text),
		Rows:    []outcomeRow{p.outcomeRow("Today", &s.Now, s.Wanted), p.outcomeRow("Proposed", &s.Proposed, s.Wanted)}}
	if wants := wants(s.Wanted); wants != [3]string{} {
		row := outcomeRow{Name: "Wanted", Available: number{Text: wants[0]}, RTO: number{Text: wants[1]}, RPO: number{Text: wants[2]}}
		c.Rows = append(c.Rows, row)
	}
	if option := chosen(s); option != nil {
		n := p.number(signed(option.Net.V), option.Net.ID)
		c.Net = &n
	}
	if s.Answer.Flip != nil {
		n := p.number(money(s.Answer.Flip.V), s.Answer.Flip.ID)
		c.Flip = &n
	}
	if s.Now.Availability.Simulated != nil {
		c.Simulated = simulated(&s.Now)
	}
	for _, reason := range s.Answer.Reasons {
		c.Reasons = append(c.Reasons, line(reason))
	}
	c.Options = p.options(s)
	if c.Along = !s.Answer.Worth; c.Along {
		c.Verdict, c.Reasons, c.Flip = "On its own it would not be worth it.", nil, nil
	}
	return c
}

func (p *page) options(s *assess.ServiceAnswer) (out []outcomeRow) {
	for i := range s.Options {
		o := &s.Options[i]
		row := p.outcomeRow(line(where(o.Outcome.Placement)), &o.Outcome, s.Wanted)
		row.Net = p.number(signed(o.Net.V), o.Net.ID)
		row.Chosen = s.Answer.Worth && same(o.Outcome.Placement, s.Answer.Placement)
		out = append(out, row)
	}
	return out
}

type stayRow struct {
	Name, Placement, Verdict string
	Now                      outcomeRow
	Flip                     *number
	Never                    string // instead of Flip
	Reasons                  []string
	Options                  []outcomeRow
}

func (p *page) stayRow(s *assess.ServiceAnswer) stayRow {
	row := stayRow{Name: line(s.Service), Placement: line(where(s.Now.Placement)), Verdict: line(s.Answer.Text), Now: p.outcomeRow("Today", &s.Now, s.Wanted), Options: p.options(s), Never: "never"}
	switch {
	case s.Answer.Worth:
		row.Never, row.Verdict = settled, "By itself: "+row.Verdict+" The roadmap's other steps leave too little to gain."
	case s.Answer.Flip != nil:
		n := p.number(money(s.Answer.Flip.V), s.Answer.Flip.ID)
		row.Flip = &n
	}
	for _, reason := range s.Answer.Reasons {
		row.Reasons = append(row.Reasons, line(reason))
	}
	return row
}
