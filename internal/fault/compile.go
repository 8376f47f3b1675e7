package fault

import (
	"cmp"
	"fmt"
	"slices"
)

// maxVariables bounds the basic events below a top event: diagrams are gone through by recursion, event by event.
const maxVariables = 100_000

// compiled is a model as a diagram.
type compiled struct {
	model       *Model
	d           *diagram
	root        ref
	names       []string // by level
	p           []float64
	nonCoherent bool
}

// compile tries orders of the variables with few nodes, then the ones that came furthest with more.
func compile(m *Model, circuit *circuit, limit int) (*compiled, error) {
	if n := len(circuit.events); n > maxVariables {
		return nil, fmt.Errorf("%w: %d basic events are below the top event; at most %d are analysed", ErrTooLarge, n, maxVariables)
	}
	attempts := circuit.orders()
	for budget, last := 200_000, false; ; budget *= 10 {
		if last = budget >= limit; last {
			budget = limit
		}
		var err error
		for i := range attempts {
			a := &attempts[i]
			var c *compiled
			if c, a.came, err = compileIn(m, circuit, a.order, budget); err == nil {
				return c, nil
			}
		}
		if last {
			return nil, err
		}
		slices.SortStableFunc(attempts, func(a, b attempt) int { return cmp.Compare(b.came, a.came) })
		attempts = attempts[:max(1, len(attempts)/2)]
	}
}

// attempt is an order of the variables, and how many gates could be built with it.
type attempt struct {
	order []signal
	came  int
}

func compileIn(m *Model, circuit *circuit, order []signal, limit int) (c *compiled, came int, err error) {
	defer caught(&err)
	b := &build{circuit: circuit, d: newDiagram(false, limit), level: make([]uint32, len(circuit.events)),
		values: make([]ref, len(circuit.gates)), uses: circuit.uses()}
	c = &compiled{model: m, d: b.d, nonCoherent: circuit.nonCoherent}
	for i, v := range order {
		b.level[v] = uint32(i)
		c.names = append(c.names, circuit.events[v])
		c.p = append(c.p, m.Events[circuit.events[v]].Probability)
	}
	c.root = b.run(&came)
	return c, came, nil
}

// build turns a circuit into a diagram gate by gate, and takes nodes away that no gate needs any more.
type build struct {
	*circuit
	d      *diagram
	level  []uint32 // of the variables
	values []ref    // of the gates
	uses   []int    // of the gates by gates that are not built yet
	held   []ref    // what the gate at work holds
	kept   int      // nodes left by the last collection
}

// run builds every gate; came is how many of them so far.
func (b *build) run(came *int) ref {
	n := signal(len(b.events))
	for i := range b.gates {
		if b.uses[i] == 0 {
			continue
		}
		g := &b.gates[i]
		*came = i
		b.values[i] = b.join(g)
		for _, a := range g.args {
			if a >= n {
				b.uses[a-n]--
			}
		}
		b.sweep()
	}
	b.held = append(b.held[:0], b.value(b.top))
	b.uses = make([]int, len(b.gates))
	b.collect()
	b.d.freeze()
	return b.held[0]
}

func (b *build) value(s signal) ref {
	switch {
	case s == never:
		return zero
	case s == always:
		return one
	case int(s) < len(b.events):
		return b.d.variable(b.level[s])
	}
	return b.values[int(s)-len(b.events)]
}

// join builds a gate. Of many arguments those that stand deepest come first: what is built so far then mostly stays
// below what is added.
func (b *build) join(g *circuitGate) ref {
	b.held = b.held[:0]
	for _, a := range g.args {
		b.held = append(b.held, b.value(a))
	}
	if g.op != Xor {
		slices.SortStableFunc(b.held, func(x, y ref) int { return cmp.Compare(b.d.nodes[y].level, b.d.nodes[x].level) })
	}
	switch g.op {
	case Not:
		return b.retry(func() ref { return b.d.not(b.held[0]) })
	case Xor:
		return b.retry(func() ref { return b.d.xor(b.held[0], b.held[1]) })
	case AtLeast:
		return b.atLeast(g.k)
	}
	for len(b.held) > 1 {
		out := b.retry(func() ref {
			if g.op == And {
				return b.d.and(b.held[0], b.held[1])
			}
			return b.d.or(b.held[0], b.held[1])
		})
		b.held = b.held[1:]
		b.held[0] = out
		b.sweep()
	}
	return b.held[0]
}

// atLeast is true where at least k of what is held are. Behind the arguments, held has for j from 0 to k "at least j of
// those seen so far".
func (b *build) atLeast(k int) ref {
	n := len(b.held)
	b.held = append(b.held, one)
	for range k {
		b.held = append(b.held, zero)
	}
	for i := range n {
		for j := min(k, i+1); j > 0; j-- {
			more := b.retry(func() ref { return b.d.and(b.held[i], b.held[n+j-1]) })
			b.held = append(b.held, more)
			b.held[n+j] = b.retry(func() ref { return b.d.or(b.held[n+j], b.held[len(b.held)-1]) })
			b.held = b.held[:len(b.held)-1]
		}
		b.held[i] = zero
		b.sweep()
	}
	return b.held[n+k]
}

// retry makes room and tries once more where an operation finds none.
func (b *build) retry(operate func() ref) (out ref) {
	full := func() (full bool) {
		defer func() {
			switch r := recover().(type) {
			case nil:
			case overflow:
				full = true
			default:
				panic(r)
			}
		}()
		out = operate()
		return false
	}()
	if !full {
		return out
	}
	if b.collect(); b.kept > b.d.limit/4*3 || b.d.work > workPerNode*b.d.limit {
		panic(overflow{b.d.limit})
	}
	return operate()
}

// sweep collects when the diagram has grown to a multiple of what was needed last.
func (b *build) sweep() {
	if len(b.d.nodes) > max(100_000, 3*b.kept) {
		b.collect()
	}
}

// collect takes all nodes away that nothing needs.
func (b *build) collect() {
	var roots []*ref
	for i, uses := range b.uses {
		if uses > 0 {
			roots = append(roots, &b.values[i])
		}
	}
	for i := range b.held {
		roots = append(roots, &b.held[i])
	}
	b.d.collect(roots)
	b.kept = len(b.d.nodes)
}
