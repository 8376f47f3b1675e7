package assess

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// checker collects what is wrong with an estate that was decoded.
type checker struct {
	*Estate
	problems Problems
}

func (e *Estate) check() Problems {
	c := &checker{Estate: e}
	c.top()
	for _, name := range slices.Sorted(maps.Keys(e.Components)) {
		c.component(name, e.Components[name])
	}
	for _, name := range slices.Sorted(maps.Keys(e.Sites)) {
		c.site(name, e.Sites[name])
	}
	for i, l := range e.Links {
		c.link(fmt.Sprintf("links.%d", i), l)
	}
	for i, s := range e.Shared {
		c.shared(fmt.Sprintf("shared.%d", i), s)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Curves)) {
		c.curve("curves."+name, e.Curves[name])
	}
	for _, name := range slices.Sorted(maps.Keys(e.Services)) {
		c.service("services."+name, name, e.Services[name])
	}
	for _, p := range slices.Sorted(maps.Keys(e.Recovery)) {
		if !slices.Contains(Patterns, p) {
			c.add("recovery."+string(p), patternHint(), "pattern %q does not exist", p)
		}
	}
	c.circles()
	c.prices()
	slices.SortStableFunc(c.problems, func(a, b Problem) int { return a.Line - b.Line })
	return c.problems
}

func (c *checker) add(path, hint, format string, args ...any) {
	at := c.where.of(path)
	c.problems = append(c.problems, Problem{c.File, at.line, at.column, fmt.Sprintf(format, args...), hint})
}

// need says that a number must be there.
func (c *checker) need(path string, n Number, hint string) {
	if !n.Set {
		c.add(path, hint, "%s has no %s", strings.ReplaceAll(path[:strings.LastIndexByte(path, '.')], ".", " "), last(path))
	}
}

func patternHint() string {
	names := make([]string, len(Patterns))
	for i, p := range Patterns {
		names[i] = string(p)
	}
	return "one of " + strings.Join(names, ", ")
}

func (c *checker) top() {
	switch {
	case c.Format == 0:
		c.add("estate", "write estate: 1", "the version of the form is missing")
	case c.Format != Format:
		c.add("estate", "", "form %d; this build reads %d", c.Format, Format)
	}
	if len(c.Sites) == 0 {
		c.add("sites", "", "there is no site")
	}
	if len(c.Services) == 0 {
		c.add("services", "", "there is no service")
	}
}

func (c *checker) component(name string, x *Component) {
	path := "components." + name
	switch {
	case x.Every.Set && x.Down.Set:
		c.add(path+".down", "keep one of them", "component %s has both every and down", name)
	case !x.Every.Set && !x.Down.Set:
		c.add(path, "write every: 4000h (mean time between failures), with ~ in front if it is a guess", "component %s does not say how often it fails", name)
	case x.Every.Set && x.Every.Low == 0:
		c.add(path+".every", "", "component %s fails all the time", name)
	case x.Down.Set && x.Down.High >= 1:
		c.add(path+".down", "", "component %s never works", name)
	}
	if x.Lasts.Set && x.Lasts.Low <= 0 {
		c.add(path+".lasts", "", "repair in no time")
	}
	if x.Every.Set && x.Lasts.Set && x.Lasts.Mean() >= x.Every.Mean() {
		c.add(path+".lasts", "is it the other way round?", "component %s takes longer to repair than it works", name)
	}
}

func (c *checker) names(path string, e Expression) {
	for _, name := range e.Names() {
		if c.Components[name] == nil {
			c.add(path, nearest(name, slices.Sorted(maps.Keys(c.Components))), "component %q does not exist", name)
		}
	}
}

func (c *checker) siteName(path, name string, witnesses bool) bool {
	s := c.Sites[name]
	switch {
	case s == nil:
		c.add(path, nearest(name, slices.Sorted(maps.Keys(c.Sites))), "site %q does not exist", name)
	case s.Kind == Witness && !witnesses:
		c.add(path, "a witness only votes", "site %q is a witness", name)
	default:
		return true
	}
	return false
}

func (c *checker) site(name string, s *Site) {
	path := "sites." + name
	if s.Kind != Own && s.Kind != Cloud && s.Kind != Witness {
		c.add(path+".kind", "write own, cloud or witness", "site %s has kind %q", name, s.Kind)
	}
	c.names(path+".needs", s.Needs)
	if s.Kind == Own && !s.Cores.Set {
		c.add(path, "write cores: 400", "site %s is one's own and does not say how many cores it has", name)
	}
}

