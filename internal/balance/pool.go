package balance

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Pool is the instances of one service.
type Pool struct {
	rules Rules
	set   atomic.Pointer[set] // who may be chosen
	mu    struct {
		sync.Mutex
		members []*Member // in order of address
	}
}

// set is who may be chosen, until something changes. It is immutable.
type set struct {
	own   group     // of the pool's zone; everybody, where no zone is preferred or nobody is in it
	away  group     // the others
	all   int       // how many instances there are, fit or not
	fit   int       // how many of them are fit
	panic bool      // too few were fit, so that all are in it
	next  time.Time // when an ejection ends next; zero: none is
}

// NewPool makes a pool without instances.
func NewPool(rules Rules) *Pool {
	p := &Pool{rules: rules.withDefaults()}
	p.set.Store(&set{})
	return p
}

// Update says which instances there are. Those that stay keep their record; an address that occurs twice counts once.
func (p *Pool) Update(instances []Instance, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sorted := slices.Clone(instances)
	slices.SortStableFunc(sorted, func(a, b Instance) int { return cmp.Compare(a.Address, b.Address) })
	sorted = slices.CompactFunc(sorted, func(a, b Instance) bool { return a.Address == b.Address })
	members := make([]*Member, 0, len(sorted))
	for _, in := range sorted {
		m := p.findLocked(in.Address)
		if m == nil {
			m = &Member{Address: in.Address}
		}
		m.zone, m.weight = in.Zone, int64(max(in.Weight, 1))
		members = append(members, m)
	}
	p.mu.members = members
	p.refreshLocked(now)
}

func (p *Pool) findLocked(address string) *Member {
	i, found := slices.BinarySearchFunc(p.mu.members, address, func(m *Member, a string) int { return cmp.Compare(m.Address, a) })
	if !found {
		return nil
	}
	return p.mu.members[i]
}

// Report says what became of an attempt at an instance. The answer is whether that ejected it.
func (p *Pool) Report(m *Member, o Outcome, now time.Time) (ejected bool) {
	if o == Unreached {
		m.failed(now)
	} else if m.failures.Load() > 0 {
		m.failures.Store(0)
	}
	if o == Answered && !m.troubled.Load() {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	eject := m.record.report(p.rules.Ejection, o, now)
	if eject && p.findLocked(m.Address) == m && p.ejectedLocked(now) < p.rules.Ejection.most(len(p.mu.members)) {
		m.record.eject(p.rules.Ejection, now)
		m.failures.Store(0) // it is paid for
		p.refreshLocked(now)
		ejected = true
	}
	m.troubled.Store(m.record.troubled())
	return ejected
}

func (p *Pool) ejectedLocked(now time.Time) (n int) {
	for _, m := range p.mu.members {
		if m.record.ejected(now) {
			n++
		}
	}
	return n
}

// Checked says what an active check of an instance found. It ends no ejection. The answer is whether that changed what
// is believed.
func (p *Pool) Checked(address string, good bool, now time.Time) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.findLocked(address)
	if m == nil || !m.record.check(p.rules.Health, good) {
		return false
	}
	p.refreshLocked(now)
	return true
}

// refreshLocked finds out again who may be chosen.
func (p *Pool) refreshLocked(now time.Time) *set {
	s := &set{all: len(p.mu.members)}
	var fit []*Member
	for _, m := range p.mu.members {
		if m.record.ejected(now) && (s.next.IsZero() || m.record.until.Before(s.next)) {
			s.next = m.record.until
		}
		if p.healthyLocked(m) && !m.record.ejected(now) {
			fit = append(fit, m)
		}
	}
	s.fit = len(fit)
	if s.panic = 2*len(fit) < s.all; s.panic {
		fit = p.mu.members
	}
	var own, away []*Member
	for _, m := range fit {
		if p.rules.Zone != "" && m.zone != p.rules.Zone {
			away = append(away, m)
		} else {
			own = append(own, m)
		}
	}
	if len(own) == 0 {
		own, away = away, nil
	}
	s.own, s.away = newGroup(own), newGroup(away)
	p.set.Store(s)
	return s
}

func (p *Pool) healthyLocked(m *Member) bool { return !p.rules.Checked || m.record.fit == up }

// Len is how many instances there are, fit or not.
func (p *Pool) Len() int { return p.set.Load().all }

// Places is how many requests may be at the instances that are used, all together; 0: any number, or there is none of them.
func (p *Pool) Places() int {
	s := p.set.Load()
	return p.rules.PerMember * (len(s.own.of) + len(s.away.of))
}

// Summary is what there is at a moment.
type Summary struct {
	All, Fit, Ejected int
	Panic             bool // too few are fit, so that all are used
}

// Summary counts the instances.
func (p *Pool) Summary(now time.Time) Summary {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.refreshLocked(now)
	return Summary{All: s.all, Fit: s.fit, Ejected: p.ejectedLocked(now), Panic: s.panic}
}

// States lists the instances in order of address.
func (p *Pool) States(now time.Time) []State {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]State, len(p.mu.members))
	for i, m := range p.mu.members {
		out[i] = State{
			Instance: Instance{Address: m.Address, Zone: m.zone, Weight: int(m.weight)},
			Active:   m.active.Load(), Failures: m.failures.Load(), Healthy: p.healthyLocked(m), Ejections: m.record.ejections,
		}
		if m.record.ejected(now) {
			out[i].Ejected = m.record.until
		}
	}
	return out
}
