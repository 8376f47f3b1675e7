package assess

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
)

// Live lives through years of one service: what it hangs on fails and is repaired one by one, its sites are lost and
// come back, recoveries are begun, succeed or fail, and some are begun for nothing. It estimates the seconds a year
// without service, weighed by the share of users, as Availability.Downtime has them, but for what overload adds.
func Live(e *Estate, plan Plan, service string, years float64) (Estimate, error) {
	if !(years >= 2) || years > 1e6 {
		return Estimate{}, fmt.Errorf("living through %v years makes no sense; want 2 to a million", years)
	}
	l := &life{world: newWorld(e, plan, service), name: service, p: plan[service], s: e.Services[service], rng: e.rng("life of " + service)}
	l.shifts = make([]*shift, len(l.atoms))
	for i, a := range l.atoms {
		first := l.rng.ExpFloat64() * a.every
		if a.crew != nil {
			l.shifts[i] = a.crew.begin(l.rng)
			first = l.shifts[i].due()
		}
		heap.Push(&l.agenda, appointment{first, i})
	}
	n := int(years)
	sum, squares := 0.0, 0.0
	for y := range n {
		v := l.live(float64(y+1) * year)
		sum, squares = sum+v, squares+v*v
	}
	mean := sum / float64(n)
	half := z99 * math.Sqrt(max(0, squares/float64(n)-mean*mean)/float64(n-1))
	out := Estimate{Mean: mean, Low: max(0, mean-half), High: mean + half, Hits: l.hits, Samples: n, Seed: e.Seed, Method: "years lived through, event by event"}
	return out.orRefused(), nil
}

// life is a world in time.
type life struct {
	*world
	name string
	p    Placement
	s    *Service
	rng  *rand.Rand

	now    float64
	agenda agenda
	shifts []*shift // by atom, of those that are groups of servers
	watch  []int    // parts that say what works where
	up     []bool   // of each
	groups []group
	late   []debt
	hits   int
}

// group are users who are interrupted together when a site is lost: those of one site of an active pattern, or all; of
// the service itself, or of what it needs at every answer.
type group struct {
	home  int     // where they belong: an index into watch
	other []int   // where else they can be served
	share float64 // of the users
	waits []string
	state state
	until float64 // when a recovery ends
	there int     // where they are, away
}

// state of a group.
type state int

const (
	served     state = iota // at home
	recovering              // home is lost, and a recovery runs: ends in away, or at home if that comes back first
	waiting                 // the recovery failed, or there is nowhere to go: until home is back
	away                    // served elsewhere: until home is back; if that is lost too, until it or another one is
)

// debt is time without service that is owed, whatever else happens: needless recoveries and restores.
type debt struct{ from, until, share float64 }

// appointment is the next failure or repair of an atom, or within it; below 0 a needless recovery (-1) or a destruction (-2 - i).
type appointment struct {
	at   float64
	atom int
}

type agenda []appointment

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at < a[j].at }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)        { *a = append(*a, x.(appointment)) }
func (a *agenda) Pop() any {
	old := *a
	last := old[len(old)-1]
	*a = old[:len(old)-1]
	return last
}

// begin sets up groups and what happens besides failures of atoms.
func (l *life) begin() {
	h := newShape(l.Estate)
	if l.p.Pattern == Single { // home, and nowhere else
		l.watch = append(l.watch, l.sites[0])
		l.groups = append(l.groups, group{share: 1})
	}
	for _, f := range h.losses(l.Estate, func(m int) *Placement { p := l.plan[h.services[m]]; return &p }, h.service[l.name]) {
		g := group{share: f.share}
		for _, m := range f.waits {
			g.waits = append(g.waits, h.services[m])
		}
		via := h.services[f.via]
		for _, site := range l.plan[via].Sites {
			if site == f.site {
				g.home = len(l.watch)
			} else {
				g.other = append(g.other, len(l.watch))
			}
			l.watch = append(l.watch, l.upAt(via, site))
		}
		l.groups = append(l.groups, g)
	}
	l.up = make([]bool, len(l.watch))
	for i := range l.up {
		l.up[i] = true
	}
	if l.p.Pattern != Single {
		heap.Push(&l.agenda, appointment{l.rng.ExpFloat64() * l.Recovery[l.p.Pattern].False.Mean(), -1})
	}
}

// live goes on to a moment and returns the time without service on the way, weighed by the share of users.
func (l *life) live(until float64) (without float64) {
	if l.up == nil {
		l.begin()
	}
	for l.now < until {
		next := min(until, l.agenda[0].at)
		for i := range l.groups {
			if g := &l.groups[i]; g.state == recovering {
				next = min(next, g.until)
			}
		}
		without += (next - l.now) * l.lacking()
		for i := range l.late {
			without += max(0, min(next, l.late[i].until)-max(l.now, l.late[i].from)) * l.late[i].share
		}
		l.now = next
		l.settle()
	}
	return without
}

