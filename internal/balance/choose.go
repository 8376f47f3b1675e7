package balance

import (
	"math/bits"
	"sort"
	"time"
)

const (
	// An attempt that did not get through counts as so many requests that are there, up to failuresMost of them, and each of
	// them for so long: somebody has to find out that it is over.
	failureWeighs = 4
	failuresMost  = 8
	failureCounts = 500 * time.Millisecond
	// An instance of the own zone is passed over where it has more than spillTimes as much to do as one of another zone,
	// and spillMore requests more.
	spillTimes = 1.5
	spillMore  = 2
)

// group is instances among which one is chosen.
type group struct {
	of []candidate
	// sums are the sums of the weights up to and with each; nil: all weigh the same.
	sums []int64
}

type candidate struct {
	*Member
	weighs float64
}

func newGroup(members []*Member) group {
	g := group{of: make([]candidate, len(members)), sums: make([]int64, len(members))}
	sum, same := int64(0), true
	for i, m := range members {
		sum += m.weight
		g.of[i], g.sums[i] = candidate{m, float64(m.weight)}, sum
		same = same && m.weight == members[0].weight
	}
	if same {
		g.sums = nil
	}
	return g
}

// load is how much there is to do at an instance with one request more, by its weight.
func (c candidate) load(now int64) float64 {
	n := c.active.Load() + 1
	if failed := c.failures.Load(); failed > 0 && now < c.shunned.Load() {
		n += failureWeighs * min(failed, failuresMost)
	}
	return float64(n) / c.weighs
}

// failed counts an attempt that did not get through.
func (m *Member) failed(now time.Time) {
	n := min(m.failures.Add(1), failuresMost)
	m.shunned.Store(now.Add(time.Duration(n) * failureCounts).UnixNano())
}

// drawn is the instance at a draw from all 64-bit numbers, by weight.
func (g group) drawn(draw uint64) int {
	if g.sums == nil {
		i, _ := bits.Mul64(draw, uint64(len(g.of)))
		return int(i)
	}
	at, _ := bits.Mul64(draw, uint64(g.sums[len(g.sums)-1]))
	return sort.Search(len(g.sums), func(i int) bool { return g.sums[i] > int64(at) })
}

// open tells whether an instance can take a request that was not tried there.
func (c candidate) open(most int64, not *Member) bool {
	return c.Member != not && (most == 0 || c.active.Load() < most)
}

// choose takes the better one of two instances that are drawn by weight; where neither can take the request, the best of
// all. Not ok: none can.
func (g group) choose(draw uint64, now, most int64, not *Member) (best candidate, ok bool) {
	if len(g.of) == 0 {
		return candidate{}, false
	}
	first := g.drawn(draw)
	second := g.drawn(mix(draw))
	if second == first {
		second = (first + 1) % len(g.of) // two are better than one
	}
	for _, i := range [...]int{first, second} {
		if c := g.of[i]; c.open(most, not) && (!ok || c.load(now) < best.load(now)) {
			best, ok = c, true
		}
	}
	if ok {
		return best, true
	}
	for _, c := range g.of {
		if c.open(most, not) && (!ok || c.load(now) < best.load(now)) {
			best, ok = c, true
		}
	}
	return best, ok
}

// mix makes another number of one (the finisher of SplitMix64: Steele, Lea, Flood, 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Pick chooses an instance and counts a request there, until Release. draw is a random number; not is where the request
// was tried before, which is chosen only where nobody else is. Not ok: there is no instance, or all have as many requests as they may.
func (p *Pool) Pick(now time.Time, draw uint64, not *Member) (*Member, bool) {
	s := p.set.Load()
	if !s.next.IsZero() && !now.Before(s.next) {
		p.mu.Lock()
		s = p.refreshLocked(now)
		p.mu.Unlock()
	}
	most, at := int64(p.rules.PerMember), now.UnixNano()
	for {
		c, ok := s.choose(draw, at, most, not)
		if !ok && not != nil {
			c, ok = s.choose(draw, at, most, nil)
		}
		if !ok {
			return nil, false
		}
		if n := c.active.Add(1); most == 0 || n <= most {
			return c.Member, true
		}
		c.active.Add(-1) // somebody else was quicker
	}
}

// choose prefers the own zone, until that has clearly more to do.
func (s *set) choose(draw uint64, now, most int64, not *Member) (candidate, bool) {
	own, ok := s.own.choose(draw, now, most, not)
	if len(s.away.of) == 0 || ok && own.load(now)*own.weighs < 2 {
		return own, ok // nothing is there yet
	}
	away, other := s.away.choose(mix(draw+1), now, most, not)
	if !ok || other && own.load(now) > spillTimes*away.load(now)+spillMore {
		return away, other
	}
	return own, true
}
