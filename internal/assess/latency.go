package assess

import (
	"encoding/binary"
	"fmt"
	"math"
)

const (
	within  = 0.0003 // seconds of a round trip inside a site
	noRoute = 1.0    // seconds that a call counts where no link leads: availability says what that means
)

// rtt is the round trip between two sites over their fastest link; ok is false if none joins them.
func (e *Estate) rtt(from, to string) (seconds float64, ok bool) {
	if from == to {
		return within, true
	}
	best := math.Inf(1)
	for _, l := range e.Links {
		if l.joins(from, to) {
			best = min(best, l.RTT.Mean())
		}
	}
	return best, !math.IsInf(best, 1)
}

// trip is the round trip of a call.
func (e *Estate) trip(from, to string) float64 {
	if r, ok := e.rtt(from, to); ok {
		return r
	}
	return noRoute
}

// way is where a share of a call's requests goes.
type way struct {
	site  string
	share float64
}

// callWays says where calls from a site go: to the service here where it may answer here, else to where it can. Writes
// of one-writer go to its writer; of partitioned, what belongs to no single user goes to its first site.
func (e *Estate) callWays(call *Call, from string, p Placement) []way {
	near := e.nearest(from, p)
	if near != from || !active(p.Pattern) || p.Pattern == SameCity {
		return []way{{near, 1}}
	}
	home := call.Writes.Mean() // share of the requests that go to the first site
	if p.Pattern == Partitioned {
		if d := e.Services[call.To].Data; d != nil {
			home *= 1 - d.ByUser.Mean()
		} else {
			home = 0
		}
	}
	if home == 0 || from == p.Sites[0] {
		return []way{{from, 1}}
	}
	return []way{{from, 1 - home}, {p.Sites[0], home}}
}

// nearest is the site of a placement that serves calls from a site: of a standby pattern, only the first one serves.
func (e *Estate) nearest(from string, p Placement) string {
	best, least := p.Sites[0], math.Inf(1)
	for _, w := range p.serving() {
		if r, ok := e.rtt(from, w.site); ok && r < least {
			best, least = w.site, r
		}
	}
	return best
}

// serving are the sites where users' requests are taken, with their shares.
func (p Placement) serving() []way {
	if !active(p.Pattern) {
		return []way{{p.Sites[0], 1}}
	}
	out := make([]way, len(p.Sites))
	for i, s := range p.Sites {
		out[i] = way{s, 1 / float64(len(p.Sites))}
	}
	return out
}

// answers is the distribution of a service's answers, over the sites that serve, and the step of its grid.
func (v *evaluator) answers(a *arrangement, service int) (*spread, float64) {
	upper, memo := 0.0, map[[2]int]bound{}
	serving := v.spot(a, service).serving()
	for _, w := range serving {
		upper = max(upper, v.bounds(a, service, v.site[w.site], memo).most())
	}
	// Steps double, so that services share what they have in common. The grid ends at twice the bound at least: beyond
	// it lies too little to matter for a 99th percentile.
	step := 1e-5 * math.Exp2(math.Ceil(math.Log2(max(1, 2*upper/bins/1e-5))))
	c := &composer{v, a, grid{step}}
	var sum spectrum
	for _, w := range serving {
		for i, x := range c.from(service, v.site[w.site]) {
			sum[i] += complex(w.share, 0) * x
		}
	}
	return sum.spread(), step
}

// withinBudget tells whether the 99th percentile is. It is only computed where its bounds do not tell.
func (v *evaluator) withinBudget(a *arrangement, service int, budget float64) bool {
	upper, lower, memo := 0.0, math.Inf(1), map[[2]int]bound{}
	for _, w := range v.spot(a, service).serving() {
		b := v.bounds(a, service, v.site[w.site], memo)
		upper, lower = max(upper, b.most()), min(lower, b.lower)
	}
	switch {
	case upper <= budget:
		return true
	case lower > budget:
		return false
	}
	all, step := v.answers(a, service)
	return grid{step}.quantile(all, .99) <= budget
}

// composer composes latencies of one plan on one grid. Distributions of times that follow each other are multiplied as
// spectra; only calls side by side are turned back.
type composer struct {
	*evaluator
	plan *arrangement
	grid grid
}

