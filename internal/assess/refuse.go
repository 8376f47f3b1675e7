package assess

import (
	"fmt"
	"slices"
)

// refusals lists why a service's placement cannot be what it says.
func (e *Estate) refusals(plan Plan, service string, o *Outcome) []Refusal {
	p, s := plan[service], e.Services[service]
	var out []Refusal
	refuse := func(rule, hint, format string, args ...any) {
		out = append(out, Refusal{rule, fmt.Sprintf(format, args...), hint})
	}
	if active(p.Pattern) && len(p.Sites) == 2 && p.Quorum == "" && (p.Automatic == nil || *p.Automatic) {
		refuse("two-site-quorum", "add a witness in a third place, or recover by hand",
			"two sites without a witness cannot tell a lost site from a cut line: automatic recovery could make both write")
	}
	if p.Pattern != Single {
		r := e.Recovery[p.Pattern]
		if least := r.Detect.Low + r.Decide.Low + r.Shift.Low; s.Wants.RTO.Set && s.Wants.RTO.Mean() < least {
			refuse("rto-below-detection", "", "an RTO of %s is shorter than noticing, deciding and shifting traffic takes under %s (%s at best)", s.Wants.RTO, p.Pattern, duration(least))
		}
		if s.Data != nil && s.Wants.RPO.Set && s.Wants.RPO.High == 0 && p.Pattern != SameCity {
			refuse("rpo-zero-async", "synchronous replicas in one city lose nothing", "an RPO of 0 cannot be had with %s: its replication is asynchronous", p.Pattern)
		}
	}
	if p.Pattern == SameCity && s.Data != nil {
		for _, other := range p.Sites[1:] {
			if rtt, ok := e.rtt(p.Sites[0], other); ok && rtt > .005 {
				refuse("sync-too-far", "", "every write would wait %s for %s", duration(rtt), other)
			}
		}
	}
	if p.Pattern == Partitioned && s.Data != nil && s.Data.ByUser.Mean() < .5 {
		refuse("not-partitionable", "keep one writer, or find a key by which it can be split", "only %s of its writes belong to one user: most would still cross sites", s.Data.ByUser)
	}
	for _, other := range p.Sites[1:] {
		if _, ok := e.rtt(p.Sites[0], other); !ok {
			refuse("no-line", "add a link", "no link joins %s and %s", p.Sites[0], other)
		}
	}
	if o.Latency.Budget != nil && !*o.Latency.Budget {
		refuse("latency-budget", "move what it calls along, or call less often", "answers would take %s at the 99th percentile; allowed are %s", duration(o.Latency.P99.V), s.Latency.Budget)
	}
	if !o.Capacity.Enough && p.Pattern != Single {
		for _, l := range o.Capacity.Sites {
			if l.AfterLoss > limit {
				refuse("capacity", "add cores there, or move less", "%s would have to run at %.0f %% of its cores when another site is lost: that is no disaster recovery", l.Site, 100*l.AfterLoss)
			}
		}
	}
	if slices.ContainsFunc(p.Sites, func(site string) bool { return e.Sites[site].Kind == Witness }) {
		panic("BUG: a placement at a witness passed the checks")
	}
	return out
}
