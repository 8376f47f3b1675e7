package assess

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Difference is what another version of an estate changes, the most important first. What both have alike is not in it,
// but for the totals.
type Difference struct {
	Before   Side   `json:"before"`
	After    Side   `json:"after"`
	Currency string `json:"currency"`
	Text     string `json:"text"` // the first thing to read: counts and amounts, no names
	Same     bool   `json:"same"` // nothing differs, neither what the files say nor what they are answered

	Added    []Thing         `json:"added"`
	Removed  []Thing         `json:"removed"`
	Verdicts []VerdictChange `json:"verdicts"`
	Totals   []Delta         `json:"totals"` // all of them
	Singles  []SingleChange  `json:"single_points"`
	Mend     MendChange      `json:"mend_first"`
	Roadmap  []StepChange    `json:"roadmap"` // of steps that are worth it
	Refusals []RefusalChange `json:"refusals"`
	Wants    []WantChange    `json:"wants"`
	Services []ServiceChange `json:"services"` // today's numbers of what both have
	Inputs   []InputChange   `json:"inputs"`
}

// Side is one of the two versions.
type Side struct {
	File    string `json:"file"`
	Title   string `json:"title"`
	Verdict string `json:"verdict"`
}

// Thing is a service, site, component, link, cause or curve.
type Thing struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// Changes of a verdict.
const (
	Lost    = "lost"    // worth it before, and no more
	Won     = "won"     // worth it, and was not
	Other   = "other"   // worth it in another way
	Done    = "done"    // it runs in the way that was worth it, or in one that takes more than its own did
	Moved   = "moved"   // the same, but it runs in another way today
	Carried = "carried" // the same, but the roadmap takes it elsewhere
	Added   = "added"   // the service is new
	Removed = "removed" // it is gone
	Flip    = "flip"    // the same at its revenue, but it changes at another one
)

var verdictOrder = []string{Lost, Won, Other, Done, Moved, Carried, Added, Removed, Flip}

// VerdictChange is what becomes of the answer about one service; nil: there is no such service on that side.
type VerdictChange struct {
	Service string `json:"service"`
	Change  string `json:"change"`
	Before  *Stand `json:"before"`
	After   *Stand `json:"after"`
}

// Stand is the answer about a service in short.
type Stand struct {
	Worth     bool      `json:"worth"`
	Now       Placement `json:"now"`
	Placement Placement `json:"placement"`                     // that is recommended
	Proposed  Placement `json:"proposed"`                      // behind the roadmap
	Flip      *float64  `json:"flip_revenue_minute,omitempty"` // nil: no revenue changes it
	Loss      float64   `json:"loss_year"`
}

// Delta is a number of both assessments; nil: one of them has none.
type Delta struct {
	ID      string   `json:"id"` // in both books
	Unit    Unit     `json:"unit"`
	Before  *float64 `json:"before"`
	After   *float64 `json:"after"`
	Changed bool     `json:"changed"`
}

// SingleChange is an event that alone takes services down that it did not, or the other way round.
type SingleChange struct {
	Event    string   `json:"event"`
	Kind     string   `json:"kind"`
	New      bool     `json:"new"` // false: gone
	Services []string `json:"services"`
}

// MendChange is what to mend first, as far as one looks.
type MendChange struct {
	Changed bool   `json:"changed"`
	Before  []Mend `json:"before"`
	After   []Mend `json:"after"`
}

// Mend is one thing to mend.
type Mend struct {
	Event string  `json:"event"`
	Share float64 `json:"share"`
	Saves float64 `json:"saves_year"`
}

// StepChange is a step that came, went, or stands elsewhere among those that stayed.
type StepChange struct {
	Change   string    `json:"change"` // came, went, moved
	Services []string  `json:"services"`
	To       Placement `json:"to"`
	Before   int       `json:"before,omitempty"` // its place, from 1
	After    int       `json:"after,omitempty"`
	Saves    float64   `json:"saves_year"` // where it stands now, or stood
}

// RefusalChange is something that speaks against a way and did not, or does no more.
type RefusalChange struct {
	New     bool    `json:"new"`
	Service string  `json:"service"`
	Pattern Pattern `json:"pattern"`
	Today   bool    `json:"today"` // against how it runs today, not against a way that it could
	Refusal Refusal `json:"refusal"`
}

// WantChange is an objective that is missed and was not, is met and was missed, or is missed and asked for no more.
type WantChange struct {
	Service   string `json:"service"`
	Objective string `json:"objective"` // availability, rto, rpo
	Change    string `json:"change"`    // missed, met, dropped
	Wanted    Delta  `json:"wanted"`
	Has       Delta  `json:"has"`
}

// ServiceChange are the numbers of a service that differ today.
type ServiceChange struct {
	Service string  `json:"service"`
	Numbers []Delta `json:"numbers"`
}

// InputChange is one thing that the files say in different ways; nil: one does not say it.
type InputChange struct {
	Path   string `json:"path"`
	Before *Entry `json:"before"`
	After  *Entry `json:"after"`
	Filled bool   `json:"filled,omitempty"` // written in neither file: it follows from others
}

// Noise is by which share of themselves numbers may differ without being different: sums are made in another order
// where an estate has other members.
const Noise = 1e-6

func near(a, b float64) bool { return math.Abs(a-b) <= Noise*max(math.Abs(a), math.Abs(b)) }

// CurrencyError is of estates whose amounts are in different money.
type CurrencyError struct{ Before, After string }

