package assess

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
)

// doubts asks, for every assumed input that carries weight, how far it may be wrong before some verdict flips: each
// service's recommended way is compared with today's at 0.1 to 10 times the input's value.
func doubts(e *Estate, r *Report) ([]Doubt, error) {
	var out []Doubt
	for _, in := range e.assumedInputs(r) {
		d, err := e.doubt(r, in)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	slices.SortStableFunc(out, func(a, b Doubt) int {
		return cmp.Or(cmp.Compare(distance(a.Factor), distance(b.Factor)), cmp.Compare(a.Input.Path, b.Input.Path))
	})
	return out, nil
}

// distance orders factors: 2 is as far as one half; 0 (none flips) is farthest.
func distance(factor float64) float64 {
	if factor == 0 {
		return math.Inf(1)
	}
	return math.Abs(math.Log(factor))
}

// maxDoubts bounds how many inputs are tried.
const maxDoubts = 40

// assumedInputs lists the assumed inputs that stand behind the services with the largest losses, each once.
func (e *Estate) assumedInputs(r *Report) []Input {
	seen := map[string]bool{}
	var out []Input
	for _, s := range r.Services {
		for _, id := range []string{s.Service + ".loss", s.Service + ".downtime", s.Service + ".month"} {
			for _, in := range r.Book[id].Inputs {
				if in.Assumed && !seen[in.Path] && len(out) < maxDoubts {
					seen[in.Path] = true
					out = append(out, in)
				}
			}
		}
	}
	return out
}

// factors are tried from the nearest on.
var factors = []float64{1.25, .8, 1.5, .67, 2, .5, 3, .33, 5, .2, 10, .1}

func (e *Estate) doubt(r *Report, in Input) (Doubt, error) {
	d := Doubt{Input: in, Text: "no factor from a tenth to ten times changes a verdict"}
	n := e.numberAt(in.Path)
	if n == nil {
		return d, nil
	}
	saved := *n
	defer func() { *n = saved }()
	for _, f := range factors {
		*n = scaled(saved, f)
		v := newEvaluator(e)
		today := e.Today()
		for _, s := range r.Services {
			worth, err := v.stillWorth(today, s)
			if err != nil {
				return d, err
			}
			if worth != s.Answer.Worth {
				d.Service, d.Factor = s.Service, f
				d.Text = fmt.Sprintf("at %s times its value, the verdict on %s flips", trim(f), s.Service)
				return d, nil
			}
		}
	}
	return d, nil
}

// stillWorth weighs the way that was recommended again, or where none was, every way that is possible.
func (v *evaluator) stillWorth(today Plan, s ServiceAnswer) (bool, error) {
	for _, o := range s.Options {
		p := o.Outcome.Placement
		if len(o.Outcome.Impossible) > 0 || p.key() == today[s.Service].key() || s.Answer.Worth && p.key() != s.Answer.Placement.key() {
			continue
		}
		next := v.along(today, s.Service, p)
		c, err := v.change(today, next, movedIn(today, next))
		if err != nil {
			return false, err
		}
		if c.net() > 0 {
			return true, nil
		}
	}
	return false, nil
}

func scaled(n Number, f float64) Number {
	n.Low, n.Mode, n.High = n.Low*f, n.Mode*f, n.High*f
	if n.Unit == Ratio {
		n.Low, n.Mode, n.High = min(1, n.Low), min(1, n.Mode), min(1, n.High)
	}
	return n
}

// numberAt finds the input of a path; nil if it is none that can be varied alone.
func (e *Estate) numberAt(path string) *Number {
	var found *Number
	e.numbers(func(n *Number) {
		if n.Path == path {
			found = n
		}
	})
	return found
}

// numbers visits every number that answers are made of, but for those in maps of prices, which are values.
func (e *Estate) numbers(visit func(*Number)) {
	for _, name := range slices.Sorted(maps.Keys(e.Components)) {
		c := e.Components[name]
		visit(&c.Every)
		visit(&c.Lasts)
	}
	for _, s := range e.Shared {
		visit(&s.Every)
		visit(&s.Lasts)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Sites)) {
		s := e.Sites[name]
		visit(&s.FixedMonth)
		visit(&s.BuildOnce)
		visit(&s.Cores)
	}
	for _, l := range e.Links {
		visit(&l.RTT)
		visit(&l.Bandwidth)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Services)) {
		s := e.Services[name]
		for _, n := range []*Number{&s.Servers.Every, &s.Servers.Lasts, &s.Latency.P50, &s.Latency.P99, &s.Demand.Peak, &s.Demand.Cores,
			&s.Revenue.Minute, &s.Revenue.Deferred, &s.Revenue.LostData, &s.Revenue.Penalty} {
			visit(n)
		}
		if d := s.Data; d != nil {
			for _, n := range []*Number{&d.Size, &d.Changes, &d.ByUser, &d.Backup, &d.Restore} {
				visit(n)
			}
		}
		for _, c := range s.Calls {
			visit(&c.Times)
			visit(&c.Bytes)
			visit(&c.Writes)
		}
	}
	for _, p := range Patterns {
		r := e.Recovery[p]
		for _, n := range []*Number{&r.Detect, &r.Decide, &r.Fence, &r.Promote, &r.Scale, &r.Shift, &r.Warm, &r.Verify, &r.Coverage, &r.False, &r.Lag} {
			visit(n)
		}
	}
	p := &e.Prices
	for _, n := range []*Number{&p.OwnCore, &p.CloudCore, &p.OwnGB, &p.CloudGB, &p.NearGB, &p.FarGB, &p.Person, &p.HourLabour} {
		visit(n)
	}
}
