package gateway

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"
)

// hDeadline says how much longer the caller waits, as a duration: X-Request-Deadline: 750ms. Each hop takes off what it used, so
// that clocks need not agree. gRPC has a header of its own for that.
const hDeadline = "X-Request-Deadline"

// longestDeadline bounds what is believed: nobody waits for longer, and what looks like it is something else.
const longestDeadline = time.Hour

var errCallTimeout = errors.New("the caller's time is over")

// callerWaits reads how much longer the caller waits. Not ok: it does not say, or not so that it is understood.
func (x *exchange) callerWaits() (time.Duration, bool) {
	if x.grpc {
		return grpcTimeout(x.r.Header)
	}
	return requestDeadline(x.r.Header)
}

func requestDeadline(h http.Header) (time.Duration, bool) {
	text, err := single(h, hDeadline)
	if err != nil {
		return 0, false
	}
	d, err := time.ParseDuration(text)
	return max(d, 0), err == nil && d <= longestDeadline
}

// bounded gives a request the end that its caller set; the caller does not wait for longer, and neither does anybody
// behind.
func (x *exchange) bounded() context.CancelFunc {
	d, ok := x.callerWaits()
	if !ok {
		delete(x.header, hDeadline) // nobody behind shall read something else into it
		return func() {}
	}
	x.deadline = time.Now().Add(d)
	ctx, cancel := context.WithDeadlineCause(x.ctx, x.deadline, errCallTimeout)
	x.ctx = ctx
	return cancel
}

// passDeadline tells whoever gets this attempt what is left of the caller's time.
func (x *exchange) passDeadline(h http.Header) {
	if x.deadline.IsZero() {
		return
	}
	left := max(time.Until(x.deadline), time.Millisecond)
	if x.grpc {
		h["Grpc-Timeout"] = []string{grpcDuration(left)}
	} else {
		h[hDeadline] = []string{strconv.FormatInt(left.Milliseconds(), 10) + "ms"}
	}
}

// grpcDuration writes a timeout in at most eight digits and a unit.
func grpcDuration(d time.Duration) string {
	if n := d.Microseconds(); n < 1e8 {
		return strconv.FormatInt(n, 10) + "u"
	}
	if n := d.Milliseconds(); n < 1e8 {
		return strconv.FormatInt(n, 10) + "m"
	}
	return strconv.FormatInt(min(int64(d.Seconds()), 1e8-1), 10) + "S"
}
