package assess

import "fmt"

// refusals lists why a service's placement cannot be what it says, and of what is wanted it falls short.
func (v *evaluator) refusals(a *arrangement, service int, o *Outcome) (out, short []Refusal) {
	p, s := v.spot(a, service), v.Services[v.services[service]]
	refuse := func(rule, hint, format string, args ...any) {
		out = append(out, Refusal{rule, fmt.Sprintf(format, args...), hint})
	}
	// What cannot be had this way speaks against it where today's way has it, or is it: elsewhere it may still be better
	// than what there is.
	wish := func(had bool, rule, hint, format string, args ...any) {
		if had || p.id == v.today.at[service] {
			refuse(rule, hint, format, args...)
			return
		}
		short = append(short, Refusal{rule, fmt.Sprintf(format, args...), hint})
	}
	automatic := active(p.Pattern)
	if p.Automatic != nil {
		automatic = *p.Automatic
	}
	if automatic && len(p.Sites) == 2 && p.Quorum == "" {
		refuse("two-site-quorum", "add a witness in a third place, or recover by hand",
			"two sites without a witness cannot tell a lost site from a cut line: automatic recovery could make both write")
	}
	if p.Pattern != Single {
		r := v.Recovery[p.Pattern]
		if least := r.Detect.Low + r.Decide.Low + r.Shift.Low; s.Wants.RTO.Set && s.Wants.RTO.Mean() < least {
			wish(v.rto(v.today, service).P95 <= s.Wants.RTO.Mean(), "rto-below-detection", "", "an RTO of %s is shorter than noticing, deciding and shifting traffic takes under %s (%s at best)", s.Wants.RTO, p.Pattern, duration(least))
		}
		if s.Data != nil && s.Wants.RPO.Set && s.Wants.RPO.High == 0 && p.Pattern != SameCity {
			wish(v.loses(v.today, service) == 0, "rpo-zero-async", "synchronous replicas in one city lose nothing", "an RPO of 0 cannot be had with %s: its replication is asynchronous", p.Pattern)
		}
	}
	if p.Pattern == Partitioned && s.Data != nil && s.Data.ByUser.Mean() < .5 {
		refuse("not-partitionable", "keep one writer, or find a key by which it can be split", "only %s of its writes belong to one user: most would still cross sites", s.Data.ByUser)
	}
	for _, other := range p.Sites[1:] {
		switch rtt, ok := v.rtt(p.Sites[0], other); {
		case !ok:
			refuse("no-line", "add a link", "no link joins %s and %s", p.Sites[0], other)
		case p.Pattern == SameCity && s.Data != nil && rtt > syncRTT:
			refuse("sync-too-far", "replicate asynchronously, or to a site that is nearer", "every write would wait %s for %s; synchronous replicas stand at most %s apart", duration(rtt), other, duration(syncRTT))
		}
	}
	for _, c := range s.Calls {
		if !c.Optional && !v.anyJoined(p, v.spot(a, v.service[c.To])) {
			refuse("unreachable", "add a link", "no link leads from where it runs to %s, which it needs at every answer", c.To)
		}
	}
	if o.Latency.Budget != nil && !*o.Latency.Budget {
		refuse("latency-budget", "move what it calls along, or call less often", "answers would take %s at the 99th percentile; allowed are %s", duration(o.Latency.P99.V), s.Latency.Budget)
	}
	// Where today's site is too full already, another one pays as capacity, whether or not it recovers anything.
	relieves := v.loads(v.today).crowds(v.spot(v.today, service)) && !v.loads(a).crowds(p)
	if p.Pattern != Single && !relieves {
		v.refuseCrowded(a, service, refuse)
	}
	return out, short
}

// syncRTT is how far apart synchronous replicas may be: every write waits so long.
const syncRTT = .005

func (v *evaluator) anyJoined(from, to *spot) bool {
	for _, x := range from.Sites {
		for _, y := range to.Sites {
			if _, ok := v.rtt(x, y); ok {
				return true
			}
		}
	}
	return false
}

func (v *evaluator) refuseCrowded(a *arrangement, service int, refuse func(rule, hint, format string, args ...any)) {
	l, p, today := v.loads(a), v.spot(a, service), v.spot(v.today, service)
	for _, site := range p.at {
		worst, load := 0, 0.0
		for _, lost := range p.states() {
			// What the service asks of a site today is not this way's doing.
			if x := l.at[lost][site]; x > load && p.carries[lost][site] > today.carries[lost][site] {
				worst, load = lost, x
			}
		}
		load *= 100
		switch {
		case load <= 100*limit:
		case worst == 0:
			refuse("capacity", "add cores there, or move less", "%s would have to run at %.0f %% of its cores at the peak", v.sites[site], load)
		default:
			refuse("capacity", "add cores there, or move less", "%s would have to run at %.0f %% of its cores when %s is lost: that is no disaster recovery", v.sites[site], load, v.sites[worst-1])
		}
	}
}

// possible tells whether nothing speaks against a plan for some services. Latency, which takes long to compute, is
// asked last.
func (v *evaluator) possible(a *arrangement, services []int) bool {
	for _, i := range services {
		if refused, _ := v.refusals(a, i, &Outcome{}); len(refused) > 0 {
			return false
		}
	}
	for _, i := range services {
		if b := v.Services[v.services[i]].Latency.Budget; b.Set && !v.withinBudget(a, i, b.Mean()) {
			return false
		}
	}
	return true
}
