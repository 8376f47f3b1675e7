package gateway

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/atollhq/atoll/internal/compare"
	"github.com/atollhq/atoll/internal/split"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// Shadows. A copy of a request goes to a candidate when the primary's answer has gone out: the user waits for nothing of it, and
// only what the primary has done is done again. What there is no room for is not copied, and counted; nothing waits in a request's way.
//
// Memory: shadowPlaces copies, each with the request's body (keepBody), and the primary's answer; while one is at work, the candidate's
// and once more the primary's answer; and one comparison at a time.
const (
	shadowPlaces  = 24      // copies from the primary's head to the end of the comparison
	shadowWorkers = 8       // copies at a candidate
	shadowBody    = 1 << 20 // of an answer, what is longer is not compared
	shadowTimeout = 2 * time.Second
	shadowErrors  = 0.05
	shadowNoise   = 0.1
)

// shadowSkip says why a request that was drawn was not copied, or not to its end; it is the label of a metric.
type shadowSkip string

const (
	skipBusy     shadowSkip = "busy"     // as many copies are on their way as may
	skipOverload shadowSkip = "overload" // the primary or the candidate has as much to do as it can: users first
	skipBody     shadowSkip = "body"     // the request's body is too long to be kept, or the primary did not want all of it
	skipMoved    shadowSkip = "moved"    // the bucket is not here any more
	skipStopping shadowSkip = "stopping" // the gateway is being stopped
)

var shadowSkips = []shadowSkip{skipBusy, skipOverload, skipBody, skipMoved, skipStopping}

// shadowEnd says what became of a copy at the candidate.
type shadowEnd string

const (
	shadowAnswered shadowEnd = "answered"
	shadowFailed   shadowEnd = "failed" // a 5xx, or no answer
	shadowLate     shadowEnd = "late"   // not all of it came in time
	shadowFenced   shadowEnd = "fenced" // the fence refused a write: no fault of the candidate
)

var shadowEnds = []shadowEnd{shadowAnswered, shadowFailed, shadowLate, shadowFenced}

// shadow is the candidate of one route.
type shadow struct {
	declared topo.Shadow // defaults filled in
	route    string
	salt     string // divides other keys than the route's move does
	primary  *service
	to       *service
	rules    *compare.Rules // nil: nothing is compared
	guard    *guard
	skipped  map[shadowSkip]prometheus.Counter
	ended    map[shadowEnd]prometheus.Counter
	results  map[compare.Result]prometheus.Counter
	mu       struct {
		sync.Mutex
		report  compare.Report
		skips   map[shadowSkip]int
		ends    map[shadowEnd]int
		unread  int           // bodies that were not compared
		answers int           // of which the times are known
		primary time.Duration // to the head of the answer, all of them together
		to      time.Duration
	}
}

// shadows are those of a gateway.
type shadows struct {
	of        map[*route.Route]*shadow
	g         *Gateway
	places    chan struct{}
	jobs      chan *copied // as many as there are places: it never blocks
	comparing sync.Mutex   // held while two answers are compared: what they are read into takes many times their size
}

func newShadows(g *Gateway, services map[string]*service, stops *stops) (*shadows, error) {
	all := &shadows{g: g, of: make(map[*route.Route]*shadow), places: make(chan struct{}, shadowPlaces), jobs: make(chan *copied, shadowPlaces)}
	for _, r := range g.table.Routes() {
		if r.Shadow == nil {
			continue
		}
		s := &shadow{declared: *r.Shadow, route: r.Name, salt: "shadow " + r.Name, primary: services[r.Upstream], to: services[r.Shadow.To]}
		if s.to == nil {
			return nil, fmt.Errorf("route %s has a shadow at %q, which is no upstream of this site", r.Name, r.Shadow.To)
		}
		d := &s.declared
		d.Timeout, d.Errors = cmp.Or(d.Timeout, shadowTimeout), cmp.Or(d.Errors, shadowErrors)
		if c := d.Compare; c != nil {
			s.rules = &compare.Rules{Headers: c.Headers, Values: c.Values}
			if s.rules.Headers == nil {
				s.rules.Headers = []string{"Content-Type"}
			}
			for _, text := range c.Ignore {
				p, err := compare.ParsePointer(text)
				if err != nil {
					return nil, fmt.Errorf("shadow of route %s: %w", r.Name, err)
				}
				s.rules.Ignore = append(s.rules.Ignore, p)
			}
		}
		s.guard = stops.newGuard("shadow", r.Name, r.Shadow, split.Budget{Errors: d.Errors, Window: d.Window}, stopErrors, stopLate)
		s.mu.skips, s.mu.ends = make(map[shadowSkip]int), make(map[shadowEnd]int)
		all.of[r] = s
	}
	return all, nil
}

