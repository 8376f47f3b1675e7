package registry

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/api"
)

// spareFor is how long an agent that hears fewer than half of a service's instances keeps those that it does not hear.
const spareFor = 5 * time.Minute

// phase says what it means that an instance has not renewed in its time.
type phase uint8

const (
	// deaf: nobody is heard. The agent is new, or the time of everybody whom it knew has run out, which tells more of the way
	// here than of them. Nobody is taken away. Left for gathering by the first word of anybody.
	deaf phase = iota
	// gathering: somebody was heard, since less than the longest time. Others may just not have come to renew yet. Nobody is
	// taken away. Left for settled when that time is over, for deaf when nobody is heard any more.
	gathering
	// settled: whoever could renew has had the time to. Those who are silent are taken away. Left for sparing when they are more than
	// those who are heard, for deaf when nobody is.
	settled
	// sparing: most fell silent at once. That is rather a path that broke; gateways find out by themselves who does not answer.
	// Nobody is taken away. Left for settled when all are heard again or spareFor is over, for deaf when nobody is heard.
	sparing
)

// service is what is known of one service's instances: a machine of (state, event, now), pure.
type service struct {
	ttl     time.Duration // the longest that an instance may register for
	phase   phase
	since   time.Time // of the phase
	at      map[string]*entry
	left    map[string]struct{} // whom a gateway may know that this agent does not: they are gone all the same. Empty when complete
	version uint64              // grows when who is there changes, or complete does
}

type entry struct {
	api.Instance
	until time.Time
}

func newService(ttl time.Duration) *service {
	return &service{ttl: ttl, at: make(map[string]*entry), left: make(map[string]struct{})}
}

// complete tells whether the list names everybody who is there.
func (s *service) complete() bool { return s.phase == settled || s.phase == sparing }

// register takes an instance in until now+ttl. False: there are too many, and all are heard.
func (s *service) register(in api.Instance, ttl time.Duration, now time.Time) bool {
	s.pass(now)
	e := s.at[in.Address]
	if e == nil {
		if len(s.at) >= api.MaxInstances && !s.evict(now) {
			return false
		}
		e = &entry{}
		s.at[in.Address] = e
		delete(s.left, in.Address)
	}
	if e.Instance != in {
		e.Instance = in
		s.version++
	}
	e.until = now.Add(ttl)
	s.hear(now)
	return true
}

// evict makes room: the instance that has been silent for the longest time goes.
func (s *service) evict(now time.Time) bool {
	var oldest *entry
	for _, e := range s.at {
		if !e.heard(now) && (oldest == nil || e.until.Before(oldest.until)) {
			oldest = e
		}
	}
	if oldest != nil {
		delete(s.at, oldest.Address)
		s.version++
	}
	return oldest != nil
}

// leave lets an instance go, and tells whether it was known.
func (s *service) leave(address string, now time.Time) (known bool) {
	s.pass(now)
	if _, known = s.at[address]; known {
		delete(s.at, address)
		s.version++
	}
	s.hear(now)
	if _, told := s.left[address]; !told && !s.complete() && len(s.left) < api.MaxInstances {
		s.left[address] = struct{}{}
		s.version++
	}
	return known
}

// hear notes that somebody has said something.
func (s *service) hear(now time.Time) {
	if s.phase == deaf {
		s.enter(gathering, now)
	}
}

// pass lets time go by.
func (s *service) pass(now time.Time) {
	for s.step(now) {
	}
}

// step is one transition of those that time makes; false: there is none.
func (s *service) step(now time.Time) bool {
	heard := s.heard(now)
	silent := len(s.at) - heard
	deafened := heard == 0 && silent > 0
	switch s.phase {
	case deaf:
		return false
	case gathering:
		switch {
		case deafened:
			return s.enter(deaf, now)
		case now.Sub(s.since) >= s.ttl:
			return s.enter(settled, now)
		}
		return false
	case settled:
		switch {
		case deafened:
			return s.enter(deaf, now)
		case silent > heard:
			return s.enter(sparing, now)
		case silent > 0:
			s.takeAway(now)
		}
		return false
	case sparing:
		switch {
		case deafened:
			return s.enter(deaf, now)
		case silent == 0:
			return s.enter(settled, now)
		case now.Sub(s.since) >= spareFor:
			s.takeAway(now)
			return s.enter(settled, now)
		}
		return false
	}
	panic("BUG: a phase that there is not")
}

func (s *service) enter(p phase, now time.Time) bool {
	was := s.complete()
	s.phase, s.since = p, now
	if s.complete() != was {
		s.version++
	}
	if s.complete() {
		clear(s.left)
	}
	return true
}

func (s *service) takeAway(now time.Time) {
	maps.DeleteFunc(s.at, func(_ string, e *entry) bool { return !e.heard(now) })
	s.version++
}

func (e *entry) heard(now time.Time) bool { return now.Before(e.until) }

func (s *service) heard(now time.Time) (n int) {
	for _, e := range s.at {
		if e.heard(now) {
			n++
		}
	}
	return n
}

// next is the next moment at which time alone may change something, within an hour: there may be none.
func (s *service) next(now time.Time) time.Time {
	at := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(at) {
			at = t
		}
	}
	switch s.phase {
	case gathering:
		sooner(s.since.Add(s.ttl))
	case sparing:
		sooner(s.since.Add(spareFor))
	}
	for _, e := range s.at {
		sooner(e.until)
	}
	return at
}

// list names the instances in order of address.
func (s *service) list(now time.Time) []api.Registered {
	out := make([]api.Registered, 0, len(s.at))
	for _, e := range s.at {
		out = append(out, api.Registered{Instance: e.Instance, RemainingMS: e.until.Sub(now).Milliseconds()})
	}
	slices.SortFunc(out, func(a, b api.Registered) int { return cmp.Compare(a.Address, b.Address) })
	return out
}

// gone names those who have left while the list was not complete.
func (s *service) gone() []string { return slices.Sorted(maps.Keys(s.left)) }
