package assess

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// answer weighs a service's options.
//
// The best net wins. A pattern that costs more than it saves is not worth it, whatever it can do; but where today's
// way misses what the operator asked for, the cheapest one that has it is named, with its price.
func (v *evaluator) answer(service int, book Book) (ServiceAnswer, []candidate, error) {
	name := v.services[service]
	out := ServiceAnswer{Service: name, Label: v.Services[name].Label}
	var err error
	if out.Now, err = v.outcome(v.today, service, name, book); err != nil {
		return out, nil, err
	}
	all, err := v.candidates(v.today, service)
	if err != nil {
		return out, nil, err
	}
	for _, c := range bestOfPatterns(all) {
		o, err := v.option(service, c, book)
		if err != nil {
			return out, nil, err
		}
		out.Options = append(out.Options, o)
	}
	out.Answer = v.verdict(service, all, out.Options, book)
	return out, all, nil
}

// bestOfPatterns keeps each pattern at its best sites.
func bestOfPatterns(all []candidate) []*candidate {
	best := map[Pattern]*candidate{}
	for i := range all {
		c := &all[i]
		was := best[c.spot.Pattern]
		if was == nil || c.eligible && !was.eligible || c.eligible == was.eligible && c.change.net() > was.change.net() {
			best[c.spot.Pattern] = c
		}
	}
	var out []*candidate
	for _, p := range Patterns {
		if c := best[p]; c != nil {
			out = append(out, c)
		}
	}
	return out
}

func (v *evaluator) names(services []int) []string {
	out := make([]string, len(services))
	for i, s := range services {
		out[i] = v.services[s]
	}
	return out
}

func (v *evaluator) option(service int, c *candidate, book Book) (Option, error) {
	name := v.services[service]
	id := name + "." + string(c.spot.Pattern)
	var o Option
	var err error
	if o.Outcome, err = v.outcome(c.to, service, id, book); err != nil {
		return o, err
	}
	for _, i := range c.moved {
		if i == service {
			continue
		}
		o.Along = append(o.Along, v.services[i])
		if len(o.Outcome.Impossible) == 0 && !v.possible(c.to, []int{i}) {
			why := "its answers would take too long"
			if refused, _ := v.refusals(c.to, i, &Outcome{}); len(refused) > 0 {
				why = refused[0].Text
			}
			o.Outcome.Impossible = append(o.Outcome.Impossible, Refusal{Rule: "along", Text: fmt.Sprintf("%s would have to come along, as %s: %s", v.services[i], v.spot(c.to, i).Placement, why)})
		}
	}
	x := c.change
	o.Net = book.Note(Derivation{ID: id + ".net", What: fmt.Sprintf("what %s would save in a year as %s", name, c.spot.Placement), Value: x.net(), Unit: Money,
		Method: "loss avoided, of it and all that use it − 12 × more cost a month, of it and all that come along − getting there ÷ 3 years",
		Parts: []Part{{Name: "loss avoided", Value: x.saves, Unit: Money}, {Name: "more cost", Value: -12 * x.month, Unit: Money}, {Name: "getting there", Value: -x.once / amortised, Unit: Money},
			{"loss today", book[name+".loss"].Value, Money, name + ".loss"}, {"loss then", o.Outcome.Money.Loss.V, Money, o.Outcome.Money.Loss.ID}}})
	switch {
	case len(o.Outcome.Impossible) > 0:
		o.Text = o.Outcome.Impossible[0].Text
	case len(c.moved) == 0:
		o.Text = "as it is today"
	case len(o.Outcome.Short) > 0:
		o.Text = x.text() + "; " + o.Outcome.Short[0].Text
	default:
		o.Text = x.text()
	}
	return o, nil
}

// text says what a change saves and costs in a year.
func (c change) text() string {
	loss, cost := amount(c.saves), amount(c.yearly())
	switch {
	case c.saves < 0 && c.yearly() < 0:
		return fmt.Sprintf("costs %s a year less and loses %s more", amount(-c.yearly()), amount(-c.saves))
	case c.saves < 0:
		return fmt.Sprintf("loses %s a year more and costs %s more", amount(-c.saves), cost)
	case c.yearly() < 0:
		return fmt.Sprintf("saves %s of loss a year and %s of cost", loss, amount(-c.yearly()))
	}
	return fmt.Sprintf("saves %s of loss a year for %s", loss, cost)
}

// verdict says what to do with a service, and at which revenue that would change.
func (v *evaluator) verdict(service int, all []candidate, options []Option, book Book) Verdict {
	now := v.spot(v.today, service)
	var winner, wanted *candidate
	for i := range all {
		c := &all[i]
		if !c.eligible {
			continue
		}
		if c.change.net() > 0 && (winner == nil || c.change.net() > winner.change.net()) {
			winner = c
		}
		if v.meets(c.to, service) && (wanted == nil || c.change.yearly() < wanted.change.yearly()) {
			wanted = c
		}
	}
	if winner == nil {
		return v.notWorth(service, all, options, wanted, book)
	}
	out := Verdict{Worth: true, Placement: winner.spot.Placement, Purpose: v.purpose(service, winner)}
	if x := winner.change; x.yearly() < 0 && rank(winner.spot.Pattern) <= rank(now.Pattern) {
		out.Text = fmt.Sprintf("It would do with less: %s %s.", winner.spot.Placement, x.text())
	} else {
		out.Text = fmt.Sprintf("Worth it: %s %s.", winner.spot.Placement, x.text())
	}
	along := v.names(slices.DeleteFunc(slices.Clone(winner.moved), func(i int) bool { return i == service }))
	if len(along) > 0 {
		out.Reasons = append(out.Reasons, "it gains only together with what it needs at every answer: "+strings.Join(along, ", "))
	}
	if out.Purpose == "capacity" {
		out.Reasons = append(out.Reasons, fmt.Sprintf("%s is over its limit today; with one site lost the rest would still be: this is capacity, not disaster recovery", strings.Join(now.Sites, " and ")))
	}
	switch {
	case v.meets(winner.to, service):
	case wanted == nil:
		out.Reasons = append(out.Reasons, "nothing that is possible here has what is wanted of it")
	default:
		out.Reasons = append(out.Reasons, fmt.Sprintf("what is wanted of it takes %s, which nets %s a year", wanted.spot.Placement, amount(wanted.change.net())))
	}
	if at, c := v.flipDown(service, all); c != nil {
		out.Flip = v.noteFlip(service, at, c, "below which nothing beyond today's way is worth it", book)
		out.Text += fmt.Sprintf(" Below %s a minute of revenue nothing beyond today's way would be.", amount(at))
	}
	return out
}

