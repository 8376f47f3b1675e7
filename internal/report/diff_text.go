package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

// What a list shows of a difference; JSON has all.
const (
	shownFlips   = 8
	shownChanges = 20 // services, refusals
	shownInputs  = 60
)

// DiffText writes a difference for a terminal of 80 columns.
func DiffText(w io.Writer, d *assess.Difference, color bool) error {
	t := &writer{color: color}
	t.line("%s", t.in(faint, shorten(line(d.Before.File)+" → "+line(d.After.File), width)))
	t.b.WriteString("\n")
	for _, l := range wrap(d.Text, width) {
		t.line("%s", t.in(bold, l))
	}
	t.things("added: ", green, d.Added)
	t.things("removed: ", red, d.Removed)
	if !d.Same {
		t.verdictChanges(d)
		t.totalChanges(d)
		t.singleChanges(d.Singles)
		t.mendChange(d)
		t.stepChanges(d)
		t.refusalChanges(d.Refusals)
		t.wantChanges(d.Wants)
		t.serviceChanges(d)
		t.inputChanges(d)
	}
	_, err := io.WriteString(w, t.b.String())
	return err
}

// more says how many a list leaves out.
func (t *writer) more(n int) {
	if n > 0 {
		t.line("  %s", t.in(faint, fmt.Sprintf("and %d more (--json)", n)))
	}
}

func (t *writer) things(word, color string, list []assess.Thing) {
	if len(list) == 0 {
		return
	}
	var names []string
	for _, x := range list {
		names = append(names, x.Kind+" "+x.Name)
	}
	t.wrapped("  "+t.in(color, word), strings.Repeat(" ", 2+runes(word)), listed(names, 12))
}

// changeWords say what a verdict's change means, and in which colour.
var changeWords = map[string][2]string{
	assess.Lost:    {"is worth it no more", yellow},
	assess.Won:     {"is worth it now", green},
	assess.Other:   {"is worth it in another way", yellow},
	assess.Done:    {"is done: it runs in a way that was worth it", green},
	assess.Moved:   {"runs in another way today", yellow},
	assess.Carried: {"is taken elsewhere by the roadmap", yellow},
	assess.Added:   {"is new", green},
	assess.Removed: {"is gone", red},
	assess.Flip:    {"changes at another revenue", faint},
}

// threshold is the revenue at which a verdict changes.
func threshold(s *assess.Stand, currency string) string {
	switch {
	case s == nil:
		return "–"
	case s.Flip == nil && s.Worth:
		return "worth it at any revenue"
	case s.Flip == nil:
		return "worth it at no revenue"
	case s.Worth:
		return "not worth it below " + strings.TrimSpace(money(*s.Flip)+" "+currency) + " a minute"
	}
	return "worth it from " + strings.TrimSpace(money(*s.Flip)+" "+currency) + " a minute"
}

// standing is the answer about a service in one line.
func standing(s *assess.Stand, currency string) string {
	text := where(s.Now) + ", and stays so"
	if s.Worth {
		text = where(s.Now) + " → " + where(s.Placement)
	}
	if !same(s.Proposed, s.Placement) {
		text += "; behind the roadmap " + where(s.Proposed)
	}
	return text + "; " + threshold(s, currency)
}

func (t *writer) verdictChanges(d *assess.Difference) {
	title := false
	for _, v := range d.Verdicts {
		if v.Change == assess.Flip {
			continue
		}
		if !title {
			t.title("Verdicts")
			title = true
		}
		words := changeWords[v.Change]
		t.line("  %s %s", t.in(bold, shorten(line(v.Service), 30)), t.in(words[1], words[0]))
		if v.Before != nil {
			t.wrapped("    before  ", strings.Repeat(" ", 12), standing(v.Before, d.Currency))
		}
		if v.After != nil {
			t.wrapped("    after   ", strings.Repeat(" ", 12), standing(v.After, d.Currency))
		}
	}
	flips := flips(d)
	if len(flips) > 0 {
		t.title("The same verdict, at another revenue a minute")
	}
	for i, f := range flips {
		if i == shownFlips {
			t.more(len(flips) - i)
			break
		}
		t.wrapped("  "+left(line(f.service), 20), strings.Repeat(" ", 22), f.before+" → "+f.after)
	}
}

