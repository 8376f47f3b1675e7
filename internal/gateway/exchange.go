package gateway

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/balance"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/internal/split"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// How often one request is sent again, and how long it waits for what it needs to be sent again.
const (
	maxReroutes = 2 // after a 421 of another gateway
	maxFenced   = 3 // after the fence refused it
	maxRetries  = 2 // after an error
	maxHops     = 1 + maxReroutes
	viewWait    = 2 * time.Second // for a view that is known to exist
	fenceWait   = 3 * time.Second // for a view that explains why the fence refused
	leaseWait   = 2 * time.Second // for the site's lease
	peerWait    = 2 * time.Second // of a forwarded request for its bucket to settle here
	retryPause  = 25 * time.Millisecond
	smallBody   = 4 << 10 // read while the request is held, see replay.prefetch
)

// step is what to do after one round of an exchange.
type step bool

const (
	again step = false // decide again
	done  step = true  // answered, or nobody is there to answer
)

// exchange is one request on its way through the gateway.
type exchange struct {
	g      *Gateway
	ctx    context.Context
	w      http.ResponseWriter
	r      *http.Request
	target route.Target
	who    identity
	from   *forwarded  // set where another gateway sent the request
	header http.Header // as it goes out, without what each attempt adds
	body   *replay     // nil without a body
	grpc   bool
	socket bool // it wants to go on as a WebSocket
	duplex bool // the body may be read while the answer is written
	// expects: another gateway waits for our word before it sends the body.
	expects bool
	status  int // of the answer
	held    struct {
		since  time.Time // when this request was held first
		total  time.Duration
		passed func() // tells the room that the next one of the bucket may go; nil: nobody waits for that
	}
	used     struct{ reroutes, fenced, retries int }
	app      *service        // that it is for
	move     *mover          // of its route; nil: none
	way      split.Way       // where the move sends it
	met      meets           // what the last attempt met there
	copied   *copied         // what is sent to a candidate behind the answer; nil: nothing
	seat     seat            // at the application; of the attempt that is under way
	tried    *balance.Member // where the last attempt at the application was
	reader   reader
	answer   answered
	span     trace.Span // nil without a tracer
	deadline time.Time  // until when the caller waits; zero: it did not say
	sent     bool       // an attempt may have reached somebody
	unsure   bool       // an attempt of a write ended with its outcome unknown: no later failure says that nothing was done
}

// decide is route's decision under a snapshot. Without a view, only what needs none is decided.
func (g *Gateway) decide(snap *snapshot, t route.Target) route.Decision {
	if !t.Keyed {
		return route.Decision{Verdict: route.Local, Site: g.conf.Site}
	}
	if snap.site == nil {
		return route.Decision{Verdict: route.Refuse, Reason: reasonNoView}
	}
	d := snap.site.Decide(t, snap.opened)
	if plant.EarlyRelease && d.Verdict == route.Hold && d.Reason == route.MovingBucket {
		d = route.Decision{Verdict: route.Forward, Site: d.Slot.Target, Slot: d.Slot}
		if d.Site == g.conf.Site {
			d.Verdict = route.Local
		}
	}
	return d
}

// run brings the request to an answer.
func (x *exchange) run() {
	defer x.end()
	defer x.bounded()()
	if x.r.ContentLength != 0 {
		x.body = newReplay(x.r.Body, x.r.ContentLength, x.g.conf.Pace, x.bodyDeadline())
	}
	for x.ctx.Err() == nil {
		snap := x.g.views.load()
		d := x.g.decide(snap, x.target)
		next := again
		if wait := x.behind(d); wait != nil {
			if wait() == done {
				return
			}
			continue
		}
		switch d.Verdict {
		case route.Hold:
			if x.straggler(snap, d) {
				next = x.local(snap, d)
			} else {
				next = x.hold(d)
			}
		case route.Local:
			next = x.local(snap, d)
		case route.Forward:
			if x.from == nil {
				next = x.forward(snap, d)
			} else {
				next = x.misdirected(snap, d)
			}
		default:
			next = x.refused(d)
		}
		if next == done {
			return
		}
	}
	switch context.Cause(x.ctx) {
	case errStopping:
		x.refuse(reasonStopping)
	case errCallTimeout:
		if !x.sent {
			x.refuse(reasonExpired)
			break
		}
		x.refuse(reasonTimeout)
	default:
		x.gone()
	}
}

