package fault

import (
	"cmp"
	"errors"
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
	m = named.expand()
	circuit := newCircuit(m)
	c, err := compile(m, circuit, o.MaxNodes)
	if errors.Is(err, ErrTooLarge) && o.MaxOrder > 0 && o.MaxOrder <= maxTruncation && len(circuit.events) <= maxVariables {
		return analyseWithout(m, circuit, o, err)
	}
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

// analyseWithout finds the cut sets up to an order where the diagram of the probability is too large.
func analyseWithout(m *Model, circuit *circuit, o Options, tooLarge error) (res Result, err error) {
	c, root, err := circuit.truncate(m, o.MaxOrder, o.MaxNodes)
	if errors.Is(err, errNonCoherent) {
		return res, tooLarge
	}
	if err != nil {
		return res, err
	}
	res.Probability, res.Frequency, res.OnlyCutSets, res.Unknown = math.NaN(), math.NaN(), true, c.unknown()
	c.family(c.d, root, &res, o)
	return res, nil
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
	m = m.expand()
	c, err := compile(m, newCircuit(m), defaultNodes)
	if err != nil {
		return 0, 0, err
	}
	var res Result
	res.Probability = c.d.probability(c.root, c.p)
	c.importance(&res)
	return res.Probability, res.Frequency, nil
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
		if without < 1e-13*top { // a difference of rounding only: nothing else fails
			without = 0
		}
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
