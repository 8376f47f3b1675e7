package gateway

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/atollhq/atoll/route"
)

// gRPC on its way through: over HTTP/2 to users, other gateways and applications (h2c:// and h2:// upstreams). What the gateway
// says itself has the form that clients understand: HTTP 200 and the status in the trailers, which are all that comes.

// Status codes of gRPC.
const (
	grpcUnknown           = 2
	grpcInvalidArgument   = 3
	grpcDeadlineExceeded  = 4
	grpcResourceExhausted = 8
	grpcAborted           = 10
	grpcUnimplemented     = 12
	grpcInternal          = 13
	grpcUnavailable       = 14
	grpcDataLoss          = 15
	grpcUnauthenticated   = 16
)

// errMoved ends a stream whose bucket has moved.
var errMoved = errors.New("the data has moved; connect again")

// isGRPC tells whether a request is one of gRPC's.
func isGRPC(r *http.Request) bool {
	kind := r.Header.Get("Content-Type")
	return r.ProtoMajor == 2 && strings.HasPrefix(kind, "application/grpc") && !strings.HasPrefix(kind, "application/grpc-web")
}

// grpcStatus is the status for an answer of the gateway's own. Where the outcome is not known it may not be UNAVAILABLE:
// clients send again then.
func grpcStatus(reason route.Reason, status int) int {
	switch reason {
	case reasonLost, reasonDeadline:
		return grpcUnknown
	case reasonTimeout, reasonExpired:
		return grpcDeadlineExceeded
	}
	switch status {
	case http.StatusBadRequest:
		return grpcInvalidArgument
	case http.StatusUnauthorized:
		return grpcUnauthenticated
	case http.StatusNotFound, http.StatusNotImplemented:
		return grpcUnimplemented
	case http.StatusRequestTimeout:
		return grpcDeadlineExceeded
	case http.StatusConflict:
		return grpcAborted
	case http.StatusTooManyRequests:
		return grpcResourceExhausted
	}
	return grpcUnavailable
}

// refuseGRPC writes an answer that is nothing but its trailers.
func refuseGRPC(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h["Content-Type"] = []string{"application/grpc"}
	h["Grpc-Status"] = []string{strconv.Itoa(status)}
	h["Grpc-Message"] = []string{grpcText(text)}
	w.WriteHeader(http.StatusOK)
}

// grpcText encodes a status message (percent-encoding of what is not printable ASCII).
func grpcText(text string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '%' {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// grpcTimeout reads how long the caller waits (grpc-timeout: at most eight digits and a unit).
func grpcTimeout(h http.Header) (time.Duration, bool) {
	text := h.Get("Grpc-Timeout")
	if len(text) < 2 || len(text) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(text[:len(text)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	unit, ok := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}[text[len(text)-1]]
	if !ok {
		return 0, false
	}
	if d := time.Duration(n); d <= time.Duration(1<<63-1)/unit {
		return d * unit, true
	}
	return 0, false // longer than anybody waits
}