func (c *checker) link(path string, l *Link) {
	if len(l.Between) != 2 {
		c.add(path+".between", "write between: [dc1, dc2]", "a link joins two sites; got %d", len(l.Between))
		return
	}
	for _, name := range l.Between {
		c.siteName(path+".between", name, true)
	}
	if l.Between[0] == l.Between[1] {
		c.add(path+".between", "", "a link joins %q with itself", l.Between[0])
	}
	c.need(path+".rtt", l.RTT, "write rtt: 1.2ms in the same city, rtt: ~30ms between cities")
	c.names(path+".needs", l.Needs)
}

func (c *checker) shared(path string, s *Shared) {
	c.need(path+".every", s.Every, "write every: 60d")
	c.need(path+".lasts", s.Lasts, "write lasts: 40m")
	if s.Every.Set && s.Every.Low == 0 {
		c.add(path+".every", "", "it happens all the time")
	}
	if s.Name == "" {
		c.add(path, "write name: bad release", "a shared cause without a name")
	}
	for _, name := range s.Hits.Sites {
		if name != "all" {
			c.siteName(path+".hits.sites", name, true)
		}
	}
	for _, name := range s.Hits.Services {
		if name != "all" && c.Services[name] == nil {
			c.add(path+".hits.services", nearest(name, slices.Sorted(maps.Keys(c.Services))), "service %q does not exist", name)
		}
	}
	if len(s.Hits.Sites)+len(s.Hits.Services) == 0 {
		c.add(path, "write hits: {sites: [all]} or hits: {services: [checkout]}", "%q strikes nothing", s.Name)
	}
}

func (c *checker) curve(path string, v *Curve) {
	if n := len(v.Hours); n != 0 && n != 24 {
		c.add(path+".hours", "", "%d hours; want 24", n)
	}
	top := 0.0
	for _, h := range v.Hours {
		top = max(top, h)
	}
	if len(v.Hours) == 24 && top == 0 {
		c.add(path+".hours", "", "every hour is 0")
	}
	if v.Peaks.Set && v.Peaks.High > 365 {
		c.add(path+".peak_days", "", "more peak days than days")
	}
}

func (c *checker) service(path, name string, s *Service) {
	c.placement(path+".now", s.Now)
	for i, call := range s.Calls {
		at := fmt.Sprintf("%s.calls.%d", path, i)
		switch {
		case call.To == name:
			c.add(at+".to", "", "service %s calls itself", name)
		case c.Services[call.To] == nil:
			c.add(at+".to", nearest(call.To, slices.Sorted(maps.Keys(c.Services))), "service %q does not exist", call.To)
		}
	}
	for i, p := range s.Consider {
		if !slices.Contains(Patterns, p) {
			c.add(fmt.Sprintf("%s.consider.%d", path, i), patternHint(), "pattern %q does not exist", p)
		}
	}
	c.servers(path+".servers", s.Servers)
	if l := s.Latency; l.P50.Set && l.P99.Set && l.P99.Mean() < l.P50.Mean() {
		c.add(path+".latency.p99", "", "p99 is below p50")
	}
	if s.Demand.Curve != "" && c.Curves[s.Demand.Curve] == nil {
		c.add(path+".demand.curve", nearest(s.Demand.Curve, slices.Sorted(maps.Keys(c.Curves))), "curve %q does not exist", s.Demand.Curve)
	}
	if s.Revenue.Penalty.Set != s.Revenue.After.Set {
		c.add(path+".revenue", "write both penalty and penalty_after", "half a penalty")
	}
	if s.Wants.Availability.Set && s.Wants.Availability.High >= 1 {
		c.add(path+".wants.availability", "write for example 99.95%", "nothing is available always")
	}
}

func (c *checker) servers(path string, s Servers) {
	if s.Count.Set && (s.Count.Low < 1 || s.Count.High > 1000) {
		c.add(path+".count", "", "%s servers; want 1 to 1000", s.Count)
	}
	if s.Need.Set && s.Count.Set && s.Need.High > s.Count.Low {
		c.add(path+".need", "", "%s of %s servers are needed", s.Need, s.Count)
	}
	if s.Every.Set && s.Every.Low == 0 {
		c.add(path+".every", "", "servers fail all the time")
	}
	most := s.Count.High
	if !s.Count.Set {
		most = usualServers
	}
	switch {
	case s.Crews.Set && s.Crews.Low < 1:
		c.add(path+".crews", "write crews: 1 if one is repaired after the other", "%s crews repair nothing", s.Crews)
	case s.Crews.Set && s.Crews.High > most:
		c.add(path+".crews", "leave crews out if each has its own", "%s crews for %s servers", s.Crews, trim(most))
	}
}

