package fault

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// GroupModel is how a common-cause group shares its members' probability out over joint failures. Sources: NUREG/CR-4780;
// the Open-PSA model exchange format, section on common-cause groups.
type GroupModel string

const (
	// BetaFactor: a share beta of each member's failures takes all members at once. Factors: beta.
	BetaFactor GroupModel = "beta-factor"
	// MGL, multiple Greek letters: Factors are beta (given one fails, another does too), gamma (given two, a third), …
	MGL GroupModel = "MGL"
	// AlphaFactor: Factors[k-1] is the share of failure events that take exactly k members.
	AlphaFactor GroupModel = "alpha-factor"
	// PhiFactor: Factors[k-1] × probability is that of each event that takes exactly k given members. They sum to 1.
	PhiFactor GroupModel = "phi-factor"
)

// maxMembers bounds a group: it becomes up to 2^members events.
const maxMembers = 10

// Group is a set of events that also fail together.
type Group struct {
	Name        string
	Model       GroupModel
	Members     []string
	Probability float64 // of each member, all its ways to fail together
	Factors     []float64
}

func (g *Group) check(m *Model) error {
	n, want := len(g.Members), "1 or more"
	ok := len(g.Factors) > 0
	switch g.Model {
	case BetaFactor:
		want, ok = "1", len(g.Factors) == 1
	case MGL:
		want, ok = fmt.Sprintf("1 to %d", n-1), ok && len(g.Factors) < n
	case AlphaFactor, PhiFactor:
		want, ok = fmt.Sprintf("1 to %d", n), ok && len(g.Factors) <= n
	default:
		return fmt.Errorf("common-cause group %q: model %q does not exist; write beta-factor, MGL, alpha-factor or phi-factor", g.Name, g.Model)
	}
	switch {
	case n < 2 || n > maxMembers:
		return fmt.Errorf("common-cause group %q has %d members; want 2 to %d", g.Name, n, maxMembers)
	case !ok:
		return fmt.Errorf("common-cause group %q of %d members has %d factors; model %s wants %s", g.Name, n, len(g.Factors), g.Model, want)
	case math.IsNaN(g.Probability) || g.Probability < 0 || g.Probability > 1:
		return fmt.Errorf("common-cause group %q has probability %v; want 0 to 1", g.Name, g.Probability)
	}
	sum := 0.0
	for i, f := range g.Factors {
		if math.IsNaN(f) || f < 0 || f > 1 {
			return fmt.Errorf("common-cause group %q: factor %d is %v; want 0 to 1", g.Name, i+1, f)
		}
		sum += f
	}
	switch {
	case g.Model == PhiFactor && math.Abs(sum-1) > 1e-4:
		return fmt.Errorf("common-cause group %q: phi factors sum to %v; want 1", g.Name, sum)
	case g.Model == AlphaFactor && sum == 0:
		return fmt.Errorf("common-cause group %q: every alpha factor is 0", g.Name)
	}
	for i, name := range g.Members {
		if _, gate := m.Gates[name]; gate {
			return fmt.Errorf("common-cause group %q: member %q is a gate; want basic events", g.Name, name)
		}
		if slices.Contains(g.Members[:i], name) {
			return fmt.Errorf("common-cause group %q names %q twice", g.Name, name)
		}
		for _, other := range m.Groups {
			if other.Name != g.Name && slices.Contains(other.Members, name) {
				return fmt.Errorf("event %q is in two common-cause groups, %q and %q", name, g.Name, other.Name)
			}
		}
	}
	return nil
}

// levels returns the probability of an event that takes exactly k given members, at index k-1.
func (g *Group) levels() []float64 {
	n := len(g.Members)
	out := make([]float64, n)
	switch g.Model {
	case BetaFactor:
		out[0], out[n-1] = (1-g.Factors[0])*g.Probability, g.Factors[0]*g.Probability
	case MGL:
		share := 1.0
		for k := 1; k <= len(g.Factors)+1; k++ {
			q := share / binomial(n-1, k-1) * g.Probability
			if k <= len(g.Factors) {
				q *= 1 - g.Factors[k-1]
				share *= g.Factors[k-1]
			}
			out[k-1] = q
		}
	case AlphaFactor:
		total := 0.0
		for i, a := range g.Factors {
			total += float64(i+1) * a
		}
		for i, a := range g.Factors {
			out[i] = float64(i+1) / binomial(n-1, i) * a / total * g.Probability
		}
	case PhiFactor:
		for i, phi := range g.Factors {
			out[i] = phi * g.Probability
		}
	}
	return out
}

func binomial(n, k int) float64 {
	out := 1.0
	for i := 1; i <= k; i++ {
		out = out * float64(n-k+i) / float64(i)
	}
	return out
}

// expand replaces the members of groups by gates over the events that take them, alone and together.
func (m *Model) expand() *Model {
	if len(m.Groups) == 0 {
		return m
	}
	out := &Model{Title: m.Title, Top: m.Top, Gates: maps.Clone(m.Gates), Events: maps.Clone(m.Events), House: m.House}
	if out.Events == nil {
		out.Events = map[string]Event{}
	}
	for _, g := range m.Groups {
		levels := g.levels()
		ways := make(map[string][]Formula, len(g.Members))
		for set := 1; set < 1<<len(g.Members); set++ {
			var in []string
			for i, name := range g.Members {
				if set>>i&1 == 1 {
					in = append(in, name)
				}
			}
			q := levels[len(in)-1]
			if q == 0 {
				continue
			}
			event := "[" + strings.Join(in, " ") + "]"
			out.Events[event] = Event{Probability: q, Label: "common cause in group " + g.Name}
			for _, name := range in {
				ways[name] = append(ways[name], Ref(event))
			}
		}
		for _, name := range g.Members {
			delete(out.Events, name)
			if len(ways[name]) == 0 {
				out.Gates[name] = Formula{Op: False}
				continue
			}
			out.Gates[name] = AnyOf(ways[name]...)
		}
	}
	return out
}
