package assess

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// ratio is what a change saves for what it costs; what costs nothing more has no bound.
func (c change) ratio() float64 {
	if y := c.yearly(); y > 0 {
		return c.saves / y
	}
	return math.Inf(1)
}

// bundle is a step that could be taken: one service with all that must come along.
type bundle struct {
	candidate
	lead int
}

func (b *bundle) compare(o *bundle) int {
	return cmp.Or(compareBool(o.change.net() > 0, b.change.net() > 0), cmp.Compare(o.change.ratio(), b.change.ratio()), cmp.Compare(o.change.net(), b.change.net()), cmp.Compare(b.lead, o.lead))
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

// bundles lists the best step for every service from a plan on. Only steps that may be recommended are listed, and none
// that takes back what an earlier one built: from is where the roadmap begins.
func (v *evaluator) bundles(from, a *arrangement) ([]bundle, error) {
	var out []bundle
	for service := range v.services {
		var best *bundle
		for _, p := range v.placements(service) {
			if p.id == a.at[service] {
				continue
			}
			c, err := v.candidate(a, service, p)
			if err != nil {
				return nil, err
			}
			if c.change.saves <= 0 && c.change.net() <= 0 || best != nil && c.change.net() <= best.change.net() {
				continue
			}
			if c.eligible = v.eligible(a, service, &c) && !v.takesBack(from, a, &c); c.eligible {
				best = &bundle{c, service}
			}
		}
		if best != nil {
			out = append(out, *best)
		}
	}
	slices.SortStableFunc(out, func(a, b bundle) int { return a.compare(&b) })
	return out, nil
}

func (v *evaluator) takesBack(from, a *arrangement, c *candidate) bool {
	return slices.ContainsFunc(c.moved, func(i int) bool {
		return a.at[i] != from.at[i] && rank(v.spot(c.to, i).Pattern) < rank(v.spot(a, i).Pattern)
	})
}

// shownOver is how many steps that are not worth it are listed, to show where the roadmap stops.
const shownOver = 2

// roadmap takes, again and again, the step with the best ratio of what it saves to what it costs, each time computed
// anew behind the steps before: benefits of steps do not simply add up. Behind them stand the next ones, which are not
// worth it. plans are those behind each worthy step.
func (v *evaluator) roadmap(from *arrangement) (steps []Step, plans []*arrangement, err error) {
	for a := from; ; {
		options, err := v.bundles(from, a)
		if err != nil {
			return nil, nil, err
		}
		if len(options) == 0 || options[0].change.net() <= 0 || len(plans) > 3*len(v.services) {
			for i := range min(shownOver, len(options)) {
				s, err := v.step(&options[i])
				if err != nil {
					return nil, nil, err
				}
				s.Worth = false
				steps = append(steps, s)
			}
			return steps, plans, nil
		}
		s, err := v.step(&options[0])
		if err != nil {
			return nil, nil, err
		}
		a = options[0].to
		steps, plans = append(steps, s), append(plans, a)
	}
}

func (v *evaluator) step(b *bundle) (Step, error) {
	after, err := v.totals(b.to)
	s := Step{Services: v.names(b.moved), To: b.spot.Placement, Once: b.change.once, Month: b.change.month, Saves: b.change.saves, After: after, Worth: b.change.net() > 0}
	if r := b.change.ratio(); !math.IsInf(r, 1) {
		s.Ratio = r
	}
	s.Text = fmt.Sprintf("%s to %s", v.services[b.lead], b.spot.Placement)
	if n := len(b.moved); n > 1 {
		s.Text += fmt.Sprintf(", with %s that it needs at every answer", counted(n-1, "service"))
	}
	return s, err
}

// totals sums an estate up under a plan.
func (v *evaluator) totals(a *arrangement) (Totals, error) {
	t := Totals{CostMonth: v.fixedMonth() + v.sitesMonth(a)}
	revenue, weighed, plain := 0.0, 0.0, 0.0
	for i, name := range v.services {
		b, err := v.brief(a, i)
		if err != nil {
			return t, err
		}
		t.Loss += b.loss
		t.CostMonth += b.month
		t.WorstRTO = max(t.WorstRTO, v.rto(a, i).P95)
		minute := v.Services[name].Revenue.Minute.Mean()
		revenue += minute
		weighed += minute * b.downtime
		plain += b.downtime / float64(len(a.at))
	}
	t.Downtime = plain
	if revenue > 0 {
		t.Downtime = weighed / revenue
	}
	return t, nil
}

// pareto compares today, each step of the roadmap, and each pattern for every service. Only plans against which nothing
// speaks are on the front, and today's.
func (v *evaluator) pareto(steps []*arrangement) ([]ParetoPoint, error) {
	var out []ParetoPoint
	add := func(name string, a *arrangement) error {
		t, err := v.totals(a)
		p := ParetoPoint{Name: name, CostYear: 12 * t.CostMonth, Downtime: t.Downtime, Loss: t.Loss, Plan: v.plan(a)}
		for _, i := range moved(v.today, a) {
			if !v.possible(a, []int{i}) {
				p.Refused++
			}
		}
		out = append(out, p)
		return err
	}
	if err := add("today", v.today); err != nil {
		return nil, err
	}
	for i, a := range steps {
		if err := add(fmt.Sprintf("step %d", i+1), a); err != nil {
			return nil, err
		}
	}
	for _, pattern := range Patterns {
		all := &arrangement{at: slices.Clone(v.today.at)}
		for i := range v.services {
			for _, p := range v.placements(i) {
				if p.Pattern == pattern {
					all.at[i] = v.fitted(i, v.spot(v.today, i), p).id
					break
				}
			}
		}
		if err := add("everything "+string(pattern), all); err != nil {
			return nil, err
		}
	}
	for i := range out {
		out[i].OnFront = out[i].Refused == 0 && !slices.ContainsFunc(out, func(o ParetoPoint) bool {
			return o.Refused == 0 && o.CostYear <= out[i].CostYear && o.Downtime <= out[i].Downtime && (o.CostYear < out[i].CostYear || o.Downtime < out[i].Downtime)
		})
	}
	return out, nil
}
