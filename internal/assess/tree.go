package assess

import (
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/fault"
)

// Names of a tree's gates and events. They are read by people in cut sets, so they are words.
const (
	sitePrefix    = "site "    // gate: the site does not work
	serverPrefix  = "servers " // event: too few servers of a service work at a site
	servicePrefix = "service " // gate: the service is up at none of its sites
	linePrefix    = "line "    // gate: two sites do not reach each other
	causePrefix   = "cause "   // event: a shared cause is present
)

func serversAt(service, site string) string { return serverPrefix + service + "@" + site }
func downAt(service, site string) string    { return servicePrefix + service + "@" + site }

// tree is the fault tree of "the service is up at none of its sites" under a plan. What two services, sites or lines
// share is one event in it, so that common causes are kept.
func (e *Estate) tree(plan Plan, service string) *fault.Model {
	b := e.newTree(plan)
	b.m.Title, b.m.Top = e.Title+": "+service, servicePrefix+service
	b.service(service)
	return b.m
}

// treeBuilder adds gates and events as they are first needed.
type treeBuilder struct {
	*Estate
	plan Plan
	m    *fault.Model
}

func (e *Estate) newTree(plan Plan) *treeBuilder {
	return &treeBuilder{e, plan, &fault.Model{Gates: map[string]fault.Formula{}, Events: map[string]fault.Event{}}}
}

// steady is the share of time and the frequency per second of something that fails and is repaired.
func steady(every, lasts float64) (down, perSecond float64) {
	return lasts / (every + lasts), 1 / (every + lasts)
}

// times are a component's mean times: from a repair to the next failure, and to repair it. Where the file says how much
// of the time it is down, the first follows from that.
func (c *Component) times() (every, lasts float64) {
	lasts = c.Lasts.Mean()
	if !c.Down.Set {
		return c.Every.Mean(), lasts
	}
	return lasts * (1 - c.Down.Mean()) / c.Down.Mean(), lasts
}

// says is what the file says of how often a component fails.
func (c *Component) says() *Number {
	if c.Down.Set {
		return &c.Down
	}
	return &c.Every
}

// event is the numbers of a basic event by its name.
func (e *Estate) event(name string) fault.Event {
	if c := e.Components[name]; c != nil {
		down, often := steady(c.times())
		return fault.Event{Probability: down, Frequency: often, Label: c.Label}
	}
	if rest, ok := strings.CutPrefix(name, serverPrefix); ok {
		service := rest[:strings.LastIndexByte(rest, '@')]
		g := e.Services[service].Servers.group()
		return fault.Event{Probability: g.down(), Frequency: g.perSecond}
	}
	for _, s := range e.Shared {
		if causePrefix+s.Name == name {
			down, often := steady(s.Every.Mean(), s.Lasts.Mean())
			return fault.Event{Probability: down, Frequency: often, Label: s.Label}
		}
	}
	panic("BUG: no event " + name)
}

func (b *treeBuilder) basic(name string) fault.Formula {
	if _, known := b.m.Events[name]; !known {
		b.m.Events[name] = b.event(name)
	}
	return fault.Ref(name)
}

func (b *treeBuilder) cause(s *Shared) fault.Formula { return b.basic(causePrefix + s.Name) }

func strikes(list []string, name string) bool {
	return slices.Contains(list, name) || slices.Contains(list, "all")
}

func (b *treeBuilder) site(name string) fault.Formula {
	gate := sitePrefix + name
	if _, known := b.m.Gates[gate]; !known {
		ways := []fault.Formula{b.Sites[name].Needs.Fails(b.basic)}
		for _, s := range b.Shared {
			if strikes(s.Hits.Sites, name) {
				ways = append(ways, b.cause(s))
			}
		}
		b.m.Gates[gate] = fault.AnyOf(ways...)
	}
	return fault.Ref(gate)
}

// line is the failure of every link between two sites; without a link they do not reach each other.
func (b *treeBuilder) line(from, to string) fault.Formula {
	if from == to {
		return fault.Formula{Op: fault.False}
	}
	gate := linePrefix + min(from, to) + "-" + max(from, to)
	if _, known := b.m.Gates[gate]; !known {
		var all []fault.Formula
		for _, l := range b.Links {
			if l.joins(from, to) {
				all = append(all, l.Needs.Fails(b.basic))
			}
		}
		b.m.Gates[gate] = fault.Formula{Op: fault.True}
		if len(all) > 0 {
			b.m.Gates[gate] = fault.AllOf(all...)
		}
	}
	return fault.Ref(gate)
}

// servers is the failure of a server group at a site: fewer work than are needed, or a failure was not survived. The
// group is one event, whose probability and frequency are those of its Markov chain.
func (b *treeBuilder) servers(service, site string) fault.Formula {
	return b.basic(serversAt(service, site))
}

