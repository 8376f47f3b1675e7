package assess

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/fault"
)

// Options say how thorough an assessment is.
type Options struct {
	Simulate bool // let the second engine look at every service too
	// Every writes the derivation of every number of every option into the book, not only of today and of what is
	// proposed: large, and meant for looking one up.
	Every bool
}

// Assess answers everything about an estate. The error is of a model that is too large for exact analysis.
func Assess(e *Estate, o Options) (*Report, error) {
	v := newEvaluator(e)
	today := e.Today()
	r := &Report{Title: e.Title, File: e.File, Currency: e.Currency, Seed: e.Seed, Book: Book{}, Notes: slices.Clone(e.Notes)}
	v.book, v.every = r.Book, o.Every
	var err error
	var proposed Plan
	for _, name := range slices.Sorted(maps.Keys(e.Services)) {
		a, err := v.answer(today, name)
		if err != nil {
			return nil, err
		}
		if a.Now, err = e.outcome(today, name, r.Book); err != nil { // once more, into the book
			return nil, err
		}
		r.Services = append(r.Services, a)
	}
	slices.SortStableFunc(r.Services, byLoss)
	if r.Roadmap, proposed, err = v.roadmap(today); err != nil {
		return nil, err
	}
	if r.Pareto, err = v.pareto(today, r.Roadmap); err != nil {
		return nil, err
	}
	if r.Today, err = v.totals(today); err != nil {
		return nil, err
	}
	r.Proposed = r.Today
	for _, s := range r.Roadmap {
		if s.Worth {
			r.Proposed = s.After
		}
	}
	if r.Fixes, err = v.fixes(today); err != nil {
		return nil, err
	}
	if r.Sites, err = v.siteAnswers(today, r.Book); err != nil {
		return nil, err
	}
	if err = v.trace(r, proposed); err != nil {
		return nil, err
	}
	if r.Doubts, err = doubts(e, r); err != nil {
		return nil, err
	}
	if o.Simulate {
		if err := r.simulate(e, today); err != nil {
			return nil, err
		}
	}
	r.Notes = append(r.Notes, "A bad release or a deletion replicates like everything else: under every pattern, backups that are tested are still needed.")
	r.Verdict = r.sentence()
	return r, nil
}

func (r *Report) simulate(e *Estate, plan Plan) error {
	estimates, err := Simulate(e, plan, Simulation{Seed: e.Seed})
	if err != nil {
		return err
	}
	for i := range r.Services {
		if est, ok := estimates[r.Services[i].Service]; ok {
			r.Services[i].Now.Availability.Simulated = &est
		}
	}
	return nil
}

// sentence is the first thing to read.
func (r *Report) sentence() string {
	var worth, not []string
	for _, s := range r.Services {
		if s.Answer.Worth {
			worth = append(worth, s.Service)
		} else {
			not = append(not, s.Service)
		}
	}
	var b strings.Builder
	switch {
	case len(worth) == 0:
		b.WriteString("Nothing here deserves a second site at these prices.")
	case len(not) == 0:
		fmt.Fprintf(&b, "All %d services deserve more than they have.", len(worth))
	default:
		fmt.Fprintf(&b, "%d of %d services deserve more than they have; %d do not.", len(worth), len(r.Services), len(not))
	}
	if len(r.Fixes) > 0 {
		fmt.Fprintf(&b, " First mend %s: %s.", r.Fixes[0].Event, r.Fixes[0].Text)
	}
	steps, once, month, saves := 0, 0.0, 0.0, 0.0
	for _, s := range r.Roadmap {
		if s.Worth {
			steps, once, month, saves = steps+1, once+s.Once, month+s.Month, saves+s.Saves
		}
	}
	if steps > 0 {
		fmt.Fprintf(&b, " The roadmap has %d steps that pay: they save %s %s of loss a year for %s at once and %s a month.", steps, trim(saves), r.Currency, trim(once), trim(month))
	}
	return b.String()
}

