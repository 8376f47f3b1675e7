package assess

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// comparison looks at two assessments service by service.
type comparison struct {
	before, after *Report
	old, now      map[string]*ServiceAnswer
	names         []string // of both, the most expensive outages first
}

func newComparison(before, after *Report) *comparison {
	c := &comparison{before: before, after: after, old: map[string]*ServiceAnswer{}, now: map[string]*ServiceAnswer{}}
	loss := map[string]float64{}
	for _, x := range []struct {
		r    *Report
		into map[string]*ServiceAnswer
	}{{before, c.old}, {after, c.now}} {
		for i := range x.r.Services {
			s := &x.r.Services[i]
			x.into[s.Service] = s
			loss[s.Service] = max(loss[s.Service], s.Now.Money.Loss.V)
		}
	}
	c.names = slices.SortedFunc(maps.Keys(loss), func(a, b string) int { return cmp.Or(cmp.Compare(loss[b], loss[a]), cmp.Compare(a, b)) })
	return c
}

// Both lists the services that two assessments have, by name.
func Both(before, after *Report) []string {
	c := newComparison(before, after)
	return slices.Sorted(slices.Values(slices.DeleteFunc(c.names, func(name string) bool { return c.old[name] == nil || c.now[name] == nil })))
}

func (c *comparison) delta(id string) Delta {
	before, was := c.before.Book[id]
	after, is := c.after.Book[id]
	d := Delta{ID: id, Unit: cmp.Or(after.Unit, before.Unit)}
	if was {
		d.Before = &before.Value
	}
	if is {
		d.After = &after.Value
	}
	d.mark()
	return d
}

func (d *Delta) mark() {
	d.Changed = (d.Before == nil) != (d.After == nil) || d.Before != nil && !near(*d.Before, *d.After)
}

func (s *ServiceAnswer) stand() *Stand {
	if s == nil {
		return nil
	}
	out := &Stand{Worth: s.Answer.Worth, Now: s.Now.Placement, Placement: s.Answer.Placement, Proposed: s.Proposed.Placement, Loss: s.Now.Money.Loss.V}
	if s.Answer.Flip != nil {
		out.Flip = &s.Answer.Flip.V
	}
	return out
}

func (c *comparison) verdicts() []VerdictChange {
	out := []VerdictChange{}
	for _, name := range c.names {
		v := VerdictChange{Service: name, Before: c.old[name].stand(), After: c.now[name].stand()}
		if v.Change = v.change(); v.Change != "" {
			out = append(out, v)
		}
	}
	slices.SortStableFunc(out, func(a, b VerdictChange) int {
		return slices.Index(verdictOrder, a.Change) - slices.Index(verdictOrder, b.Change)
	})
	return out
}

// taken tells whether a service now runs as was recommended, or in a way that takes more than its way did.
func (s *Stand) taken(now Placement) bool {
	return now.Pattern == s.Placement.Pattern && slices.Equal(now.Sites, s.Placement.Sites) || rank(now.Pattern) > rank(s.Now.Pattern)
}

func (v *VerdictChange) change() string {
	a, b := v.Before, v.After
	switch {
	case a == nil:
		return Added
	case b == nil:
		return Removed
	case a.Worth && !b.Worth && a.taken(b.Now):
		return Done
	case a.Worth && !b.Worth:
		return Lost
	case !a.Worth && b.Worth:
		return Won
	case a.Worth && a.Placement.key() != b.Placement.key():
		return Other
	case a.Now.key() != b.Now.key():
		return Moved
	case a.Proposed.key() != b.Proposed.key():
		return Carried
	case (a.Flip == nil) != (b.Flip == nil) || a.Flip != nil && !near(*a.Flip, *b.Flip):
		return Flip
	}
	return ""
}

// served is an event that takes a service down alone, wherever it runs: its servers are its servers at another site too.
func (p *SinglePoint) served() string {
	if i := strings.LastIndex(p.Event, " at "); p.Kind == "servers" && i >= 0 {
		return p.Event[:i]
	}
	return p.Event
}

