package fault

import (
	"errors"
	"fmt"
	"slices"
)

// ErrTooLarge is returned when a model needs more nodes than its limit; a truncation (MaxOrder) or a simulation may
// still answer.
var ErrTooLarge = errors.New("the model is too large for exact analysis")

// ref names a node of a diagram.
type ref uint32

const (
	zero ref = 0
	one  ref = 1
)

// terminal is the level of the two constants: below every variable.
const terminal = ^uint32(0)

// vertex is (level ? hi : lo). Levels grow from the root down.
type vertex struct {
	level  uint32
	hi, lo ref
}

// diagram is a reduced ordered binary decision diagram, or with suppress a zero-suppressed one (a family of sets).
// Children stand before their parents.
type diagram struct {
	suppress bool
	limit    int
	work     int // nodes that were asked for so far
	nodes    []vertex
	table    []ref // open addressing over nodes; 0 is an empty slot (node 0 is never looked up)
	cache    []cached
}

// cached is one entry of the operation cache: direct mapped, overwritten on a clash.
type cached struct {
	op   operation
	a, b ref
	out  ref
}

type operation uint16

const (
	opNone operation = iota
	opAnd
	opOr
	opXor
	opNot
	opWithout
	opUnion
	opProduct operation = 1 << 8 // plus a budget
	opUpTo    operation = 2 << 8 // plus a budget
)

// workPerNode bounds the time of an analysis as its limit bounds the room: how many nodes may be asked for, there or not,
// per node of the limit. Every one of the Aralia models that fits does with less.
const workPerNode = 4

// overflow is thrown by mk through the recursion and caught where the analysis begins: the one non-local exit.
type overflow struct{ nodes int }

func newDiagram(suppress bool, limit int) *diagram {
	d := &diagram{suppress: suppress, limit: limit, nodes: make([]vertex, 2, 128), table: make([]ref, 1<<9), cache: make([]cached, 1<<9)}
	d.nodes[zero] = vertex{level: terminal}
	d.nodes[one] = vertex{level: terminal}
	return d
}

// caught turns a diagram that outgrew its limit into an error.
func caught(err *error) {
	switch r := recover().(type) {
	case nil:
	case overflow:
		*err = fmt.Errorf("%w: more than %d nodes, or too much work to get there", ErrTooLarge, r.nodes)
	default:
		panic(r)
	}
}

func hash3(a, b, c uint32) uint32 {
	h := uint64(a)*0x9e3779b97f4a7c15 ^ uint64(b)*0xc2b2ae3d27d4eb4f ^ uint64(c)*0x165667b19e3779f9
	h ^= h >> 29
	return uint32(h * 0xbf58476d1ce4e5b9 >> 32)
}

// mk returns the node of (level ? hi : lo), reduced and unique.
func (d *diagram) mk(level uint32, hi, lo ref) ref {
	if d.suppress && hi == zero || !d.suppress && hi == lo {
		return lo
	}
	if d.work++; d.work > workPerNode*d.limit {
		panic(overflow{d.limit})
	}
	mask := uint32(len(d.table) - 1)
	at := hash3(level, uint32(hi), uint32(lo)) & mask
	for d.table[at] != 0 {
		if n := d.nodes[d.table[at]]; n.level == level && n.hi == hi && n.lo == lo {
			return d.table[at]
		}
		at = (at + 1) & mask
	}
	if len(d.nodes) >= d.limit {
		panic(overflow{d.limit})
	}
	out := ref(len(d.nodes))
	d.nodes = append(d.nodes, vertex{level, hi, lo})
	d.table[at] = out
	if 4*len(d.nodes) > 3*len(d.table) {
		d.table = make([]ref, 2*len(d.table))
		d.fill()
	}
	return out
}

// fill enters every node into an empty table.
func (d *diagram) fill() {
	mask := uint32(len(d.table) - 1)
	for i := 2; i < len(d.nodes); i++ {
		n := d.nodes[i]
		at := hash3(n.level, uint32(n.hi), uint32(n.lo)) & mask
		for d.table[at] != 0 {
			at = (at + 1) & mask
		}
		d.table[at] = ref(i)
	}
	if len(d.cache) < len(d.table) && len(d.cache) < 1<<23 {
		d.cache = make([]cached, min(len(d.table), 1<<23))
	}
}

func (d *diagram) slot(op operation, a, b ref) *cached {
	return &d.cache[hash3(uint32(op), uint32(a), uint32(b))&uint32(len(d.cache)-1)]
}

// known looks an operation's result up.
func (d *diagram) known(op operation, a, b ref) (ref, bool) {
	c := d.slot(op, a, b)
	return c.out, c.op == op && c.a == a && c.b == b
}

