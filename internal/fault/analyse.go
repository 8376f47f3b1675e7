package fault

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
)

const (
	defaultNodes = 20_000_000
	defaultSets  = 100
	// everySet is how many cut sets are gone through one by one for the upper bound and the most probable ones.
	everySet = 2_000_000
)

// Analyse computes what Result holds. The error is the model's (Check), or ErrTooLarge.
func Analyse(m *Model, o Options) (res Result, err error) {
	if o.MaxNodes == 0 {
		o.MaxNodes = defaultNodes
	}
	if o.MaxSets == 0 {
		o.MaxSets = defaultSets
	}
	if o.MaxOrder < 0 || o.MaxNodes < 2 || o.MaxSets < 0 {
		return res, fmt.Errorf("analysis bounds %+v make no sense", o)
	}
	named := *m
	named.Events = maps.Clone(m.Events)
	if named.Events == nil {
		named.Events = map[string]Event{}
	}
	for _, g := range m.Groups { // members need no probability of their own
		for _, name := range g.Members {
			if _, ok := named.Events[name]; !ok {
				named.Events[name] = Event{}
			}
		}
	}
	if err := named.Check(); err != nil {
		return res, err
	}
	c, err := compile(named.expand(), o.MaxNodes)
	if err != nil {
		return res, err
	}
	res.Nodes, res.NonCoherent = len(c.d.nodes)-2, c.nonCoherent
	if res.Unknown = c.unknown(); len(res.Unknown) > 0 {
		res.Probability, res.Frequency = math.NaN(), math.NaN()
		return res, c.cutSets(&res, o)
	}
	res.Probability = c.d.probability(c.root, c.p)
	c.importance(&res)
	return res, c.cutSets(&res, o)
}

// unknown lists the events below the top that have no probability.
func (c *compiled) unknown() []string {
	return slices.DeleteFunc(slices.Sorted(slices.Values(c.names)), func(name string) bool { return !c.model.Events[name].Unknown })
}

// Probability computes only the probability of the top event, and how often it begins.
func Probability(m *Model) (p, frequency float64, err error) {
	if err := m.Check(); err != nil {
		return 0, 0, err
	}
	c, err := compile(m.expand(), defaultNodes)
	if err != nil {
		return 0, 0, err
	}
	var res Result
	res.Probability = c.d.probability(c.root, c.p)
	c.importance(&res)
	return res.Probability, res.Frequency, nil
}

// compiled is a model as a diagram.
type compiled struct {
	model       *Model
	d           *diagram
	root        ref
	names       []string // by level
	p           []float64
	nonCoherent bool
}

// compile tries several orders of the variables: a bad one can cost orders of magnitude, and none is always good.
func compile(m *Model, limit int) (*compiled, error) {
	orders := []func(*Model) []string{depthFirst, smallFirst, sharedFirst}
	var err error
	for budget := min(limit, 200_000); ; budget = min(limit, 10*budget) {
		for _, order := range orders {
			var c *compiled
			if c, err = compileIn(m, order(m), budget); err == nil {
				return c, nil
			}
		}
		if budget == limit {
			return nil, err
		}
	}
}

func compileIn(m *Model, order []string, limit int) (c *compiled, err error) {
	defer caught(&err)
	c = &compiled{model: m, d: newDiagram(false, limit), names: order, p: make([]float64, len(order))}
	vars := make(map[string]ref, len(order))
	for i, name := range order {
		c.p[i] = m.Events[name].Probability
		vars[name] = c.d.variable(uint32(i))
	}
	gates := map[string]ref{}
	var build func(f Formula) ref
	build = func(f Formula) ref {
		if f.Op == Name {
			if on, house := m.House[f.Name]; house {
				if on {
					return one
				}
				return zero
			}
			if v, event := vars[f.Name]; event {
				return v
			}
			g, done := gates[f.Name]
			if !done {
				g = build(m.Gates[f.Name])
				gates[f.Name] = g
			}
			return g
		}
		args := make([]ref, len(f.Args))
		for i, a := range f.Args {
			args[i] = build(a)
		}
		return c.join(f, args)
	}
	c.root = build(Ref(m.Top))
	return c, nil
}

