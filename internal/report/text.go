package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

// width is the terminal that text is made for.
const width = 80

// Text writes a report for a terminal of 80 columns. Colours are for a terminal only.
func Text(w io.Writer, r *assess.Report, color bool) error {
	t := &writer{color: color}
	t.head(r)
	t.fixes(r)
	t.moving(r)
	t.staying(r)
	t.roadmap(r)
	t.sites(r)
	t.doubts(r)
	t.notes(r)
	_, err := io.WriteString(w, t.b.String())
	return err
}

type writer struct {
	b     strings.Builder
	color bool
}

const (
	bold   = "1"
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// in colours a text where that is wanted; the text itself is plain.
func (t *writer) in(code, text string) string {
	if !t.color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (t *writer) line(format string, args ...any) {
	t.b.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
}

func (t *writer) title(text string) { t.line("\n%s", t.in(bold, text)) }

// wrapped writes foreign text, broken at words, each line behind an indent.
func (t *writer) wrapped(first, indent, text string) {
	for _, l := range wrap(line(text), width-runes(indent)) {
		t.line("%s%s", first, l)
		first = indent
	}
}

func wrap(text string, n int) []string {
	var out []string
	current := ""
	for _, word := range strings.Fields(text) {
		switch {
		case current == "":
			current = word
		case runes(current)+1+runes(word) <= n:
			current += " " + word
		default:
			out, current = append(out, current), word
		}
	}
	return append(out, current)
}

func runes(s string) int { return len([]rune(s)) }

// left and right pad to a width; foreign text is shortened to it.
func left(s string, n int) string {
	s = shorten(s, n)
	return s + strings.Repeat(" ", n-runes(s))
}

func right(s string, n int) string {
	if runes(s) >= n {
		return s
	}
	return strings.Repeat(" ", n-runes(s)) + s
}

func (t *writer) head(r *assess.Report) {
	t.line("%s", t.in(faint, shorten(line(r.Title), width)))
	t.b.WriteString("\n")
	for _, l := range wrap(line(r.Verdict), width) {
		t.line("%s", t.in(bold, l))
	}
	currency := line(r.Currency)
	t.line("\n%s", t.in(faint, left("", 24)+right("today", 14)+right("proposed", 14)))
	row := func(name, now, then string) { t.line("%s%s%s", left(name, 24), right(now, 14), right(then, 14)) }
	row("downtime a year", duration(r.Today.Downtime), duration(r.Proposed.Downtime))
	row("loss a year, "+currency, money(r.Today.Loss), money(r.Proposed.Loss))
	row("in a bad year, "+currency, money(r.Today.BadYear), money(r.Proposed.BadYear))
	row("cost a month, "+currency, money(r.Today.CostMonth), money(r.Proposed.CostMonth))
}

// shownFixes are enough to begin with.
const shownFixes = 5

func (t *writer) fixes(r *assess.Report) {
	if len(r.Fixes) == 0 {
		return
	}
	t.title("Mend first")
	t.line("%s", t.in(faint, left("  what alone takes services down", 44)+right("of downtime", 13)+right("saves "+line(r.Currency)+"/yr", 17)))
	for i, f := range r.Fixes {
		if i == shownFixes || i > 0 && f.Share < .001 {
			t.line("%s", t.in(faint, fmt.Sprintf("  and %d that matter less", len(r.Fixes)-i)))
			break
		}
		t.line("  %s%s%s", left(line(f.Event), 42), right(percent(f.Share), 13), right(money(f.Saves), 17))
		t.wrapped("    ", "    ", plural(len(f.Services), "service", "services")+": "+listed(f.Services, 8))
	}
}

// listed joins names, and counts those beyond n.
func listed(names []string, n int) string {
	if len(names) <= n {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:n], ", ") + fmt.Sprintf(" and %d more", len(names)-n)
}

func serviceColumns(cells ...string) string {
	out := left(cells[0], 11)
	for _, c := range cells[1:] {
		out += right(c, 11)
	}
	return out
}

func outcomeCells(name string, o *assess.Outcome) string {
	return serviceColumns("  "+name, share(o.Availability.Share.V), duration(o.Availability.Downtime.V), duration(o.Recovery.RTO.P95),
		duration(o.Recovery.RPO.P95), money(o.Money.Loss.V), money(o.Money.Month.V))
}

func (t *writer) moving(r *assess.Report) {
	title := false
	for i := range r.Services {
		s := &r.Services[i]
		if !moves(s) {
			continue
		}
		if !title {
			t.title("Services that deserve another way of running")
			t.line("%s", t.in(faint, serviceColumns("", "available", "down/yr", "RTO p95", "RPO p95", "loss/yr", "cost/mo")))
			title = true
		}
		net := ""
		option := chosen(s)
		if net = "taken along"; option != nil {
			net = "net " + signed(option.Net.V) + " a year"
		}
		t.line("%s%s", t.in(bold, left(line(s.Service), 55)), right(net, 22))
		t.wrapped("  ", "    ", where(s.Now.Placement)+" → "+where(s.Proposed.Placement))
		t.line("%s", t.in(faint, outcomeCells("today", &s.Now)))
		t.line("%s", outcomeCells("proposed", &s.Proposed))
		if w := wants(s.Wanted); w != [3]string{} {
			t.line("%s", t.in(faint, serviceColumns("  wanted", w[0], "", w[1], w[2])))
		}
		if sim := s.Now.Availability.Simulated; sim != nil {
			t.wrapped("  ", "    ", simulated(&s.Now))
		}
		if option != nil && !same(option.Outcome.Placement, s.Proposed.Placement) {
			t.wrapped("  ", "    ", "on its own: "+s.Answer.Text)
		}
		if s.Answer.Worth && s.Answer.Flip != nil {
			t.wrapped("  ", "    ", fmt.Sprintf("not worth it below %s %s of revenue a minute; for %s", money(s.Answer.Flip.V), line(r.Currency), line(s.Answer.Purpose)))
		}
		for _, reason := range s.Answer.Reasons {
			if s.Answer.Worth {
				t.wrapped("  ", "    ", reason)
			}
		}
	}
}

// simulated compares the two engines.
func simulated(o *assess.Outcome) string {
	sim, word := o.Availability.Simulated, "agrees"
	lived := ""
	if run := o.Availability.Run; run != nil {
		lived = fmt.Sprintf("; %s lived through: down %s a year (%s to %s)", plural(run.Samples, "year", "years"), duration(run.Mean), duration(run.Low), duration(run.High))
		if run.Refused != "" {
			lived = "; years lived through: " + line(run.Refused)
		}
	}
	exact := o.Availability.Structural.V
	switch {
	case sim.Refused != "":
		return "simulation: " + line(sim.Refused) + lived
	case !sim.Holds(exact):
		word = "does not agree"
	}
	return fmt.Sprintf("simulation %s: nowhere to be served %s a year (99 %% interval %s to %s), exact %s", word, duration(sim.Mean*year), duration(sim.Low*year), duration(sim.High*year), duration(exact*year)) + lived
}

// agreement sums up what the second engine says of all services; "" if it was not asked.
func agreement(r *assess.Report) string {
	asked, agrees := 0, 0
	var not, silent []string
	for i := range r.Services {
		a := &r.Services[i].Now.Availability
		switch {
		case a.Simulated == nil:
			continue
		case a.Simulated.Refused != "":
			silent = append(silent, r.Services[i].Service)
		case a.Simulated.Holds(a.Structural.V):
			agrees++
		default:
			not = append(not, r.Services[i].Service)
		}
		asked++
	}
	if asked == 0 {
		return ""
	}
	text := fmt.Sprintf("The simulation agrees with the exact value for %d of %s (99 %% intervals: one in a hundred may miss)", agrees, plural(asked, "service", "services"))
	if len(not) > 0 {
		text += "; not for " + listed(not, 8)
	}
	if len(silent) > 0 {
		text += "; too few failures to tell for " + listed(silent, 8)
	}
	return line(text + ".")
}

// settled is said of what would deserve another way by itself, but not behind the roadmap's steps.
const settled = "other steps do"

func (t *writer) staying(r *assess.Report) {
	title := false
	for i := range r.Services {
		s := &r.Services[i]
		if moves(s) {
			continue
		}
		if !title {
			t.title("Not worth it")
			t.line("%s", t.in(faint, left("  stays as it is", 24)+right("available", 12)+right("loss/yr", 10)+right("cost/mo", 10)+right("worth it from "+line(r.Currency)+"/min", 24)))
			title = true
		}
		flip := "at no revenue"
		switch {
		case s.Answer.Worth:
			flip = settled
		case s.Answer.Flip != nil:
			flip = money(s.Answer.Flip.V)
		}
		t.line("  %s%s%s%s%s", left(line(s.Service), 22), right(share(s.Now.Availability.Share.V), 12), right(money(s.Now.Money.Loss.V), 10), right(money(s.Now.Money.Month.V), 10), right(flip, 24))
		for _, refusal := range s.Now.Impossible {
			t.wrapped("    "+t.in(red, "today: "), "    ", refusal.Text)
		}
		// Why a way is out matters where none is left, or where more is wanted than there is.
		if len(s.Answer.Reasons) > 0 && (s.Answer.Flip == nil || wants(s.Wanted) != [3]string{}) {
			t.wrapped("    ", "    ", s.Answer.Reasons[0])
		}
	}
}
