package assess

import (
	"fmt"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/fault"
)

// maxSets is how many minimal cut sets of a tree are gone through one by one, the most probable first.
const maxSets = 500

// structure is a fault tree, compiled: what fails the top, whatever the numbers.
type structure struct {
	model   *fault.Model
	tree    *fault.Tree
	singles []int // the events that alone are enough
	has     map[string]bool
	names   []string // of the cut sets, for people, once asked for
}

// numbers are those of a structure's events now, and what follows from them.
type numbers struct {
	*structure
	events          []fault.Event
	down, perSecond float64
	birnbaum        []float64
}

func (v *evaluator) structure(key []byte, build func() *fault.Model) (*structure, error) {
	if s, known := v.structures[string(key)]; known {
		return s, nil
	}
	m := build()
	t, err := fault.NewTree(m, maxSets)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Top, err)
	}
	s := &structure{model: m, tree: t, has: map[string]bool{}, names: make([]string, len(t.Sets()))}
	for i, name := range t.Events() {
		s.has[name] = true
		if t.Happens(func(e int) bool { return e == i }) {
			s.singles = append(s.singles, i)
		}
	}
	v.structures[string(key)] = s
	return s, nil
}

// everywhere is "the service is up at none of its sites".
func (v *evaluator) everywhere(a *arrangement, service int) (*structure, error) {
	return v.structure(v.structureKey([]byte{'s'}, a, service), func() *fault.Model { return v.tree(v.plan(a), v.services[service]) })
}

// at is "the service is not up at this site". Where else the service runs does not matter to it.
func (v *evaluator) at(a *arrangement, service, site int) (*structure, error) {
	key := []byte{'a', byte(site), byte(site >> 8), byte(service), byte(service >> 8)}
	for _, i := range v.hard[service] {
		if set := v.spot(a, i).set; i != service {
			key = append(key, byte(set), byte(set>>8))
		}
	}
	return v.structure(key, func() *fault.Model {
		b := v.newTree(v.plan(a))
		b.at(v.services[service], v.sites[site])
		b.m.Top = downAt(v.services[service], v.sites[site])
		return b.m
	})
}

// siteDown is "the site does not work".
func (v *evaluator) siteDown(site int) (*structure, error) {
	return v.structure([]byte{'d', byte(site), byte(site >> 8)}, func() *fault.Model {
		b := v.newTree(nil)
		b.site(v.sites[site])
		b.m.Top = sitePrefix + v.sites[site]
		return b.m
	})
}

// ask puts today's numbers into a structure.
func (v *evaluator) ask(s *structure) *numbers {
	n := &numbers{structure: s, events: make([]fault.Event, len(s.tree.Events()))}
	for i, name := range s.tree.Events() {
		n.events[i] = v.number(name)
	}
	n.down, n.perSecond, n.birnbaum = s.tree.Evaluate(n.events)
	n.perSecond = max(0, n.perSecond)
	return n
}

// number is an event's probability and frequency as they are assumed now.
func (v *evaluator) number(name string) fault.Event {
	if v.base != nil {
		switch {
		case v.varied.never == name:
			return fault.Event{}
		case !v.varied.event(v, name):
			return v.base.number(name)
		}
	}
	n, known := v.events[name]
	if !known {
		n = v.event(name)
		v.events[name] = n
	}
	return n
}

// strand is one way to fail, among those that make up a whole: how often it begins and how long it takes.
type strand struct {
	name      string
	perSecond float64
	outage    float64
}

// maxStrands are told apart; the rest is one.
const maxStrands = 8

// strands splits a failure into its causes, the minimal cut sets that keep allows: one that is down with probability Π q
// ends when the first of its events is repaired. They overlap a little, so frequencies and lengths are scaled to the
// exact whole.
func (n *numbers) strands(down, perSecond float64, keep func(set int) bool) []strand {
	var most [maxStrands]strand // by time, falling
	var sets [maxStrands]int
	kept, frequency, time := 0, 0.0, 0.0
	rest := strand{name: "other causes"}
	for i, set := range n.tree.Sets() {
		if keep != nil && !keep(i) {
			continue
		}
		p, ends := 1.0, 0.0
		for _, e := range set {
			q := n.events[e].Probability
			p *= q
			if q > 0 {
				ends += n.events[e].Frequency / q
			}
		}
		if p*ends == 0 {
			continue
		}
		s := strand{perSecond: p * ends, outage: 1 / ends}
		frequency, time = frequency+s.perSecond, time+p
		at := kept
		for at > 0 && p > most[at-1].perSecond*most[at-1].outage {
			at--
		}
		if kept == maxStrands {
			last := s
			if at < maxStrands {
				last = most[maxStrands-1]
			}
			rest.perSecond, rest.outage = rest.perSecond+last.perSecond, rest.outage+last.perSecond*last.outage
		} else {
			kept++
		}
		if at < maxStrands {
			copy(most[at+1:kept], most[at:])
			copy(sets[at+1:kept], sets[at:])
			most[at], sets[at] = s, i
		}
	}
	out := make([]strand, 0, kept+1)
	for i := range kept {
		most[i].name = n.setName(sets[i])
		out = append(out, most[i])
	}
	if rest.perSecond > 0 {
		rest.outage /= rest.perSecond
		out = append(out, rest)
	}
	if len(out) == 0 {
		return []strand{{"several causes", perSecond, down / perSecond}}
	}
	for i := range out {
		out[i].perSecond *= perSecond / frequency
		out[i].outage *= down / perSecond / (time / frequency)
	}
	return out
}

// setName joins the names of a cut set's events for people.
func (s *structure) setName(set int) string {
	if s.names[set] == "" {
		var names []string
		for _, e := range s.tree.Sets()[set] {
			names = append(names, plain(s.tree.Events()[e]))
		}
		slices.Sort(names)
		s.names[set] = strings.Join(names, " and ")
	}
	return s.names[set]
}

// leavesOther tells, for each cut set of a site's tree, whether it leaves the service up elsewhere.
func (v *evaluator) leavesOther(site, all *structure) []bool {
	key := [2]*structure{site, all}
	if out, known := v.alone[key]; known {
		return out
	}
	names := site.tree.Events()
	out := make([]bool, len(site.tree.Sets()))
	for i, set := range site.tree.Sets() {
		down := map[string]bool{}
		for _, e := range set {
			down[names[e]] = true
		}
		out[i] = !all.tree.Happens(func(e int) bool { return down[all.tree.Events()[e]] })
	}
	v.alone[key] = out
	return out
}
