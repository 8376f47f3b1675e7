package assess

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// interruption is one way in which a service stops for a share of its users, in a year.
type interruption struct {
	cause   string
	site    string // that is lost alone; "" where all are
	perYear float64
	share   float64 // of the users
	own     float64 // of them, whom its own placement loses
	behind  []int   // the services whose recoveries it waits for
	outage  float64 // mean length in seconds if nothing is done
	waits   bool    // nothing can be done: the outage lasts as long as it lasts
	whole   bool    // the recovery's own length is what it takes (a needless one)
	restore float64 // seconds that data takes to be restored, behind the outage
	backup  bool    // what was written since the last backup is gone
}

// name is its cause, and what is lost by it.
func (i *interruption) name() string {
	if i.site == "" {
		return i.cause
	}
	return i.site + " lost: " + i.cause
}

// interruptions lists all ways. What takes every site at once is waited for; what takes one is recovered from.
func (v *evaluator) interruptions(a *arrangement, service int) ([]interruption, error) {
	if v.base != nil && !v.varied.touchesFailures(v, a, service) {
		return v.base.interruptions(a, service)
	}
	var space [128]byte
	key := v.hardKey(space[:0], a, service)
	if out, known := v.ways[string(key)]; known {
		return out, nil
	}
	out, err := v.findInterruptions(a, service)
	if err != nil {
		return nil, err
	}
	v.ways[string(key)] = out
	return out, nil
}

func (v *evaluator) findInterruptions(a *arrangement, service int) (out []interruption, err error) {
	p := v.spot(a, service)
	s, err := v.everywhere(a, service)
	if err != nil {
		return nil, err
	}
	all := v.ask(s)
	switch {
	case all.down > 1-1e-12:
		return []interruption{{cause: "what it calls cannot be reached", perYear: 1, share: 1, outage: year, waits: true}}, nil
	case all.perSecond > 0:
		for _, x := range all.strands(all.down, all.perSecond, nil) {
			out = append(out, interruption{cause: x.name, perYear: x.perSecond * year, share: 1, outage: x.outage, waits: true})
		}
	}
	for _, f := range v.losses(a, service) {
		lost, err := v.siteLost(a, service, f, all)
		if err != nil {
			return nil, err
		}
		out = append(out, lost...)
	}
	if p.Pattern != Single {
		out = append(out, interruption{cause: "needless recovery", perYear: year / v.Recovery[p.Pattern].False.Mean(), share: p.interrupted(0), whole: true, behind: []int{service}})
	}
	return append(out, v.destructions(p, service)...), nil
}

// siteLost lists what takes one site and leaves the service up at another one.
//
// With U the share of time and w the frequency of what takes a site, and of what takes all: it is down alone for
// U − U(all). Of its w losses, those take all that are not losses of another one while it is down already: w(all) −
// (U − U(all)) × w(other).
func (v *evaluator) siteLost(a *arrangement, service int, f felt, all *numbers) (out []interruption, err error) {
	everywhere := all.structure
	if f.via != service { // it feels what takes another one's site
		if everywhere, err = v.everywhere(a, f.via); err != nil {
			return nil, err
		}
		all = v.ask(everywhere)
	}
	p := v.spot(a, f.via)
	here, other := (*numbers)(nil), (*numbers)(nil)
	for _, site := range p.at {
		s, err := v.at(a, f.via, site)
		if err != nil {
			return nil, err
		}
		if v.sites[site] == f.site {
			here = v.ask(s)
		} else {
			other = v.ask(s)
		}
	}
	down, often := here.down-all.down, here.perSecond-all.perSecond
	if len(p.at) == 2 { // of more, the others rarely fail one by one meanwhile
		often += max(0, down) * other.perSecond
	} else {
		often += max(0, down) * all.perSecond
	}
	if often <= 1e-9*here.perSecond || down <= 0 {
		return nil, nil
	}
	leaves := v.leavesOther(here.structure, everywhere)
	for _, x := range here.strands(down, often, func(set int) bool { return leaves[set] }) {
		i := interruption{cause: x.name, site: f.site, perYear: x.perSecond * year, share: f.share, own: f.own, outage: x.outage, behind: f.waits}
		if f.via != service {
			i.cause += ", felt through " + v.services[f.via]
		}
		out = append(out, i)
	}
	return out, nil
}

