package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

// GateHelp says what a gate may be.
const GateHelp = `  wants             every service has the availability, RTO and RPO (P95) that it wants today
  possible          nothing that runs today is refused (a quorum of two, no capacity when a site is lost, …)
  done              no step of the roadmap that pays is left to do
  ID<=VALUE         a number of the assessment is at most, or with >= at least, a value in its unit:
                    total.today.downtime<=4h, total.today.loss<=250k, checkout.availability>=99.95%,
                    checkout.rto<=15m, site.dc1.after-loss<=90%`

// Gate is a condition that an assessment passes or fails.
type Gate struct {
	Text string
	id   string
	most bool
	at   string
}

// ParseGate reads a gate; the error says what there is.
func ParseGate(text string) (Gate, error) {
	trimmed := strings.TrimSpace(text)
	switch trimmed {
	case "wants", "possible", "done":
		return Gate{Text: trimmed, id: trimmed}, nil
	}
	for _, op := range []string{"<=", ">="} {
		if id, value, ok := strings.Cut(trimmed, op); ok && id != "" && value != "" {
			return Gate{trimmed, strings.TrimSpace(id), op == "<=", strings.TrimSpace(value)}, nil
		}
	}
	return Gate{}, fmt.Errorf("gate %q: write one of\n%s", line(text), GateHelp)
}

// Check returns why a report fails a gate, line by line; nothing: it passes. The error is of a gate that does not fit
// the report: an id that does not exist, a value in another unit.
func (g *Gate) Check(r *assess.Report) (failed []string, err error) {
	switch {
	case g.at != "":
		return g.compare(r)
	case g.id == "wants":
		for i := range r.Services {
			failed = append(failed, unmet(&r.Services[i])...)
		}
	case g.id == "possible":
		for _, s := range r.Services {
			for _, refusal := range s.Now.Impossible {
				failed = append(failed, fmt.Sprintf("%s: %s", line(s.Service), line(refusal.Text)))
			}
		}
	case g.id == "done":
		for _, s := range r.Roadmap {
			if s.Worth {
				failed = append(failed, fmt.Sprintf("not done: %s would save %s a year", line(s.Text), money(s.Saves)))
			}
		}
	default:
		panic("BUG: a gate that was not parsed: " + g.Text)
	}
	return failed, nil
}

func unmet(s *assess.ServiceAnswer) (out []string) {
	w, has := wants(s.Wanted), [3]string{share(s.Now.Availability.Share.V), duration(s.Now.Recovery.RTO.P95), duration(s.Now.Recovery.RPO.P95)}
	for i, missed := range [3]bool{
		s.Wanted.Availability != nil && s.Now.Availability.Share.V < *s.Wanted.Availability,
		s.Wanted.RTO != nil && s.Now.Recovery.RTO.P95 > *s.Wanted.RTO,
		s.Wanted.RPO != nil && s.Now.Recovery.RPO.P95 > *s.Wanted.RPO,
	} {
		if missed {
			out = append(out, fmt.Sprintf("%s: %s is %s; wanted is %s", line(s.Service), [3]string{"availability", "RTO (P95)", "RPO (P95)"}[i], has[i], w[i]))
		}
	}
	return out
}

func (g *Gate) compare(r *assess.Report) ([]string, error) {
	d, ok := r.Book[g.id]
	if !ok {
		return nil, fmt.Errorf("gate %q: nothing is called %q; %s", line(g.Text), line(g.id), nearestIDs(r.Book, g.id))
	}
	n, err := assess.ParseNumber(g.at, d.Unit)
	if err != nil {
		return nil, fmt.Errorf("gate %q: %w", line(g.Text), err)
	}
	if !n.Exact() {
		return nil, fmt.Errorf("gate %q: want one value, not a range", line(g.Text))
	}
	if g.most && d.Value <= n.Mean() || !g.most && d.Value >= n.Mean() {
		return nil, nil
	}
	return []string{fmt.Sprintf("%s is %s", line(d.What), line(figure(d.Value, d.Unit, r.Currency)))}, nil
}

// CheckAll checks gates in their order; failed holds a line for each reason.
func CheckAll(r *assess.Report, gates []Gate) (failed []string, err error) {
	for i := range gates {
		why, err := gates[i].Check(r)
		if err != nil {
			return nil, err
		}
		for _, w := range why {
			failed = append(failed, gates[i].Text+": "+w)
		}
	}
	return slices.Compact(failed), nil
}
