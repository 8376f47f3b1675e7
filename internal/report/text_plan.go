package report

import (
	"fmt"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

func (t *writer) roadmap(r *assess.Report) {
	t.title("Roadmap")
	if len(r.Roadmap) == 0 {
		t.line("  no step saves anything")
		return
	}
	t.line("%s", t.in(faint, left("  amounts in "+line(r.Currency), 41)+right("once", 9)+right("a month", 9)+right("saves/yr", 10)+right("loss left", 10)))
	stopped := false
	for i, s := range r.Roadmap {
		if !s.Worth && !stopped {
			stopped = true
			t.line("  %s", t.in(yellow, "── it stops here: what follows costs more than it saves ──"))
		}
		text := wrap(line(s.Text), 36)
		t.line("%s%s%s%s%s", right(fmt.Sprint(i+1), 3)+"  "+left(text[0], 36), right(money(s.Once), 9), right(signed(s.Month), 9), right(money(s.Saves), 10), right(money(s.After.Loss), 10))
		for _, l := range text[1:] {
			t.line("     %s", l)
		}
		if len(s.Services) > 1 {
			t.wrapped("     ", "     ", "moves: "+listed(s.Services, 12))
		}
	}
}

func (t *writer) sites(r *assess.Report) {
	if len(r.Sites) == 0 {
		return
	}
	t.title("Sites: disaster recovery or capacity")
	for _, s := range r.Sites {
		role := t.in(yellow, "capacity only")
		if s.CanTakeOver {
			role = t.in(green, "can take over")
		}
		t.line("  %s%s", left(line(s.Site), 20), role)
		t.wrapped("    ", "    ", s.Text)
		t.line("    down %s a year, in %s failures", duration(s.Unavailable.V*year), significant(s.PerYear.V, 3))
		var names []string
		for _, p := range s.Singles {
			names = append(names, p.Event)
		}
		if len(names) > 0 {
			t.wrapped("    ", "      ", "alone take it down: "+listed(names, 6))
		}
	}
}

// shownDoubts: those that flip first come first.
const shownDoubts = 8

func (t *writer) doubts(r *assess.Report) {
	if len(r.Doubts) == 0 {
		return
	}
	t.title("Assumed inputs: how wrong may they be?")
	firm := 0
	for i, d := range r.Doubts {
		if d.Factor == 0 {
			firm++
			continue
		}
		if i >= shownDoubts {
			continue
		}
		t.line("  %s %s", left(line(d.Input.Path), 44), shorten(line(d.Input.Text), 33))
		t.wrapped("    ", "    ", fmt.Sprintf("× %s flips the verdict on %s%s", significant(d.Factor, 3), d.Service, lineOf(d.Input)))
	}
	if more := len(r.Doubts) - firm - shownDoubts; more > 0 {
		t.line("  and %d more that flip one (--json)", more)
	}
	if firm > 0 {
		t.line("  %d others may be wrong tenfold either way, and no verdict changes", firm)
	}
}

// lineOf says where an input stands.
func lineOf(in assess.Input) string {
	switch {
	case in.Line > 0:
		return fmt.Sprintf(" (line %d)", in.Line)
	case in.Source != "":
		return " (" + line(in.Source) + ", not in the file)"
	}
	return " (not in the file)"
}

func (t *writer) notes(r *assess.Report) {
	t.title("Notes")
	for _, n := range r.Notes {
		t.wrapped("  ", "  ", n)
	}
	if said := agreement(r); said != "" {
		t.wrapped("  ", "  ", said)
	}
	t.wrapped("  ", "  ", "Where a number comes from: --explain lists what can be asked, --explain "+exampleID(r)+" answers. Means of independent failures and repairs; exact, seed "+fmt.Sprint(r.Seed)+".")
}

func exampleID(r *assess.Report) string {
	if len(r.Services) == 0 {
		return "total.today.loss"
	}
	return strings.TrimSpace(line(r.Services[0].Service)) + ".downtime"
}
