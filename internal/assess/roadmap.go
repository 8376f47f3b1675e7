package assess

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// bundle is a step that could be taken: one service with all that must come along.
type bundle struct {
	lead   string
	to     Placement
	plan   Plan
	moved  []string
	change change
}

func (b *bundle) ratio() float64 {
	if y := b.change.yearly(); y > 0 {
		return b.change.saves / y
	}
	return b.change.saves * 1e9 // it saves and costs nothing
}

// bundles lists the best step for every service from a plan on. Only steps whose answer is possible are listed.
func (v *evaluator) bundles(plan Plan, services []string) ([]bundle, error) {
	var out []bundle
	for _, service := range services {
		var best *bundle
		for _, p := range v.placements(service) {
			if p.key() == plan[service].key() || rank(p.Pattern) < rank(plan[service].Pattern) {
				continue
			}
			next := v.along(plan, service, p)
			b := bundle{lead: service, to: p, plan: next, moved: movedIn(plan, next)}
			var err error
			if b.change, err = v.change(plan, next, b.moved); err != nil {
				return nil, err
			}
			if b.change.saves <= 0 || best != nil && (b.change.net() < best.change.net() || b.change.net() == best.change.net() && b.ratio() <= best.ratio()) {
				continue
			}
			ok, err := v.possible(next, b.moved)
			if err != nil {
				return nil, err
			}
			if ok {
				best = &b
			}
		}
		if best != nil {
			out = append(out, *best)
		}
	}
	return out, nil
}

func rank(p Pattern) int { return slices.Index(Patterns, p) }

// possible tells whether nothing speaks against a plan for the services that move.
func (v *evaluator) possible(plan Plan, moved []string) (bool, error) {
	for _, name := range moved {
		o := Outcome{Service: name, Placement: plan[name], Latency: v.latency(plan, name, Book{}), Capacity: v.capacity(plan, name, Book{})}
		if len(v.refusals(plan, name, &o)) > 0 {
			return false, nil
		}
	}
	return true, nil
}

// maxSteps bounds the roadmap; the steps behind the last one that is worth it show where it stops.
const (
	maxSteps  = 20
	shownOver = 2
)

// roadmap takes, again and again, the step with the best ratio of what it saves to what it costs, each time computed
// anew behind the steps before: benefits of steps do not simply add up.
func (v *evaluator) roadmap(plan Plan) ([]Step, Plan, error) {
	var steps []Step
	worthy, over := plan, 0
	services := slices.Sorted(maps.Keys(plan))
	for len(steps) < maxSteps && over < shownOver {
		options, err := v.bundles(plan, services)
		if err != nil {
			return nil, nil, err
		}
		if len(options) == 0 {
			break
		}
		slices.SortStableFunc(options, func(a, b bundle) int {
			return cmp.Or(-compareBool(a.change.net() > 0, b.change.net() > 0), cmp.Compare(b.ratio(), a.ratio()), cmp.Compare(a.lead, b.lead))
		})
		next := options[0]
		plan = next.plan
		after, err := v.totals(plan)
		if err != nil {
			return nil, nil, err
		}
		s := Step{Services: next.moved, To: next.to, Once: next.change.once, Month: next.change.month, Saves: next.change.saves, Ratio: next.ratio(),
			After: after, Worth: next.change.net() > 0}
		s.Text = fmt.Sprintf("%s to %s", next.lead, next.to)
		if n := len(next.moved); n > 1 {
			s.Text += fmt.Sprintf(", with the %d services that it needs at every answer", n-1)
		}
		steps = append(steps, s)
		if s.Worth {
			worthy = plan
		} else {
			over++
		}
	}
	return steps, worthy, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// totals sums an estate up under a plan.
func (v *evaluator) totals(plan Plan) (Totals, error) {
	var t Totals
	revenue, weighed, plain := 0.0, 0.0, 0.0
	for _, name := range slices.Sorted(maps.Keys(plan)) {
		b, err := v.brief(plan, name)
		if err != nil {
			return t, err
		}
		t.Loss += b.loss
		t.CostMonth += b.month
		t.WorstRTO = max(t.WorstRTO, b.rto)
		minute := v.Services[name].Revenue.Minute.Mean()
		revenue += minute
		weighed += minute * b.downtime
		plain += b.downtime / float64(len(plan))
	}
	t.Downtime = plain
	if revenue > 0 {
		t.Downtime = weighed / revenue
	}
	built := map[string]bool{}
	for _, p := range plan {
		for _, site := range p.Sites {
			built[site] = true
		}
	}
	for site := range built {
		if s := v.Sites[site]; *s.Exists {
			t.CostMonth += s.FixedMonth.Mean()
		}
	}
	return t, nil
}

// pareto compares today, each step of the roadmap, and each pattern for every service; Front marks what is not beaten.
func (v *evaluator) pareto(today Plan, steps []Step) ([]ParetoPoint, error) {
	var out []ParetoPoint
	add := func(name string, plan Plan) error {
		t, err := v.totals(plan)
		if err == nil {
			out = append(out, ParetoPoint{Name: name, CostYear: 12 * t.CostMonth, Downtime: t.Downtime, Loss: t.Loss, Plan: plan})
		}
		return err
	}
	if err := add("today", today); err != nil {
		return nil, err
	}
	plan := today
	for i, s := range steps {
		next := maps.Clone(plan)
		for _, name := range s.Services {
			next[name] = s.To
			if name != s.Services[0] {
				next[name] = v.fitted(name, s.To)
			}
		}
		plan = next
		if err := add(fmt.Sprintf("step %d", i+1), plan); err != nil {
			return nil, err
		}
	}
	for _, pattern := range Patterns {
		all := maps.Clone(today)
		for name := range all {
			for _, p := range v.placements(name) {
				if p.Pattern == pattern {
					all[name] = v.fitted(name, p)
					break
				}
			}
		}
		if err := add("everything "+string(pattern), all); err != nil {
			return nil, err
		}
	}
	for i := range out {
		out[i].OnFront = !slices.ContainsFunc(out, func(o ParetoPoint) bool {
			return o.CostYear <= out[i].CostYear && o.Downtime <= out[i].Downtime && (o.CostYear < out[i].CostYear || o.Downtime < out[i].Downtime)
		})
	}
	return out, nil
}
