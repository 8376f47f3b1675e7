package assess

import (
	"slices"
)

// placements lists every way that a service could be run, at sites that there are or could be: as today, and each
// pattern with its first site where it is.
func (v *evaluator) placements(service int) []*spot {
	if out := v.placed[service]; out != nil {
		return out
	}
	s := v.Services[v.services[service]]
	out := []*spot{v.spot(v.today, service)}
	add := func(p Placement) {
		if at := v.spotFor(p); !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	first := s.Now.Sites[0]
	for _, pattern := range Patterns {
		if !s.allows(pattern) {
			continue
		}
		if pattern == Single {
			add(Placement{Pattern: Single, Sites: []string{first}})
			continue
		}
		for _, other := range v.sites {
			near := v.Sites[other].City == v.Sites[first].City
			if other == first || v.Sites[other].Kind == Witness || pattern == SameCity && !near {
				continue
			}
			if _, joined := v.rtt(first, other); !joined {
				continue
			}
			automatic := active(pattern)
			p := Placement{Pattern: pattern, Sites: []string{first, other}, Automatic: &automatic}
			if automatic {
				p.Quorum = v.tieBreaker(p.Sites)
			}
			add(p)
		}
	}
	v.placed[service] = out
	return out
}

func (s *Service) allows(p Pattern) bool {
	return len(s.Consider) == 0 || slices.Contains(s.Consider, p)
}

// tieBreaker finds a site that can vote between two others: a witness if there is one, else any third site.
func (v *evaluator) tieBreaker(sites []string) string {
	best := ""
	for _, name := range v.sites {
		if slices.Contains(sites, name) {
			continue
		}
		if v.Sites[name].Kind == Witness {
			return name
		}
		if best == "" && *v.Sites[name].Exists {
			best = name
		}
	}
	return best
}

// along is the plan in which a service moves together with all that must come along for it to gain anything: what it
// needs at every answer and what does not run at the new sites, or recovers there in a slower way. Giving something up
// takes nobody along.
func (v *evaluator) along(a *arrangement, service int, to *spot) *arrangement {
	if to.id == a.at[service] {
		return a
	}
	next := a.with(service, to)
	if now := v.spot(a, service); covers(now, to) && rank(now.Pattern) >= rank(to.Pattern) {
		return next
	}
	for _, i := range v.hard[service] {
		if at := v.spot(next, i); i != service && (!covers(at, to) || !active(at.Pattern) && rank(at.Pattern) < rank(to.Pattern)) {
			next.at[i] = v.fitted(i, at, to).id
		}
	}
	return next
}

// covers tells whether a service runs at every site of another placement.
func covers(p, to *spot) bool {
	for _, site := range to.at {
		if !slices.Contains(p.at, site) {
			return false
		}
	}
	return true
}

// fitted is a placement at the same sites that a service's data allows; its own first site stays first. What may not
// run that way stays as it is.
func (v *evaluator) fitted(service int, now, to *spot) *spot {
	s := v.Services[v.services[service]]
	p := to.Placement
	if s.Data != nil && p.Pattern == Partitioned && s.Data.ByUser.Mean() < .5 {
		p.Pattern = OneWriter
	}
	if !s.allows(p.Pattern) {
		return now
	}
	if first := now.Sites[0]; slices.Contains(p.Sites, first) {
		p.Sites = append([]string{first}, slices.DeleteFunc(slices.Clone(p.Sites), func(site string) bool { return site == first })...)
	}
	return v.spotFor(p)
}

// candidate is one way to run a service, with all that must come along.
type candidate struct {
	spot     *spot
	to       *arrangement
	moved    []int
	change   change
	affected []int
	eligible bool // nothing speaks against it, and nothing that was asked for is given up
}

// candidates weighs every way to run a service from a plan on; the first is to leave it.
func (v *evaluator) candidates(a *arrangement, service int) ([]candidate, error) {
	var out []candidate
	for _, p := range v.placements(service) {
		c, err := v.candidate(a, service, p)
		if err != nil {
			return nil, err
		}
		c.eligible = v.eligible(a, service, &c)
		out = append(out, c)
	}
	return out, nil
}

func (v *evaluator) candidate(a *arrangement, service int, p *spot) (candidate, error) {
	c := candidate{spot: p, to: v.along(a, service, p)}
	c.moved, c.affected = moved(a, c.to), v.affected(a, c.to)
	var err error
	c.change, err = v.changeOf(a, c.to, service, c.affected)
	return c, err
}

// eligible tells whether a way may be recommended.
func (v *evaluator) eligible(a *arrangement, service int, c *candidate) bool {
	if len(c.moved) == 0 || !v.possible(c.to, c.moved) {
		return false
	}
	for _, i := range c.moved {
		if rank(v.spot(c.to, i).Pattern) < rank(v.spot(a, i).Pattern) && v.meets(a, i) && !v.meets(c.to, i) {
			return false
		}
	}
	return true
}

func rank(p Pattern) int { return slices.Index(Patterns, p) }

// meets tells whether a service has what is wanted of it: availability, RTO and RPO.
func (v *evaluator) meets(a *arrangement, service int) bool {
	s := v.Services[v.services[service]]
	b, err := v.brief(a, service)
	if err != nil {
		return false
	}
	w := s.Wants
	return (!w.Availability.Set || 1-b.downtime/year >= w.Availability.Mean()) && (!w.RTO.Set || v.rto(a, service).P95 <= w.RTO.Mean()) &&
		(!w.RPO.Set || v.loses(a, service) <= w.RPO.Mean())
}

// loses is how much of the newest data is gone with a lost site (P95).
func (v *evaluator) loses(a *arrangement, service int) float64 {
	return v.lost(v.spot(a, service), service, "", Book{}).P95
}

// outcome composes everything about one service under a plan; its derivations go into book, named id.something.
func (v *evaluator) outcome(a *arrangement, service int, id string, book Book) (Outcome, error) {
	o := Outcome{Service: v.services[service], Placement: v.spot(a, service).Placement}
	o.Capacity = v.capacity(a, service, id, book)
	var err error
	if o.Availability, err = v.availability(a, service, id, book); err != nil {
		return o, err
	}
	o.Recovery = v.recovery(a, service, id, book)
	ways, err := v.interruptions(a, service)
	if err != nil {
		return o, err
	}
	times, costs := v.years(a, service, ways, v.overload(a, service))
	seconds := worst(times)
	o.Availability.BadYear = book.Note(Derivation{ID: id + ".bad-year", What: "time without " + o.Service + " in the worst of twenty years", Value: seconds, Unit: Duration,
		Parts:  []Part{{"in the mean", o.Availability.Downtime.V, Duration, o.Availability.Downtime.ID}},
		Method: "95th percentile of 2000 years drawn: a Poisson number of each interruption, exponential outages, drawn recoveries"})
	o.Latency = v.latency(a, service, id, book)
	if o.Money, err = v.bill(a, service, worst(costs), id, book); err != nil {
		return o, err
	}
	o.Impossible, o.Short = v.refusals(a, service, &o)
	return o, nil
}