// gone ends a request whose client went away, or whose connection ended because the body did not come.
func (x *exchange) gone() {
	if x.body != nil && isTimeout(x.body.failed()) {
		x.refuse(reasonSlowBody) // the client is there, and waits
		return
	}
	x.g.metrics.clientGone.Inc()
	// To return would be an answer, 200 without a body: who closed only what it sends would take it for the application's.
	panic(http.ErrAbortHandler)
}

// bodyDeadline sets until when the client may take over its body. A gRPC stream may pause for as long as it likes; the
// connection is pinged. What ends it at once still does.
func (x *exchange) bodyDeadline() func(time.Time) error {
	set := http.NewResponseController(x.w).SetReadDeadline
	if !x.grpc {
		return set
	}
	return func(t time.Time) error {
		if t.IsZero() || t.After(time.Now()) {
			return nil
		}
		return set(t)
	}
}

func (x *exchange) end() {
	x.passed()
	if x.body != nil {
		x.body.end()
	}
	if x.move != nil {
		x.move.count(x.way, x.met)
	}
	x.copied.drop()
}

// refused handles what the decision refuses; a missing view is waited for.
func (x *exchange) refused(d route.Decision) step {
	if d.Reason == reasonNoView {
		if _, ok := x.g.views.await(x.ctx, viewWait, func(s *snapshot) bool { return s.site != nil }); ok || x.ctx.Err() != nil {
			return again
		}
	}
	return x.refuse(d.Reason)
}

// straggler tells whether another gateway sent the request before it could know that the bucket moves. Such a request
// is passed on: that gateway counts it as under way, so the move waits for it. To hold it here would make the two wait
// for each other until the move's bound; to send it back would only be slower. Once the fence has refused it, the fence
// is closed, and passing it on again would only be refused again: then it waits like any other.
func (x *exchange) straggler(snap *snapshot, d route.Decision) bool {
	return x.from != nil && x.used.fenced == 0 && d.Reason == route.MovingBucket && d.Slot.Owner == x.g.conf.Site &&
		x.from.epoch == d.Slot.Epoch && x.from.view.before(snap.version())
}

// hold keeps the request until its bucket is settled. A request that another gateway sent waits for a moment only: the
// place to wait is where it came in.
func (x *exchange) hold(d route.Decision) step {
	now := time.Now()
	if x.held.since.IsZero() {
		x.held.since = now
	}
	most := x.g.conf.Hold.MaxTime
	if x.from != nil {
		most = min(peerWait, most)
	}
	x.passed()
	end, passed := x.g.room.wait(x.ctx, x.target, x.held.since.Add(most), x.prefetch)
	x.held.total += time.Since(now)
	x.note("held", attribute.String("end", string(end)), attribute.String("reason", string(d.Reason)), attribute.Int64("us", time.Since(now).Microseconds()))
	x.held.passed = passed
	x.g.metrics.holdEnded[end].Inc()
	switch end {
	case holdReleased, holdClientGone, holdExpired, holdStopping:
		return again // which looks at the context
	case holdTimeout:
		if x.from != nil {
			return x.misdirect(d.Reason, d)
		}
		return x.refuse(reasonHoldTimeout)
	}
	return x.refuse(reasonHoldFull)
}

// passed says that the request is answered, or ends, or is held again: where it was held, the next one may go.
func (x *exchange) passed() {
	if x.held.passed != nil {
		x.held.passed()
		x.held.passed = nil
	}
}

