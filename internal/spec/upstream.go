package spec

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/invopop/jsonschema"

	"github.com/atollhq/atoll/topo"
)

// Upstream is one of a site's applications. In its short form it is only its base URL.
type Upstream struct {
	URL      string        `yaml:"url" json:"url"`                               // scheme (http, https; h2c, h2 for gRPC), base path, and the name that certificates bear; its host is the one instance without discover:
	Discover *Discover     `yaml:"discover,omitempty" json:"discover,omitempty"` // where its instances are
	Health   *HealthCheck  `yaml:"health,omitempty" json:"health,omitempty"`     // ask the instances themselves
	Eject    Eject         `yaml:"eject,omitempty" json:"eject,omitempty"`       // when an instance is left alone for a while
	Limits   *Limits       `yaml:"limits,omitempty" json:"limits,omitempty"`     // what may be there at the same time
	Timeout  time.Duration `yaml:"timeout,omitempty" json:"timeout,omitempty"`   // for the head of an answer; default 60s, none for h2c and h2
}

// Discover says where the instances of a service are.
type Discover struct {
	Static []Instance `yaml:"static,omitempty" json:"static,omitempty"` // these
	DNS    []DNSName  `yaml:"dns,omitempty" json:"dns,omitempty"`       // those under these names, asked again as their time to live says

	Register time.Duration `yaml:"register,omitempty" json:"register,omitempty"` // those that register themselves at the site's agents, for at most so long at a time; 2s to 5m
}

// DNSName is a name under which instances are found.
type DNSName struct {
	Name    string   `yaml:"name" json:"name"`
	SRV     bool     `yaml:"srv,omitempty" json:"srv,omitempty"`         // ask for SRV, which gives ports and weights; else for addresses
	Port    int      `yaml:"port,omitempty" json:"port,omitempty"`       // without srv
	Zone    string   `yaml:"zone,omitempty" json:"zone,omitempty"`       // of all that is found there
	Weight  int      `yaml:"weight,omitempty" json:"weight,omitempty"`   // of each, without srv; default 1
	Servers []string `yaml:"servers,omitempty" json:"servers,omitempty"` // host:port; default: as /etc/resolv.conf says
}

// Instance is one of a service's.
type Instance struct {
	Address string `yaml:"address" json:"address"`                   // host:port
	Zone    string `yaml:"zone,omitempty" json:"zone,omitempty"`     // gateways of the same zone prefer it
	Weight  int    `yaml:"weight,omitempty" json:"weight,omitempty"` // default 1
}

// HealthCheck asks instances whether they are well.
type HealthCheck struct {
	Path      string        `yaml:"path" json:"path"`                               // answers with a 2xx
	Interval  time.Duration `yaml:"interval,omitempty" json:"interval,omitempty"`   // default 5s, give or take a quarter
	Timeout   time.Duration `yaml:"timeout,omitempty" json:"timeout,omitempty"`     // default 1s
	Healthy   int           `yaml:"healthy,omitempty" json:"healthy,omitempty"`     // good answers in a row before it is used again; default 2
	Unhealthy int           `yaml:"unhealthy,omitempty" json:"unhealthy,omitempty"` // bad ones before it is not; default 3
}

// Eject says when an instance is left alone for a while, by what requests met there.
type Eject struct {
	Unreached int           `yaml:"unreached,omitempty" json:"unreached,omitempty"` // attempts in a row that did not get through or were not answered in time; default 5, -1 never
	Errors    int           `yaml:"errors,omitempty" json:"errors,omitempty"`       // answers in a row with the application's own 5xx; default 20, -1 never
	Base      time.Duration `yaml:"base,omitempty" json:"base,omitempty"`           // for so long, times how often lately; default 10s
	Max       time.Duration `yaml:"max,omitempty" json:"max,omitempty"`             // at most; default 5m
	Share     float64       `yaml:"share,omitempty" json:"share,omitempty"`         // of the instances at most; default 0.5, which is the limit
}

