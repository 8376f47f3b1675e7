package assess

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// outcome composes everything about one service under a plan; its derivations go into book.
func (e *Estate) outcome(plan Plan, service string, book Book) (Outcome, error) {
	o := Outcome{Service: service, Placement: plan[service]}
	var err error
	if o.Availability, err = e.availability(plan, service, book); err != nil {
		return o, err
	}
	if o.Recovery, err = e.recovery(plan, service, book); err != nil {
		return o, err
	}
	ways, _, _, err := e.interruptions(plan, service)
	if err != nil {
		return o, err
	}
	o.Latency = e.latency(plan, service, book)
	o.Capacity = e.capacity(plan, service, book)
	o.Money = e.bill(plan, service, ways, o.Recovery, book)
	o.Impossible = e.refusals(plan, service, &o)
	return o, nil
}

// brief is what comparing plans needs of a service: quick to compute and remembered, because most plans that are
// compared differ in few services.
type brief struct {
	downtime, loss, month float64
	rto                   float64
}

// evaluator computes briefs. What a service gets depends on its own placement and on those of all it calls.
type evaluator struct {
	*Estate
	needs map[string][]string // service → itself and all that it calls, directly or not, in order
	users map[string][]string // service → itself and all that call it, directly or not
	memo  map[string]brief

	book  Book // where options are traced to; nil: nowhere
	every bool // every number of every option, not only what it nets
}

func newEvaluator(e *Estate) *evaluator {
	v := &evaluator{Estate: e, needs: map[string][]string{}, users: map[string][]string{}, memo: map[string]brief{}}
	var closure func(name string, into map[string]bool)
	closure = func(name string, into map[string]bool) {
		if into[name] {
			return
		}
		into[name] = true
		for _, c := range e.Services[name].Calls {
			closure(c.To, into)
		}
	}
	for name := range e.Services {
		into := map[string]bool{}
		closure(name, into)
		v.needs[name] = slices.Sorted(maps.Keys(into))
		for callee := range into {
			v.users[callee] = append(v.users[callee], name)
		}
	}
	for _, list := range v.users {
		slices.Sort(list)
	}
	return v
}

func (p Placement) key() string {
	return string(p.Pattern) + ":" + strings.Join(p.Sites, ",") + ":" + p.Quorum
}

// brief of one service under a plan.
func (v *evaluator) brief(plan Plan, service string) (brief, error) {
	var key strings.Builder
	key.WriteString(service)
	for _, name := range v.needs[service] {
		key.WriteString("|" + plan[name].key())
	}
	// whether a site that has to be built is shared with others changes its cost
	for _, site := range plan[service].Sites {
		if !*v.Sites[site].Exists && v.usedByOthers(plan, service, site) {
			key.WriteString("+" + site)
		}
	}
	if b, known := v.memo[key.String()]; known {
		return b, nil
	}
	ways, _, _, err := v.interruptions(plan, service)
	if err != nil {
		return brief{}, err
	}
	p, s := plan[service], v.Services[service]
	recovery, coverage, lost := 0.0, 1.0, 0.0
	if p.Pattern != Single {
		r := v.Recovery[p.Pattern]
		recovery, coverage = r.meanTime(s.restoreOf(p.Pattern).Mean()), r.Coverage.Mean()
	}
	if s.Data != nil && s.Revenue.LostData.Mean() > 0 {
		lost = v.lost(plan, service, Book{}).Mean
	}
	b := brief{rto: recovery}
	for i := range ways {
		b.downtime += ways[i].perYear * ways[i].share * ways[i].expected(recovery, coverage)
	}
	b.loss, _ = v.loss(plan, service, ways, lost)
	b.month, _, _ = v.Estate.month(plan, service)
	v.memo[key.String()] = b
	return b, nil
}

// sums are what a set of services gets and costs.
type sums struct{ downtime, loss, month, once float64 }

func (v *evaluator) sum(plan Plan, services []string) (sums, error) {
	var s sums
	for _, name := range services {
		b, err := v.brief(plan, name)
		if err != nil {
			return s, err
		}
		s.downtime += b.downtime
		s.loss += b.loss
		s.month += b.month
	}
	return s, nil
}

// change is what a plan gains over another one in a year: for the services that moved and all that use them.
type change struct {
	saves, month, once, downtime float64
}