func (v *evaluator) notWorth(service int, all []candidate, options []Option, wanted *candidate, book Book) Verdict {
	out := Verdict{Placement: v.spot(v.today, service).Placement, Purpose: "none"}
	out.Text = "Not worth it: every other way costs more than the outages that it avoids."
	if !slices.ContainsFunc(all, func(c candidate) bool { return c.eligible }) {
		out.Text = "Not possible: something speaks against every other way."
	}
	if at, c := v.flipUp(service, all); c != nil {
		out.Flip = v.noteFlip(service, at, c, "from which on it would be worth it", book)
		out.Text += fmt.Sprintf(" From %s a minute of revenue on, %s would be worth it.", amount(at), c.spot.Placement)
	}
	if !v.meets(v.today, service) {
		if wanted != nil {
			out.Reasons = append(out.Reasons, fmt.Sprintf("what is wanted of it takes %s, at %s a year more than it saves", wanted.spot.Placement, amount(-wanted.change.net())))
		} else {
			out.Reasons = append(out.Reasons, "nothing that is possible here has what is wanted of it")
		}
	}
	for _, o := range options {
		if len(o.Outcome.Impossible) > 0 {
			out.Reasons = append(out.Reasons, string(o.Outcome.Placement.Pattern)+": "+o.Outcome.Impossible[0].Text)
		}
	}
	return out
}

// at is the net for another revenue a minute of the service: losses are linear in it.
func (c *candidate) at(revenue, now float64) float64 {
	return c.change.net() + c.change.perMinute*(revenue-now)
}

// flipUp is the lowest revenue a minute at which some way would pay, where none does.
func (v *evaluator) flipUp(service int, all []candidate) (at float64, which *candidate) {
	now := v.Services[v.services[service]].Revenue.Minute.Mean()
	for i := range all {
		c := &all[i]
		if !c.eligible || c.change.perMinute <= 0 {
			continue
		}
		if flip := now - c.change.net()/c.change.perMinute; which == nil || flip < at {
			at, which = flip, c
		}
	}
	return at, which
}

// flipDown is the revenue a minute below which nothing would pay, where something does; none where no revenue is low
// enough.
func (v *evaluator) flipDown(service int, all []candidate) (at float64, which *candidate) {
	now := v.Services[v.services[service]].Revenue.Minute.Mean()
	for i := range all {
		c := &all[i]
		if !c.eligible || c.change.net() <= 0 {
			continue
		}
		if c.change.perMinute <= 0 {
			return 0, nil
		}
		if flip := now - c.change.net()/c.change.perMinute; which == nil || flip < at {
			at, which = flip, c
		}
	}
	if which == nil || at <= 0 || slices.ContainsFunc(all, func(c candidate) bool {
		return c.eligible && c.at(at, now) > 1e-9*c.change.yearly() && c.change.perMinute < 0
	}) {
		return 0, nil
	}
	return at, which
}

func (v *evaluator) noteFlip(service int, at float64, c *candidate, what string, book Book) *Value {
	name := v.services[service]
	out := book.Note(Derivation{ID: name + ".flip", What: "revenue a minute of " + name + " " + what, Value: at, Unit: Money, Inputs: []Input{inputOf(v.Services[name].Revenue.Minute)},
		Method: fmt.Sprintf("today's revenue − net ÷ (what is saved a year for each unit of it) for %s: losses are linear in revenue", c.spot.Placement),
		Parts:  []Part{{Name: "net", Value: c.change.net(), Unit: Money}, {Name: "saved a year for each unit of revenue a minute", Value: c.change.perMinute, Unit: Money}, {"downtime today", book[name+".downtime"].Value, Duration, name + ".downtime"}}})
	return &out
}

// purpose tells disaster recovery from capacity.
func (v *evaluator) purpose(service int, c *candidate) string {
	today, then := v.loads(v.today), v.loads(c.to)
	crowded := slices.ContainsFunc(v.spot(v.today, service).at, func(site int) bool {
		return today.at[0][site] > limit && then.at[0][site] < today.at[0][site]*(1-1e-9)
	}) && !slices.ContainsFunc(c.spot.at, func(site int) bool { return then.at[0][site] > max(limit, today.at[0][site]) })
	recovers := len(c.spot.at) > 1 && then.recovers(c.spot, today)
	switch {
	case crowded && recovers:
		return "disaster recovery and capacity"
	case crowded:
		return "capacity"
	case recovers:
		return "disaster recovery"
	}
	return "none"
}

// byLoss sorts answers, the most expensive outages first.
func byLoss(a, b ServiceAnswer) int {
	return cmp.Or(cmp.Compare(b.Now.Money.Loss.V, a.Now.Money.Loss.V), cmp.Compare(a.Service, b.Service))
}