// Limits bound what is at a service at the same time, at each gateway for itself.
type Limits struct {
	Requests    int           `yaml:"requests,omitempty" json:"requests,omitempty"`       // at most; default: no fixed number
	Connections int           `yaml:"connections,omitempty" json:"connections,omitempty"` // requests at one instance at most, and connections by HTTP/1.1; default: no fixed number
	Pending     int           `yaml:"pending,omitempty" json:"pending,omitempty"`         // may wait for their turn; default 64
	Wait        time.Duration `yaml:"wait,omitempty" json:"wait,omitempty"`               // for so long; default 250ms
	Fixed       bool          `yaml:"fixed,omitempty" json:"fixed,omitempty"`             // only these numbers count; nothing is learnt from how long answers take
	Min         int           `yaml:"min,omitempty" json:"min,omitempty"`                 // of what is learnt; default 2
	Max         int           `yaml:"max,omitempty" json:"max,omitempty"`                 // of what is learnt; default 1000
}

// UnmarshalYAML takes the short form and the long one.
func (u *Upstream) UnmarshalYAML(decode func(any) error) error {
	var short string
	if decode(&short) == nil {
		*u = Upstream{URL: short}
		return nil
	}
	type long Upstream
	return decode((*long)(u))
}

// MarshalYAML writes the short form where it says everything.
func (u Upstream) MarshalYAML() (any, error) {
	if u == (Upstream{URL: u.URL}) {
		return u.URL, nil
	}
	type long Upstream
	return long(u), nil
}

// JSONSchemaExtend adds the short form.
func (Upstream) JSONSchemaExtend(s *jsonschema.Schema) {
	long := *s
	*s = jsonschema.Schema{OneOf: []*jsonschema.Schema{{Type: "string", Description: "base URL of the one instance"}, &long}}
}

// Instances lists what is known of a service's instances ahead; none: the URL's host is the one.
func (u *Upstream) Instances() []Instance {
	if u.Discover == nil {
		return nil
	}
	return u.Discover.Static
}

// Registering lists the site's services whose instances register themselves, each with the longest time for which they may.
func (s *Site) Registering() map[string]time.Duration {
	out := make(map[string]time.Duration)
	for name, u := range s.Upstreams {
		if u != nil && u.Discover != nil && u.Discover.Register > 0 {
			out[name] = u.Discover.Register
		}
	}
	return out
}

// Bounds of register: shorter, an agent that restarts would take longer than that; longer, those that have ended would stay.
const (
	minRegister = 2 * time.Second
	maxRegister = 5 * time.Minute
)

// Schemes of upstreams.
var upstreamSchemes = []string{"http", "https", "h2c", "h2"}

func (c *checker) upstreams(s *Site, here func(...any) []any) {
	for _, name := range slices.Sorted(maps.Keys(s.Upstreams)) {
		under := func(keys ...any) []any { return here(append(at("upstreams", name), keys...)...) }
		u := s.Upstreams[name]
		if u == nil {
			c.add(under(), "write for example http://127.0.0.1:9000", "upstream %s is empty", name)
			continue
		}
		parsed, err := url.Parse(u.URL)
		if err != nil || !slices.Contains(upstreamSchemes, parsed.Scheme) || parsed.Host == "" {
			c.add(under("url"), "write for example http://127.0.0.1:9000; h2c:// and h2:// (TLS) are HTTP/2, for gRPC", "upstream %q is not an http or https URL", u.URL)
		}
		if u.Timeout < 0 {
			c.add(under("timeout"), "", "timeout is negative")
		}
		c.eject(u.Eject, under)
		c.limits(u.Limits, under)
		if h := u.Health; h != nil {
			if !strings.HasPrefix(h.Path, "/") {
				c.add(under("health", "path"), "write for example /healthz", "health path %q does not begin with /", h.Path)
			}
			if h.Interval < 0 || h.Timeout < 0 || h.Healthy < 0 || h.Unhealthy < 0 {
				c.add(under("health"), "", "a number of health is negative")
			}
		}
		if u.Discover != nil {
			c.discover(name, u.Discover, under)
		}
	}
}

