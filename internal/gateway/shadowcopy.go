package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/compare"
	"github.com/atollhq/atoll/internal/split"
	"github.com/atollhq/atoll/route"
)

// hShadow says that a request is a copy: its answer goes nowhere.
const hShadow = "Atoll-Shadow"

// work sends one copy to the candidate, asks the primary again where noise is to be learnt, and compares.
func (c *copied) work(ctx context.Context) {
	s, g := c.shadow, c.all.g
	if !s.guard.on() {
		return // what is on its way when it stops
	}
	if d := g.decide(g.views.load(), c.target); d.Verdict != route.Local {
		s.skip(skipMoved) // a candidate whose database takes part would only be refused
		return
	}
	answer, took, end, skip := c.ask(ctx, s.to)
	if skip != "" {
		s.skip(skip)
		return
	}
	s.settle(end, c.took, took)
	if s.rules == nil || end != shadowAnswered && answer.Status == 0 {
		return
	}
	var own *compare.Answer
	if c.read && s.wantsNoise() {
		if a, _, end, skip := c.ask(ctx, s.primary); skip == "" && end == shadowAnswered {
			own = &a
		}
	}
	c.all.comparing.Lock()
	defer c.all.comparing.Unlock()
	first := c.answer
	unpack(&first)
	var repeat []compare.Difference
	if own != nil {
		repeat = s.rules.Compare(first, *own)
	}
	found := s.rules.Compare(first, answer)
	s.learn(found, repeat, own != nil, first.Unread || answer.Unread)
}

// errEvicted ends a copy in whose place somebody wants to be.
var errEvicted = errors.New("users first")

// ask sends the copy to an instance of a service, once, and reads all of the answer. A copy goes in only where nobody waits, and goes
// when somebody does; what it meets is not held against the instance: it may be the copy's own fault.
func (c *copied) ask(ctx context.Context, to *service) (a compare.Answer, took time.Duration, end shadowEnd, skip shadowSkip) {
	timed, cancel := context.WithTimeout(ctx, c.shadow.declared.Timeout)
	defer cancel()
	timed, evict := context.WithCancelCause(timed)
	defer evict(nil)
	at := seat{service: to}
	if to.gate != nil {
		leave, ok := to.gate.slipIn(func() { evict(errEvicted) })
		if !ok {
			return a, 0, "", skipOverload
		}
		defer leave()
	}
	defer at.free() // first: whoever is let in then finds the instance's place free
	var ok bool
	if at.at, ok = to.pool.Pick(time.Now(), rand.Uint64(), nil); !ok {
		if to.pool.Len() > 0 {
			return a, 0, "", skipOverload // each has as many requests as it may
		}
		return a, 0, shadowFailed, ""
	}
	began := time.Now()
	resp, err := to.transport.RoundTrip(c.request(timed, &at))
	took = time.Since(began)
	if err == nil {
		defer resp.Body.Close()
		a.Status, a.Header = resp.StatusCode, resp.Header
		a.Body, err = io.ReadAll(io.LimitReader(resp.Body, shadowBody+1))
	}
	switch {
	case ctx.Err() != nil:
		return a, took, "", skipStopping
	case err != nil && errors.Is(context.Cause(timed), errEvicted):
		return a, took, "", skipOverload
	case err != nil && timed.Err() != nil:
		return compare.Answer{}, took, shadowLate, ""
	case err != nil:
		return compare.Answer{}, took, shadowFailed, ""
	}
	if len(a.Body) > shadowBody {
		a.Body, a.Unread = nil, true
	}
	unpack(&a)
	switch answeredBy(resp) {
	case metFailure:
		return a, took, shadowFailed, ""
	case metNothing:
		return compare.Answer{}, took, shadowFenced, ""
	}
	return a, took, shadowAnswered, ""
}

// request is the copy as it goes out. The transport must not send it again on its own: GetBody is not set.
func (c *copied) request(ctx context.Context, at *seat) *http.Request {
	h := c.header.Clone()
	h[hShadow] = []string{"1"}
	h[hDeadline] = []string{strconv.FormatInt(c.shadow.declared.Timeout.Milliseconds(), 10) + "ms"}
	delete(h, "Accept-Encoding") // what is to be compared is to be read
	if c.read {
		for _, name := range conditions {
			delete(h, name)
		}
	}
	if _, has := h["User-Agent"]; !has {
		h["User-Agent"] = []string{""} // as for every attempt
	}
	onceOnly(h)
	out := &http.Request{Method: c.method, URL: at.url(c.url), Host: c.host, Header: h, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}
	if len(c.body) > 0 {
		out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(c.body)), int64(len(c.body))
	}
	return out.WithContext(ctx)
}