func (d *diagram) remember(op operation, a, b, out ref) ref {
	*d.slot(op, a, b) = cached{op, a, b, out}
	return out
}

// variable is the function that is true exactly where the variable is.
func (d *diagram) variable(level uint32) ref { return d.mk(level, one, zero) }

func (d *diagram) and(a, b ref) ref { return d.apply(opAnd, a, b) }

func (d *diagram) or(a, b ref) ref { return d.apply(opOr, a, b) }

func (d *diagram) xor(a, b ref) ref { return d.apply(opXor, a, b) }

// apply descends both operands of a commutative operation together.
func (d *diagram) apply(op operation, a, b ref) ref {
	if a > b {
		a, b = b, a
	}
	switch { // a is a constant where one of them is
	case op == opXor && a == b:
		return zero
	case op == opXor && a == zero:
		return b
	case op == opXor && a == one:
		return d.not(b)
	case op == opXor:
	case a == b:
		return a
	case a == zero:
		if op == opAnd {
			return zero
		}
		return b
	case a == one:
		if op == opAnd {
			return b
		}
		return one
	}
	if out, ok := d.known(op, a, b); ok {
		return out
	}
	na, nb := d.nodes[a], d.nodes[b]
	level := min(na.level, nb.level)
	if na.level > level {
		na.hi, na.lo = a, a
	}
	if nb.level > level {
		nb.hi, nb.lo = b, b
	}
	hi := d.apply(op, na.hi, nb.hi)
	return d.remember(op, a, b, d.mk(level, hi, d.apply(op, na.lo, nb.lo)))
}

func (d *diagram) not(a ref) ref {
	switch a {
	case zero:
		return one
	case one:
		return zero
	}
	if out, ok := d.known(opNot, a, 0); ok {
		return out
	}
	n := d.nodes[a]
	return d.remember(opNot, a, 0, d.mk(n.level, d.not(n.hi), d.not(n.lo)))
}

// collect drops every node that no root needs, and tells the roots where theirs are now. The others move down in their
// order, so that children stay before their parents.
func (d *diagram) collect(roots []*ref) {
	at := make([]ref, len(d.nodes)) // first a mark, then the new place
	at[zero], at[one] = zero, one
	for _, r := range roots {
		at[*r] = 1
	}
	for i := len(d.nodes) - 1; i >= 2; i-- {
		if at[i] != 0 {
			n := d.nodes[i]
			at[n.hi], at[n.lo] = 1, 1
		}
	}
	at[zero] = zero
	next := ref(2)
	for i := 2; i < len(d.nodes); i++ {
		if at[i] == 0 {
			continue
		}
		n := d.nodes[i]
		d.nodes[next] = vertex{n.level, at[n.hi], at[n.lo]}
		at[i] = next
		next++
	}
	d.nodes = d.nodes[:next]
	for _, r := range roots {
		*r = at[*r]
	}
	clear(d.table)
	d.fill()
	for i := range d.cache { // what was computed about nodes that are still there still holds
		c := &d.cache[i]
		if c.op == opNone {
			continue
		}
		a, b, out := at[c.a], at[c.b], at[c.out]
		if a < 2 && c.a > 1 || b < 2 && c.b > 1 || out < 2 && c.out > 1 {
			*c = cached{}
			continue
		}
		*c = cached{op: c.op, a: a, b: b, out: out}
	}
}

// freeze gives up what is only needed to build.
func (d *diagram) freeze() {
	d.table, d.cache = nil, nil
	d.nodes = slices.Clip(slices.Clone(d.nodes))
}

// Families of sets: {} is one, no set at all is zero.

// without removes from a every set that contains some set of b.
func (d *diagram) without(a, b ref) ref {
	switch {
	case a == zero || b == one || a == b:
		return zero
	case b == zero:
		return a
	case a == one: // the empty set contains only itself
		if d.holdsEmpty(b) {
			return zero
		}
		return one
	}
	if out, ok := d.known(opWithout, a, b); ok {
		return out
	}
	na, nb := d.nodes[a], d.nodes[b]
	var out ref
	switch {
	case na.level < nb.level:
		out = d.mk(na.level, d.without(na.hi, b), d.without(na.lo, b))
	case nb.level < na.level:
		out = d.without(a, nb.lo)
	default:
		out = d.mk(na.level, d.without(d.without(na.hi, nb.hi), nb.lo), d.without(na.lo, nb.lo))
	}
	return d.remember(opWithout, a, b, out)
}

func (d *diagram) holdsEmpty(a ref) bool {
	for d.nodes[a].level != terminal {
		a = d.nodes[a].lo
	}
	return a == one
}