func (c *comparison) singles() []SingleChange {
	found := map[string]*SingleChange{}
	lacks := func(has, not *ServiceAnswer, isNew bool) {
		for i := range has.Now.Availability.Singles {
			p := &has.Now.Availability.Singles[i]
			if slices.ContainsFunc(not.Now.Availability.Singles, func(o SinglePoint) bool { return o.served() == p.served() }) {
				continue
			}
			key := fmt.Sprint(isNew, p.Event)
			if found[key] == nil {
				found[key] = &SingleChange{Event: p.Event, Kind: p.Kind, New: isNew}
			}
			found[key].Services = append(found[key].Services, has.Service)
		}
	}
	for _, name := range c.names {
		if a, b := c.old[name], c.now[name]; a != nil && b != nil {
			lacks(b, a, true)
			lacks(a, b, false)
		}
	}
	out := []SingleChange{}
	for _, s := range found {
		slices.Sort(s.Services)
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b SingleChange) int {
		return cmp.Or(compareBool(b.New, a.New), len(b.Services)-len(a.Services), cmp.Compare(a.Event, b.Event))
	})
	return out
}

// mended is how many of the things to mend are compared: further down nobody begins.
const mended = 5

func mendChange(before, after *Report) MendChange {
	out := MendChange{Before: mends(before), After: mends(after)}
	out.Changed = !slices.EqualFunc(out.Before, out.After, func(a, b Mend) bool { return a.Event == b.Event })
	return out
}

// mends are the first things to mend. What is equal but for noise goes by name, lest it changes places without a cause.
func mends(r *Report) []Mend {
	out := []Mend{}
	for _, f := range r.Fixes {
		if f.Saves > 0 || f.Share > 0 {
			out = append(out, Mend{f.Event, f.Share, f.Saves})
		}
	}
	coarse := func(v float64) float64 {
		if v == 0 {
			return 0
		}
		scale := math.Pow(10, 6-math.Ceil(math.Log10(math.Abs(v))))
		return math.Round(v*scale) / scale
	}
	slices.SortStableFunc(out, func(a, b Mend) int {
		return cmp.Or(cmp.Compare(coarse(b.Saves), coarse(a.Saves)), cmp.Compare(coarse(b.Share), coarse(a.Share)), cmp.Compare(a.Event, b.Event))
	})
	return out[:min(mended, len(out))]
}

// stepChanges compares roadmaps. A step is who moves, and where to; one moved if it changed places with another one
// that both have.
func stepChanges(before, after []Step) []StepChange {
	key := func(s *Step) string { return strings.Join(s.Services, ",") + " " + s.To.key() }
	places := func(steps []Step) map[string]int {
		out := map[string]int{}
		for i := range steps {
			out[key(&steps[i])] = i + 1
		}
		return out
	}
	old, now := places(before), places(after)
	common := func(steps []Step, other map[string]int) (out []string) {
		for i := range steps {
			if other[key(&steps[i])] > 0 {
				out = append(out, key(&steps[i]))
			}
		}
		return out
	}
	was, is := common(before, now), common(after, old)
	out := []StepChange{}
	for i := range after {
		s, k := &after[i], key(&after[i])
		c := StepChange{"came", s.Services, s.To, old[k], i + 1, s.Saves}
		if c.Before > 0 {
			c.Change = "moved"
			if slices.Index(was, k) == slices.Index(is, k) {
				continue
			}
		}
		out = append(out, c)
	}
	for i := range before {
		if s := &before[i]; now[key(s)] == 0 {
			out = append(out, StepChange{"went", s.Services, s.To, i + 1, 0, s.Saves})
		}
	}
	return out
}

// against lists what speaks against a service's ways: today's, and where both sides weigh a pattern, that one.
func against(s, other *ServiceAnswer) []RefusalChange {
	var out []RefusalChange
	if s == nil {
		return nil
	}
	for _, r := range s.Now.Impossible {
		out = append(out, RefusalChange{Service: s.Service, Pattern: s.Now.Placement.Pattern, Today: true, Refusal: r})
	}
	for i := range s.Options {
		o := &s.Options[i].Outcome
		if other == nil || o.Placement.key() == s.Now.Placement.key() ||
			!slices.ContainsFunc(other.Options, func(x Option) bool { return x.Outcome.Placement.Pattern == o.Placement.Pattern }) {
			continue
		}
		for _, r := range o.Impossible {
			out = append(out, RefusalChange{Service: s.Service, Pattern: o.Placement.Pattern, Refusal: r})
		}
	}
	return out
}

