package fault

import (
	"cmp"
	"slices"
)

// The orders of variables that are tried. Each visits the tree from the top and notes events as it meets them; they
// differ in which argument of a gate comes first. Events that stand close in the tree then stand close in the diagram.

// depthFirst takes arguments as they are written.
func depthFirst(m *Model) []string {
	return m.visit(func(args []Formula) []Formula { return args })
}

// smallFirst takes small subtrees first.
func smallFirst(m *Model) []string {
	size := m.sizes()
	return m.visit(func(args []Formula) []Formula {
		out := slices.Clone(args)
		slices.SortStableFunc(out, func(a, b Formula) int { return cmp.Compare(size(a), size(b)) })
		return out
	})
}

// sharedFirst takes what stands in many places first.
func sharedFirst(m *Model) []string {
	uses := map[string]int{}
	var count func(f Formula)
	count = func(f Formula) {
		if f.Op == Name {
			uses[f.Name]++
		}
		for _, a := range f.Args {
			count(a)
		}
	}
	for _, g := range m.Gates {
		count(g)
	}
	return m.visit(func(args []Formula) []Formula {
		out := slices.Clone(args)
		slices.SortStableFunc(out, func(a, b Formula) int { return cmp.Compare(uses[b.Name], uses[a.Name]) })
		return out
	})
}

func (m *Model) visit(arrange func([]Formula) []Formula) []string {
	var order []string
	seen := map[string]bool{}
	var walk func(f Formula)
	walk = func(f Formula) {
		if f.Op != Name {
			for _, a := range arrange(f.Args) {
				walk(a)
			}
			return
		}
		if seen[f.Name] {
			return
		}
		seen[f.Name] = true
		if g, gate := m.Gates[f.Name]; gate {
			walk(g)
		} else if _, house := m.House[f.Name]; !house {
			order = append(order, f.Name)
		}
	}
	walk(Ref(m.Top))
	return order
}

// sizes returns how many leaves stand below a formula, shared ones counted each time (as a float: it may be huge).
func (m *Model) sizes() func(Formula) float64 {
	memo := map[string]float64{}
	var size func(f Formula) float64
	size = func(f Formula) float64 {
		if f.Op == Name {
			g, gate := m.Gates[f.Name]
			if !gate {
				return 1
			}
			if n, ok := memo[f.Name]; ok {
				return n
			}
			n := size(g)
			memo[f.Name] = n
			return n
		}
		n := 0.0
		for _, a := range f.Args {
			n += size(a)
		}
		return n
	}
	return size
}
