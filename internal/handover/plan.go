package handover

import (
	"fmt"
	"strings"

	"github.com/atollhq/atoll/topo"
)

// Problem is one reason why a switch may not start, and what to do about it.
type Problem struct {
	Check string      `json:"check"` // short name, stable: buckets-open, one-owner, target-lag, …
	Site  topo.SiteID `json:"site,omitempty"`
	Text  string      `json:"text"`
	Hint  string      `json:"hint,omitempty"`
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Check)
	if p.Site != "" {
		b.WriteString(" at " + string(p.Site))
	}
	b.WriteString(": " + p.Text)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// Plan completes a move from the ownership document: who owns the buckets, at which epochs. It refuses buckets that
// move already (handovers never overlap), that are at several owners, or that are at the target.
func Plan(o topo.Ownership, m Move) (Move, []Problem) {
	p, ok := o.Keyspaces[m.Keyspace]
	if !ok {
		return m, []Problem{{Check: "keyspace", Text: fmt.Sprintf("keyspace %s does not exist", m.Keyspace)}}
	}
	if len(m.Buckets) == 0 || int(m.Buckets[len(m.Buckets)-1].Last) >= p.Buckets {
		return m, []Problem{{Check: "keyspace", Text: fmt.Sprintf("keyspace %s has buckets 0-%d; asked for %q", m.Keyspace, p.Buckets-1, m.Buckets)}}
	}
	at := map[topo.SiteID]topo.Spans{}
	var owners []topo.SiteID
	var problems []Problem
	for _, r := range p.Ranges {
		for _, sp := range m.Buckets {
			first, last := max(sp.First, r.First), min(sp.Last, r.Last)
			if first > last {
				continue
			}
			if r.State != topo.Open {
				problems = append(problems, Problem{Check: "buckets-open",
					Text: fmt.Sprintf("buckets %s move in handover %s", topo.Span{First: first, Last: last}, r.Handover),
					Hint: "wait until it is over: atoll status"})
			}
			if at[r.Owner] == nil {
				owners = append(owners, r.Owner)
			}
			at[r.Owner] = append(at[r.Owner], topo.Span{First: first, Last: last})
		}
	}
	switch {
	case len(owners) > 1:
		parts := make([]string, len(owners))
		for i, o := range owners {
			parts[i] = fmt.Sprintf("%s has %s", o, joined(at[o]))
		}
		hint := "switch them one owner at a time"
		for _, o := range owners {
			if o != m.To {
				hint += fmt.Sprintf(", first --buckets %s", joined(at[o]))
				break
			}
		}
		problems = append(problems, Problem{Check: "one-owner", Text: "the buckets are at several owners: " + strings.Join(parts, ", "), Hint: hint})
	case owners[0] == m.To:
		problems = append(problems, Problem{Check: "one-owner", Site: m.To, Text: fmt.Sprintf("buckets %s are at %s already", m.Buckets, m.To)})
	}
	if !o.Full(m.To) {
		problems = append(problems, Problem{Check: "member", Site: m.To, Text: fmt.Sprintf("site %s is no member that may own", m.To),
			Hint: "take it in first: atoll site add " + string(m.To)})
	}
	m.From = owners[0]
	m.Epochs = o.Epochs(m.Keyspace, m.Buckets)
	return m, problems
}

// joined merges spans that touch, for a message.
func joined(spans topo.Spans) topo.Spans {
	var out topo.Spans
	for _, sp := range spans {
		if n := len(out); n > 0 && out[n-1].Last+1 == sp.First {
			out[n-1].Last = sp.Last
			continue
		}
		out = append(out, sp)
	}
	return out
}
