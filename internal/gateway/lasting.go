package gateway

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/atollhq/atoll/topo"
)

// lasts tells whether an answer may go on for as long as its ends like: a gRPC stream, or server-sent events. A gRPC answer
// with a status in its head is nothing but that.
func (x *exchange) lasts(resp *http.Response) bool {
	return x.grpc && resp.Header["Grpc-Status"] == nil || strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")
}

// stream passes on an answer that may last. When its bucket has moved it ends as if the application had ended it: a gRPC
// call as UNAVAILABLE, events in between two pieces. Their clients come back by themselves.
func (x *exchange) stream(resp *http.Response, site topo.SiteID) {
	x.seat.lasts()
	var told atomic.Bool
	ended := x.g.streams.add(x.target, site, x.from == nil, func() {
		told.Store(true)
		x.end()               // the transport may be waiting for more of the body, and does not notice anything else then
		_ = resp.Body.Close() // wakes the copying
	})
	defer ended()
	x.w.WriteHeader(resp.StatusCode)
	_ = http.NewResponseController(x.w).Flush() // the head is news: the first piece may come much later
	err := x.copyBody(resp)
	switch {
	case err == nil:
		x.trailers(resp)
	case told.Load() && x.ctx.Err() == nil && !errors.Is(err, http.ErrHandlerTimeout):
		if x.grpc {
			h := x.w.Header()
			h[http.TrailerPrefix+"Grpc-Status"] = []string{strconv.Itoa(grpcUnavailable)}
			h[http.TrailerPrefix+"Grpc-Message"] = []string{grpcText("atoll: " + errMoved.Error())}
		}
	default:
		panic(http.ErrAbortHandler)
	}
}
