package assess

import (
	"cmp"
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
	s := &structure{model: m, tree: t}
	for i := range t.Events() {
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
	n := &numbers{structure: s}
	for _, name := range s.tree.Events() {
		n.events = append(n.events, v.number(name))
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
		case !v.varied.event(name):
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
	var all []strand
	var index []int
	for i, set := range n.tree.Sets() {
		if keep != nil && !keep(i) {
			continue
		}
		p, ends := 1.0, 0.0
		for _, e := range set {
			p *= n.events[e].Probability
			if q := n.events[e].Probability; q > 0 {
				ends += n.events[e].Frequency / q
			}
		}
		if p*ends > 0 {
			all, index = append(all, strand{perSecond: p * ends, outage: 1 / ends}), append(index, i)
		}
	}
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		return cmp.Or(cmp.Compare(all[j].perSecond*all[j].outage, all[i].perSecond*all[i].outage), cmp.Compare(i, j))
	})
	var out []strand
	often, long := 0.0, 0.0
	rest := strand{name: "other causes"}
	for k, i := range order {
		s := all[i]
		often, long = often+s.perSecond, long+s.perSecond*s.outage
		if k < maxStrands {
			s.name = n.setName(index[i])
			out = append(out, s)
			continue
		}
		rest.perSecond, rest.outage = rest.perSecond+s.perSecond, rest.outage+s.perSecond*s.outage
	}
	if rest.perSecond > 0 {
		rest.outage /= rest.perSecond
		out = append(out, rest)
	}
	if len(out) == 0 {
		return []strand{{"several causes", perSecond, down / perSecond}}
	}
	for i := range out {
		out[i].perSecond *= perSecond / often
		out[i].outage *= down / perSecond / (long / often)
	}
	return out
}

// setName joins the names of a cut set's events for people.
func (s *structure) setName(set int) string {
	var names []string
	for _, e := range s.tree.Sets()[set] {
		names = append(names, plain(s.tree.Events()[e]))
	}
	slices.Sort(names)
	return strings.Join(names, " and ")
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
