package assess

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// movedIn lists the services that run differently in two plans.
func movedIn(from, to Plan) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(to)) {
		if from[name].key() != to[name].key() {
			out = append(out, name)
		}
	}
	return out
}

// candidate is one way to run a service, with all that must come along.
type candidate struct {
	placement Placement
	plan      Plan
	moved     []string
	change    change
	outcome   Outcome
	book      Book
}

// candidates computes every way to run a service from a plan on; the same pattern is kept only at its best sites.
func (v *evaluator) candidates(plan Plan, service string) ([]candidate, error) {
	best := map[Pattern]candidate{}
	for _, p := range v.placements(service) {
		next := v.along(plan, service, p)
		c := candidate{placement: p, plan: next, moved: movedIn(plan, next), book: Book{}}
		var err error
		if c.change, err = v.change(plan, next, c.moved); err != nil {
			return nil, err
		}
		if c.outcome, err = v.outcome(next, service, c.book); err != nil {
			return nil, err
		}
		was, had := best[p.Pattern]
		if better := c.possible() && !was.possible() || c.possible() == was.possible() && c.change.net() > was.change.net(); !had || better {
			best[p.Pattern] = c
		}
	}
	var out []candidate
	for _, p := range Patterns {
		if c, ok := best[p]; ok {
			out = append(out, c)
		}
	}
	return out, nil
}

func (c *candidate) possible() bool { return len(c.outcome.Impossible) == 0 }

// meets tells whether what is wanted is had: availability, RTO and RPO.
func (c *candidate) meets(s *Service) bool {
	o := &c.outcome
	return (!s.Wants.Availability.Set || o.Availability.Share.V >= s.Wants.Availability.Mean()) && (o.Recovery.Met == nil || *o.Recovery.Met)
}

// answer weighs a service's options.
//
// The best net wins. A pattern that costs more than it saves is not worth it, whatever it can do; but where today's
// way misses what the operator asked for, the cheapest one that has it is named, with its price.
func (v *evaluator) answer(plan Plan, service string) (ServiceAnswer, error) {
	s := v.Services[service]
	out := ServiceAnswer{Service: service, Label: s.Label}
	var err error
	if out.Now, err = v.outcome(plan, service, Book{}); err != nil {
		return out, err
	}
	options, err := v.candidates(plan, service)
	if err != nil {
		return out, err
	}
	var winner, wanted *candidate
	for i := range options {
		c := &options[i]
		out.Options = append(out.Options, v.option(plan, service, c))
		if !c.possible() || c.placement.key() == plan[service].key() {
			continue
		}
		if c.change.net() > 0 && (winner == nil || c.change.net() > winner.change.net()) {
			winner = c
		}
		if c.meets(s) && (wanted == nil || c.change.yearly() < wanted.change.yearly()) {
			wanted = c
		}
	}
	out.Answer = v.verdict(plan, service, winner, wanted, options)
	return out, nil
}

func (v *evaluator) option(plan Plan, service string, c *candidate) Option {
	o := Option{Outcome: c.outcome, Net: Value{V: c.change.net(), Unit: Money, ID: service + "." + string(c.placement.Pattern) + ".net"}}
	for _, name := range c.moved {
		if name != service {
			o.Along = append(o.Along, name)
		}
	}
	switch {
	case len(c.outcome.Impossible) > 0:
		o.Text = c.outcome.Impossible[0].Text
	case c.placement.key() == plan[service].key():
		o.Text = "as it is today"
	default:
		o.Text = fmt.Sprintf("saves %s of loss a year, costs %s more", trim(c.change.saves), trim(c.change.yearly()))
	}
	v.traceNet(service, c, &o)
	return o
}

