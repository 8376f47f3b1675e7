package assess

import (
	"github.com/atollhq/atoll/internal/fault"
)

// world is a state of everything that one service hangs on, and the question what works in it. It is built from the
// model itself, in terms of working, with every server on its own where servers are independent: it shares nothing with
// the fault trees.
type world struct {
	*Estate
	plan  Plan
	index map[string]int // what stands where
	atoms []atom
	down  []bool // by atom
	parts []part
	sites []int // the parts that say whether the service is up at each of its sites
	asked uint32
}

// atom is something that fails and is repaired by itself: with the mean times given, or as a group of servers.
type atom struct {
	every, lasts float64
	crew         *crew
	group        int // atoms with the same one are alike: servers of one group, from 1; 0 is like no other
}

// share is the share of time in which it is down.
func (a atom) share() float64 {
	if a.crew != nil {
		return a.crew.share()
	}
	return a.lasts / (a.every + a.lasts)
}

// part works if so many of its args do; a leaf, if its atom does.
type part struct {
	atom  int // -1: none
	need  int
	args  []int
	asked uint32 // when its answer was last found
	works bool
}

func newWorld(e *Estate, plan Plan, service string) *world {
	w := &world{Estate: e, plan: plan, index: map[string]int{}}
	for _, site := range plan[service].Sites {
		w.sites = append(w.sites, w.upAt(service, site))
	}
	w.down = make([]bool, len(w.atoms))
	return w
}

func (w *world) add(p part) int {
	w.parts = append(w.parts, p)
	return len(w.parts) - 1
}

// known returns a part by its name, built at the first call.
func (w *world) known(name string, build func() int) int {
	at, ok := w.index[name]
	if !ok {
		at = build()
		w.index[name] = at
	}
	return at
}

func (w *world) leaf(name string, every, lasts float64) int {
	return w.known(name, func() int { return w.fails(atom{every: every, lasts: lasts}) })
}

func (w *world) fails(a atom) int {
	w.atoms = append(w.atoms, a)
	return w.add(part{atom: len(w.atoms) - 1})
}

func (w *world) all(args []int) int         { return w.add(part{atom: -1, need: len(args), args: args}) }
func (w *world) some(n int, args []int) int { return w.add(part{atom: -1, need: n, args: args}) }
func (w *world) absent(s *Shared) int {
	return w.leaf("absent "+s.Name, s.Every.Mean(), s.Lasts.Mean())
}
func (w *world) expression(x Expression) int { return w.need(x.need) }

// need builds an expression; a nil one needs nothing.
func (w *world) need(n *need) int {
	if n == nil {
		return w.all(nil)
	}
	if n.op == fault.Name {
		c := w.Components[n.name]
		every, lasts := c.times()
		return w.leaf("component "+n.name, every, lasts)
	}
	args := make([]int, len(n.args))
	for i, a := range n.args {
		args[i] = w.need(a)
	}
	switch n.op {
	case fault.And:
		return w.all(args)
	case fault.Or:
		return w.some(1, args)
	}
	return w.some(n.k, args)
}

func (w *world) siteWorks(site string) int {
	return w.known("site "+site, func() int {
		args := []int{w.expression(w.Sites[site].Needs)}
		for _, s := range w.Shared {
			if strikes(s.Hits.Sites, site) {
				args = append(args, w.absent(s))
			}
		}
		return w.all(args)
	})
}

func (w *world) upAt(service, site string) int {
	return w.known("up "+service+"@"+site, func() int {
		s := w.Services[service]
		args := []int{w.siteWorks(site), w.servers(service, site)}
		for _, cause := range w.Shared {
			if strikes(cause.Hits.Services, service) {
				args = append(args, w.absent(cause))
			}
		}
		for _, c := range s.Calls {
			if c.Optional {
				continue
			}
			var ways []int
			for _, to := range w.plan[c.To].Sites {
				ways = append(ways, w.all([]int{w.joined(site, to), w.upAt(c.To, to)}))
			}
			args = append(args, w.some(1, ways))
		}
		return w.all(args)
	})
}

// servers are one atom each, or one in all if they hang on each other.
func (w *world) servers(service, site string) int {
	s := w.Services[service].Servers
	if c := s.crew(); c != nil {
		return w.fails(atom{crew: c})
	}
	count, need, _ := s.sizes()
	each, group := make([]int, count), len(w.atoms)+1
	for i := range each {
		each[i] = w.fails(atom{every: s.Every.Mean(), lasts: s.Lasts.Mean(), group: group})
	}
	return w.some(need, each)
}

func (w *world) joined(from, to string) int {
	if from == to {
		return w.all(nil)
	}
	return w.known("line "+min(from, to)+" "+max(from, to), func() int {
		var lines []int
		for _, l := range w.Links {
			if l.joins(from, to) {
				lines = append(lines, w.expression(l.Needs))
			}
		}
		return w.some(1, lines)
	})
}

// ask tells whether a part works now.
func (w *world) ask(at int) bool {
	p := &w.parts[at]
	if p.atom >= 0 {
		return !w.down[p.atom]
	}
	if p.asked == w.asked {
		return p.works
	}
	left, spare := p.need, len(p.args)-p.need
	for _, a := range p.args {
		if left <= 0 || spare < 0 {
			break
		}
		if w.ask(a) {
			left--
		} else {
			spare--
		}
	}
	p.asked, p.works = w.asked, left <= 0
	return p.works
}

// works asks for the service in the state that down holds.
func (w *world) works() bool {
	w.asked++
	for _, at := range w.sites {
		if w.ask(at) {
			return true
		}
	}
	return false
}
