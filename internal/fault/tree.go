package fault

// Tree is a model that was compiled once and can be asked again with other numbers: finding its structure takes the
// time, going through it does not.
type Tree struct {
	c    *compiled
	sets CutSets
	at   [][]int // of sets.Sets: the events' indexes
}

// NewTree compiles a model and lists its most probable minimal cut sets. The error is that of [Analyse].
func NewTree(m *Model, maxSets int) (*Tree, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	m = m.expand()
	c, err := compile(m, newCircuit(m), defaultNodes)
	if err != nil {
		return nil, err
	}
	t := &Tree{c: c}
	var res Result
	if err := c.cutSets(&res, Options{MaxNodes: defaultNodes, MaxSets: maxSets}); err != nil {
		return nil, err
	}
	t.sets = res.CutSets
	index := make(map[string]int, len(c.names))
	for i, name := range c.names {
		index[name] = i
	}
	for _, s := range t.sets.Sets {
		at := make([]int, len(s.Events))
		for i, name := range s.Events {
			at[i] = index[name]
		}
		t.at = append(t.at, at)
	}
	return t, nil
}

// Events names the basic events; their indexes are those of the other methods.
func (t *Tree) Events() []string { return t.c.names }

// CutSets are the minimal ways to the top event, with the probabilities of the model that was compiled.
func (t *Tree) CutSets() *CutSets { return &t.sets }

// Sets are the listed cut sets as indexes of their events.
func (t *Tree) Sets() [][]int { return t.at }

// Evaluate computes the top event's probability and how often it begins, for other numbers of the events, in the order
// of Events, and every event's Birnbaum measure.
func (t *Tree) Evaluate(events []Event) (p, frequency float64, birnbaum []float64) {
	q := make([]float64, len(events))
	for i := range events {
		q[i] = events[i].Probability
	}
	p, birnbaum, _ = t.c.birnbaum(q)
	for i, b := range birnbaum {
		frequency += b * events[i].Frequency
	}
	return p, frequency, birnbaum
}

// Happens tells whether the top event happens in the state where exactly some events do.
func (t *Tree) Happens(event func(i int) bool) bool {
	at := t.c.root
	for at > one {
		if n := t.c.d.nodes[at]; event(int(n.level)) {
			at = n.hi
		} else {
			at = n.lo
		}
	}
	return at == one
}