// unpack takes a body out of its content encoding. One that cannot be read is not compared.
func unpack(a *compare.Answer) {
	switch encoding := strings.ToLower(strings.Join(a.Header.Values("Content-Encoding"), ",")); {
	case a.Unread || len(a.Body) == 0 || encoding == "" || encoding == "identity":
		return
	case encoding == "gzip" || encoding == "x-gzip":
		r, err := gzip.NewReader(bytes.NewReader(a.Body))
		if err == nil {
			var body []byte
			if body, err = io.ReadAll(io.LimitReader(r, shadowBody+1)); err == nil && len(body) <= shadowBody {
				a.Body = body
				return
			}
		}
	}
	a.Body, a.Unread = nil, true
}

// settle counts what became of a copy at the candidate.
func (s *shadow) settle(end shadowEnd, primary, candidate time.Duration) {
	s.ended[end].Inc()
	s.mu.Lock()
	s.mu.ends[end]++
	if end == shadowAnswered {
		s.mu.answers++
		s.mu.primary += primary
		s.mu.to += candidate
	}
	s.mu.Unlock()
	switch end {
	case shadowAnswered:
		s.guard.count(split.New, "")
	case shadowFailed:
		s.guard.count(split.New, stopErrors)
	case shadowLate:
		s.guard.count(split.New, stopLate)
	}
}

// wantsNoise tells whether the primary is to be asked again: the first time, so that what always differs is known at once, and
// then by chance.
func (s *shadow) wantsNoise() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.report.Totals().Repeated == 0 || rand.Float64() < s.noise()
}

// learn takes in what differs.
func (s *shadow) learn(found, repeat []compare.Difference, repeated, unread bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if unread {
		s.mu.unread++
	}
	if repeated {
		s.mu.report.Repeat(repeat)
	}
	s.results[s.mu.report.Add(found)].Inc()
}

// pressed tells whether a service has as much to do as it can, or had a moment ago.
func (s *service) pressed() bool { return s.gate != nil && s.gate.pressed(time.Now()) }

// debugShadow is what /debug/shadow shows of a route. It has no values of users' unless the specification asks for them.
type debugShadow struct {
	To       string             `json:"to"`
	Share    float64            `json:"share"`
	State    string             `json:"state"` // on, paused (overload), stopped
	Stopped  *stop              `json:"stopped,omitempty"`
	Ends     map[shadowEnd]int  `json:"copies"`  // by what became of them at the candidate
	Skipped  map[shadowSkip]int `json:"skipped"` // requests that were drawn and not copied
	Times    *debugTimes        `json:"times,omitempty"`
	Compared *debugCompared     `json:"compared,omitempty"` // none: nothing is
}

// debugTimes are means, to the head of the answer.
type debugTimes struct {
	PrimaryMS   float64 `json:"primary_ms"`
	CandidateMS float64 `json:"candidate_ms"`
}

type debugCompared struct {
	compare.Totals
	Unread int             `json:"unread,omitempty"` // bodies that are too long, or cannot be decoded: only status and headers were compared
	Fields []compare.Field `json:"fields"`
}

func (s *shadow) debug() debugShadow {
	out := debugShadow{To: s.declared.To, Share: s.declared.Share, State: "on", Stopped: s.guard.stopped.Load(), Ends: make(map[shadowEnd]int), Skipped: make(map[shadowSkip]int)}
	switch {
	case out.Stopped != nil:
		out.State = "stopped"
	case s.primary.pressed() || s.to.pressed():
		out.State = "paused"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for end, n := range s.mu.ends {
		out.Ends[end] = n
	}
	for why, n := range s.mu.skips {
		out.Skipped[why] = n
	}
	if n := float64(s.mu.answers); n > 0 {
		out.Times = &debugTimes{PrimaryMS: s.mu.primary.Seconds() * 1000 / n, CandidateMS: s.mu.to.Seconds() * 1000 / n}
	}
	if s.rules != nil {
		out.Compared = &debugCompared{s.mu.report.Totals(), s.mu.unread, s.mu.report.Fields()}
	}
	return out
}

// serveDebugShadow shows in what the candidates' answers differ.
func (g *Gateway) serveDebugShadow(w http.ResponseWriter, _ *http.Request) {
	out := make(map[string]debugShadow)
	for r, s := range g.shadows.of {
		out[r.Name] = s.debug()
	}
	writeJSON(w, http.StatusOK, out)
}