// at is the failure of a service at one site.
func (b *treeBuilder) at(service, site string) fault.Formula {
	gate := downAt(service, site)
	if _, known := b.m.Gates[gate]; known {
		return fault.Ref(gate)
	}
	s := b.Services[service]
	ways := []fault.Formula{b.site(site), b.servers(service, site)}
	for _, cause := range b.Shared {
		if strikes(cause.Hits.Services, service) {
			ways = append(ways, b.cause(cause))
		}
	}
	for _, call := range s.Calls {
		if !call.Optional {
			ways = append(ways, b.reach(call.To, site))
		}
	}
	b.m.Gates[gate] = fault.AnyOf(ways...)
	return fault.Ref(gate)
}

// reach is the failure to reach a service from a site: at each of its sites it is down or the line there is.
func (b *treeBuilder) reach(service, from string) fault.Formula {
	gate := servicePrefix + service + " from " + from
	if _, known := b.m.Gates[gate]; !known {
		var all []fault.Formula
		for _, site := range b.plan[service].Sites {
			all = append(all, fault.AnyOf(b.at(service, site), b.line(from, site)))
		}
		b.m.Gates[gate] = fault.AllOf(all...)
	}
	return fault.Ref(gate)
}

// service is the failure of a service at all of its sites.
func (b *treeBuilder) service(name string) fault.Formula {
	gate := servicePrefix + name
	if _, known := b.m.Gates[gate]; !known {
		var all []fault.Formula
		for _, site := range b.plan[name].Sites {
			all = append(all, b.at(name, site))
		}
		b.m.Gates[gate] = fault.AllOf(all...)
	}
	return fault.Ref(gate)
}

// why explains, gate by gate, how one event alone takes a service down: the shortest way from the top to it through
// gates that fail with it.
func (e *Estate) why(m *fault.Model, event string) []string {
	memo := map[string]bool{}
	var fails func(f fault.Formula) bool
	fails = func(f fault.Formula) bool {
		switch f.Op {
		case fault.Name:
			g, gate := m.Gates[f.Name]
			if !gate {
				return f.Name == event
			}
			v, known := memo[f.Name]
			if !known {
				v = fails(g)
				memo[f.Name] = v
			}
			return v
		case fault.True:
			return true
		case fault.False:
			return false
		}
		n := 0
		for _, a := range f.Args {
			if fails(a) {
				n++
			}
		}
		return f.Op == fault.Or && n > 0 || f.Op == fault.And && n == len(f.Args) || f.Op == fault.AtLeast && n >= f.K
	}
	var path []string
	var walk func(f fault.Formula) bool
	walk = func(f fault.Formula) bool {
		if f.Op == fault.Name {
			if f.Name == event {
				path = append(path, plain(event))
				return true
			}
			g, gate := m.Gates[f.Name]
			if !gate || !fails(f) {
				return false
			}
			path = append(path, plain(f.Name))
			if walk(g) {
				return true
			}
			path = path[:len(path)-1]
			return false
		}
		for _, a := range f.Args {
			if fails(a) && walk(a) {
				return true
			}
		}
		return false
	}
	walk(fault.Ref(m.Top))
	return path
}

// plain is the name of a gate or an event for people.
func plain(name string) string {
	for prefix, text := range map[string]string{serverPrefix: "servers of ", causePrefix: ""} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return text + strings.Replace(rest, "@", " at ", 1)
		}
	}
	if rest, ok := strings.CutPrefix(name, servicePrefix); ok {
		return strings.Replace(rest, "@", " at ", 1)
	}
	if rest, ok := strings.CutPrefix(name, sitePrefix); ok {
		return "site " + rest
	}
	return name
}

// kindOf says what an event of a tree is.
func (e *Estate) kindOf(event string) string {
	switch {
	case strings.HasPrefix(event, serverPrefix):
		return "servers"
	case strings.HasPrefix(event, causePrefix):
		return "shared cause"
	}
	if c := e.Components[event]; c != nil && c.Kind != "" {
		return c.Kind
	}
	return "component"
}

// inputsOf lists the numbers that stand behind a tree's events, in order of their names.
func (e *Estate) inputsOf(m *fault.Model) []Input {
	var out []Input
	for _, event := range slices.Sorted(maps.Keys(m.Events)) {
		if c := e.Components[event]; c != nil {
			out = append(out, inputOf(*c.says()), inputOf(c.Lasts))
		}
		if rest, ok := strings.CutPrefix(event, serverPrefix); ok {
			for _, n := range e.Services[rest[:strings.LastIndexByte(rest, '@')]].Servers.inputs() {
				if in := inputOf(n); !slices.Contains(out, in) {
					out = append(out, in)
				}
			}
		}
		if rest, ok := strings.CutPrefix(event, causePrefix); ok {
			for _, s := range e.Shared {
				if s.Name == rest {
					out = append(out, inputOf(s.Every), inputOf(s.Lasts))
				}
			}
		}
	}
	return out
}