func (e *CurrencyError) Error() string {
	return fmt.Sprintf("amounts in %q and in %q cannot be compared; convert one file, and write the same currency in both", e.Before, e.After)
}

// Diff says what differs between two assessments. The error is a [CurrencyError].
func Diff(before, after *Report) (*Difference, error) {
	if before.Currency != after.Currency {
		return nil, &CurrencyError{before.Currency, after.Currency}
	}
	side := func(r *Report) Side { return Side{r.File, r.Title, r.Verdict} }
	d := &Difference{Before: side(before), After: side(after), Currency: after.Currency, Inputs: inputChanges(before, after)}
	d.Added, d.Removed = without(after, before), without(before, after)
	c := newComparison(before, after)
	d.Verdicts, d.Singles, d.Refusals, d.Wants, d.Services = c.verdicts(), c.singles(), c.refusals(), c.wants(), c.services()
	for _, plan := range []string{"today", "proposed"} {
		for _, what := range []string{"downtime", "loss", "bad-year", "cost", "rto"} {
			d.Totals = append(d.Totals, c.delta("total."+plan+"."+what))
		}
	}
	d.Mend = mendChange(before, after)
	d.Roadmap = stepChanges(before.worthy(), after.worthy())
	d.Text = d.sentence()
	return d, nil
}

// answers tells whether anything differs in what is answered.
func (d *Difference) answers() bool {
	return len(d.Verdicts)+len(d.Singles)+len(d.Refusals)+len(d.Wants)+len(d.Services)+len(d.Roadmap) > 0 || d.Mend.Changed ||
		slices.ContainsFunc(d.Totals, func(x Delta) bool { return x.Changed })
}

// Flipped counts the verdicts on services that both sides have and that are not the same.
func (d *Difference) Flipped() int {
	n := 0
	for _, v := range d.Verdicts {
		if v.Change != Added && v.Change != Removed && v.Change != Flip {
			n++
		}
	}
	return n
}

// sentence is the first thing to read.
func (d *Difference) sentence() string {
	inputs := 0
	for _, i := range d.Inputs {
		if !i.Filled {
			inputs++
		}
	}
	differ := map[bool]string{true: " differs", false: " differ"}[inputs == 1]
	answers := d.answers()
	switch {
	case len(d.Inputs) == 0 && !answers:
		d.Same = true
		return "Nothing differs: both files say the same."
	case !answers:
		return counted(inputs, "input") + differ + "; nothing in the answer does."
	}
	parts := []string{counted(inputs, "input") + differ}
	switch n := d.Flipped(); n {
	case 0:
		parts[0] += "; no verdict changes"
	case 1:
		parts[0] += "; 1 verdict changes"
	default:
		parts[0] += fmt.Sprintf("; %d verdicts change", n)
	}
	if t := d.moved("today"); t != "" {
		parts = append(parts, "Today: "+t)
	}
	if t := d.moved("proposed"); t != "" {
		parts = append(parts, "Proposed: "+t)
	}
	news := 0
	for _, s := range d.Singles {
		if s.New {
			news++
		}
	}
	missed := 0
	for _, w := range d.Wants {
		if w.Change == "missed" {
			missed++
		}
	}
	if news > 0 {
		parts = append(parts, counted(news, "new single point")+" of failure")
	}
	if missed > 0 {
		parts = append(parts, upperFirst(counted(missed, "objective"))+" newly missed")
	}
	return strings.Join(parts, ". ") + "."
}

// moved says by how much the totals of a plan change.
func (d *Difference) moved(plan string) string {
	var out []string
	for _, what := range []string{"loss", "downtime", "cost"} {
		for _, t := range d.Totals {
			if t.ID == "total."+plan+"."+what && t.Changed && *t.Before != 0 {
				out = append(out, what+" "+percentMore(*t.After / *t.Before - 1))
			}
		}
	}
	return strings.Join(out, ", ")
}

// percentMore writes a relative change with its sign.
func percentMore(change float64) string {
	sign := map[bool]string{true: "+", false: "−"}[change > 0]
	v := 100 * math.Abs(change)
	switch {
	case v < .1:
		return sign + "0.1 % or less"
	case v < 10:
		return sign + strconv.FormatFloat(v, 'f', 1, 64) + " %"
	case v < 1000:
		return sign + strconv.FormatFloat(v, 'f', 0, 64) + " %"
	}
	return "× " + trim(1+change)
}

// without lists what one side has and the other has not, in their order in a file.
func without(has, not *Report) []Thing {
	there := map[Thing]bool{}
	for i := range not.Entries {
		there[not.Entries[i].thing()] = true
	}
	out := []Thing{}
	for i := range has.Entries {
		if t := has.Entries[i].thing(); t.Kind != "" && !there[t] {
			there[t] = true
			out = append(out, t)
		}
	}
	rank := func(t Thing) int {
		return slices.Index([]string{"service", "site", "component", "link", "cause", "curve"}, t.Kind)
	}
	slices.SortStableFunc(out, func(a, b Thing) int { return cmp.Or(rank(a)-rank(b), cmp.Compare(a.Name, b.Name)) })
	return out
}

func (e *Entry) thing() Thing { return Thing{e.Kind, e.Name} }

// worthy are the steps of the roadmap that pay.
func (r *Report) worthy() []Step {
	var out []Step
	for _, s := range r.Roadmap {
		if s.Worth {
			out = append(out, s)
		}
	}
	return out
}