func (c *checker) eject(e Eject, under func(...any) []any) {
	if e.Share < 0 || e.Share > 0.5 {
		c.add(under("eject", "share"), "at least half of the instances stay", "share %v is not between 0 and 0.5", e.Share)
	}
	for key, n := range map[string]int{"unreached": e.Unreached, "errors": e.Errors} {
		if n < -1 {
			c.add(under("eject", key), "-1 is never", "%s is negative", key)
		}
	}
	if e.Base < 0 || e.Max < 0 {
		c.add(under("eject"), "", "a duration is negative")
	}
}

func (c *checker) limits(l *Limits, under func(...any) []any) {
	if l == nil {
		return
	}
	for _, n := range []struct {
		key   string
		value int
	}{{"requests", l.Requests}, {"connections", l.Connections}, {"pending", l.Pending}, {"min", l.Min}, {"max", l.Max}, {"wait", int(l.Wait)}} {
		if n.value < 0 {
			c.add(under("limits", n.key), "leave it out for the default", "%s is negative", n.key)
		}
	}
	switch {
	case l.Fixed && l.Requests == 0 && l.Connections == 0:
		c.add(under("limits", "fixed"), "say requests: or connections:", "fixed limits without a number bound nothing")
	case l.Fixed && (l.Min > 0 || l.Max > 0):
		c.add(under("limits", "fixed"), "drop it, or min and max", "min and max are of what is learnt, and fixed: true learns nothing")
	case l.Max > 0 && l.Max < l.Min:
		c.add(under("limits", "max"), "", "max %d is less than min %d", l.Max, l.Min)
	}
}

func (c *checker) discover(name string, d *Discover, under func(...any) []any) {
	if len(d.Static)+len(d.DNS) == 0 && d.Register == 0 {
		c.add(under("discover"), "write for example static: [{address: 10.0.0.5:9000}] or register: 30s, or leave discover: out", "discover of upstream %s names nothing", name)
	}
	if d.Register != 0 {
		c.register(name, d.Register, under("discover", "register"))
	}
	c.dnsNames(d.DNS, under)
	for i, in := range d.Static {
		c.address(in.Address, under("discover", "static", i, "address")...)
		c.place(in.Zone, in.Weight, under, "static", i)
		for j, other := range d.Static[:i] {
			if in.Address != "" && other.Address == in.Address {
				c.add(under("discover", "static", i), fmt.Sprintf("instance %d has it already; weight: 2 gives it twice as much", j+1), "address %s is there twice", in.Address)
			}
		}
	}
}

func (c *checker) register(name string, longest time.Duration, at []any) {
	if longest < minRegister || longest > maxRegister {
		c.add(at, "30s is a good start: instances renew three times as often", "register %s is not between %s and %s", longest, minRegister, maxRegister)
	}
	if topo.CheckName(name) != nil { // it stands in the certificate of the instances
		c.name(name, at...)
	}
}

func (c *checker) dnsNames(names []DNSName, under func(...any) []any) {
	for i, n := range names {
		if n.Name == "" || strings.ContainsAny(n.Name, ":/ ") {
			c.add(under("discover", "dns", i, "name"), "write for example shop.internal; the port stands in port:", "name %q is not a DNS name", n.Name)
		}
		if n.SRV == (n.Port != 0) || n.Port < 0 || n.Port > 65535 {
			c.add(under("discover", "dns", i), "say port: of the instances, or srv: true", "dns name %q wants either port or srv", n.Name)
		}
		if n.SRV && n.Weight != 0 {
			c.add(under("discover", "dns", i, "weight"), "SRV records have weights", "dns name %q has srv and weight", n.Name)
		}
		for j, server := range n.Servers {
			c.address(server, under("discover", "dns", i, "servers", j)...)
		}
		c.place(n.Zone, n.Weight, under, "dns", i)
	}
}

// place checks zone and weight of what is found in one way.
func (c *checker) place(zone string, weight int, under func(...any) []any, way string, i int) {
	if zone != "" && topo.CheckName(zone) != nil {
		c.name(zone, under("discover", way, i, "zone")...)
	}
	if weight < 0 || weight > 1000 {
		c.add(under("discover", way, i, "weight"), "weights are relative to each other", "weight %d is not between 1 and 1000", weight)
	}
}