// join applies an operator. What says "not" makes the tree non-coherent.
func (c *compiled) join(f Formula, args []ref) ref {
	d := c.d
	switch f.Op {
	case Not, Xor, Nand, Nor, Iff, Imply, Between:
		c.nonCoherent = true
	}
	switch f.Op {
	case And, Nand:
		out := one
		for _, a := range args {
			out = d.and(out, a)
		}
		if f.Op == Nand {
			return d.not(out)
		}
		return out
	case Or, Nor:
		out := zero
		for _, a := range args {
			out = d.or(out, a)
		}
		if f.Op == Nor {
			return d.not(out)
		}
		return out
	case AtLeast:
		return d.atLeast(f.K, args)
	case Between:
		lowest := d.atLeast(f.K, args)
		if f.Max == len(args) {
			return lowest
		}
		return d.and(lowest, d.not(d.atLeast(f.Max+1, args)))
	case Not:
		return d.not(args[0])
	case Xor:
		return d.xor(args[0], args[1])
	case Iff:
		return d.not(d.xor(args[0], args[1]))
	case Imply:
		return d.or(d.not(args[0]), args[1])
	case True:
		return one
	case False:
		return zero
	}
	panic("BUG: a checked formula with operator " + f.Op.String())
}

// probability sums over the paths to one, each node once. Children stand before their parents.
func (d *diagram) probability(root ref, p []float64) float64 {
	return d.probabilities(root, p)[root]
}

func (d *diagram) probabilities(root ref, p []float64) []float64 {
	out := make([]float64, max(int(root)+1, 2))
	out[one] = 1
	for i := 2; i <= int(root); i++ {
		n := d.nodes[i]
		out[i] = p[n.level]*out[n.hi] + (1-p[n.level])*out[n.lo]
	}
	return out
}

// birnbaum computes the top's probability and every event's Birnbaum measure in one pass down: how likely a node is
// reached, times what its variable makes of it there. What stands in no node is not seen.
func (c *compiled) birnbaum(p []float64) (top float64, measures []float64, seen []bool) {
	d, prob := c.d, c.d.probabilities(c.root, p)
	reach := make([]float64, len(prob))
	reach[c.root] = 1
	measures, seen = make([]float64, len(c.names)), make([]bool, len(c.names))
	for i := int(c.root); i >= 2; i-- { // parents stand behind their children
		if reach[i] == 0 {
			continue
		}
		n := d.nodes[i]
		measures[n.level] += reach[i] * (prob[n.hi] - prob[n.lo])
		seen[n.level] = true
		reach[n.hi] += reach[i] * p[n.level]
		reach[n.lo] += reach[i] * (1 - p[n.level])
	}
	return prob[c.root], measures, seen
}

// importance fills in every event's measures, and how often the top event begins.
func (c *compiled) importance(res *Result) {
	top, birnbaum, seen := c.birnbaum(c.p)
	for level, b := range birnbaum {
		if !seen[level] {
			continue
		}
		name := c.names[level]
		e := c.model.Events[name]
		with, without := top+b*(1-e.Probability), max(0, top-b*e.Probability)
		imp := Importance{Event: name, Probability: e.Probability, Birnbaum: b}
		if top > 0 {
			imp.Criticality, imp.FussellVesely, imp.RAW = b*e.Probability/top, 1-without/top, with/top
			imp.RRW = top / without // +Inf where without is 0
		}
		res.Importance = append(res.Importance, imp)
		if b != 0 && e.Frequency == 0 && e.Probability > 0 && e.Probability < 1 {
			res.Frequency = math.NaN()
		}
		res.Frequency += b * e.Frequency
	}
	slices.SortStableFunc(res.Importance, func(a, b Importance) int {
		return cmp.Or(cmp.Compare(math.Abs(b.Criticality), math.Abs(a.Criticality)), cmp.Compare(math.Abs(b.Birnbaum), math.Abs(a.Birnbaum)), cmp.Compare(a.Event, b.Event))
	})
}