// prefetch reads a small body while the request is held.
func (x *exchange) prefetch() {
	if x.body != nil && !x.body.whole() && x.r.ContentLength > 0 && x.r.ContentLength <= smallBody && x.r.ProtoMajor == 1 {
		x.body.prefetch()
	}
}

// enter counts what a move has to wait for before it is passed on; leave must be called if ok. Not ok: decide again.
func (x *exchange) enter(snap *snapshot) (leave func(), ok bool) {
	if !x.fencedWrite() && !x.strongRead() {
		return func() {}, true
	}
	ks, b := x.target.Route.Keyspace, x.target.Bucket
	if !x.g.flights.enter(snap, ks, b) {
		return nil, false
	}
	return func() { x.g.flights.leave(ks, b) }, true
}

// local sends the request to this site's application.
func (x *exchange) local(snap *snapshot, d route.Decision) step {
	if wait := x.unfit(snap); wait != nil {
		return wait()
	}
	x.met = metNothing
	if reason := x.sit(); reason != route.None {
		if x.ctx.Err() != nil {
			return again // the loop sees why
		}
		x.met = metFailure // to its users it makes no difference where it failed
		return x.refuse(reason)
	}
	defer x.seat.free()
	leave, ok := x.enter(snap)
	if !ok {
		return again
	}
	out, ok := x.request(x.seat.url(x.r.URL))
	if !ok {
		leave()
		return x.refuse(reasonMoved)
	}
	x.takes()
	resp, err := x.seat.service.transport.RoundTrip(out)
	leave()
	x.passed()
	x.sent = x.sent || !wasNotSent(err)
	if err != nil {
		if x.seat.failed(x, err) {
			x.met = metFailure
		}
		return x.failed(err, reasonAppDown, true)
	}
	if x.move != nil {
		x.met = answeredBy(resp)
	}
	fenced := x.fencedBy(resp, snap, d)
	x.seat.answered(resp.StatusCode, fenced != nil)
	if fenced != nil {
		return fenced()
	}
	if late := x.late(resp, d); late != nil {
		discard(resp)
		return late()
	}
	stripOurs(resp.Header)
	x.saw(resp, d)
	x.copied = x.copies(resp)
	x.pass(resp, x.g.conf.Site, d.Slot.Epoch)
	x.copied = x.copied.send(x.body)
	return done
}

// takes says to another gateway that its request is taken, where that waits for the word before it sends a body that it can
// send once only. The server says so itself when the body is read, but no more when the application has begun to answer by
// then, as it may in gRPC: the body would come a time-out later.
func (x *exchange) takes() {
	if x.from == nil || !x.expects {
		return
	}
	x.expects = false
	h := x.w.Header()
	kept, has := h["Connection"]
	delete(h, "Connection") // not of this head
	x.w.WriteHeader(http.StatusContinue)
	if has {
		h["Connection"] = kept
	}
}

// fencedBy handles an answer that says that the fence refused the write and that nothing else was done. It returns
// nil for any other answer.
func (x *exchange) fencedBy(resp *http.Response, snap *snapshot, d route.Decision) func() step {
	refuses := resp.StatusCode == http.StatusServiceUnavailable
	if x.grpc { // in trailers-only form: of a call with a head before them, something has been done
		refuses = resp.StatusCode == http.StatusOK && resp.Header.Get("Grpc-Status") == strconv.Itoa(grpcUnavailable)
	}
	if !refuses || !x.target.Route.FencedRetry || !x.fencedWrite() {
		return nil
	}
	ks, b, epoch, ok := parseFenced(resp.Header)
	if !ok {
		return nil
	}
	x.g.metrics.fenced.Inc()
	if ks != x.target.Route.Keyspace || b != x.target.Bucket || x.used.fenced >= maxFenced || !x.sendable() {
		return func() step {
			stripOurs(resp.Header)
			resp.Header[hReason] = []string{string(reasonFenced)}
			x.pass(resp, x.g.conf.Site, d.Slot.Epoch)
			return done
		}
	}
	discard(resp)
	x.used.fenced++
	x.note("fenced", attribute.Int64("epoch", int64(epoch)))
	return func() step {
		x.seat.free() // for somebody else, meanwhile
		_, ok := x.g.views.await(x.ctx, fenceWait, func(now *snapshot) bool {
			slot, _ := now.site.View.Slot(ks, b)
			return slot.Moving || slot.Owner != d.Slot.Owner || slot.Epoch > d.Slot.Epoch && slot.Epoch >= epoch || now.opened > snap.opened
		})
		if !ok && x.ctx.Err() == nil {
			return x.refuse(reasonFenced)
		}
		return again
	}
}