// amortised is over how many years getting there is spread.
const amortised = 3

func (c change) net() float64 { return c.saves - 12*c.month - c.once/amortised }

// yearly is what the change costs in a year.
func (c change) yearly() float64 { return 12*c.month + c.once/amortised }

func (v *evaluator) change(from, to Plan, moved []string) (change, error) {
	affected := map[string]bool{}
	for _, name := range moved {
		for _, user := range v.users[name] {
			affected[user] = true
		}
	}
	names := slices.Sorted(maps.Keys(affected))
	before, err := v.sum(from, names)
	if err != nil {
		return change{}, err
	}
	after, err := v.sum(to, names)
	if err != nil {
		return change{}, err
	}
	c := change{saves: before.loss - after.loss, month: after.month - before.month, downtime: before.downtime - after.downtime}
	built := map[string]bool{}
	for _, name := range moved {
		work := v.Prices.Work[to[name].Pattern]
		if to[name].key() != from[name].key() {
			c.once += work.Mean() * v.Prices.Person.Mean()
		}
		for _, site := range to[name].Sites {
			if s := v.Sites[site]; !*s.Exists && !built[site] && !usedIn(from, site) {
				built[site] = true
				c.once += s.BuildOnce.Mean()
			}
		}
	}
	return c, nil
}

func usedIn(plan Plan, site string) bool {
	for _, p := range plan {
		if slices.Contains(p.Sites, site) {
			return true
		}
	}
	return false
}

// along lists the services that must come along when one moves, for it to gain anything: what it needs at every answer
// and what does not run at the new sites. They take the same placement, or what their data allows.
func (v *evaluator) along(plan Plan, service string, to Placement) Plan {
	next := plan.With(service, to)
	var pull func(name string)
	pull = func(name string) {
		for _, c := range v.Services[name].Calls {
			if c.Optional {
				continue
			}
			if !covers(next[c.To], to) {
				next[c.To] = v.fitted(c.To, to)
			}
			pull(c.To)
		}
	}
	pull(service)
	return next
}

// covers tells whether a service may answer at every site of a placement that may serve.
func covers(p, to Placement) bool {
	for _, site := range to.Sites {
		if !slices.Contains(p.Sites, site) {
			return false
		}
	}
	return true
}

// fitted is a placement at the same sites that a service's data allows.
func (v *evaluator) fitted(service string, to Placement) Placement {
	if d := v.Services[service].Data; to.Pattern == Partitioned && d != nil && d.ByUser.Mean() < .5 {
		to.Pattern = OneWriter
	}
	return to
}

// placements lists every way that a service could be run, at sites that there are or could be. Its first site stays.
func (e *Estate) placements(service string) []Placement {
	s := e.Services[service]
	first := s.Now.Sites[0]
	auto := true
	var out []Placement
	for _, pattern := range Patterns {
		if len(s.Consider) > 0 && !slices.Contains(s.Consider, pattern) {
			continue
		}
		if pattern == Single {
			out = append(out, Placement{Pattern: Single, Sites: []string{first}})
			continue
		}
		for _, other := range slices.Sorted(maps.Keys(e.Sites)) {
			near := e.Sites[other].City == e.Sites[first].City
			if other == first || e.Sites[other].Kind == Witness || pattern == SameCity && !near {
				continue
			}
			if _, joined := e.rtt(first, other); !joined {
				continue
			}
			p := Placement{Pattern: pattern, Sites: []string{first, other}}
			if active(pattern) {
				p.Quorum = e.tieBreaker(p.Sites)
				p.Automatic = &auto
			}
			out = append(out, p)
		}
	}
	return out
}

// tieBreaker finds a site that can vote between two others: a witness if there is one, else any third site.
func (e *Estate) tieBreaker(sites []string) string {
	best := ""
	for _, name := range slices.Sorted(maps.Keys(e.Sites)) {
		if slices.Contains(sites, name) {
			continue
		}
		if e.Sites[name].Kind == Witness {
			return name
		}
		if best == "" && *e.Sites[name].Exists {
			best = name
		}
	}
	return best
}

func (p Placement) String() string {
	return fmt.Sprintf("%s at %s", p.Pattern, strings.Join(p.Sites, " and "))
}