func (c *composer) key(service, site int) []byte {
	key := binary.LittleEndian.AppendUint64(nil, math.Float64bits(c.grid.step))
	key = append(key, byte(site), byte(site>>8), byte(service), byte(service>>8))
	for _, i := range c.needs[service] {
		if i != service { // where else it runs does not matter here
			key = binary.LittleEndian.AppendUint16(key, c.spot(c.plan, i).servedBy)
		}
	}
	return key
}

// from is the distribution of an answer that is given at a site.
func (c *composer) from(service, site int) *spectrum {
	if c.base != nil && !c.varied.touchesLatency(c.evaluator, service) {
		return (&composer{c.base, c.plan, c.grid}).from(service, site)
	}
	key := c.key(service, site)
	if d := c.latencies[string(key)]; d != nil {
		return d
	}
	s := c.Services[c.services[service]]
	total := c.own(s.Latency.P50.Mean(), s.Latency.P99.Mean())
	var together []*spread
	for _, call := range s.Calls {
		all := c.call(call, c.sites[site]).times(call.Times.Mean())
		if call.Parallel {
			together = append(together, all.spread())
			continue
		}
		total = total.add(all)
	}
	if len(together) > 0 {
		total = total.add(slowest(together).spectrum())
	}
	c.latencies[string(key)] = total
	return total
}

// own is what a service itself takes; many take the same.
func (c *composer) own(p50, p99 float64) *spectrum {
	key := []byte{'o'}
	for _, x := range []float64{c.grid.step, p50, p99} {
		key = binary.LittleEndian.AppendUint64(key, math.Float64bits(x))
	}
	d := c.latencies[string(key)]
	if d == nil {
		d = c.grid.lognormal(p50, p99).spectrum()
		c.latencies[string(key)] = d
	}
	return d
}

// trips is the spectrum of a round trip.
func (c *composer) trips(seconds float64) *spectrum {
	key := []byte{'t'}
	for _, x := range []float64{c.grid.step, seconds} {
		key = binary.LittleEndian.AppendUint64(key, math.Float64bits(x))
	}
	d := c.latencies[string(key)]
	if d == nil {
		d = c.grid.constant(seconds).spectrum()
		c.latencies[string(key)] = d
	}
	return d
}

// call is the distribution of one call from a site: the way there and back, and the answer there.
func (c *composer) call(call *Call, from string) *spectrum {
	to := c.service[call.To]
	var out spectrum
	for _, w := range c.callWays(call, from, c.spot(c.plan, to).Placement) {
		there := c.from(to, c.site[w.site])
		for i, trip := range c.trips(c.trip(from, w.site)) {
			out[i] += complex(w.share, 0) * trip * there[i]
		}
	}
	return &out
}

// latency is how long an answer takes, calls included: own time plus calls one after the other plus the slowest of
// those that run side by side. Distributions are convolved; percentiles are never added, but for the upper bound.
func (v *evaluator) latency(a *arrangement, service int, id string, book Book) Answer {
	name := v.services[service]
	s := v.Services[name]
	all, step := v.answers(a, service)
	g := grid{step}
	upper, cross := 0.0, 0.0
	bounds, counts := map[[2]int]bound{}, map[[2]int]float64{}
	for _, w := range v.spot(a, service).serving() {
		upper = max(upper, v.bounds(a, service, v.site[w.site], bounds).upper)
		cross += w.share * v.crossCalls(a, service, v.site[w.site], counts)
	}
	inputs := []Input{inputOf(s.Latency.P50), inputOf(s.Latency.P99)}
	for _, c := range s.Calls {
		inputs = append(inputs, inputOf(c.Times))
	}
	for _, l := range v.Links {
		inputs = append(inputs, inputOf(l.RTT))
	}
	var parts []Part
	for _, c := range s.Calls {
		parts = append(parts, Part{Name: "calls of " + c.To, Value: c.Times.Mean(), Unit: Count})
	}
	method := fmt.Sprintf("own time (lognormal through p50 and p99) convolved with every call's; parallel calls count with the slowest; grid of %d steps of %s", bins, duration(step))
	note := func(at, what string, value float64, how string) Value {
		return book.Note(Derivation{ID: id + "." + at, What: what + " of an answer of " + name, Value: value, Unit: Duration, Method: how, Parts: parts, Inputs: inputs})
	}
	upper = max(upper, g.quantile(all, .99)) // of calls side by side, one of many is slow more often than all together are
	out := Answer{CrossCalls: cross, P50: note("p50", "median", g.quantile(all, .5), method), P99: note("p99", "99th percentile", g.quantile(all, .99), method),
		UpperP99: note("p99-upper", "99th percentile", upper, "as if everything were slow together: the p99 of each part added up, of parts side by side the slowest; never below that of parts on their own")}
	if b := s.Latency.Budget; b.Set {
		ok := out.P99.V <= b.Mean()
		out.Budget = &ok
	}
	return out
}

