package gateway

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// accessLog writes one JSON line for each answered request. It has no query, header or body of a request: those carry
// what is nobody's business. A line that cannot be written is lost.
type accessLog struct{ log *slog.Logger }

func newAccessLog(to io.Writer) *accessLog {
	if to == nil {
		return nil
	}
	return &accessLog{slog.New(slog.NewJSONHandler(to, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
			return slog.Attr{}
		}
		return a
	}}))}
}

// answered is what is told of a request besides itself.
type answered struct {
	site   topo.SiteID // whose application answered; "": none
	epoch  topo.Epoch
	reason route.Reason // of an answer of the gateway's own
	bytes  int64        // of the answer's body
}

func (l *accessLog) line(x *exchange, took time.Duration) {
	if l == nil {
		return
	}
	client := clientAddress(x.r, x.g.conf.Listen.Trusted)
	attrs := make([]slog.Attr, 0, 20)
	attrs = append(attrs, slog.String("gateway", x.g.name), slog.String("client", client), slog.String("method", x.r.Method), slog.String("host", x.r.Host),
		slog.String("path", x.r.URL.Path), slog.String("proto", x.r.Proto), slog.Int("status", x.status), slog.Int64("us", took.Microseconds()), slog.Int64("bytes", x.answer.bytes))
	if x.target.Route != nil {
		attrs = append(attrs, slog.String("route", x.target.Route.Name))
	}
	if x.target.Keyed {
		attrs = append(attrs, slog.String("keyspace", string(x.target.Route.Keyspace)), slog.Int("bucket", int(x.target.Bucket)))
	}
	if x.answer.site != "" {
		attrs = append(attrs, slog.String("site", string(x.answer.site)))
	}
	if x.answer.epoch > 0 {
		attrs = append(attrs, slog.Uint64("epoch", uint64(x.answer.epoch)))
	}
	if x.answer.reason != route.None {
		attrs = append(attrs, slog.String("reason", string(x.answer.reason)))
	}
	if x.held.total > 0 {
		attrs = append(attrs, slog.Int64("held_us", x.held.total.Microseconds()))
	}
	if n := x.used.retries + x.used.reroutes + x.used.fenced; n > 0 {
		attrs = append(attrs, slog.Int("again", n))
	}
	if x.from != nil {
		attrs = append(attrs, slog.Int("hops", x.from.hops))
	}
	if id := x.traceID(); id != "" {
		attrs = append(attrs, slog.String("trace", id))
	}
	l.log.LogAttrs(context.Background(), slog.LevelInfo, "", attrs...)
}