// verdict says what to do with a service, and at which revenue that would change.
func (v *evaluator) verdict(plan Plan, service string, winner, wanted *candidate, options []candidate) Verdict {
	s := v.Services[service]
	now := plan[service]
	if winner == nil {
		out := Verdict{Placement: now, Purpose: "none"}
		out.Text = "Not worth it: every other way costs more than the outages that it avoids."
		if flip, at := v.flipUp(plan, service, options); flip != nil {
			out.Flip = flip
			out.Text += fmt.Sprintf(" From %s a minute of revenue on, %s would be.", trim(flip.V), at)
		}
		if wanted != nil && !v.satisfied(plan, service) {
			out.Reasons = append(out.Reasons, fmt.Sprintf("what is wanted of it takes %s, at %s a year more than it saves", wanted.placement, trim(-wanted.change.net())))
		}
		for i := range options {
			if c := &options[i]; len(c.outcome.Impossible) > 0 {
				out.Reasons = append(out.Reasons, string(c.placement.Pattern)+": "+c.outcome.Impossible[0].Text)
			}
		}
		return out
	}
	out := Verdict{Worth: true, Placement: winner.placement, Purpose: v.purpose(plan, service, winner)}
	out.Text = fmt.Sprintf("Worth it: %s saves %s of loss a year for %s.", winner.placement, trim(winner.change.saves), trim(winner.change.yearly()))
	if along := slices.DeleteFunc(slices.Clone(winner.moved), func(n string) bool { return n == service }); len(along) > 0 {
		out.Reasons = append(out.Reasons, fmt.Sprintf("it gains only together with what it needs at every answer: %v", along))
	}
	if wanted != nil && wanted.placement.key() != winner.placement.key() && !winner.meets(s) {
		out.Reasons = append(out.Reasons, fmt.Sprintf("what is wanted of it takes %s, which nets %s a year", wanted.placement, trim(wanted.change.net())))
	}
	if flip := v.flipDown(plan, service, winner); flip != nil {
		out.Flip = flip
		out.Text += fmt.Sprintf(" Below %s a minute of revenue it would not be.", trim(flip.V))
	}
	return out
}

func (v *evaluator) satisfied(plan Plan, service string) bool {
	o, err := v.outcome(plan, service, Book{})
	c := candidate{outcome: o}
	return err == nil && c.meets(v.Services[service])
}

// perMinute is how much a change saves in a year for each unit of the service's revenue a minute: savings are linear in
// it. What the change does for other services does not hang on it.
func (v *evaluator) perMinute(service string, from, to Plan) float64 {
	before, err := v.brief(from, service)
	if err != nil {
		return 0
	}
	after, err := v.brief(to, service)
	if err != nil {
		return 0
	}
	return (before.downtime - after.downtime) / 60 * (1 - v.Services[service].Revenue.Deferred.Mean())
}

// flipUp is the lowest revenue a minute at which some possible option would pay.
func (v *evaluator) flipUp(plan Plan, service string, options []candidate) (*Value, Placement) {
	var best *Value
	var at Placement
	minute := v.Services[service].Revenue.Minute.Mean()
	for i := range options {
		c := &options[i]
		slope := v.perMinute(service, plan, c.plan)
		if !c.possible() || slope <= 0 || c.placement.key() == plan[service].key() {
			continue
		}
		flip := minute - c.change.net()/slope // net is not positive here
		if best == nil || flip < best.V {
			best, at = &Value{V: flip, Unit: Money, ID: service + ".flip"}, c.placement
		}
	}
	return best, at
}

// flipDown is the revenue a minute below which the winner would not pay.
func (v *evaluator) flipDown(plan Plan, service string, winner *candidate) *Value {
	slope := v.perMinute(service, plan, winner.plan)
	if slope <= 0 {
		return nil
	}
	flip := v.Services[service].Revenue.Minute.Mean() - winner.change.net()/slope
	if flip <= 0 {
		return nil
	}
	return &Value{V: flip, Unit: Money, ID: service + ".flip"}
}

// purpose tells disaster recovery from capacity.
func (v *evaluator) purpose(plan Plan, service string, c *candidate) string {
	crowded := false
	for _, l := range v.siteLoads(plan) {
		if slices.Contains(plan[service].Sites, l.Site) && l.Usual > limit {
			crowded = true
		}
	}
	switch recovers := c.outcome.Capacity.Enough; {
	case crowded && active(c.placement.Pattern) && recovers:
		return "disaster recovery and capacity"
	case crowded && active(c.placement.Pattern):
		return "capacity"
	default:
		return "disaster recovery"
	}
}

// byLoss sorts answers, the most expensive outages first.
func byLoss(a, b ServiceAnswer) int {
	return cmp.Or(cmp.Compare(b.Now.Money.Loss.V, a.Now.Money.Loss.V), cmp.Compare(a.Service, b.Service))
}
