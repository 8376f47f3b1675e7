package assess

import (
	"fmt"
	"math"
	"slices"
)

// within is a round trip inside a site.
const within = 0.0003

// rtt is the round trip between two sites over their fastest link; ok is false if none joins them.
func (e *Estate) rtt(from, to string) (seconds float64, ok bool) {
	if from == to {
		return within, true
	}
	best := math.Inf(1)
	for _, l := range e.Links {
		if slices.Contains(l.Between, from) && slices.Contains(l.Between, to) {
			best = min(best, l.RTT.Mean())
		}
	}
	return best, !math.IsInf(best, 1)
}

// way is where a share of a call's requests goes.
type way struct {
	site  string
	share float64
}

// ways says where calls from a site go: to the service here where it may answer here, else to where it can. Writes of
// one-writer go to its writer; of partitioned, what belongs to no single user goes to its first site.
func (e *Estate) ways(call *Call, from string, p Placement) []way {
	here := slices.Contains(p.Sites, from)
	if !here || p.Pattern == BackupRestore || p.Pattern == PilotLight || p.Pattern == WarmStandby || p.Pattern == Single {
		return []way{{e.nearest(from, p), 1}}
	}
	writes := call.Writes.Mean()
	switch p.Pattern {
	case OneWriter:
		return []way{{from, 1 - writes}, {p.Sites[0], writes}}
	case Partitioned:
		shared := 0.0
		if d := e.Services[call.To].Data; d != nil {
			shared = writes * (1 - d.ByUser.Mean())
		}
		return []way{{from, 1 - shared}, {p.Sites[0], shared}}
	}
	return []way{{from, 1}}
}

// nearest is the site of a placement that serves calls from a site: of a standby pattern, only the first one serves.
func (e *Estate) nearest(from string, p Placement) string {
	sites := p.Sites
	if p.Pattern == BackupRestore || p.Pattern == PilotLight || p.Pattern == WarmStandby {
		sites = sites[:1]
	}
	best, least := sites[0], math.Inf(1)
	for _, s := range sites {
		if r, ok := e.rtt(from, s); ok && r < least {
			best, least = s, r
		}
	}
	return best
}

// serving are the sites where users' requests are taken, with their shares.
func (p Placement) serving() []way {
	switch p.Pattern {
	case SameCity, OneWriter, Partitioned:
		out := make([]way, len(p.Sites))
		for i, s := range p.Sites {
			out[i] = way{s, 1 / float64(len(p.Sites))}
		}
		return out
	}
	return []way{{p.Sites[0], 1}}
}

// answering composes latencies of one plan.
type answering struct {
	*Estate
	plan Plan
	grid grid
	memo map[string]*spread
}

// latency is how long an answer takes, calls included: own time plus calls one after the other plus the slowest of
// those that run side by side. Distributions are convolved; percentiles are never added, but for the upper bound.
func (e *Estate) latency(plan Plan, service string, book Book) Answer {
	upper := 0.0
	for _, w := range plan[service].serving() {
		upper = max(upper, e.upper(plan, service, w.site))
	}
	a := &answering{e, plan, grid{max(1e-5, 3*upper/bins)}, map[string]*spread{}}
	var all spread
	cross := 0.0
	for _, w := range plan[service].serving() {
		for i, v := range a.from(service, w.site) {
			all[i] += w.share * v
		}
		cross += w.share * e.crossCalls(plan, service, w.site)
	}
	s := e.Services[service]
	inputs := []Input{inputOf(s.Latency.P50), inputOf(s.Latency.P99)}
	for _, c := range s.Calls {
		inputs = append(inputs, inputOf(c.Times))
	}
	for _, l := range e.Links {
		inputs = append(inputs, inputOf(l.RTT))
	}
	method := fmt.Sprintf("own time (lognormal through p50 and p99) convolved with every call's; parallel calls count with the slowest; grid of %d steps of %s", bins, duration(a.grid.step))
	note := func(id, what string, v float64, how string) Value {
		return book.Note(Derivation{ID: service + "." + id, What: what + " of an answer of " + service, Value: v, Unit: Duration, Method: how, Inputs: inputs})
	}
	out := Answer{CrossCalls: cross,
		P50:      note("p50", "median", a.grid.quantile(&all, .5), method),
		P99:      note("p99", "99th percentile", a.grid.quantile(&all, .99), method),
		UpperP99: note("p99-upper", "99th percentile", upper, "upper bound: as if everything were slow together, the p99 of each part added up")}
	if b := s.Latency.Budget; b.Set {
		ok := out.P99.V <= b.Mean()
		out.Budget = &ok
	}
	return out
}

// from is the distribution of an answer that is given at a site.
func (a *answering) from(service, site string) *spread {
	key := service + "@" + site
	if d := a.memo[key]; d != nil {
		return d
	}
	s := a.Services[service]
	total := a.grid.lognormal(s.Latency.P50.Mean(), s.Latency.P99.Mean()).spectrum()
	var together []*spread
	for _, c := range s.Calls {
		one := a.call(c, site)
		if c.Parallel {
			together = append(together, one.spectrum().times(c.Times.Mean()).spread())
			continue
		}
		total = total.add(one.spectrum().times(c.Times.Mean()))
	}
	if len(together) > 0 {
		total = total.add(slowest(together).spectrum())
	}
	d := total.spread()
	a.memo[key] = d
	return d
}

// call is the distribution of one call from a site: the way there and back, and the answer there.
func (a *answering) call(c *Call, from string) *spread {
	var out *spread
	done := 0.0
	for _, w := range a.ways(c, from, a.plan[c.To]) {
		if w.share == 0 {
			continue
		}
		trip, ok := a.rtt(from, w.site)
		if !ok {
			trip = 1 // no line: availability says what that means
		}
		one := a.grid.constant(trip).spectrum().add(a.from(c.To, w.site).spectrum()).spread()
		if out == nil {
			out, done = one, w.share
			continue
		}
		out = mix(done/(done+w.share), out, one)
		done += w.share
	}
	return out
}

// upper adds 99th percentiles up.
func (e *Estate) upper(plan Plan, service, site string) float64 {
	s := e.Services[service]
	sum, together := s.Latency.P99.Mean(), 0.0
	for _, c := range s.Calls {
		worst := 0.0
		for _, w := range e.ways(c, site, plan[c.To]) {
			if w.share == 0 {
				continue
			}
			trip, ok := e.rtt(site, w.site)
			if !ok {
				trip = 1
			}
			worst = max(worst, trip+e.upper(plan, c.To, w.site))
		}
		worst *= math.Ceil(c.Times.Mean())
		if c.Parallel {
			together = max(together, worst)
		} else {
			sum += worst
		}
	}
	return sum + together
}

// crossCalls counts the calls between cities that one answer takes, calls of calls included.
func (e *Estate) crossCalls(plan Plan, service, site string) float64 {
	n := 0.0
	for _, c := range e.Services[service].Calls {
		for _, w := range e.ways(c, site, plan[c.To]) {
			one := e.crossCalls(plan, c.To, w.site)
			if e.Sites[w.site].City != e.Sites[site].City {
				one++
			}
			n += c.Times.Mean() * w.share * one
		}
	}
	return n
}