func (c *comparison) refusals() []RefusalChange {
	out := []RefusalChange{}
	only := func(has, not []RefusalChange, isNew bool) {
		count := map[string]int{}
		key := func(r *RefusalChange) string { // their texts hold numbers
			if r.Today {
				return "today " + r.Refusal.Rule
			}
			return string(r.Pattern) + " " + r.Refusal.Rule
		}
		for i := range not {
			count[key(&not[i])]++
		}
		for _, r := range has {
			if count[key(&r)]--; count[key(&r)] < 0 {
				r.New = isNew
				out = append(out, r)
			}
		}
	}
	for _, name := range c.names {
		old, now := against(c.old[name], c.now[name]), against(c.now[name], c.old[name])
		only(now, old, true)
		only(old, now, false)
	}
	slices.SortStableFunc(out, func(a, b RefusalChange) int {
		return cmp.Or(compareBool(b.Today, a.Today), compareBool(b.New, a.New), rank(a.Pattern)-rank(b.Pattern))
	})
	return out
}

// objectives are what may be wanted of a service.
var objectives = []struct {
	name   string
	unit   Unit
	wanted func(*Wanted) *float64
	has    func(*Outcome) float64
	least  bool // at least so much is wanted; else at most
}{
	{"availability", Ratio, func(w *Wanted) *float64 { return w.Availability }, func(o *Outcome) float64 { return o.Availability.Share.V }, true},
	{"rto", Duration, func(w *Wanted) *float64 { return w.RTO }, func(o *Outcome) float64 { return o.Recovery.RTO.P95 }, false},
	{"rpo", Duration, func(w *Wanted) *float64 { return w.RPO }, func(o *Outcome) float64 { return o.Recovery.RPO.P95 }, false},
}

func (c *comparison) wants() []WantChange {
	out := []WantChange{}
	for _, name := range c.names {
		for _, o := range objectives {
			w := WantChange{Service: name, Objective: o.name, Wanted: Delta{ID: "services." + name + ".wants." + o.name, Unit: o.unit}, Has: Delta{ID: name + "." + o.name, Unit: o.unit}}
			var missed [2]bool
			for i, s := range []*ServiceAnswer{c.old[name], c.now[name]} {
				if s == nil {
					continue
				}
				has, wanted := o.has(&s.Now), o.wanted(&s.Wanted)
				missed[i] = wanted != nil && (o.least && has < *wanted || !o.least && has > *wanted)
				if i == 0 {
					w.Has.Before, w.Wanted.Before = &has, wanted
				} else {
					w.Has.After, w.Wanted.After = &has, wanted
				}
			}
			w.Has.mark()
			w.Wanted.mark()
			switch {
			case missed[0] == missed[1]:
				continue
			case missed[1]:
				w.Change = "missed"
			case w.Wanted.After == nil:
				w.Change = "dropped"
			default:
				w.Change = "met"
			}
			out = append(out, w)
		}
	}
	order := []string{"missed", "dropped", "met"}
	slices.SortStableFunc(out, func(a, b WantChange) int { return slices.Index(order, a.Change) - slices.Index(order, b.Change) })
	return out
}

// shownNumbers are a service's numbers that are compared.
var shownNumbers = []string{"downtime", "loss", "month", "rto", "rpo", "p99"}

func (c *comparison) services() []ServiceChange {
	out := []ServiceChange{}
	for _, name := range c.names {
		if c.old[name] == nil || c.now[name] == nil {
			continue
		}
		s := ServiceChange{Service: name}
		for _, what := range shownNumbers {
			if d := c.delta(name + "." + what); d.Changed {
				s.Numbers = append(s.Numbers, d)
			}
		}
		if len(s.Numbers) > 0 {
			out = append(out, s)
		}
	}
	return out
}
