package assess

import (
	"encoding/binary"
	"fmt"
	"math"
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
func (v *evaluator) meanShare(service int) float64 {
	sum := 0.0
	for _, l := range v.levelsOf[service] {
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

// serves is the share of a service's users that a site serves, all sites working ("") or one of them lost.
func (p Placement) serves(site, lost string) float64 {
	at, hit := slices.Index(p.Sites, site), slices.Index(p.Sites, lost)
	switch {
	case at < 0 || site == lost:
		return 0
	case active(p.Pattern) && hit >= 0:
		return 1 / float64(len(p.Sites)-1)
	case active(p.Pattern):
		return 1 / float64(len(p.Sites))
	case at == 0, at == 1 && hit == 0:
		return 1
	}
	return 0
}

// carries is the share of a service's peak that a site's cores are in use for.
func (p Placement) carries(site, lost string) float64 {
	if at := slices.Index(p.Sites, site); at > 0 && site != lost {
		return max(p.serves(site, lost), standby(p.Pattern))
	}
	return p.serves(site, lost)
}

// loads are the sites' cores in use at the peak under one plan, as shares of those that there are: with no site lost
// (0), or one of them (its index + 1).
type loads struct {
	at      [][]float64 // [lost][site]
	crowded bool        // one of them is beyond the limit
}

func (v *evaluator) loads(a *arrangement) *loads {
	switch {
	case v.base != nil && !v.varied.loads:
		return v.base.loads(a)
	case v.base != nil && v.full[a] != nil:
		return v.full[a]
	case v.base == nil && a.load != nil:
		return a.load
	}
	n := len(v.sites)
	l := &loads{at: make([][]float64, n+1)}
	for lost := range l.at {
		l.at[lost] = make([]float64, n)
		for i, name := range v.services {
			cores, spot := v.Services[name].Demand.Cores.Mean(), v.spot(a, i)
			for _, site := range spot.at {
				l.at[lost][site] += cores * spot.carries[lost][site]
			}
		}
		for site, name := range v.sites {
			if l.at[lost][site] > 0 {
				l.at[lost][site] /= v.Sites[name].Cores.Mean()
			}
			l.crowded = l.crowded || l.at[lost][site] > limit
		}
	}
	if v.base != nil {
		v.full[a] = l
	} else {
		a.load = l
	}
	return l
}

// states lists the states of sites that matter to a placement: all work, or one of its own is lost.
func (s *spot) states() []int {
	out := []int{0}
	if len(s.at) > 1 {
		for _, site := range s.at {
			out = append(out, site+1)
		}
	}
	return out
}

// crowdKey names what overload makes of a spot; nothing where no site is crowded.
func (l *loads) crowdKey(key []byte, s *spot) []byte {
	if !l.crowded {
		return key
	}
	for _, lost := range s.states() {
		for _, site := range s.at {
			if l.at[lost][site] > limit {
				key = append(key, byte(lost), byte(site))
				key = binary.LittleEndian.AppendUint64(key, math.Float64bits(l.at[lost][site]))
			}
		}
	}
	return key
}

// differs tells whether overload makes something else of a spot under other loads.
func (l *loads) differs(o *loads, s *spot) bool {
	for _, lost := range s.states() {
		for _, site := range s.at {
			if a, b := max(limit, l.at[lost][site]), max(limit, o.at[lost][site]); a != b {
				return true
			}
		}
	}
	return false
}

// overload is what demand beyond the limit does to a service in a year.
type overload struct {
	time     float64 // seconds in which there is any
	unserved float64 // seconds × share of users who find no room
	weighed  float64 // the same, each moment weighed by its demand, 1 being the average
}

// overload looks at the usual state and at the loss of each of a service's sites. What lies beyond the limit finds no
// room; the whole site's load is taken to follow the service's own curve.
func (v *evaluator) overload(a *arrangement, service int) (out overload) {
	l, s := v.loads(a), v.spot(a, service)
	if !l.crowded {
		return out
	}
	mean, usual := v.meanShare(service), 1.0
	states := s.states()
	for i := range states { // the losses first: what is left is the usual state
		lost := states[len(states)-1-i]
		share := usual
		if lost > 0 {
			share = v.unavailable(lost - 1)
			usual -= share
		}
		for _, at := range v.levelsOf[service] {
			cut := 0.0
			for _, site := range s.at {
				if load := l.at[lost][site] * at.demand; load > limit {
					cut += s.serves[lost][site] * (1 - limit/load)
				}
			}
			if cut > 0 {
				out.time += share * at.share * year
				out.unserved += share * at.share * year * cut
				out.weighed += share * at.share * year * cut * at.demand / mean
			}
		}
	}
	return out
}

// unavailable is the share of time in which a site does not work.
func (v *evaluator) unavailable(site int) float64 {
	s, err := v.siteDown(site)
	if err != nil {
		return 0 // siteAnswers says so
	}
	return v.ask(s).down
}

// siteLoads looks at every site that serves.
func (v *evaluator) siteLoads(a *arrangement) []SiteLoad {
	var out []SiteLoad
	l := v.loads(a)
	for i, name := range v.sites {
		if v.Sites[name].Kind == Witness {
			continue
		}
		s := SiteLoad{Site: name, Usual: l.at[0][i], AfterLoss: l.at[0][i]}
		for lost := range v.sites {
			if lost != i {
				s.AfterLoss = max(s.AfterLoss, l.at[lost+1][i])
			}
		}
		out = append(out, s)
	}
	return out
}

// enough tells whether the sites of a spot carry the peak, also with any one of them lost.
func (l *loads) enough(s *spot) bool {
	for _, lost := range s.states() {
		for _, site := range s.at {
			if l.at[lost][site] > limit {
				return false
			}
		}
	}
	return true
}

// recovers tells whether, with any one site of a spot lost, the others carry the peak, or are no fuller than today.
func (l *loads) recovers(s *spot, today *loads) bool {
	for _, lost := range s.states()[1:] {
		for _, site := range s.at {
			if x := l.at[lost][site]; x > limit && x > today.at[0][site]*(1+1e-9) {
				return false
			}
		}
	}
	return true
}

// crowds tells whether a site of a spot is beyond the limit with all sites working.
func (l *loads) crowds(s *spot) bool {
	return slices.ContainsFunc(s.at, func(site int) bool { return l.at[0][site] > limit })
}

// capacity says whether the sites of a service's placement carry the load, also with the worst one lost.
func (v *evaluator) capacity(a *arrangement, service int, id string, book Book) Capacity {
	s, name := v.spot(a, service), v.services[service]
	c := Capacity{Enough: v.loads(a).enough(s)}
	var parts []Part
	inputs := []Input{inputOf(v.Services[name].Demand.Cores)}
	for _, l := range v.siteLoads(a) {
		if !slices.Contains(s.Sites, l.Site) {
			continue
		}
		c.Sites = append(c.Sites, l)
		parts = append(parts, Part{Name: "load of " + l.Site + " at the peak", Value: l.Usual, Unit: Ratio}, Part{Name: "load of " + l.Site + " with the worst other site lost", Value: l.AfterLoss, Unit: Ratio})
		inputs = append(inputs, inputOf(v.Sites[l.Site].Cores))
	}
	c.Overload = book.Note(Derivation{ID: id + ".overload", What: "time a year in which demand is beyond what works, for " + name,
		Value: v.overload(a, service).time, Unit: Duration, Parts: parts, Inputs: inputs,
		Method: fmt.Sprintf("Σ over the usual state and the loss of each of its sites: share of time × share of hours in which the load at the peak × demand exceeds %.0f %% of a site's cores", 100*limit)})
	return c
}
