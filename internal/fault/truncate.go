package fault

import "errors"

// ErrNonCoherent is returned where only a diagram could answer and the tree says "not".
var errNonCoherent = errors.New("a tree that says not has no cut sets without its diagram")

// truncated finds the minimal cut sets of at most order events of a coherent circuit without its diagram, gate by gate:
// what has more events is dropped as soon as it comes up.
type truncated struct {
	*circuit
	z        *diagram
	level    []uint32
	families []ref
	order    uint8
}

// maxTruncation bounds an order of truncation: up to it, an operation's cache key has room for what is left of it.
const maxTruncation = 200

// truncate returns the family, and what its levels stand for.
func (c *circuit) truncate(m *Model, order, limit int) (out *compiled, root ref, err error) {
	defer caught(&err)
	if c.nonCoherent {
		return nil, zero, errNonCoherent
	}
	t := &truncated{circuit: c, z: newDiagram(true, limit), level: make([]uint32, len(c.events)), families: make([]ref, len(c.gates)), order: uint8(min(order, maxTruncation))}
	out = &compiled{model: m, d: t.z}
	for i, v := range c.orders()[0].order {
		t.level[v] = uint32(i)
		out.names = append(out.names, c.events[v])
		out.p = append(out.p, m.Events[c.events[v]].Probability)
	}
	uses := c.uses()
	for i := range c.gates {
		if uses[i] > 0 {
			t.families[i] = t.join(&c.gates[i])
		}
	}
	return out, t.family(c.top), nil
}

func (t *truncated) family(s signal) ref {
	switch {
	case s == never:
		return zero
	case s == always:
		return one
	case int(s) < len(t.events):
		return t.z.variable(t.level[s])
	}
	return t.families[int(s)-len(t.events)]
}

func (t *truncated) join(g *circuitGate) ref {
	switch g.op {
	case And, Or:
		args := make([]ref, len(g.args))
		for i, a := range g.args {
			args[i] = t.family(a)
		}
		for len(args) > 1 { // in pairs: many arguments one by one would each go through all before
			for i := range len(args) / 2 {
				if g.op == And {
					args[i] = t.z.product(args[2*i], args[2*i+1], t.order)
				} else {
					args[i] = t.z.union(args[2*i], args[2*i+1])
				}
			}
			if len(args)%2 == 1 {
				args[len(args)/2] = args[len(args)-1]
			}
			args = args[:(len(args)+1)/2]
		}
		return args[0]
	case AtLeast:
		row := make([]ref, g.k+1) // row[j] is "at least j of those seen so far"
		row[0] = one
		for _, a := range g.args {
			for j := g.k; j > 0; j-- {
				row[j] = t.z.union(row[j], t.z.product(t.family(a), row[j-1], t.order))
			}
		}
		return row[g.k]
	}
	panic("BUG: a coherent circuit with operator " + g.op.String())
}

// union is the minimal sets of both families.
func (d *diagram) union(a, b ref) ref {
	switch {
	case a == one || b == one:
		return one
	case a == zero || a == b:
		return b
	case b == zero:
		return a
	case a > b:
		a, b = b, a
	}
	if out, ok := d.known(opUnion, a, b); ok {
		return out
	}
	na, nb := d.nodes[a], d.nodes[b]
	level := min(na.level, nb.level)
	na, nb = na.from(level, a), nb.from(level, b)
	low := d.union(na.lo, nb.lo)
	high := d.union(na.hi, nb.hi)
	return d.remember(opUnion, a, b, d.mk(level, d.without(high, low), low))
}

// from is a family's node as seen from a level at or above its own.
func (v vertex) from(level uint32, at ref) vertex {
	if v.level > level {
		return vertex{level, zero, at}
	}
	return v
}

// product is the minimal unions, of at most budget events, of a set of one family and a set of the other.
func (d *diagram) product(a, b ref, budget uint8) ref {
	switch {
	case a == zero || b == zero:
		return zero
	case a == one:
		return d.upTo(b, budget)
	case b == one || a == b:
		return d.upTo(a, budget)
	case a > b:
		a, b = b, a
	}
	op := opProduct + operation(budget)
	if out, ok := d.known(op, a, b); ok {
		return out
	}
	na, nb := d.nodes[a], d.nodes[b]
	level := min(na.level, nb.level)
	na, nb = na.from(level, a), nb.from(level, b)
	low, high := d.product(na.lo, nb.lo, budget), zero
	if budget > 0 {
		high = d.union(d.product(na.hi, d.union(nb.hi, nb.lo), budget-1), d.product(na.lo, nb.hi, budget-1))
		high = d.without(high, low)
	}
	return d.remember(op, a, b, d.mk(level, high, low))
}

// upTo drops the sets of more events than budget.
func (d *diagram) upTo(a ref, budget uint8) ref {
	if a <= one {
		return a
	}
	op := opUpTo + operation(budget)
	if out, ok := d.known(op, a, 0); ok {
		return out
	}
	n, high := d.nodes[a], zero
	low := d.upTo(n.lo, budget)
	if budget > 0 {
		high = d.upTo(n.hi, budget-1)
	}
	return d.remember(op, a, 0, d.mk(n.level, high, low))
}