// destructions are the causes that destroy data everywhere at once: under every pattern, a backup is restored.
func (v *evaluator) destructions(p *spot, service int) (out []interruption) {
	s := v.Services[v.services[service]]
	if s.Data == nil {
		return nil
	}
	for _, cause := range v.Shared {
		there := strikes(cause.Hits.Services, v.services[service]) || slices.ContainsFunc(p.Sites, func(site string) bool { return strikes(cause.Hits.Sites, site) })
		if cause.Data && there {
			_, perSecond := steady(cause.Every.Mean(), cause.Lasts.Mean())
			out = append(out, interruption{cause: cause.Name + ": restore from backup", perYear: perSecond * year, share: 1, restore: s.Data.Restore.Mean(), waits: true, backup: true})
		}
	}
	return out
}

// interrupted is the share of users whom the loss of the i-th site of a placement interrupts.
func (p Placement) interrupted(i int) float64 {
	switch {
	case p.Pattern == OneWriter && i == 0: // everybody's writes wait for a new writer
		return 1
	case active(p.Pattern):
		return 1 / float64(len(p.Sites))
	case i == 0:
		return 1
	}
	return 0 // a standby serves nobody
}

// expected is the mean length of an interruption: an exponential outage, cut short by a recovery that works.
func (i *interruption) expected(r *recoveryTimes) float64 {
	switch {
	case i.whole:
		return r.mean
	case i.waits:
		return i.outage + i.restore
	case i.outage == 0:
		return 0
	}
	cut := 0.0 // E[min(D, T)] = m·(1 − E[exp(−T/m)])
	for _, t := range r.few {
		cut -= math.Expm1(-t / i.outage)
	}
	cut *= i.outage / float64(len(r.few))
	return r.coverage*cut + (1-r.coverage)*i.outage
}

// availability composes what a service gets in a year. Its derivations are named id.something.
func (v *evaluator) availability(a *arrangement, service int, id string, book Book) (Availability, error) {
	var out Availability
	p, name := v.spot(a, service), v.services[service]
	s, err := v.everywhere(a, service)
	if err != nil {
		return out, err
	}
	ways, err := v.interruptions(a, service)
	if err != nil {
		return out, err
	}
	all, over := v.ask(s), v.overload(a, service)
	out.ByOrder, out.Singles = s.tree.CutSets().ByOrder, v.singles(all)
	out.Structural = book.Note(Derivation{ID: id + ".structural", What: "share of time in which " + name + " can be served at none of its sites",
		Value: all.down, Unit: Ratio, Inputs: v.inputsOf(s.model), Parts: []Part{v.noteServers(service, id, book)},
		Method: fmt.Sprintf("exact: fault tree of %d gates and %d events as a binary decision diagram; %d minimal cut sets", len(s.model.Gates), len(s.model.Events), s.tree.CutSets().Total)})
	structural := Part{"structure: what fails", all.down, Ratio, out.Structural.ID}
	var losses, downtime float64
	lost, parts := []Part{structural}, []Part{structural}
	for i := range ways {
		way := &ways[i]
		long := way.expected(v.recoveryFrom(a, service, way))
		seconds := way.perYear * way.share * long
		downtime += seconds
		out.Causes = append(out.Causes, Cause{way.name(), seconds})
		parts = append(parts, Part{Name: fmt.Sprintf("%s: %.3g a year × %.0f%% of users × %s", way.name(), way.perYear, 100*way.share, duration(long)), Value: seconds, Unit: Duration})
		if !way.whole {
			losses += way.perYear
			lost = append(lost, Part{Name: way.name(), Value: way.perYear, Unit: Count})
		}
	}
	if over.unserved > 0 {
		downtime += over.unserved
		out.Causes = append(out.Causes, Cause{"demand beyond what its sites carry", over.unserved})
		parts = append(parts, Part{Name: "demand beyond what its sites carry: time × share that finds no room", Value: over.unserved, Unit: Duration, ID: id + ".overload"})
	}
	slices.SortStableFunc(out.Causes, func(x, y Cause) int { return cmp.Compare(y.Seconds, x.Seconds) })
	downtime = min(downtime, year)
	inputs := v.recoveryInputs(a, service, ways)
	if p.Pattern != Single {
		parts = append(parts, Part{"time to recover (P95)", v.rto(a, service).P95, Duration, id + ".rto"})
	}
	out.Losses = book.Note(Derivation{ID: id + ".losses", What: "how often a year " + name + " loses a site that serves", Value: losses, Unit: Count, Parts: lost,
		Method: "frequency of the fault trees' tops (Σ Birnbaum importance × frequency of each event), for all sites at once and for each alone, split by minimal cut set"})
	out.Downtime = book.Note(Derivation{ID: id + ".downtime", What: "expected time a year without " + name + ", weighed by the share of users", Value: downtime, Unit: Duration, Parts: parts, Inputs: inputs,
		Method: "Σ frequency × share × (coverage × E[min(outage, recovery)] + (1 − coverage) × outage) over causes; outages are exponential, E[min] = m(1−E[exp(−T/m)]); what takes every site is waited for"})
	out.Share = book.Note(Derivation{ID: id + ".availability", What: "availability of " + name, Value: 1 - downtime/year, Unit: Ratio,
		Method: "1 − downtime ÷ year", Parts: []Part{{"downtime", downtime, Duration, out.Downtime.ID}}})
	return out, nil
}