// forward sends the request to a gateway of the owner's site.
func (x *exchange) forward(snap *snapshot, d route.Decision) step {
	p := x.g.upstreams.peers[d.Site]
	if p == nil {
		return x.unreachable(reasonNoPeer)
	}
	leave, ok := x.enter(snap)
	if !ok {
		return again
	}
	turn, transport, ok := p.pick(time.Now(), x.socket)
	if !ok {
		leave()
		x.g.metrics.forwards[d.Site].silent.Inc()
		return x.unreachable(reasonPeerDown)
	}
	u := *x.r.URL
	u.Scheme, u.Host, u.User = "https", turn.at.hostPort, nil
	out, ok := x.request(&u)
	if !ok {
		leave()
		return x.refuse(reasonMoved)
	}
	x.note("forwarded", attribute.String("site", string(d.Site)))
	forwarded{x.target.Route.Keyspace, x.target.Bucket, d.Slot.Epoch, snap.version(), x.used.reroutes + 1}.set(out.Header)
	passOn(out.Header, x.r, x.target.Route)
	if x.reader.carries {
		out.Header[hSession] = []string{api.SessionNew} // the other gateway says where its answer comes from
	}
	if sentOnce(x.r) { // wait for the other gateway's word that it takes the request
		out.Header["Expect"] = []string{"100-continue"}
	}
	resp, err := transport.RoundTrip(out)
	leave()
	x.passed()
	x.sent = x.sent || !wasNotSent(err)
	if err != nil {
		if x.ctx.Err() == nil { // else its client went away, which says nothing about the address
			turn.failed(time.Now())
		}
		x.g.metrics.forwards[d.Site].failed.Inc()
		return x.failed(err, reasonPeerDown, len(p.addrs) > 1)
	}
	if resp.StatusCode == http.StatusMisdirectedRequest && resp.Header.Get(hReason) != "" {
		x.g.metrics.forwards[d.Site].misdirected.Inc()
		return x.rerouted(resp, snap)
	}
	x.g.metrics.forwards[d.Site].answered.Inc()
	site, epoch, reason := resp.Header.Get(hSite), resp.Header.Get(hEpoch), resp.Header.Get(hReason)
	x.told(resp, d)
	stripOurs(resp.Header)
	if reason != "" {
		resp.Header[hReason] = []string{reason}
	}
	n, _ := strconv.ParseUint(epoch, 10, 64)
	x.pass(resp, topo.SiteID(site), topo.Epoch(n))
	return done
}

// rerouted handles another gateway's 421: it has a newer view, and this one waits for that before it decides again.
func (x *exchange) rerouted(resp *http.Response, snap *snapshot) step {
	told, err := parseVersion(resp.Header.Get(hView))
	discard(resp)
	x.used.reroutes++
	switch {
	case err != nil:
		return x.refuse(reasonForwarded)
	case x.used.reroutes > maxReroutes || !x.sendable():
		return x.refuse(reasonMoved)
	}
	_, ok := x.g.views.await(x.ctx, viewWait, func(now *snapshot) bool {
		return now != snap && !now.version().before(told)
	})
	if !ok && x.ctx.Err() == nil && x.g.views.load().version().before(told) {
		return x.refuse(reasonBehind)
	}
	return again
}

