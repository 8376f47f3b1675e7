package assess

import (
	"math"
	"math/rand/v2"
	"slices"
)

// crew is a group of servers for the second engine, where they hang on each other: they queue for repair, or a failure
// may stop them all. Of the first engine it knows the model only: what fails and is repaired in turn, and what a stop is.
type crew struct {
	servers, need, crews int
	every, lasts         float64
	coverage             float64
}

// crew is nil for servers that are independent of each other.
func (s Servers) crew() *crew {
	c := crew{every: s.Every.Mean(), lasts: s.Lasts.Mean(), coverage: s.survived()}
	c.servers, c.need, c.crews = s.sizes()
	if c.need == 0 || c.crews == c.servers && (c.coverage == 1 || c.need == c.servers) {
		return nil
	}
	return &c
}

// share is the share of time in which the group does not work, by renewal: from all servers working until they all work
// again is a cycle, and what is down in the mean cycle is down in the long run. A cycle is made of excursions from i
// failed servers until they are one less, the longest way out first. No balance of probabilities is asked for.
func (c *crew) share() float64 {
	failing := func(failed int) float64 { return float64(c.servers-failed) / c.every }
	stop := func(failed int) float64 { // the mean stop when one more fails
		if c.servers-failed <= c.need {
			return 0
		}
		return (1 - c.coverage) * c.lasts
	}
	const most = 1e250       // excursions that take so long hide all that comes before them
	length, down := 0.0, 0.0 // of the mean excursion; down as a share of it
	for i := c.servers; i > 0; i-- {
		f := failing(i)
		ahead, stopped, out := 1.0, f*stop(i), f*length // in units of the mean repair that ends it
		lacking := stopped + out*down
		if c.servers-i < c.need {
			lacking += ahead
		}
		whole := ahead + stopped + out
		length, down = min(most, whole*c.lasts/float64(min(i, c.crews))), lacking/whole
	}
	working, stopped := 1/failing(0), stop(0)
	return (stopped + length*down) / (working + stopped + length)
}

// shift is a crew in time: which servers are broken, which of those wait, and until when all stand still.
type shift struct {
	*crew
	next    []float64 // of each server: when it fails, or its repair ends; infinite while it waits
	broken  []bool
	working int
	queue   []int // those that wait for a crew, the first first
	until   float64
}

func (c *crew) begin(rng *rand.Rand) *shift {
	s := &shift{crew: c, working: c.servers, broken: make([]bool, c.servers)}
	for range c.servers {
		s.next = append(s.next, rng.ExpFloat64()*c.every)
	}
	return s
}

// due is when something happens next.
func (s *shift) due() float64 {
	if s.until > 0 {
		return s.until
	}
	return slices.Min(s.next)
}

func (s *shift) down() bool { return s.until > 0 || s.working < s.need }

// happen lets happen what is due.
func (s *shift) happen(rng *rand.Rand) {
	now := s.due()
	if s.until > 0 {
		s.until = 0
		return
	}
	which := slices.Index(s.next, now)
	if s.broken[which] {
		s.broken[which], s.next[which] = false, now+rng.ExpFloat64()*s.every
		s.working++
		if len(s.queue) > 0 {
			s.next[s.queue[0]] = now + rng.ExpFloat64()*s.lasts
			s.queue = s.queue[1:]
		}
		return
	}
	s.broken[which], s.next[which] = true, math.Inf(1)
	s.working--
	if repaired := s.servers - s.working - 1 - len(s.queue); repaired < s.crews {
		s.next[which] = now + rng.ExpFloat64()*s.lasts
	} else {
		s.queue = append(s.queue, which)
	}
	if s.working >= s.need && rng.Float64() >= s.coverage {
		still := rng.ExpFloat64() * s.lasts
		s.until = now + still
		for i := range s.next {
			s.next[i] += still
		}
	}
}
