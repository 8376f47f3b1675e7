package assess

import (
	"fmt"
	"maps"
	"slices"
)

// trace completes a report with what the roadmap makes of each service, and its book with the derivations of what is
// summed up: totals, steps, plans and fixes.
func (v *evaluator) trace(r *Report, steps []*arrangement) error {
	proposed := v.today
	if n := len(steps); n > 0 {
		proposed = steps[n-1]
	}
	for i := range r.Services {
		s := &r.Services[i]
		s.Wanted = v.Services[s.Service].Wants.wanted()
		var err error
		if s.Proposed, err = v.outcome(proposed, v.service[s.Service], s.Service+".proposed", r.Book); err != nil {
			return err
		}
	}
	for i := range r.Sites {
		s := &r.Sites[i]
		s.Day = v.day(v.Today(), s.Site)
		var inputs []Input
		for _, name := range slices.Sorted(maps.Keys(v.Services)) {
			if v.Services[name].Now.carries(s.Site, "")+v.Services[name].Now.carries(s.Site, s.Day.Lost) > 0 {
				inputs = append(inputs, inputOf(v.Services[name].Demand.Cores))
			}
		}
		inputs = append(inputs, inputOf(v.Sites[s.Site].Cores))
		r.Book.Note(Derivation{ID: "site." + s.Site + ".load", What: "share of the cores of site " + s.Site + " in use at the peak of the year", Value: s.Load.Usual, Unit: Ratio,
			Method: "Σ cores of each service × the share of its users that is served there ÷ cores of the site", Inputs: inputs})
		r.Book.Note(Derivation{ID: "site." + s.Site + ".after-loss", What: "the same with the worst other site lost", Value: s.Load.AfterLoss, Unit: Ratio,
			Method: "as above, with the users of the lost site where its services' patterns send them", Inputs: inputs})
	}
	v.traceTotals(r, "today", r.Today, "")
	v.traceTotals(r, "proposed", r.Proposed, "proposed.")
	v.traceSteps(r)
	for i, p := range r.Pareto {
		id := fmt.Sprintf("plan.%d.", i+1)
		method := "the sum over all services of " + p.Name + ", as for today's totals"
		r.Book.Note(Derivation{ID: id + "cost", What: "cost a year of: " + p.Name, Value: p.CostYear, Unit: Money, Method: method + "; 12 months"})
		r.Book.Note(Derivation{ID: id + "downtime", What: "expected downtime a year of: " + p.Name, Value: p.Downtime, Unit: Duration, Method: method + "; weighed by revenue a minute"})
	}
	for i, f := range r.Fixes {
		var parts []Part
		for _, name := range f.Services {
			parts = append(parts, Part{Name: "of the loss of " + name, Value: r.Book[name+".loss"].Value, Unit: Money, ID: name + ".loss"})
		}
		r.Book.Note(Derivation{ID: fmt.Sprintf("fix.%d.saves", i+1), What: "loss a year that is gone if " + f.Event + " never failed again", Value: f.Saves, Unit: Money,
			Method: "all losses − all losses if it never failed, everything computed anew", Parts: parts})
		r.Book.Note(Derivation{ID: fmt.Sprintf("fix.%d.share", i+1), What: "share of the downtime of all services that " + f.Event + " causes alone", Value: f.Share, Unit: Ratio,
			Method: "1 − downtime of all services if it never failed, everything computed anew ÷ downtime of all services"})
	}
	return nil
}

func (w Wants) wanted() Wanted {
	of := func(n Number) *float64 {
		if !n.Set {
			return nil
		}
		mean := n.Mean()
		return &mean
	}
	return Wanted{of(w.Availability), of(w.RTO), of(w.RPO)}
}

