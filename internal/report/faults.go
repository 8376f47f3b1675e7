package report

import (
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/atollhq/atoll/internal/fault"
)

// FaultAnalysis is the analysis of a fault tree as JSON has it. What is not known is left out.
type FaultAnalysis struct {
	Title        string       `json:"title,omitempty"`
	Top          string       `json:"top"`
	Probability  *float64     `json:"probability"`    // exact, also where the cut sets are truncated; null: not known
	RareEventSum *float64     `json:"rare_event_sum"` // over the cut sets that are counted
	UpperBound   *float64     `json:"upper_bound,omitempty"`
	Frequency    *float64     `json:"frequency,omitempty"`
	CutSets      CutSets      `json:"cut_sets"`
	Importance   []Importance `json:"importance"`
	NonCoherent  bool         `json:"non_coherent,omitempty"` // the tree says "not": cut sets are of positive events only
	Nodes        int          `json:"diagram_nodes"`
	OnlyCutSets  bool         `json:"only_cut_sets,omitempty"`       // the model is too large for its probability
	Unknown      []string     `json:"without_probability,omitempty"` // events: only cut sets are known then
}

// CutSets counts minimal cut sets and lists the most probable ones.
type CutSets struct {
	Total        uint64   `json:"total"`
	ByOrder      []uint64 `json:"by_order"`            // the first: of one event
	MaxOrder     int      `json:"max_order,omitempty"` // sets of more events are left out; 0: none is
	Certain      bool     `json:"certain,omitempty"`   // the top event needs nothing to happen
	MostProbable []CutSet `json:"most_probable"`
}

// CutSet is one of them.
type CutSet struct {
	Events      []string `json:"events"`
	Probability *float64 `json:"probability"`
}

// chance is the column in front of a listed set.
func (s *CutSet) chance() string {
	p := ""
	if s.Probability != nil {
		p = fmt.Sprintf("%.3g", *s.Probability)
	}
	return "  " + right(p, 10) + "  "
}

// Importance is how much one event matters.
type Importance struct {
	Event         string   `json:"event"`
	Probability   float64  `json:"probability"`
	Birnbaum      float64  `json:"birnbaum"`
	Criticality   float64  `json:"criticality"`
	FussellVesely float64  `json:"fussell_vesely"`
	RAW           float64  `json:"raw"`
	RRW           *float64 `json:"rrw"` // null: infinite, nothing else fails
}

