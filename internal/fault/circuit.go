package fault

import (
	"fmt"
	"slices"
)

// signal names a line of a circuit: a variable, a gate behind the variables, or one of the two constants.
type signal int32

const (
	never  signal = -1
	always signal = -2
)

// circuitGate is one operation: And, Or, AtLeast k, Xor of two, or Not.
type circuitGate struct {
	op   Op
	k    int
	args []signal
}

// circuit is what of a model matters to its top event, made plain: no constants, no gate of one argument, no gate
// within one of its own kind that is used nowhere else, equal gates once. Every gate stands behind its arguments.
type circuit struct {
	events      []string // the variables
	gates       []circuitGate
	top         signal
	nonCoherent bool

	known map[string]signal // equal gates
}

func (c *circuit) gate(s signal) *circuitGate { return &c.gates[int(s)-len(c.events)] }

// isGate tells whether a signal is a gate of one kind.
func (c *circuit) isGate(s signal, op Op) bool {
	return int(s) >= len(c.events) && c.gate(s).op == op
}

// newCircuit needs a model that was checked.
func newCircuit(m *Model) *circuit {
	c := &circuit{known: map[string]signal{}, events: depthFirst(m)}
	index := make(map[string]signal, len(c.events))
	for i, name := range c.events {
		index[name] = signal(i)
	}
	done := map[string]signal{}
	var build func(f Formula) signal
	build = func(f Formula) signal {
		if f.Op == Name {
			if on, house := m.House[f.Name]; house {
				return constantSignal(on)
			}
			if v, event := index[f.Name]; event {
				return v
			}
			s, built := done[f.Name]
			if !built {
				s = build(m.Gates[f.Name])
				done[f.Name] = s
			}
			return s
		}
		args := make([]signal, len(f.Args))
		for i, a := range f.Args {
			args[i] = build(a)
		}
		return c.join(f, args)
	}
	c.top = build(Ref(m.Top))
	c.known = nil
	c.flatten()
	return c
}

func constantSignal(on bool) signal {
	if on {
		return always
	}
	return never
}

// join adds a formula over signals. What says "not" makes the tree non-coherent.
func (c *circuit) join(f Formula, args []signal) signal {
	switch f.Op {
	case Not, Xor, Nand, Nor, Iff, Imply, Between:
		c.nonCoherent = true
	}
	switch f.Op {
	case And, Or:
		return c.all(f.Op, args)
	case Nand:
		return c.not(c.all(And, args))
	case Nor:
		return c.not(c.all(Or, args))
	case AtLeast:
		return c.atLeast(f.K, args)
	case Between:
		return c.all(And, []signal{c.atLeast(f.K, args), c.not(c.atLeast(f.Max+1, args))})
	case Not:
		return c.not(args[0])
	case Xor:
		return c.xor(args[0], args[1])
	case Iff:
		return c.not(c.xor(args[0], args[1]))
	case Imply:
		return c.all(Or, []signal{c.not(args[0]), args[1]})
	case True, False:
		return constantSignal(f.Op == True)
	}
	panic("BUG: a checked formula with operator " + f.Op.String())
}

// add returns the gate, which may be there already. Arguments of symmetric operations are compared without their order.
func (c *circuit) add(op Op, k int, args []signal) signal {
	sorted := slices.Clone(args)
	slices.Sort(sorted)
	key := fmt.Sprint(op, k, sorted)
	if s, ok := c.known[key]; ok {
		return s
	}
	s := signal(len(c.events) + len(c.gates))
	c.gates = append(c.gates, circuitGate{op, k, args})
	c.known[key] = s
	return s
}

// all is And or Or of any number of signals.
func (c *circuit) all(op Op, args []signal) signal {
	neutral, decides := always, never
	if op == Or {
		neutral, decides = never, always
	}
	seen := make(map[signal]bool, len(args))
	rest := make([]signal, 0, len(args))
	for _, a := range args {
		switch {
		case a == decides:
			return decides
		case a != neutral && !seen[a]:
			seen[a] = true
			rest = append(rest, a)
		}
	}
	for _, a := range rest { // a and not a
		if c.isGate(a, Not) && seen[c.gate(a).args[0]] {
			return decides
		}
	}
	switch len(rest) {
	case 0:
		return neutral
	case 1:
		return rest[0]
	}
	return c.add(op, 0, rest)
}

func (c *circuit) not(a signal) signal {
	switch {
	case a == never:
		return always
	case a == always:
		return never
	case c.isGate(a, Not):
		return c.gate(a).args[0]
	}
	return c.add(Not, 0, []signal{a})
}

func (c *circuit) xor(a, b signal) signal {
	switch {
	case a == b:
		return never
	case a < 0:
		a, b = b, a
	}
	switch b {
	case never:
		return a
	case always:
		return c.not(a)
	}
	return c.add(Xor, 0, []signal{a, b})
}

// atLeast counts an argument as often as it stands there.
func (c *circuit) atLeast(k int, args []signal) signal {
	rest := make([]signal, 0, len(args))
	for _, a := range args {
		switch a {
		case always:
			k--
		case never:
		default:
			rest = append(rest, a)
		}
	}
	switch {
	case k <= 0:
		return always
	case k > len(rest):
		return never
	case k == 1:
		return c.all(Or, rest)
	case k == len(rest):
		return c.all(And, rest)
	}
	return c.add(AtLeast, k, rest)
}

// flatten draws the arguments of a gate that only one gate of the same kind uses into that gate, and drops gates that
// nothing uses.
func (c *circuit) flatten() {
	uses := c.uses()
	n := signal(len(c.events))
	at := make([]signal, len(c.gates)) // where a gate goes
	kept := c.gates[:0]
	all := slices.Clone(c.gates)
	move := func(s signal) signal {
		if s < n {
			return s
		}
		return at[s-n]
	}
	for i, g := range all {
		if uses[i] == 0 {
			continue
		}
		var args []signal
		for _, a := range g.args {
			inner := circuitGate{}
			if a >= n {
				inner = all[a-n]
			}
			if (g.op == And || g.op == Or) && inner.op == g.op && uses[a-n] == 1 {
				args = append(args, kept[move(a)-n].args...) // what it holds was moved already
				kept[move(a)-n].args = nil
				continue
			}
			args = append(args, move(a))
		}
		at[i] = n + signal(len(kept))
		kept = append(kept, circuitGate{g.op, g.k, args})
	}
	c.gates = kept
	if c.top >= n {
		c.top = at[c.top-n]
	}
}

// uses counts, for every gate, in how many places below the top it stands.
func (c *circuit) uses() []int {
	n := signal(len(c.events))
	out := make([]int, len(c.gates))
	if c.top < n {
		return out
	}
	out[c.top-n] = 1
	for i := int(c.top - n); i >= 0; i-- {
		if out[i] == 0 {
			continue
		}
		for _, a := range c.gates[i].args {
			if a >= n {
				out[a-n]++
			}
		}
	}
	return out
}
