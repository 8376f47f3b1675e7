package assess

import (
	"maps"
	"slices"
	"strings"
)

// variation says what changes while one input has another value, so that everything else is asked of the evaluator
// with the numbers as they are. Where it is not sure it says that all may change.
type variation struct {
	never   string  // this event of the fault trees never happens; or
	name    string  // this one's numbers change; or
	servers bool    // those of the service's servers
	service int     // something of this service; -1: of none
	pattern Pattern // a recovery's
	restore bool    // the service's restore
	data    bool    // a cause that may destroy data
	prices  bool    // money of every service
	latency bool    // how long answers take: of those who need the service, or with -1 of all
	quiet   bool    // of the service, nothing but latency
	faster  bool    // a larger value makes answers faster
	loads   bool    // how full sites are
}

// with is an evaluator for a variation. Its answers hang on the estate's numbers at the time of asking.
func (v *evaluator) with(x *variation) *evaluator {
	out := &evaluator{Estate: v.Estate, shape: v.shape, today: v.today, base: v, varied: x}
	out.forget()
	return out
}

// event tells whether an event's numbers change.
func (x *variation) event(v *evaluator, name string) bool {
	if x.servers {
		rest, ok := strings.CutPrefix(name, serverPrefix)
		return ok && rest[:strings.LastIndexByte(rest, '@')] == v.services[x.service]
	}
	return name == x.never || name == x.name
}

// touches tells whether a brief of a service under a plan hangs on what changes.
func (x *variation) touches(v *evaluator, a *arrangement, service int) bool {
	if x.prices || !x.quiet && !x.servers && x.service >= 0 && slices.Contains(v.needs[service], x.service) {
		return true
	}
	if x.loads && (v.base.loads(a).crowded || v.loads(a).crowded) {
		return true
	}
	return x.touchesFailures(v, a, service) || slices.ContainsFunc(v.hard[service], func(m int) bool { return x.touchesRecovery(v.spot(a, m).Pattern, m) })
}

// touchesWrites tells whether what a service writes to others does.
func (x *variation) touchesWrites(v *evaluator, service int) bool {
	return x.latency && !x.quiet && x.service >= 0 && slices.Contains(v.hard[service], x.service)
}

// touchesFailures tells whether its interruptions do.
func (x *variation) touchesFailures(v *evaluator, a *arrangement, service int) bool {
	if x.restore && x.service == service || x.data || x.touchesWrites(v, service) || x.pattern != "" && x.pattern == v.spot(a, service).Pattern {
		return true
	}
	if x.servers {
		return slices.Contains(v.hard[service], x.service)
	}
	if x.never == "" && x.name == "" {
		return false
	}
	s, err := v.everywhere(a, service)
	return err != nil || s.has[x.never] || s.has[x.name]
}

// touchesRecovery tells whether its recovery does.
func (x *variation) touchesRecovery(p Pattern, service int) bool {
	return x.pattern != "" && x.pattern == p || x.restore && x.service == service
}

// touchesWhatIsPossible tells whether something may speak against a service's way that did not, or the other way round,
// where the input is so many times itself. Faster answers speak against nothing new.
func (x *variation) touchesWhatIsPossible(v *evaluator, service int, factor float64, eligible bool) bool {
	if !x.loads && eligible == (x.faster == (factor > 1)) {
		return false
	}
	return x.loads || x.latency && (x.service < 0 || v.Services[v.services[service]].Latency.Budget.Set && slices.Contains(v.needs[service], x.service))
}

// touchesLatency tells whether a service's answers may take another time.
func (x *variation) touchesLatency(v *evaluator, service int) bool {
	return x.latency && (x.service < 0 || slices.Contains(v.needs[service], x.service))
}

// knob is an input that can be turned.
type knob struct {
	get   func() Number
	set   func(Number)
	turns variation
}

// knobs lists every input of an estate that answers are made of, by path.
func (v *evaluator) knobs() map[string]knob {
	out := map[string]knob{}
	add := func(x variation, numbers ...*Number) {
		for _, n := range numbers {
			if n.Path != "" {
				out[n.Path] = knob{func() Number { return *n }, func(m Number) { *n = m }, x}
			}
		}
	}
	for name, c := range v.Components {
		add(variation{service: -1, name: name}, c.says(), &c.Lasts)
	}
	for _, s := range v.Shared {
		add(variation{service: -1, name: causePrefix + s.Name, data: s.Data}, &s.Every, &s.Lasts)
	}
	for _, s := range v.Sites {
		add(variation{service: -1, prices: true}, &s.FixedMonth, &s.BuildOnce)
		add(variation{service: -1, loads: true}, &s.Cores)
	}
	for _, l := range v.Links {
		add(variation{service: -1, latency: true, prices: true}, &l.RTT)
		add(variation{service: -1, prices: true}, &l.FixedMonth, &l.Bandwidth)
	}
	for _, c := range v.Curves {
		add(variation{service: -1, prices: true, loads: true}, &c.Usual, &c.Peaks)
	}
	for i, name := range v.services {
		v.serviceKnobs(i, v.Services[name], add)
	}
	p := &v.Prices
	prices := variation{service: -1, prices: true}
	add(prices, &p.OwnCore, &p.CloudCore, &p.OwnGB, &p.CloudGB, &p.NearGB, &p.FarGB, &p.Person, &p.HourLabour)
	for _, m := range []map[Pattern]Number{p.Work, p.PerYear} {
		for _, pattern := range slices.Sorted(maps.Keys(m)) {
			out[m[pattern].Path] = knob{func() Number { return m[pattern] }, func(n Number) { m[pattern] = n }, prices}
		}
	}
	for pattern, r := range v.Recovery {
		add(variation{service: -1, pattern: pattern}, &r.Detect, &r.Decide, &r.Fence, &r.Promote, &r.Scale, &r.Shift, &r.Warm, &r.Verify, &r.Coverage, &r.False, &r.Lag)
	}
	return out
}

func (v *evaluator) serviceKnobs(i int, s *Service, add func(variation, ...*Number)) {
	own := variation{service: i}
	add(variation{service: i, servers: true}, &s.Servers.Every, &s.Servers.Lasts, &s.Servers.Crews, &s.Servers.Coverage)
	add(variation{service: i, latency: true, quiet: true}, &s.Latency.P50, &s.Latency.P99)
	add(variation{service: i, loads: true}, &s.Demand.Cores)
	add(own, &s.Demand.Peak, &s.Revenue.Minute, &s.Revenue.Deferred, &s.Revenue.LostData, &s.Revenue.Penalty)
	if d := s.Data; d != nil {
		add(own, &d.Size, &d.Changes, &d.Backup)
		add(variation{service: i, latency: true, faster: true}, &d.ByUser)
		add(variation{service: i, restore: true}, &d.Restore)
	}
	for _, c := range s.Calls {
		add(variation{service: i, latency: true}, &c.Times, &c.Writes)
		add(own, &c.Bytes)
	}
}

// scaled is a number at so many times its value.
func scaled(n Number, f float64) Number {
	n.Low, n.Mode, n.High = n.Low*f, n.Mode*f, n.High*f
	if n.Unit == Ratio {
		n.Low, n.Mode, n.High = min(1, n.Low), min(1, n.Mode), min(1, n.High)
	}
	return n
}