// placement checks a pattern against its sites: how many, how far apart, and who breaks ties.
func (c *checker) placement(path string, p Placement) {
	if !slices.Contains(Patterns, p.Pattern) {
		c.add(path+".pattern", patternHint(), "pattern %q does not exist", p.Pattern)
		return
	}
	ok := true
	cities := map[string]bool{}
	for i, name := range p.Sites {
		if !c.siteName(path+".sites", name, false) {
			ok = false
			continue
		}
		if slices.Contains(p.Sites[:i], name) {
			c.add(path+".sites", "", "site %q is named twice", name)
		}
		cities[c.Sites[name].city(name)] = true
	}
	if !ok {
		return
	}
	switch n := len(p.Sites); {
	case p.Pattern == Single && n != 1:
		c.add(path+".sites", "write sites: [dc1]", "pattern single at %d sites", n)
	case p.Pattern != Single && n < 2:
		c.add(path+".sites", "name two sites or more, the first writes", "pattern %s at %d sites", p.Pattern, n)
	case p.Pattern == SameCity && len(cities) > 1:
		c.add(path+".sites", "one-writer and partitioned go across cities", "pattern same-city across %d cities", len(cities))
	}
	if p.Quorum != "" {
		if c.siteName(path+".quorum", p.Quorum, true) && slices.Contains(p.Sites, p.Quorum) {
			c.add(path+".quorum", "name a third site", "site %q cannot break the tie that it is part of", p.Quorum)
		}
	}
	if p.Automatic != nil && *p.Automatic && len(p.Sites) == 2 && p.Quorum == "" {
		c.add(path+".automatic", "name a witness at a third place: quorum: w, or recover by hand: automatic: false",
			"two sites cannot tell a lost site from a cut line, so automatic recovery could make both of them write")
	}
}

func (s *Site) city(name string) string {
	if s.City == "" {
		return name
	}
	return s.City
}

// circles refuses services that call each other in a circle: their availability would rest on itself.
func (c *checker) circles() {
	state := map[string]int{}
	var visit func(name string, path []string) bool
	visit = func(name string, path []string) bool {
		switch state[name] {
		case 1:
			from := slices.Index(path, name)
			c.add("services."+path[len(path)-1]+".calls", "cut the circle, or join the services into one",
				"services call each other in a circle: %s", strings.Join(append(slices.Clone(path[from:]), name), " → "))
			return false
		case 2:
			return true
		}
		state[name] = 1
		for _, call := range c.Services[name].Calls {
			if c.Services[call.To] != nil && call.To != name && !visit(call.To, append(path, name)) {
				return false
			}
		}
		state[name] = 2
		return true
	}
	for _, name := range slices.Sorted(maps.Keys(c.Services)) {
		if !visit(name, nil) {
			return
		}
	}
}

// prices: what is compared needs a price. A guess will do, but it has to be somebody's.
func (c *checker) prices() {
	own, cloud, cities := false, false, map[string]int{}
	for name, s := range c.Sites {
		own, cloud = own || s.Kind == Own, cloud || s.Kind == Cloud
		if s.Kind != Witness {
			cities[s.city(name)]++
		}
	}
	near := false
	for _, n := range cities {
		near = near || n > 1
	}
	p := c.Prices
	for _, x := range []struct {
		needed bool
		key    string
		n      Number
		hint   string
	}{
		{own, "own_core_month", p.OwnCore, "a core of one's own for a month, power and people included: ~9"},
		{own, "own_gb_month", p.OwnGB, "~0.05"},
		{cloud, "cloud_core_month", p.CloudCore, "~25"},
		{cloud, "cloud_gb_month", p.CloudGB, "~0.10"},
		{near, "same_city_gb", p.NearGB, "~0.01"},
		{len(cities) > 1, "cross_city_gb", p.FarGB, "~0.02"},
		{true, "person_month", p.Person, "~9000"},
	} {
		if x.needed && !x.n.Set {
			c.add("prices", fmt.Sprintf("write %s: %s under prices:", x.key, x.hint), "the price %s is missing", x.key)
		}
	}
	for _, work := range []map[Pattern]Number{p.Work, p.PerYear} {
		for pattern := range work {
			if !slices.Contains(Patterns, pattern) {
				c.add("prices", patternHint(), "pattern %q does not exist", pattern)
			}
		}
	}
}