func finite(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

func cutSets(s fault.CutSets) CutSets {
	out := CutSets{Total: s.Total, ByOrder: s.ByOrder, MaxOrder: s.MaxOrder, Certain: s.Certain, MostProbable: []CutSet{}}
	if out.ByOrder == nil {
		out.ByOrder = []uint64{}
	}
	for _, set := range s.Sets {
		events := set.Events
		if events == nil {
			events = []string{}
		}
		out.MostProbable = append(out.MostProbable, CutSet{events, finite(set.Probability)})
	}
	return out
}

// Faults makes the answer about a fault tree out of its analysis.
func Faults(m *fault.Model, r fault.Result) FaultAnalysis {
	out := FaultAnalysis{Title: m.Title, Top: m.Top, Probability: finite(r.Probability), RareEventSum: finite(r.RareEventSum), UpperBound: finite(r.UpperBound),
		CutSets: cutSets(r.CutSets), Importance: []Importance{}, NonCoherent: r.NonCoherent, Nodes: r.Nodes, OnlyCutSets: r.OnlyCutSets, Unknown: r.Unknown}
	if f := finite(r.Frequency); f != nil && *f != 0 {
		out.Frequency = f
	}
	for _, i := range r.Importance {
		out.Importance = append(out.Importance, Importance{i.Event, i.Probability, i.Birnbaum, i.Criticality, i.FussellVesely, i.RAW, finite(i.RRW)})
	}
	return out
}

// shownSets and shownEvents are enough on a terminal; JSON has more.
const (
	shownSets   = 15
	shownEvents = 15
)

// Text writes the analysis for a terminal.
func (a *FaultAnalysis) Text(w io.Writer, color bool) error {
	t := &writer{color: color}
	t.line("%s", t.in(bold, shorten(line("top event "+a.Top), width)))
	if a.Probability != nil {
		t.line("  probability      %.10g (exact)", *a.Probability)
	}
	if a.OnlyCutSets {
		t.wrapped("  probability      ", "                   ", "not known: the model is too large for it; the cut sets are complete up to their truncation")
	}
	if a.RareEventSum != nil {
		t.line("  rare-event sum   %.10g", *a.RareEventSum)
	}
	if n := len(a.Unknown); n > 0 {
		t.wrapped("  probability      ", "                   ", fmt.Sprintf("not known: %s without one, the first is %s", plural(n, "event", "events"), line(a.Unknown[0])))
	}
	if a.UpperBound != nil {
		t.line("  upper bound      %.10g (1 − Π(1 − P))", *a.UpperBound)
	}
	if a.Frequency != nil {
		t.line("  frequency        %.6g per unit of time", *a.Frequency)
	}
	t.cutSets(&a.CutSets)
	if a.NonCoherent {
		t.wrapped("  ", "  ", "The tree says not: cut sets are those of positive events.")
	}
	if len(a.Importance) > 0 {
		t.line("\n%s", t.in(faint, left("  importance", 34)+right("P", 11)+right("Birnbaum", 11)+right("crit.", 8)+right("RAW", 10)))
	}
	for i, e := range a.Importance {
		if i == shownEvents {
			t.line("  and %d events more (--json)", len(a.Importance)-i)
			break
		}
		t.line("  %s%s%s%s%s", left(line(e.Event), 32), right(fmt.Sprintf("%.3g", e.Probability), 11), right(fmt.Sprintf("%.3g", e.Birnbaum), 11),
			right(fmt.Sprintf("%.3f", e.Criticality), 8), right(fmt.Sprintf("%.3g", e.RAW), 10))
	}
	_, err := io.WriteString(w, t.b.String())
	return err
}

func (t *writer) cutSets(s *CutSets) {
	if s.Certain {
		t.line("  cut sets         none is needed: the top event is certain")
		return
	}
	var orders []string
	for i, n := range s.ByOrder {
		if n > 0 {
			orders = append(orders, fmt.Sprintf("%d of %s", n, plural(i+1, "event", "events")))
		}
	}
	text := fmt.Sprintf("%d minimal", s.Total)
	if len(orders) > 0 {
		text += ": " + strings.Join(orders, ", ")
	}
	t.wrapped("  cut sets         ", "                   ", text)
	if s.MaxOrder > 0 {
		t.wrapped("                   ", "                   ", fmt.Sprintf("truncated: sets of more than %s are left out of the counts and of the rare-event sum", plural(s.MaxOrder, "event", "events")))
	}
	for i, set := range s.MostProbable {
		if i == 0 {
			head := "  most probable cut sets"
			if set.Probability == nil {
				head = "  cut sets, small ones first"
			}
			t.line("\n%s", t.in(faint, head))
		}
		if i == shownSets {
			t.line("  and more (--json)")
			break
		}
		first := set.chance()
		t.wrapped(first, strings.Repeat(" ", runes(first)), strings.Join(set.Events, ", "))
	}
}

// Connection is what a network gives a pair of nodes, as JSON has it.
type Connection struct {
	From         string       `json:"from"`
	To           string       `json:"to"`
	Availability float64      `json:"availability"` // exact, both ends included
	RareEventSum float64      `json:"rare_event_sum"`
	CutSets      CutSets      `json:"cut_sets"`
	Importance   []Importance `json:"importance"`
}

// Connections makes the answer about a network out of its analysis.
func Connections(pairs []fault.Pair) []Connection {
	out := []Connection{}
	for _, p := range pairs {
		a := Faults(&fault.Model{}, fault.Result{Importance: p.Importance})
		out = append(out, Connection{p.From, p.To, p.Availability, p.RareEventSum, cutSets(p.CutSets), a.Importance})
	}
	return out
}

// ConnectionsText writes them for a terminal, the most probable cut sets behind each.
func ConnectionsText(w io.Writer, list []Connection, color bool) error {
	const sets = 3
	t := &writer{color: color}
	t.line("%s", t.in(faint, left("from → to", 30)+right("available", 16)+right("down/yr", 11)+right("cut sets", 10)+right("single", 9)))
	for _, c := range list {
		singles := uint64(0)
		if len(c.CutSets.ByOrder) > 0 {
			singles = c.CutSets.ByOrder[0]
		}
		t.line("%s%s%s%s%s", left(line(c.From+" → "+c.To), 30), right(share(c.Availability), 16), right(duration((1-c.Availability)*year), 11),
			right(fmt.Sprint(c.CutSets.Total), 10), right(fmt.Sprint(singles), 9))
		for i, s := range c.CutSets.MostProbable {
			if i == sets {
				break
			}
			first := s.chance()
			t.wrapped(t.in(faint, first), strings.Repeat(" ", runes(first)), strings.Join(s.Events, ", "))
		}
	}
	_, err := io.WriteString(w, t.b.String())
	return err
}