// recoveryInputs are how often recoveries work and are needless, of all that interruptions wait for.
func (v *evaluator) recoveryInputs(a *arrangement, service int, ways []interruption) (out []Input) {
	add := func(n Number) {
		if in := inputOf(n); !slices.Contains(out, in) {
			out = append(out, in)
		}
	}
	if p := v.spot(a, service).Pattern; p != Single {
		add(v.Recovery[p].Coverage)
		add(v.Recovery[p].False)
	}
	for i := range ways {
		for _, m := range ways[i].behind {
			add(v.Recovery[v.spot(a, m).Pattern].Coverage)
		}
	}
	return out
}

// singles lists the events that alone bring the top about, by how much of its probability hangs on them.
func (v *evaluator) singles(n *numbers) []SinglePoint {
	var out []SinglePoint
	weight := map[string]float64{}
	for _, e := range n.singles {
		name := n.tree.Events()[e]
		at := SinglePoint{Event: plain(name), Kind: v.kindOf(name), Unavailable: n.events[e].Probability, PerYear: n.events[e].Frequency * year, Path: v.why(n.model, name)}
		weight[at.Event] = n.birnbaum[e] * n.events[e].Probability
		out = append(out, at)
	}
	slices.SortStableFunc(out, func(a, b SinglePoint) int {
		return cmp.Or(cmp.Compare(weight[b.Event], weight[a.Event]), cmp.Compare(a.Event, b.Event))
	})
	return out
}

const (
	badYears = 2000 // that are drawn for the bad one
	often    = 50.0 // interruptions a year that are not drawn one by one
)

// years draws years: seconds without service, weighed by users, and money. A cause that interrupts several services
// draws the same years for all of them, so that sums over services keep what they have in common.
func (v *evaluator) years(a *arrangement, service int, ways []interruption, over overload) (seconds, money []float64) {
	s := v.Services[v.services[service]]
	seconds, money = make([]float64, badYears), make([]float64, badYears)
	always, spent := over.unserved, over.weighed/60*s.Revenue.Minute.Mean()*(1-s.Revenue.Deferred.Mean())
	for i := range ways {
		way := &ways[i]
		r, lost := v.recoveryFrom(a, service, way), v.writesLost(a, service, way)
		if way.perYear > often { // so many that their sum hardly varies
			always += way.perYear * way.share * way.expected(r)
			cost, _ := v.worthOf(s, way, r)
			spent += way.perYear * (cost + lost)
			continue
		}
		when, what := v.rng("years of "+way.cause), v.rng("lengths of "+way.cause)
		none := math.Exp(-way.perYear)
		for y := range badYears {
			// a Poisson number by inversion: the more frequent, the more in the same years
			p, u := none, when.Float64()
			for n := 1.0; u >= p && n < 20*often; n++ {
				u -= p
				p *= way.perYear / n
				long := way.draw(what, r)
				seconds[y] += long * way.share
				money[y] += v.worth(s, long, way.share) + lost
			}
		}
	}
	for y := range badYears {
		seconds[y], money[y] = min(year, seconds[y]+always), money[y]+spent
	}
	return seconds, money
}

// draw is the length of one interruption.
func (i *interruption) draw(rng *rand.Rand, r *recoveryTimes) float64 {
	recovery := func() float64 { all := r.drawn(); return all[rng.IntN(len(all))] }
	if i.whole {
		return recovery()
	}
	long := i.outage*rng.ExpFloat64() + i.restore
	if !i.waits && rng.Float64() < r.coverage {
		long = min(long, recovery())
	}
	return long
}

// badYear is the money of the worst of twenty years of a whole plan.
func (v *evaluator) badYear(a *arrangement) (float64, error) {
	sum := make([]float64, badYears)
	for i := range v.services {
		ways, err := v.interruptions(a, i)
		if err != nil {
			return 0, err
		}
		_, money := v.years(a, i, ways, v.overload(a, i))
		for y, m := range money {
			sum[y] += m
		}
	}
	return worst(sum), nil
}
