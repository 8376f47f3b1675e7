package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

// DiffGateHelp says what a gate on a difference may be.
const DiffGateHelp = `  no-worse          no service has more downtime, a longer RTO or a larger RPO (P95) than in A, and together they lose no
                    more in a year, today and as proposed. Only services that A and B have count.
  no-worse<=+2%     the same, but so much more is let pass
  no-new-singles    nothing takes a service down alone that did not in A (services that A has; a new name is a new thing)
  no-new-misses     no objective is missed that was not in A
  no-lost-verdict   nothing that was worth it stops being so; what has been done since is not lost, nor is a service that is gone
  ID<=+5%           a number is at most so much more than in A, or with >= at least; in per cent of what it was, or in its unit:
                    total.proposed.loss<=+5%, total.today.downtime<=+0, checkout.rto<=-10m
  and every gate of atoll assess, asked of B: wants, possible, done, total.today.loss<=250k`

// DiffGate is a condition on what another version of an estate changes.
type DiffGate struct {
	Text  string
	id    string  // no-worse, …, or of a number
	most  bool    // of a number: at most
	by    string  // "+5%", "-10m"
	slack float64 // of no-worse, as a share
	on    *Gate   // on B alone
}

// ParseDiffGate reads a gate; the error says what there is.
func ParseDiffGate(text string) (DiffGate, error) {
	g := DiffGate{Text: strings.TrimSpace(text)}
	switch g.Text {
	case "no-worse", "no-new-singles", "no-new-misses", "no-lost-verdict":
		g.id = g.Text
		return g, nil
	}
	for _, op := range []string{"<=", ">="} {
		id, by, ok := strings.Cut(g.Text, op)
		id, by = strings.TrimSpace(id), strings.TrimSpace(by)
		if !ok || id == "" || len(by) < 2 || by[0] != '+' && by[0] != '-' {
			continue
		}
		g.id, g.by, g.most = id, by, op == "<="
		if id != "no-worse" {
			return g, nil
		}
		var err error
		if g.slack, err = step(by, assess.Ratio, 1); err != nil || by[0] != '+' || !g.most || !strings.HasSuffix(by, "%") {
			return g, fmt.Errorf("gate %q: write how much more is let pass, as in no-worse<=+2%%", line(text))
		}
		return g, nil
	}
	on, err := ParseGate(g.Text)
	if err != nil {
		return g, fmt.Errorf("gate %q: write one of\n%s", line(text), DiffGateHelp)
	}
	g.on = &on
	return g, nil
}

// Compared are two assessments with what differs between them.
type Compared struct {
	Before, After *assess.Report
	*assess.Difference
}

// Check returns why a difference fails a gate, line by line; nothing: it passes. The error is of a gate that does not
// fit: an id that does not exist, a value in another unit.
func (g *DiffGate) Check(c *Compared) (failed []string, err error) {
	switch {
	case g.on != nil:
		return g.on.Check(c.After)
	case g.id == "no-worse":
		return g.worse(c), nil
	case g.by != "":
		return g.compare(c)
	case g.id == "no-new-singles":
		for _, s := range c.Singles {
			if s.New {
				failed = append(failed, fmt.Sprintf("%s alone takes down %s", line(s.Event), line(listed(s.Services, 8))))
			}
		}
	case g.id == "no-new-misses":
		for _, w := range c.Wants {
			if w.Change == "missed" {
				failed = append(failed, line(w.Service)+": "+wanting(w))
			}
		}
	case g.id == "no-lost-verdict":
		for _, v := range c.Verdicts {
			if v.Change == assess.Lost {
				failed = append(failed, fmt.Sprintf("%s: %s was worth it; now %s", line(v.Service), line(where(v.Before.Placement)), line(threshold(v.After, c.Currency))))
			}
		}
	default:
		panic("BUG: a gate that was not parsed: " + g.Text)
	}
	return failed, nil
}

