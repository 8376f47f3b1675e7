package gateway

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// mark sets our headers of an answer. Another gateway learns which site answered and under which epoch; a user also
// which gateway and view it was.
func (x *exchange) mark(h http.Header, site topo.SiteID, epoch topo.Epoch) {
	x.answer.site, x.answer.epoch = site, epoch
	if site != "" {
		h[hSite] = []string{string(site)}
	}
	if epoch > 0 && x.target.Keyed {
		h[hEpoch] = []string{strconv.FormatUint(uint64(epoch), 10)}
	}
	if x.from != nil {
		return
	}
	h[hGateway] = []string{x.g.name}
	h[hView] = []string{x.g.views.load().label}
	if !x.held.since.IsZero() {
		h[hHeld] = []string{strconv.FormatInt(max(x.held.total.Milliseconds(), 1), 10)}
	}
}

// refuse gives an answer of the gateway's own.
func (x *exchange) refuse(reason route.Reason) step {
	if x.unsure {
		reason = reasonLost
	}
	if x.body != nil {
		if breaks := x.body.end(); breaks || x.duplex && !x.body.whole() {
			x.lastOnConnection()
		}
	}
	x.mark(x.w.Header(), "", 0)
	x.answer.reason = reason
	x.status = x.g.refuse(x.w, reason, refusedForm{read: x.target.Safe, grpc: x.grpc && x.from == nil})
	return done
}

// lastOnConnection tells an HTTP/1.1 client not to use the connection again: the rest of its body will not be read.
func (x *exchange) lastOnConnection() {
	if x.r.ProtoMajor == 1 {
		x.w.Header()["Connection"] = []string{"close"}
	}
}

// refusedForm says in which form a refusal is put.
type refusedForm struct{ read, grpc bool }

// refuse writes an answer of the gateway's own, and returns its status.
func (g *Gateway) refuse(w http.ResponseWriter, reason route.Reason, form refusedForm) int {
	what := refusals[reason]
	if text, other := ofReads[reason]; other && form.read {
		what.text = text
	}
	g.metrics.refused[reason].Inc()
	h := w.Header()
	h[hReason] = []string{string(reason)}
	if form.grpc {
		refuseGRPC(w, grpcStatus(reason, what.status), "atoll: "+what.text)
		return what.status
	}
	h["Content-Type"] = []string{"text/plain; charset=utf-8"}
	h["Cache-Control"] = []string{"no-store"}
	if what.status == http.StatusServiceUnavailable {
		h["Retry-After"] = []string{"1"}
		if reason == reasonOverload { // all at once they would come back all at once
			h["Retry-After"] = []string{strconv.Itoa(1 + rand.N(3))}
		}
	}
	if what.status == http.StatusUnauthorized {
		h["Www-Authenticate"] = []string{`Bearer error="invalid_token"`}
	}
	w.WriteHeader(what.status)
	_, _ = io.WriteString(w, "atoll: "+what.text+"\n")
	return what.status
}

// misdirected handles a request that another gateway sent here although this site does not own the bucket. One of the
// two is behind: this one waits for the view, the other one is told.
func (x *exchange) misdirected(snap *snapshot, d route.Decision) step {
	if !snap.version().before(x.from.view) {
		return x.misdirect(reasonNotOwner, d)
	}
	_, ok := x.g.views.await(x.ctx, viewWait, func(now *snapshot) bool { return !now.version().before(x.from.view) })
	if !ok && x.ctx.Err() == nil {
		return x.refuse(reasonBehind)
	}
	return again
}

// misdirect answers another gateway with 421: decide again, under this view or a newer one. Users never see it.
func (x *exchange) misdirect(reason route.Reason, d route.Decision) step {
	h := x.w.Header()
	h[hOwner] = []string{string(d.Slot.Owner)}
	h[hEpoch] = []string{strconv.FormatUint(uint64(d.Slot.Epoch), 10)}
	h[hView] = []string{x.g.views.load().label}
	h[hReason] = []string{string(reason)}
	h["Cache-Control"] = []string{"no-store"}
	x.status = http.StatusMisdirectedRequest
	x.g.metrics.misdirected.Inc()
	x.w.WriteHeader(x.status)
	return done
}

// pass hands an answer to whoever asked.
func (x *exchange) pass(resp *http.Response, site topo.SiteID, epoch topo.Epoch) {
	if resp.StatusCode == http.StatusSwitchingProtocols && x.socket {
		x.upgraded(resp, site, epoch)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 {
		x.refuse(reasonUpgrade) // nobody asked for one: the header is not passed on
		return
	}
	if x.unsure && resp.StatusCode >= 500 {
		x.refuse(reasonLost) // this attempt may have done nothing; an earlier one may have
		return
	}
	stripHop(resp.Header, nil)
	maps.Copy(x.w.Header(), resp.Header)
	x.mark(x.w.Header(), site, epoch)
	x.carry(x.w.Header())
	if x.body != nil && !x.body.whole() {
		x.lastOnConnection() // the application answered without the whole body
	}
	x.status = resp.StatusCode
	if x.lasts(resp) {
		x.stream(resp, site)
		return
	}
	x.w.WriteHeader(resp.StatusCode)
	if err := x.copyBody(resp); err != nil {
		// Only a broken connection tells a client that the answer is not whole.
		panic(http.ErrAbortHandler)
	}
	x.trailers(resp)
	x.copied.completed()
}

// trailers passes on what comes behind the body.
func (x *exchange) trailers(resp *http.Response) {
	for name, values := range resp.Trailer {
		if !ours(name) {
			x.w.Header()[http.TrailerPrefix+name] = values
		}
	}
}

// copyBody streams the answer's body: a piece that arrives goes out at once where its length is not known ahead.
func (x *exchange) copyBody(resp *http.Response) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	rc := http.NewResponseController(x.w)
	streaming := resp.ContentLength < 0
	for pieces := 0; ; pieces++ {
		n, err := resp.Body.Read(*buf)
		if n > 0 {
			x.allow(rc, pieces)
			x.answer.bytes += int64(n)
			x.copied.add((*buf)[:n])
			if _, err := x.w.Write((*buf)[:n]); err != nil {
				return err
			}
			if streaming {
				_ = rc.Flush()
			}
			x.written(rc, pieces)
		}
		if errors.Is(err, io.EOF) {
			if x.r.ProtoMajor == 2 {
				x.allow(rc, pieces) // what is left is written when the request ends, and its stream with it
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// allow bounds how long the client may take for a piece. On HTTP/1.1 the users' listener bounds each write, so the one
// piece that most answers have costs nothing. On HTTP/2 only a stream's own bound notices a client that takes nothing of it.
func (x *exchange) allow(rc *http.ResponseController, pieces int) {
	if pieces > 0 || x.r.ProtoMajor == 2 {
		_ = rc.SetWriteDeadline(time.Now().Add(x.g.conf.Pace.Idle))
	}
}

// written takes the bound back: the application may be silent for as long as it likes, and on HTTP/1.1 the connection serves
// the next request without it.
func (x *exchange) written(rc *http.ResponseController, pieces int) {
	if pieces > 0 || x.r.ProtoMajor == 2 {
		_ = rc.SetWriteDeadline(time.Time{})
	}
}