// bound is what can be said of an answer's time without convolving.
type bound struct {
	least float64 // it is never shorter: ways there and back
	lower float64 // of the 99th percentile: one part is at its own, the others at their least
	upper float64 // of the 99th percentile where all parts are slow together: all are at theirs
	parts float64 // how many times an answer is made of
	sigma float64 // the widest of them
	loose bool    // upper says nothing of parts that are slow on their own
}

// most is an upper bound of the 99th percentile, however the parts hang together. Where upper is loose, each of n parts
// is taken at the quantile that it exceeds once in 100·n, which any of them does once in 100 at most.
func (b bound) most() float64 {
	if !b.loose {
		return b.upper
	}
	z := math.Sqrt2 * math.Erfinv(1-2*.01/b.parts)
	return b.upper * math.Exp(b.sigma*(z-z99th))
}

// z99th is the 99th percentile of the normal distribution.
const z99th = 2.3263478740408408

// spreadOf is the lognormal's sigma through a median and a 99th percentile.
func spreadOf(p50, p99 float64) float64 {
	if p50 <= 0 {
		return 0
	}
	return math.Log(max(p99, p50)/p50) / z99th
}

func (v *evaluator) bounds(a *arrangement, service, site int, memo map[[2]int]bound) bound {
	key := [2]int{service, site}
	if b, known := memo[key]; known {
		return b
	}
	s := v.Services[v.services[service]]
	b := bound{lower: s.Latency.P99.Mean(), upper: s.Latency.P99.Mean(), parts: 1, sigma: spreadOf(s.Latency.P50.Mean(), s.Latency.P99.Mean())}
	together, beside, most := 0.0, 0, b.lower // most: how far the lower bound's part is above its own least
	for _, c := range s.Calls {
		to, one := v.service[c.To], bound{least: math.Inf(1), lower: math.Inf(1)}
		for _, w := range v.callWays(c, v.sites[site], v.spot(a, to).Placement) {
			trip, there := v.trip(v.sites[site], w.site), v.bounds(a, to, v.site[w.site], memo)
			one = bound{min(one.least, trip+there.least), min(one.lower, trip+there.lower), max(one.upper, trip+there.upper),
				max(one.parts, there.parts), max(one.sigma, there.sigma), one.loose || there.loose}
		}
		b.parts, b.sigma, b.loose = min(1e12, b.parts+one.parts*math.Ceil(c.Times.Mean())), max(b.sigma, one.sigma), b.loose || one.loose
		worst := one.upper * math.Ceil(c.Times.Mean())
		if c.Parallel {
			together, beside = max(together, worst), beside+1
		} else {
			b.upper += worst
		}
		if whole := math.Floor(c.Times.Mean()); whole >= 1 && !c.Parallel {
			b.least += whole * one.least
			most = max(most, one.lower-one.least)
		}
	}
	b.upper += together
	b.loose = b.loose || beside > 1 || b.sigma > 2 // so wide that even a sum exceeds its parts' percentiles
	b.lower = b.least + most
	memo[key] = b
	return b
}

// crossCalls counts the calls between cities that one answer takes, calls of calls included.
func (v *evaluator) crossCalls(a *arrangement, service, site int, memo map[[2]int]float64) float64 {
	key := [2]int{service, site}
	if n, known := memo[key]; known {
		return n
	}
	n := 0.0
	for _, c := range v.Services[v.services[service]].Calls {
		to := v.service[c.To]
		for _, w := range v.callWays(c, v.sites[site], v.spot(a, to).Placement) {
			one := v.crossCalls(a, to, v.site[w.site], memo)
			if v.Sites[w.site].City != v.Sites[v.sites[site]].City {
				one++
			}
			n += c.Times.Mean() * w.share * one
		}
	}
	memo[key] = n
	return n
}