// flip is a verdict that stays, and the revenues at which it does not.
type flip struct{ service, before, after string }

// flips leaves out what looks alike with three digits.
func flips(d *assess.Difference) (out []flip) {
	for _, v := range d.Verdicts {
		if v.Change != assess.Flip {
			continue
		}
		if f := (flip{v.Service, threshold(v.Before, d.Currency), threshold(v.After, d.Currency)}); f.before != f.after {
			out = append(out, f)
		}
	}
	return out
}

// totalNames are the rows of the totals.
var totalNames = []struct{ id, name string }{
	{"loss", "loss a year"}, {"bad-year", "in a bad year"}, {"downtime", "downtime a year"}, {"cost", "cost a month"}, {"rto", "longest RTO"},
}

// total finds a total's numbers.
func total(d *assess.Difference, plan, what string) assess.Delta {
	i := slices.IndexFunc(d.Totals, func(x assess.Delta) bool { return x.ID == "total."+plan+"."+what })
	return d.Totals[i]
}

// by is how much a number changes, with its sign.
func by(x assess.Delta) string {
	switch {
	case !x.Changed:
		return "="
	case x.Before == nil || x.After == nil:
		return ""
	case x.Unit == assess.Money:
		return signed(*x.After - *x.Before)
	case *x.After > *x.Before:
		return "+" + short(*x.After-*x.Before, x.Unit)
	default:
		return "−" + short(*x.Before-*x.After, x.Unit)
	}
}

func has(v *float64, unit assess.Unit) string {
	if v == nil {
		return "–"
	}
	return short(*v, unit)
}

func (t *writer) totalChanges(d *assess.Difference) {
	t.title("Totals, in " + shorten(line(d.Currency), 40))
	t.line("%s", t.in(faint, right("today", 28)+right("proposed", 32)))
	t.line("%s", t.in(faint, right("before", 28)+right("after", 10)+right("change", 10)+right("before", 12)+right("after", 10)+right("change", 10)))
	for _, row := range totalNames {
		now, then := total(d, "today", row.id), total(d, "proposed", row.id)
		t.line("%s%s%s%s%s%s%s", left("  "+row.name, 17), right(has(now.Before, now.Unit), 11), right(has(now.After, now.Unit), 10), right(by(now), 10),
			right(has(then.Before, then.Unit), 12), right(has(then.After, then.Unit), 10), right(by(then), 10))
	}
}

func (t *writer) singleChanges(list []assess.SingleChange) {
	if len(list) > 0 {
		t.title("Single points of failure")
	}
	for i, s := range list {
		if i == shownChanges {
			t.more(len(list) - i)
			break
		}
		word := t.in(green, "gone")
		if s.New {
			word = t.in(red, "new ")
		}
		t.wrapped("  "+word+"  ", "        ", fmt.Sprintf("%s (%s): %s", s.Event, s.Kind, listed(s.Services, 8)))
	}
}

func (t *writer) mendChange(d *assess.Difference) {
	if !d.Mend.Changed {
		return
	}
	t.title("Mend first")
	t.line("%s", t.in(faint, left("     before", 39)+"after"))
	for i := range max(len(d.Mend.Before), len(d.Mend.After)) {
		cell := func(list []assess.Mend) string {
			if i >= len(list) {
				return "–"
			}
			return shorten(line(list[i].Event), 24) + ", " + money(list[i].Saves)
		}
		t.line("%s  %s%s", right(fmt.Sprint(i+1), 3), left(cell(d.Mend.Before), 34), cell(d.Mend.After))
	}
}

func (t *writer) stepChanges(d *assess.Difference) {
	if len(d.Roadmap) == 0 {
		return
	}
	t.title("Roadmap")
	for _, s := range d.Roadmap {
		t.wrapped("  "+t.in(map[string]string{"came": green, "went": red, "moved": yellow}[s.Change], left(s.Change, 6)), "        ", stepLine(s))
	}
}