// failed handles an error of a round trip.
func (x *exchange) failed(err error, unreachable route.Reason, elsewhere bool) step {
	if x.ctx.Err() != nil {
		return again // the loop sees that the client is gone
	}
	if x.body != nil && x.body.failed() != nil {
		return x.refuse(reasonSlowBody)
	}
	unsent := wasNotSent(err)
	reason := unreachable
	switch {
	case unsent:
	case isTimeout(err):
		reason = reasonTimeout
	default:
		reason = reasonLost
	}
	x.note("attempt failed", attribute.String("reason", string(reason)))
	x.g.log.Debug("attempt failed", "route", x.target.Route.Name, "reason", reason, "error", err)
	retry := unsent && (elsewhere || !isTimeout(err)) || reason == reasonLost && x.idempotent()
	if !retry || x.used.retries >= maxRetries || !x.sendable() || !x.app.budget.spend(time.Now()) {
		if unreachable == reasonPeerDown {
			return x.unreachable(reason)
		}
		return x.refuse(reason)
	}
	x.seat.free()
	x.used.retries++
	x.unsure = x.unsure || !unsent && !x.target.Safe
	x.g.metrics.retries.Inc()
	pause := time.NewTimer(retryPause/2 + rand.N(retryPause))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-x.ctx.Done():
	}
	return again
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// idempotent tells whether the request may be executed twice (RFC 9110, section 9.2.2).
func (x *exchange) idempotent() bool {
	switch x.r.Method {
	case http.MethodPut, http.MethodDelete:
		return true
	}
	return x.target.Safe || x.r.Header.Get("Idempotency-Key") != ""
}

// sendable ends the attempt before and tells whether there can be another.
func (x *exchange) sendable() bool { return x.body == nil || x.body.again() }

// request makes the request of one attempt. ok is false if the body cannot be sent again.
func (x *exchange) request(u *url.URL) (out *http.Request, ok bool) {
	out = (&http.Request{
		Method: x.r.Method, URL: u, Host: x.r.Host, Header: x.header.Clone(), ContentLength: x.r.ContentLength,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody,
	}).WithContext(x.ctx)
	onceOnly(out.Header)
	if x.socket {
		out.Header["Connection"], out.Header["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	x.passDeadline(out.Header)
	if x.grpc {
		out.Header["Te"] = []string{"trailers"} // a server that is not told so may refuse the call
	}
	if _, has := out.Header["User-Agent"]; !has {
		out.Header["User-Agent"] = []string{""} // the client named none; do not name ours
	}
	x.traced(x.ctx, out.Header)
	if x.body == nil {
		return out, true
	}
	if out.Body, ok = x.body.next(); !ok {
		return nil, false
	}
	if !x.duplex {
		// Without this, HTTP/1.1 answers nothing while a transport waits for the next piece of the body. It has a
		// price: the server no longer drains a rest safely, so an answer before the body's end ends the connection.
		x.duplex = true
		_ = http.NewResponseController(x.w).EnableFullDuplex()
	}
	// With this the transport sends again on its own what a stale connection took none of.
	out.GetBody = func() (io.ReadCloser, error) {
		if body, ok := x.body.next(); ok {
			return body, nil
		}
		return nil, errRevoked
	}
	return out, true
}

// onceOnly keeps the transport from sending a request again on its own for its idempotency key: nobody here would know that an
// attempt of unknown outcome went before. It does not recognise the name in lower case.
func onceOnly(h http.Header) {
	for _, name := range [...]string{"Idempotency-Key", "X-Idempotency-Key"} {
		if v, has := h[name]; has {
			delete(h, name)
			h[strings.ToLower(name)] = v
		}
	}
}

// discard drops an answer, keeping the connection where the answer is short.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	_ = resp.Body.Close()
}
