package assess

import (
	"maps"
	"slices"
)

// day is the demand on a site over the busiest day of the year: each service's peak, shaped by its curve. The lost site
// is the one whose loss puts the most on this one in any hour.
func (e *Estate) day(plan Plan, site string) Day {
	d := Day{Usual: e.hours(plan, site, "")}
	if s := e.Sites[site]; s.Cores.Line > 0 || s.Kind == Own {
		d.Cores = s.Cores.Mean()
	}
	d.AfterLoss = d.Usual
	for _, other := range slices.Sorted(maps.Keys(e.Sites)) {
		if other == site || e.Sites[other].Kind == Witness {
			continue
		}
		if lost := e.hours(plan, site, other); slices.Max(lost) > slices.Max(d.AfterLoss) {
			d.AfterLoss, d.Lost = lost, other
		}
	}
	return d
}

func (e *Estate) hours(plan Plan, site, lost string) []float64 {
	out := make([]float64, 24)
	for _, name := range slices.Sorted(maps.Keys(plan)) { // sorted: sums of floats depend on their order
		s := e.Services[name]
		cores := s.Demand.Cores.Mean() * plan[name].carries(site, lost)
		c := e.Curves[s.Demand.Curve]
		for h := range out {
			share := 1.0
			if c != nil && len(c.Hours) == 24 {
				share = c.Hours[h] / slices.Max(c.Hours)
			}
			out[h] += cores * share
		}
	}
	return out
}
