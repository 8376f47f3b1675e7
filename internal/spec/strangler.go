package spec

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/compare"
	"github.com/atollhq/atoll/topo"
)

// Move sends a part of a route's requests to another upstream. Who is in a share is in every larger one.
type Move struct {
	To     string        `yaml:"to" json:"to"`                             // name under the site's upstreams
	Share  float64       `yaml:"share" json:"share"`                       // of the keys, 0 to 1; of the clients' addresses where a request has no key
	Errors float64       `yaml:"errors,omitempty" json:"errors,omitempty"` // by how much more of its answers may be failures than of the other one's; beyond it the move stops. Default 0.02
	Window time.Duration `yaml:"window,omitempty" json:"window,omitempty"` // over which they are counted; default 1m
}

// Shadow sends copies to another upstream, the candidate. Its answers go nowhere.
type Shadow struct {
	To      string        `yaml:"to" json:"to"`                               // name under the site's upstreams
	Share   float64       `yaml:"share" json:"share"`                         // of the keys, and of requests without one, 0 to 1
	Writes  bool          `yaml:"writes,omitempty" json:"writes,omitempty"`   // not only GET and HEAD: the candidate does what the requests say
	Compare *bool         `yaml:"compare,omitempty" json:"compare,omitempty"` // its answers with the upstream's; default true
	Headers []string      `yaml:"headers,omitempty" json:"headers,omitempty"` // that are compared; default Content-Type
	Ignore  []string      `yaml:"ignore,omitempty" json:"ignore,omitempty"`   // JSON pointers into bodies, * for any one name or index
	Noise   float64       `yaml:"noise,omitempty" json:"noise,omitempty"`     // of the copied reads, the upstream is asked a second time about so many, to learn what differs every time; default 0.1
	Values  bool          `yaml:"values,omitempty" json:"values,omitempty"`   // the report shows examples of values, not only of types: users' data
	Timeout time.Duration `yaml:"timeout,omitempty" json:"timeout,omitempty"` // for an answer, all of it; default 2s
	Errors  float64       `yaml:"errors,omitempty" json:"errors,omitempty"`   // so many of its answers may be failures or late; beyond it the copies stop. Default 0.05
	Window  time.Duration `yaml:"window,omitempty" json:"window,omitempty"`   // over which they are counted; default 1m
}

func (m *Move) declared() *topo.Move {
	if m == nil {
		return nil
	}
	return &topo.Move{To: m.To, Share: m.Share, Errors: m.Errors, Window: m.Window}
}

func (s *Shadow) declared() *topo.Shadow {
	if s == nil {
		return nil
	}
	out := &topo.Shadow{To: s.To, Share: s.Share, Writes: s.Writes, Timeout: s.Timeout, Errors: s.Errors, Window: s.Window}
	if s.Compare == nil || *s.Compare {
		out.Compare = &topo.Comparison{Headers: s.Headers, Ignore: s.Ignore, Noise: s.Noise, Values: s.Values}
	}
	return out
}

func (c *checker) move(r *Route, here func(...any) []any) {
	if m := r.Move; m != nil {
		under := func(keys ...any) []any { return here(append(at("move"), keys...)...) }
		c.otherUpstream(r, m.To, under("to"))
		c.shares(map[string]float64{"share": m.Share, "errors": m.Errors}, under)
		c.window(m.Window, under("window"))
	}
}

func (c *checker) shadow(r *Route, here func(...any) []any) {
	s := r.Shadow
	if s == nil {
		return
	}
	under := func(keys ...any) []any { return here(append(at("shadow"), keys...)...) }
	c.otherUpstream(r, s.To, under("to"))
	c.shares(map[string]float64{"share": s.Share, "errors": s.Errors, "noise": s.Noise}, under)
	c.window(s.Window, under("window"))
	if s.Timeout < 0 || s.Timeout > time.Minute {
		c.add(under("timeout"), "want at most 1m", "timeout %v of shadow", s.Timeout)
	}
	for i, text := range s.Ignore {
		if _, err := compare.ParsePointer(text); err != nil {
			c.add(under("ignore", i), "write a JSON pointer such as /items/*/updated_at; which headers are compared stands in headers:", "%v", err)
		}
	}
	for i, name := range s.Headers {
		if name == "" || strings.ContainsAny(name, " :,;/\t") {
			c.add(under("headers", i), "", "%q is not the name of a header", name)
		}
	}
	if s.Compare != nil && !*s.Compare {
		for key, set := range map[string]bool{"headers": s.Headers != nil, "ignore": s.Ignore != nil, "noise": s.Noise != 0, "values": s.Values} {
			if set {
				c.add(under(key), "drop it, or compare: false", "nothing is compared")
			}
		}
	}
}

// otherUpstream checks that every site has the upstream, and that it is another one than the route's.
func (c *checker) otherUpstream(r *Route, to string, where []any) {
	if to == r.Upstream {
		c.add(where, "name another upstream", "route %s goes to %q already", r.Name, to)
	}
	for _, id := range slices.Sorted(maps.Keys(c.Sites)) {
		if s := c.Sites[id]; s != nil && !s.Witness && s.Upstreams[to] == nil {
			c.add(where, suggest(to, names(s.Upstreams)), "site %s has no upstream %q", id, to)
		}
	}
}

func (c *checker) shares(of map[string]float64, under func(...any) []any) {
	for _, key := range slices.Sorted(maps.Keys(of)) {
		if v := of[key]; !(v >= 0 && v <= 1) {
			c.add(under(key), "want 0 to 1, for example 0.1", "%s %v is no share", key, v)
		}
	}
}

func (c *checker) window(d time.Duration, where []any) {
	if d < 0 || d > 0 && d < time.Second || d > time.Hour {
		c.add(where, "want 1s to 1h", "window of %v", d)
	}
}
