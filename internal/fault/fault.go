// Package fault analyses fault trees and networks exactly: the probability that a top event happens, its minimal cut
// sets, how often it happens, and which basic events matter.
//
// The main type is [Model]: gates over basic events, house events and common-cause groups. [Analyse] turns it into a
// binary decision diagram (Bryant 1986; Rauzy 1993), from which the probability is read without approximation, and the
// minimal cut sets as a zero-suppressed diagram (Rauzy 2001; Minato 1993). [ReadMEF] and [WriteMEF] speak the Open-PSA
// model exchange format; a [Network] becomes a model by its paths.
//
// It guarantees exact answers or an error: a model that outgrows its node limit is refused with ErrTooLarge, never
// approximated in silence. A truncation is asked for by name (Options.MaxOrder) and stated in the result; it finds the
// cut sets also where the probability is out of reach, and then gives no probability (Result.OnlyCutSets).
//
// Everything is pure: no clock, no file, no randomness.
package fault

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// Op is what a formula does with its arguments.
type Op uint8

const (
	Name    Op = iota // of a gate, a basic event or a house event
	And               // all
	Or                // any
	AtLeast           // K of the arguments
	Not               // of the one argument
	Xor               // exactly one of two
	Nand              // not all
	Nor               // none
	Iff               // both alike
	Imply             // not the first, or the second
	Between           // from K to Max of the arguments
	True
	False
)

// Formula is a Boolean expression.
type Formula struct {
	Op     Op
	K, Max int // AtLeast and Between
	Name   string
	Args   []Formula
}

// Ref is the formula that is a gate or an event.
func Ref(name string) Formula { return Formula{Op: Name, Name: name} }

// AllOf is true where every argument is.
func AllOf(args ...Formula) Formula { return Formula{Op: And, Args: args} }

// AnyOf is true where some argument is.
func AnyOf(args ...Formula) Formula { return Formula{Op: Or, Args: args} }

// KOf is true where at least k arguments are.
func KOf(k int, args ...Formula) Formula { return Formula{Op: AtLeast, K: k, Args: args} }

// Event is a basic event.
type Event struct {
	Probability float64 // 0 to 1
	Frequency   float64 // of its beginnings, per unit of time, in the steady state: (1-p)·failure rate; 0: not known
	Label       string
	Unknown     bool // there is no probability: only cut sets are known
}

// Model is a fault tree: its gates may share gates and events, and must not contain each other in a circle.
type Model struct {
	Title  string
	Top    string
	Gates  map[string]Formula
	Events map[string]Event
	House  map[string]bool // switched by hand, without probability
	Groups []Group         // common causes among events
}

// Options bound an analysis.
type Options struct {
	MaxOrder int // only cut sets of at most so many events; 0: all
	MaxNodes int // of the diagrams; 0: 20 million (about 1.2 GB at worst)
	MaxSets  int // how many cut sets the result lists, the most probable first; 0: 100
}

// Result is what an analysis found.
type Result struct {
	Probability  float64 // exact
	RareEventSum float64 // sum over the cut sets: the usual upper approximation; may exceed 1
	UpperBound   float64 // 1 − Π(1−P(cut set)) over the listed order; NaN if the sets were too many to go through
	Frequency    float64 // of the top event's beginnings, if every event that matters has one; else NaN
	CutSets      CutSets
	Importance   []Importance // by falling Birnbaum × probability
	NonCoherent  bool         // the tree says "not" somewhere: cut sets are those of positive events only
	Nodes        int          // of the probability's diagram
	OnlyCutSets  bool         // the diagram outgrew its limit: cut sets up to MaxOrder are known, the probability is NaN
	Unknown      []string     // events without a probability: then only cut sets are known, and each number is NaN
}

// CutSets are the minimal ways to the top event.
type CutSets struct {
	Total    uint64
	ByOrder  []uint64 // ByOrder[i] have i+1 events
	MaxOrder int      // the truncation, 0: none
	Sets     []CutSet // the most probable ones
	Certain  bool     // the top event needs nothing to happen: the empty set is its only cut set
}

// CutSet is one of them.
type CutSet struct {
	Events      []string
	Probability float64
}

// Importance is how much one event matters.
type Importance struct {
	Event         string
	Probability   float64
	Birnbaum      float64 // P(top | event) − P(top | not event)
	Criticality   float64 // Birnbaum × p / P(top)
	FussellVesely float64 // 1 − P(top | not event) / P(top)
	RAW           float64 // risk achievement worth: P(top | event) / P(top)
	RRW           float64 // risk reduction worth: P(top) / P(top | not event); +Inf where nothing else fails
}

