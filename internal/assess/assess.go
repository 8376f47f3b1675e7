package assess

import (
	"fmt"
	"slices"
	"strings"
)

// Options say how thorough an assessment is.
type Options struct {
	Simulate bool    // let the second engine look at every service too
	Years    float64 // with it, live through so many years for each service; 0: none
}

// Assess answers everything about an estate. The error is of a model that is too large for exact analysis.
//
// While it runs, inputs of the estate are varied in place: it must not be used for anything else at the same time.
func Assess(e *Estate, o Options) (*Report, error) {
	v := newEvaluator(e)
	r := &Report{Title: e.Title, File: e.File, Currency: e.Currency, Seed: e.Seed, Book: Book{}, Notes: slices.Clone(e.Notes), Entries: e.Entries()}
	d := &doubter{evaluator: v, book: r.Book}
	for i := range v.services {
		a, all, err := v.answer(i, r.Book)
		if err != nil {
			return nil, err
		}
		r.Services, d.answers, d.all = append(r.Services, a), append(d.answers, a), append(d.all, all)
	}
	slices.SortStableFunc(r.Services, byLoss)
	plans, err := r.plan(v)
	if err != nil {
		return nil, err
	}
	if r.Pareto, err = v.pareto(plans); err != nil {
		return nil, err
	}
	if r.Fixes, err = v.fixes(); err != nil {
		return nil, err
	}
	if r.Sites, err = v.siteAnswers(r.Book); err != nil {
		return nil, err
	}
	if err = v.trace(r, plans); err != nil {
		return nil, err
	}
	r.Doubts = d.doubts()
	if o.Simulate {
		if err := r.simulate(e, o); err != nil {
			return nil, err
		}
	}
	r.Notes = append(r.Notes, "A bad release or a deletion replicates like everything else: under every pattern, backups that are tested are still needed.")
	r.Verdict = r.sentence()
	return r, nil
}

// plan fills in the roadmap and the totals at both of its ends.
func (r *Report) plan(v *evaluator) (plans []*arrangement, err error) {
	if r.Roadmap, plans, err = v.roadmap(v.today); err != nil {
		return nil, err
	}
	if r.Today, err = v.totals(v.today); err != nil {
		return nil, err
	}
	if r.Today.BadYear, err = v.badYear(v.today); err != nil {
		return nil, err
	}
	r.Proposed = r.Today
	if n := len(plans); n > 0 {
		r.Proposed = r.Roadmap[n-1].After
		if r.Proposed.BadYear, err = v.badYear(plans[n-1]); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

func (r *Report) simulate(e *Estate, o Options) error {
	plan := e.Today()
	estimates, err := Simulate(e, plan, Simulation{Seed: e.Seed})
	if err != nil {
		return err
	}
	for i := range r.Services {
		a := &r.Services[i].Now.Availability
		if est, ok := estimates[r.Services[i].Service]; ok {
			a.Simulated = &est
		}
		if o.Years > 0 {
			est, err := Live(e, plan, r.Services[i].Service, o.Years)
			if err != nil {
				return err
			}
			a.Run = &est
		}
	}
	return nil
}

// sentence is the first thing to read.
func (r *Report) sentence() string {
	worth, along := 0, 0
	for _, s := range r.Services {
		switch moved := s.Now.Placement.key() != s.Proposed.Placement.key(); {
		case moved && s.Answer.Worth:
			worth++
		case moved:
			along++
		}
	}
	var b strings.Builder
	switch n := len(r.Services); {
	case worth+along == 0:
		b.WriteString("Nothing here deserves another way of running at these prices.")
	case worth == n:
		fmt.Fprintf(&b, "%s deserve another way of running.", upperFirst(counted(n, "service")))
	case along == 0:
		fmt.Fprintf(&b, "%d of %d services deserve another way of running; %d do not.", worth, n, n-worth)
	default:
		fmt.Fprintf(&b, "%d of %d services deserve another way of running, %d move along with them; %d do not.", worth, n, along, n-worth-along)
	}
	if len(r.Fixes) > 0 {
		fmt.Fprintf(&b, " First mend %s: %s.", r.Fixes[0].Event, r.Fixes[0].Text)
	}
	steps, sum := 0, change{}
	for _, s := range r.Roadmap {
		if s.Worth {
			steps, sum = steps+1, change{saves: sum.saves + s.Saves, month: sum.month + s.Month, once: sum.once + s.Once}
		}
	}
	if steps > 0 {
		verb := map[bool]string{true: "pays", false: "pay"}[steps == 1]
		fmt.Fprintf(&b, " The roadmap has %s that %s: %s.", counted(steps, "step"), verb, sum.terms(r.Currency))
	}
	return b.String()
}

// terms are what a change saves, and what is to be paid at once and by the month.
func (c change) terms(currency string) string {
	signed := func(v float64, more, less string) string {
		if v < 0 {
			return amount(-v) + less
		}
		return amount(v) + more
	}
	text := signed(c.saves, " "+currency+" of loss a year less", " "+currency+" of loss a year more")
	switch {
	case c.once > 0:
		text += ", for " + amount(c.once) + " at once and "
	case c.month < 0:
		text += ", and "
	default:
		text += ", for "
	}
	return text + signed(c.month, " a month more", " a month less")
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