// over tells whether a number is more than it was, beyond a share of it.
func over(before, after, share float64) bool {
	return after > before+math.Abs(before)*(share+assess.Noise)
}

// worse compares service by service. Where a service runs at one site in both, its RTO is the outage itself: fewer short
// ones would make it longer, so it does not count.
func (g *DiffGate) worse(c *Compared) (failed []string) {
	both := assess.Both(c.Before, c.After)
	single := map[string]bool{}
	for i := range c.After.Services {
		s := &c.After.Services[i]
		single[s.Service] = s.Now.Placement.Pattern == assess.Single
	}
	for i := range c.Before.Services {
		s := &c.Before.Services[i]
		single[s.Service] = single[s.Service] && s.Now.Placement.Pattern == assess.Single
	}
	for _, name := range both {
		for _, what := range []string{"downtime", "rto", "rpo"} {
			was, is := c.Before.Book[name+"."+what], c.After.Book[name+"."+what]
			if over(was.Value, is.Value, g.slack) && !(what == "rto" && single[name]) {
				failed = append(failed, fmt.Sprintf("%s: %s %s → %s", line(name), numberNames[what], short(was.Value, was.Unit), short(is.Value, is.Unit)))
			}
		}
	}
	for _, plan := range [][2]string{{".loss", "today"}, {".proposed.loss", "as proposed"}} {
		was, is := 0.0, 0.0
		for _, name := range both {
			was, is = was+c.Before.Book[name+plan[0]].Value, is+c.After.Book[name+plan[0]].Value
		}
		if over(was, is, g.slack) {
			failed = append(failed, fmt.Sprintf("loss a year of the services that both have, %s: %s → %s", plan[1], money(was), money(is)))
		}
	}
	return failed
}

// step reads "+5%", of a value, or "-10m" in a unit.
func step(by string, unit assess.Unit, of float64) (float64, error) {
	text, factor := by[1:], 1.0
	if share, ok := strings.CutSuffix(text, "%"); ok {
		text, unit, factor = share, assess.Count, math.Abs(of)/100 // more than 100 % is no ratio, but can be a step
	}
	n, err := assess.ParseNumber(text, unit)
	switch {
	case err != nil:
		return 0, err
	case !n.Exact() || n.Assumed:
		return 0, fmt.Errorf("%q: want one value, not a range or a guess", line(by))
	case by[0] == '-':
		factor = -factor
	}
	return factor * n.Mean(), nil
}

// compare holds a number against what it was.
func (g *DiffGate) compare(c *Compared) ([]string, error) {
	was, ok := c.Before.Book[g.id]
	is, still := c.After.Book[g.id]
	for _, side := range []struct {
		has bool
		r   *assess.Report
	}{{ok, c.Before}, {still, c.After}} {
		if !side.has {
			return nil, fmt.Errorf("gate %q: nothing is called %q in %s; %s", line(g.Text), line(g.id), line(side.r.File), nearestIDs(side.r.Book, g.id))
		}
	}
	by, err := step(g.by, was.Unit, was.Value)
	if err != nil {
		return nil, fmt.Errorf("gate %q: %w", line(g.Text), err)
	}
	bound, slack := was.Value+by, assess.Noise*math.Abs(was.Value)
	if g.most && is.Value <= bound+slack || !g.most && is.Value >= bound-slack {
		return nil, nil
	}
	word := map[bool]string{true: "at most", false: "at least"}[g.most]
	return []string{fmt.Sprintf("%s: %s → %s; allowed is %s %s", line(is.What), short(was.Value, was.Unit), short(is.Value, is.Unit), word, short(bound, was.Unit))}, nil
}

// CheckDiff checks gates in their order; failed holds a line for each reason.
func CheckDiff(c *Compared, gates []DiffGate) (failed []string, err error) {
	for i := range gates {
		why, err := gates[i].Check(c)
		if err != nil {
			return nil, err
		}
		for _, w := range why {
			failed = append(failed, line(gates[i].Text)+": "+w)
		}
	}
	return slices.Compact(failed), nil
}