func (v *evaluator) traceTotals(r *Report, name string, t Totals, word string) {
	id := "total." + name + "."
	var loss, cost, down, bad []Part
	for _, s := range r.Services {
		part := func(rest string) Part {
			d := r.Book[s.Service+"."+word+rest]
			return Part{Name: s.Service, Value: d.Value, Unit: d.Unit, ID: d.ID}
		}
		loss, cost, bad = append(loss, part("loss")), append(cost, part("month")), append(bad, part("loss-bad-year"))
		if down = append(down, part("downtime")); v.Services[s.Service].Revenue.Minute.Mean() == 0 {
			down[len(down)-1].Name += " (earns nothing itself)"
		}
	}
	for _, site := range slices.Sorted(maps.Keys(v.Sites)) {
		if n := v.Sites[site].FixedMonth; n.Mean() > 0 && *v.Sites[site].Exists {
			cost = append(cost, Part{Name: "site " + site, Value: n.Mean(), Unit: Money})
		}
	}
	for _, l := range v.Links {
		if n := l.FixedMonth; n.Mean() > 0 && *v.Sites[l.Between[0]].Exists && *v.Sites[l.Between[1]].Exists {
			cost = append(cost, Part{Name: "line " + l.Name, Value: n.Mean(), Unit: Money})
		}
	}
	r.Book.Note(Derivation{ID: id + "loss", What: "expected cost of all outages in a year, " + name, Value: t.Loss, Unit: Money, Method: "the sum over all services", Parts: loss})
	r.Book.Note(Derivation{ID: id + "cost", What: "what it all costs in a month, " + name, Value: t.CostMonth, Unit: Money, Method: "the sum over all services, and the fixed cost of sites and lines that exist", Parts: cost})
	r.Book.Note(Derivation{ID: id + "downtime", What: "expected downtime a year, " + name, Value: t.Downtime, Unit: Duration, Method: "the mean over all services, weighed by their revenue a minute (where none earns anything, the plain mean)", Parts: down})
	r.Book.Note(Derivation{ID: id + "bad-year", What: "cost of outages in a bad year, " + name, Value: t.BadYear, Unit: Money, Method: "95 of 100 years of all services together are better; not the sum of each one's bad year, because not all are bad in the same one", Parts: bad})
	r.Book.Note(Derivation{ID: id + "rto", What: "the longest recovery of any service (P95), " + name, Value: t.WorstRTO, Unit: Duration, Method: "the longest of their 95th percentiles; services at a single site wait for its repair"})
}

func (v *evaluator) traceSteps(r *Report) {
	before := r.Today
	for i, s := range r.Roadmap {
		id := fmt.Sprintf("step.%d.", i+1)
		r.Book.Note(Derivation{ID: id + "saves", What: fmt.Sprintf("loss a year that step %d saves", i+1), Value: s.Saves, Unit: Money, Method: "loss before this step − loss behind it, everything computed anew",
			Parts: []Part{{Name: "loss a year before it", Value: before.Loss, Unit: Money}, {Name: "loss a year behind it", Value: s.After.Loss, Unit: Money}}})
		r.Book.Note(Derivation{ID: id + "month", What: fmt.Sprintf("more cost a month by step %d", i+1), Value: s.Month, Unit: Money, Method: "cost of what moves and of what uses it, behind this step − before it",
			Parts: []Part{{Name: "all cost a month before it", Value: before.CostMonth, Unit: Money}, {Name: "all cost a month behind it", Value: s.After.CostMonth, Unit: Money}}})
		var inputs []Input
		work := v.Prices.Work[s.To.Pattern]
		inputs = append(inputs, inputOf(work), inputOf(v.Prices.Person))
		for _, site := range s.To.Sites {
			if !*v.Sites[site].Exists {
				inputs = append(inputs, inputOf(v.Sites[site].BuildOnce))
			}
		}
		r.Book.Note(Derivation{ID: id + "once", What: fmt.Sprintf("cost of getting to step %d", i+1), Value: s.Once, Unit: Money,
			Method: fmt.Sprintf("person-months for each of %s + sites that have to be built", counted(len(s.Services), "service")), Inputs: inputs})
		before = s.After
	}
}