// Check says what is wrong with a model.
func (m *Model) Check() error {
	for name, e := range m.Events {
		if math.IsNaN(e.Probability) || e.Probability < 0 || e.Probability > 1 {
			return fmt.Errorf("event %q has probability %v; want 0 to 1", name, e.Probability)
		}
		if math.IsNaN(e.Frequency) || e.Frequency < 0 {
			return fmt.Errorf("event %q has frequency %v; want 0 or more", name, e.Frequency)
		}
	}
	for name := range m.Gates {
		_, event := m.Events[name]
		_, house := m.House[name]
		if event || house {
			return fmt.Errorf("%q is both a gate and an event", name)
		}
	}
	for name := range m.House {
		if _, event := m.Events[name]; event {
			return fmt.Errorf("%q is both a house event and a basic event", name)
		}
	}
	if _, ok := m.Gates[m.Top]; !ok {
		return fmt.Errorf("the top event %q is not a gate of the model", m.Top)
	}
	for _, g := range m.Groups {
		if err := g.check(m); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Gates)) {
		if err := m.checkFormula(m.Gates[name]); err != nil {
			return fmt.Errorf("gate %q: %w", name, err)
		}
	}
	return m.checkCircles()
}

func (m *Model) checkFormula(f Formula) error {
	n := len(f.Args)
	switch f.Op {
	case Name:
		_, gate := m.Gates[f.Name]
		_, event := m.Events[f.Name]
		_, house := m.House[f.Name]
		if !gate && !event && !house {
			return fmt.Errorf("%q is neither a gate nor an event", f.Name)
		}
	case And, Or, Nand, Nor:
		if n == 0 {
			return fmt.Errorf("%s without arguments", f.Op)
		}
	case AtLeast:
		if f.K < 0 || f.K > n || n == 0 {
			return fmt.Errorf("at least %d of %d arguments", f.K, n)
		}
	case Between:
		if f.K < 0 || f.Max < f.K || f.Max > n || n == 0 {
			return fmt.Errorf("from %d to %d of %d arguments", f.K, f.Max, n)
		}
	case Not:
		if n != 1 {
			return fmt.Errorf("not with %d arguments; want 1", n)
		}
	case Xor, Iff, Imply:
		if n != 2 {
			return fmt.Errorf("%s with %d arguments; want 2", f.Op, n)
		}
	case True, False:
	default:
		return fmt.Errorf("unknown operator %d", f.Op)
	}
	for _, a := range f.Args {
		if err := m.checkFormula(a); err != nil {
			return err
		}
	}
	return nil
}

// maxNesting bounds how many gates contain each other in a row.
const maxNesting = 10_000

// circleError is gates that contain each other in a circle.
type circleError struct{ path []string }

func (e *circleError) Error() string {
	return "gates contain each other: " + some(e.path)
}

// checkCircles walks the gates depth first.
func (m *Model) checkCircles() error {
	const open, done = 1, 2
	state := map[string]int{}
	var visit func(name string, path []string) error
	var within func(f Formula, path []string) error
	within = func(f Formula, path []string) error {
		if _, gate := m.Gates[f.Name]; f.Op == Name && gate {
			return visit(f.Name, path)
		}
		for _, a := range f.Args {
			if err := within(a, path); err != nil {
				return err
			}
		}
		return nil
	}
	visit = func(name string, path []string) error {
		switch state[name] {
		case done:
			return nil
		case open:
			at := slices.Index(path, name)
			return &circleError{append(slices.Clone(path[at:]), name)}
		}
		if len(path) == maxNesting {
			return fmt.Errorf("gate %q: more than %d gates contain each other in a row", name, maxNesting)
		}
		state[name] = open
		if err := within(m.Gates[name], append(path, name)); err != nil {
			return err
		}
		state[name] = done
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(m.Gates)) {
		if err := visit(name, nil); err != nil {
			return err
		}
	}
	return nil
}

func (o Op) String() string {
	names := [...]string{"name", "and", "or", "atleast", "not", "xor", "nand", "nor", "iff", "imply", "cardinality", "true", "false"}
	if int(o) < len(names) {
		return names[o]
	}
	return fmt.Sprintf("operator %d", uint8(o))
}