// stepLine says in one line what becomes of a step.
func stepLine(s assess.StepChange) string {
	at := map[string]string{"came": fmt.Sprintf("step %d", s.After), "went": fmt.Sprintf("was step %d", s.Before), "moved": fmt.Sprintf("step %d → %d", s.Before, s.After)}[s.Change]
	return fmt.Sprintf("%s: %s to %s, saves %s a year", at, listed(s.Services, 6), where(s.To), money(s.Saves))
}

// refused are refusals of one kind, with those whom they concern.
type refused struct {
	assess.RefusalChange
	services []string
}

// alike joins refusals of the same rule and pattern; their texts differ in names and numbers, the first one stands.
func alike(list []assess.RefusalChange) []*refused {
	var out []*refused
	for _, r := range list {
		i := slices.IndexFunc(out, func(o *refused) bool {
			return !r.Today && !o.Today && o.New == r.New && o.Pattern == r.Pattern && o.Refusal.Rule == r.Refusal.Rule
		})
		if i < 0 {
			i, out = len(out), append(out, &refused{RefusalChange: r})
		}
		if !slices.Contains(out[i].services, r.Service) {
			out[i].services = append(out[i].services, r.Service)
		}
	}
	return out
}

// whose says against what a refusal speaks.
func (r *refused) whose() string {
	if r.Today {
		return "today's " + string(r.Pattern)
	}
	return string(r.Pattern)
}

func (t *writer) refusalChanges(list []assess.RefusalChange) {
	groups := alike(list)
	if len(groups) > 0 {
		t.title("What speaks against a way")
	}
	for i, r := range groups {
		if i == shownChanges {
			t.more(len(groups) - i)
			break
		}
		word := t.in(green, "gone")
		if r.New {
			word = t.in(red, "new ")
		}
		t.wrapped("  "+word+"  ", "        ", fmt.Sprintf("%s, %s: %s", listed(r.services, 6), r.whose(), r.Refusal.Text))
	}
}

// objectiveNames say objectives as tables have them.
var objectiveNames = map[string]string{"availability": "availability", "rto": "RTO (P95)", "rpo": "RPO (P95)"}

// wanting says an objective that is missed, met or given up.
func wanting(w assess.WantChange) string {
	pair := func(d assess.Delta) string {
		if !d.Changed || w.Has.Before == nil { // of a new service nothing was
			return has(d.After, d.Unit)
		}
		return has(d.Before, d.Unit) + " → " + has(d.After, d.Unit)
	}
	return fmt.Sprintf("%s is %s; wanted is %s", objectiveNames[w.Objective], pair(w.Has), pair(w.Wanted))
}

func (t *writer) wantChanges(list []assess.WantChange) {
	if len(list) > 0 {
		t.title("Objectives")
	}
	for _, w := range list {
		t.wrapped("  "+t.in(map[string]string{"missed": red, "met": green, "dropped": yellow}[w.Change], left(w.Change, 7))+"  ", "           ", w.Service+": "+wanting(w))
	}
}

// numberNames say a service's numbers.
var numberNames = map[string]string{"downtime": "downtime", "loss": "loss", "month": "cost a month", "rto": "RTO", "rpo": "RPO", "p99": "p99"}

// row is a service with its numbers that differ, in words.
type row struct{ service, text string }

// services leaves out what looks alike with three digits.
func services(d *assess.Difference) (out []row) {
	for _, s := range d.Services {
		var texts []string
		for _, n := range s.Numbers {
			if was, is := has(n.Before, n.Unit), has(n.After, n.Unit); was != is {
				texts = append(texts, fmt.Sprintf("%s %s → %s", numberNames[n.ID[strings.LastIndexByte(n.ID, '.')+1:]], was, is))
			}
		}
		if len(texts) > 0 {
			out = append(out, row{s.Service, strings.Join(texts, "; ")})
		}
	}
	return out
}

func (t *writer) serviceChanges(d *assess.Difference) {
	rows := services(d)
	if len(rows) > 0 {
		t.title("Services today, a year")
	}
	for i, r := range rows {
		if i == shownChanges {
			t.more(len(rows) - i)
			break
		}
		t.wrapped("  "+left(line(r.service), 20), strings.Repeat(" ", 22), r.text)
	}
}
