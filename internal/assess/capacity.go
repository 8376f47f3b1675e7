package assess

import (
	"maps"
	"slices"
)

// limit is the share of a site's cores beyond which it is not relied upon: queues grow without bound near 1.
const limit = .9

// level is a share of the year's peak and the share of time in which demand is there.
type level struct{ demand, share float64 }

// levels is the demand of a year as shares of its peak.
func (e *Estate) levels(s *Service) []level {
	c := e.Curves[s.Demand.Curve]
	if c == nil {
		return []level{{1, 1}}
	}
	hours := c.Hours
	if len(hours) == 0 {
		hours = []float64{1}
	}
	top := slices.Max(hours)
	peaks := c.Peaks.Mean() / 365
	var out []level
	for _, h := range hours {
		out = append(out, level{h / top, peaks / float64(len(hours))}, level{h / top * c.Usual.Mean(), (1 - peaks) / float64(len(hours))})
	}
	return out
}

// meanShare is the mean demand as a share of the peak.
func (e *Estate) meanShare(s *Service) float64 {
	sum := 0.0
	for _, l := range e.levels(s) {
		sum += l.demand * l.share
	}
	return sum
}

// standby is the share of a service's cores that already run at a site that stands by.
func standby(p Pattern) float64 {
	if p == WarmStandby {
		return .2
	}
	return 0
}

// active tells whether every site of a pattern serves users.
func active(p Pattern) bool { return p == SameCity || p == OneWriter || p == Partitioned }

// carries is the share of a service's peak that a site serves, all sites working, or one of them lost.
func (p Placement) carries(site, lost string) float64 {
	at := slices.Index(p.Sites, site)
	if at < 0 || site == lost {
		return 0
	}
	hit := lost != "" && slices.Contains(p.Sites, lost)
	if active(p.Pattern) {
		n := len(p.Sites)
		if hit {
			n--
		}
		return 1 / float64(n)
	}
	switch {
	case at == 0:
		return 1
	case hit && lost == p.Sites[0] && at == 1:
		return 1
	}
	return standby(p.Pattern)
}

// load is the share of a site's cores in use at the peak.
func (e *Estate) load(plan Plan, site, lost string) float64 {
	cores := 0.0
	for _, name := range slices.Sorted(maps.Keys(plan)) { // sorted: sums of floats depend on their order
		cores += e.Services[name].Demand.Cores.Mean() * plan[name].carries(site, lost)
	}
	return cores / e.Sites[site].Cores.Mean()
}

// siteLoads looks at every site that serves.
func (e *Estate) siteLoads(plan Plan) []SiteLoad {
	var out []SiteLoad
	for _, site := range slices.Sorted(maps.Keys(e.Sites)) {
		if e.Sites[site].Kind == Witness {
			continue
		}
		l := SiteLoad{Site: site, Usual: e.load(plan, site, "")}
		l.AfterLoss = l.Usual
		for _, other := range slices.Sorted(maps.Keys(e.Sites)) {
			if other != site {
				l.AfterLoss = max(l.AfterLoss, e.load(plan, site, other))
			}
		}
		out = append(out, l)
	}
	return out
}

// capacity says whether the sites of a service's placement carry the load, also with the worst one lost.
func (e *Estate) capacity(plan Plan, service string, book Book) Capacity {
	p := plan[service]
	c := Capacity{Enough: true}
	var parts []Part
	for _, l := range e.siteLoads(plan) {
		if !slices.Contains(p.Sites, l.Site) {
			continue
		}
		c.Sites = append(c.Sites, l)
		c.Enough = c.Enough && l.AfterLoss <= limit
		parts = append(parts, Part{Name: "load of " + l.Site + " with the worst other site lost", Value: l.AfterLoss, Unit: Ratio})
	}
	overload := 0.0
	for _, site := range p.Sites {
		for _, lost := range p.Sites {
			if lost == site {
				continue
			}
			down, _, _, err := e.siteLoss(plan, service, lost)
			if err != nil {
				continue // availability tells
			}
			peak := e.load(plan, site, lost)
			for _, l := range e.levels(e.Services[service]) {
				if peak*l.demand > limit {
					overload += down * l.share * year
				}
			}
		}
	}
	c.Overload = book.Note(Derivation{ID: service + ".overload", What: "time a year in which a site is lost and demand is beyond what is left, for " + service,
		Value: overload, Unit: Duration, Method: "Σ share of time without the site × share of hours in which demand exceeds 90 % of what is left", Parts: parts,
		Inputs: []Input{inputOf(e.Services[service].Demand.Cores), inputOf(e.Services[service].Demand.Peak)}})
	return c
}