// fixes ranks single events by what is lost with them: what they take down alone, for how many.
func (v *evaluator) fixes(plan Plan) ([]Fix, error) {
	found := map[string]*Fix{}
	total := 0.0
	for _, name := range slices.Sorted(maps.Keys(plan)) {
		b, err := v.brief(plan, name)
		if err != nil {
			return nil, err
		}
		total += b.downtime
		m, r, err := v.structural(plan, name)
		if err != nil {
			return nil, err
		}
		for _, set := range r.CutSets.Sets {
			if len(set.Events) != 1 {
				continue
			}
			event := set.Events[0]
			f := found[event]
			if f == nil {
				f = &Fix{Event: plain(event)}
				found[event] = f
			}
			f.Services = append(f.Services, name)
			seconds := birnbaum(r, event) * m.Events[event].Probability * year
			f.Share += seconds
			if b.downtime > 0 {
				f.Saves += b.loss * min(1, seconds/b.downtime)
			}
		}
	}
	var out []Fix
	for _, event := range slices.Sorted(maps.Keys(found)) {
		f := found[event]
		seconds := f.Share
		if total > 0 {
			f.Share = min(1, seconds/total)
		}
		f.Text = fmt.Sprintf("alone it takes down %s, %s a year in all", counted(len(f.Services), "service"), duration(seconds))
		out = append(out, *f)
	}
	slices.SortStableFunc(out, func(a, b Fix) int { return cmp.Or(cmp.Compare(b.Saves, a.Saves), cmp.Compare(b.Share, a.Share)) })
	return out, nil
}

func birnbaum(r fault.Result, event string) float64 {
	for _, im := range r.Importance {
		if im.Event == event {
			return im.Birnbaum
		}
	}
	return 0
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// siteAnswers say what each site is worth, as disaster recovery and as capacity.
func (v *evaluator) siteAnswers(plan Plan, book Book) ([]SiteAnswer, error) {
	var out []SiteAnswer
	for _, l := range v.siteLoads(plan) {
		b := v.newTree(plan)
		b.site(l.Site)
		b.m.Top = sitePrefix + l.Site
		r, err := fault.Analyse(b.m, fault.Options{})
		if err != nil {
			return nil, fmt.Errorf("site %s: %w", l.Site, err)
		}
		a := SiteAnswer{Site: l.Site, Load: l}
		inputs := v.inputsOf(b.m)
		a.Unavailable = book.Note(Derivation{ID: "site." + l.Site + ".unavailable", What: "share of time in which site " + l.Site + " does not work", Value: r.Probability, Unit: Ratio,
			Method: fmt.Sprintf("exact, from what it needs; %d minimal cut sets", r.CutSets.Total), Inputs: inputs})
		a.PerYear = book.Note(Derivation{ID: "site." + l.Site + ".failures", What: "how often a year site " + l.Site + " fails", Value: max(0, r.Frequency) * year, Unit: Count,
			Method: "Σ Birnbaum importance × frequency of each event", Inputs: inputs})
		for _, set := range r.CutSets.Sets {
			if len(set.Events) == 1 {
				event := set.Events[0]
				a.Singles = append(a.Singles, SinglePoint{Event: plain(event), Kind: v.kindOf(event), Unavailable: b.m.Events[event].Probability,
					PerYear: b.m.Events[event].Frequency * year, Path: v.why(b.m, event)})
			}
		}
		worst := l.Usual
		for _, other := range slices.Sorted(maps.Keys(v.Sites)) {
			if other != l.Site && v.Sites[other].Kind != Witness {
				worst = max(worst, l.Usual+v.foreign(plan, l.Site, other))
			}
		}
		a.CanTakeOver = worst <= limit
		a.Text = fmt.Sprintf("runs at %.0f %% of its cores at the peak", 100*l.Usual)
		if a.CanTakeOver {
			a.Text += fmt.Sprintf("; it could take the worst other site's load too (%.0f %%)", 100*worst)
		} else {
			a.Text += fmt.Sprintf("; with the worst other site's load it would need %.0f %%: it is capacity, not disaster recovery", 100*worst)
		}
		out = append(out, a)
	}
	return out, nil
}

// foreign is what all that another site serves would take of a site's cores.
func (v *evaluator) foreign(plan Plan, site, other string) float64 {
	cores := 0.0
	for _, name := range slices.Sorted(maps.Keys(plan)) {
		cores += v.Services[name].Demand.Cores.Mean() * plan[name].carries(other, "")
	}
	return cores / v.Sites[site].Cores.Mean()
}