// noise is of how many copied reads the primary is asked again.
func (s *shadow) noise() float64 { return cmp.Or(s.declared.Compare.Noise, shadowNoise) }

func (s *shadow) skip(why shadowSkip) {
	s.skipped[why].Inc()
	s.mu.Lock()
	s.mu.skips[why]++
	s.mu.Unlock()
}

// copied is a request that is to be sent to a candidate, and what the primary answered.
type copied struct {
	shadow   *shadow
	all      *shadows
	read     bool // GET or HEAD
	method   string
	host     string
	url      *url.URL
	header   http.Header
	body     []byte
	target   route.Target
	answer   compare.Answer
	took     time.Duration // until the head of the primary's answer
	complete bool          // all of the answer went out
}

// copies decides whether the request whose answer begins is copied. Not copied: what goes to the candidate itself, what may last for
// as long as its ends like, what the primary failed at, answers that only say that nothing changed or are a part of one, and
// writes unless the route wants them.
func (x *exchange) copies(resp *http.Response) *copied {
	rt := x.target.Route
	if rt.Shadow == nil {
		return nil
	}
	s := x.g.shadows.of[rt]
	read := x.r.Method == http.MethodGet || x.r.Method == http.MethodHead
	switch {
	case !s.guard.on() || x.app != s.primary || x.grpc || x.socket || x.lasts(resp):
		return nil
	case !read && !s.declared.Writes:
		return nil
	case resp.StatusCode < 200 || resp.StatusCode >= 500 || slices.Contains(partial, resp.StatusCode):
		return nil
	case !s.drawn(x):
		return nil
	case s.primary.pressed() || s.to.pressed():
		s.skip(skipOverload)
		return nil
	}
	select {
	case x.g.shadows.places <- struct{}{}:
	default:
		s.skip(skipBusy)
		return nil
	}
	c := &copied{shadow: s, all: x.g.shadows, read: read, method: x.r.Method, host: x.r.Host, url: x.r.URL, header: x.header, target: x.target, took: time.Since(x.seat.began)}
	if s.rules != nil {
		c.answer = compare.Answer{Status: resp.StatusCode, Header: keptHeader(resp.Header, s.rules)}
	}
	return c
}

// partial are answers to a condition or a range: a copy is sent without those.
var partial = []int{http.StatusNotModified, http.StatusPartialContent, http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable}

// conditions are left out of copied reads: what the client has of the primary's, the candidate has not.
var conditions = []string{"If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since", "If-Range", "Range"}

// drawn tells whether a request is in the share: by its key, so that a candidate sees all of what a key does; without one
// by chance.
func (s *shadow) drawn(x *exchange) bool {
	if x.target.Key == "" {
		return rand.Float64() < s.declared.Share
	}
	return split.Within(s.declared.Share, s.salt, x.target.Key)
}

// keptHeader is what is compared of a header, and what says how to read the body.
func keptHeader(h http.Header, rules *compare.Rules) http.Header {
	out := make(http.Header)
	for _, name := range append([]string{"Content-Type", "Content-Encoding"}, rules.Headers...) {
		if v := h.Values(name); len(v) > 0 {
			out[http.CanonicalHeaderKey(name)] = v
		}
	}
	return out
}

// add takes in a piece of the primary's answer.
func (c *copied) add(piece []byte) {
	switch {
	case c == nil || c.shadow.rules == nil || c.answer.Unread:
	case len(c.answer.Body)+len(piece) > shadowBody:
		c.answer.Body, c.answer.Unread = nil, true
	default:
		c.answer.Body = append(c.answer.Body, piece...)
	}
}

// completed says that all of the answer has gone out.
func (c *copied) completed() {
	if c != nil {
		c.complete = true
	}
}

// send hands the copy over to those who send copies. It returns what is left to be dropped.
func (c *copied) send(body *replay) *copied {
	if c == nil || !c.complete {
		return c
	}
	if body != nil {
		var ok bool
		if c.body, ok = body.all(); !ok {
			c.shadow.skip(skipBody)
			return c
		}
	}
	c.all.jobs <- c
	return nil
}

// drop gives the copy's place to another one.
func (c *copied) drop() {
	if c != nil {
		<-c.all.places
	}
}

// run sends copies until ctx ends. What waits then is not sent.
func (all *shadows) run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range min(shadowWorkers, len(all.of)*shadowWorkers) {
		wg.Go(func() { // ends with ctx
			for {
				select {
				case c := <-all.jobs:
					c.work(ctx)
					c.drop()
				case <-ctx.Done():
					return
				}
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	return ctx.Err()
}
