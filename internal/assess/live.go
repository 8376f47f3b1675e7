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
	up     []bool   // of each site
	groups []group
	late   []debt
	hits   int
}

// group are users who are served together: those of one site of an active pattern, or all.
type group struct {
	home  int     // where they belong
	share float64 // of the users
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
	l.up = make([]bool, len(l.sites))
	for i := range l.up {
		l.up[i] = true
	}
	for i := range l.sites {
		if share := l.p.interrupted(i); share > 0 {
			l.groups = append(l.groups, group{home: i, share: share})
		}
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
			l.late = append(l.late, debt{l.now, l.now + l.recovery(), l.p.interrupted(0)})
			heap.Push(&l.agenda, appointment{l.now + l.rng.ExpFloat64()*l.Recovery[l.p.Pattern].False.Mean(), -1})
		}
	}
	l.asked++
	for i, at := range l.sites {
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

func (l *life) recovery() float64 {
	r := l.Recovery[l.p.Pattern]
	sum := 0.0
	if restore := l.s.restoreOf(l.p.Pattern); restore.Set {
		sum = restore.At(l.rng.Float64())
	}
	for _, step := range r.steps() {
		sum += step.n.At(l.rng.Float64())
	}
	return sum
}

// elsewhere finds a site that works besides a group's home; -1 for none.
func (l *life) elsewhere(g *group) int {
	for i, up := range l.up {
		if up && i != g.home {
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
	case l.rng.Float64() < l.Recovery[l.p.Pattern].Coverage.Mean():
		g.state, g.until = recovering, l.now+l.recovery()
	default:
		g.state, g.until = waiting, 0
	}
}