// lacking is the share of users without service now.
func (l *life) lacking() float64 {
	sum := 0.0
	for i := range l.groups {
		if g := &l.groups[i]; g.state == recovering || g.state == waiting || g.state == away && !l.up[g.there] {
			sum += g.share
		}
	}
	return min(1, sum)
}

// settle lets happen what happens now, and moves the groups.
func (l *life) settle() {
	for len(l.agenda) > 0 && l.agenda[0].at <= l.now {
		x := heap.Pop(&l.agenda).(appointment)
		switch {
		case x.atom >= 0 && l.shifts[x.atom] != nil:
			s := l.shifts[x.atom]
			s.happen(l.rng)
			l.down[x.atom] = s.down()
			heap.Push(&l.agenda, appointment{s.due(), x.atom})
		case x.atom >= 0:
			a := l.atoms[x.atom]
			l.down[x.atom] = !l.down[x.atom]
			wait := a.every
			if l.down[x.atom] {
				wait = a.lasts
			} else {
				l.restore(x.atom)
			}
			heap.Push(&l.agenda, appointment{l.now + l.rng.ExpFloat64()*wait, x.atom})
		default:
			l.hits++
			l.late = append(l.late, debt{l.now, l.now + l.recovery([]string{l.name}), l.p.interrupted(0)})
			heap.Push(&l.agenda, appointment{l.now + l.rng.ExpFloat64()*l.Recovery[l.p.Pattern].False.Mean(), -1})
		}
	}
	l.asked++
	for i, at := range l.watch {
		l.up[i] = l.ask(at)
	}
	for i := range l.groups {
		l.move(&l.groups[i])
	}
	kept := l.late[:0]
	for _, d := range l.late {
		if d.until > l.now {
			kept = append(kept, d)
		}
	}
	l.late = kept
}

// restore begins where a cause has ended that destroyed the service's data.
func (l *life) restore(atom int) {
	if l.s.Data == nil {
		return
	}
	for _, cause := range l.Shared {
		if at, known := l.index["absent "+cause.Name]; known && cause.Data && l.parts[at].atom == atom {
			if l.destroys(cause) {
				l.late = append(l.late, debt{l.now, l.now + l.s.Data.Restore.Mean(), 1})
			}
		}
	}
}

func (l *life) destroys(cause *Shared) bool {
	for _, site := range l.p.Sites {
		if strikes(cause.Hits.Sites, site) {
			return true
		}
	}
	return strikes(cause.Hits.Services, l.name)
}

// recovery is how long it takes until services that were lost together are back: those of one pattern go through its
// steps together.
func (l *life) recovery(services []string) (longest float64) {
	steps, restores := map[Pattern]float64{}, map[Pattern]float64{}
	for _, name := range services {
		p := l.plan[name].Pattern
		if _, drawn := steps[p]; !drawn {
			for _, step := range l.Recovery[p].steps() {
				steps[p] += step.n.At(l.rng.Float64())
			}
		}
		if restore := l.Services[name].restoreOf(p); restore.Set {
			restores[p] = max(restores[p], restore.At(l.rng.Float64()))
		}
	}
	for p, t := range steps {
		longest = max(longest, t+restores[p])
	}
	return longest
}

// coverage is how often that works.
func (l *life) coverage(services []string) float64 {
	least := 1.0
	for _, name := range services {
		least = min(least, l.Recovery[l.plan[name].Pattern].Coverage.Mean())
	}
	return least
}

// elsewhere finds a site that works besides a group's home; -1 for none.
func (l *life) elsewhere(g *group) int {
	for _, i := range g.other {
		if l.up[i] {
			return i
		}
	}
	return -1
}

// move takes a group from state to state.
func (l *life) move(g *group) {
	if l.up[g.home] {
		g.state = served // also from away: going home is planned, and costs nothing
		return
	}
	switch other := l.elsewhere(g); g.state {
	case served:
		l.hits++
		l.lose(g, other)
	case away:
		if !l.up[g.there] && other >= 0 {
			l.hits++
			l.lose(g, other)
		}
	case recovering:
		switch {
		case other < 0:
			g.state, g.until = waiting, math.Inf(1) // until anything is back
		case l.now >= g.until:
			g.state, g.there = away, other
		}
	case waiting:
		if other >= 0 && math.IsInf(g.until, 1) {
			l.lose(g, other)
		}
	}
}

// lose begins a recovery, if there is anywhere to go. Whether it works is decided at once; one that fails waits for
// home.
func (l *life) lose(g *group, other int) {
	switch {
	case other < 0:
		g.state, g.until = waiting, math.Inf(1)
	case l.rng.Float64() < l.coverage(g.waits):
		g.state, g.until = recovering, l.now+l.recovery(g.waits)
	default:
		g.state, g.until = waiting, 0
	}
}
