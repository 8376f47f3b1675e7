package gateway

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/atollhq/atoll/route"
)

// A trace goes on through the gateway (W3C trace context): a span for the request, and events in it for what became of it on
// the way: held, sent on, sent again. Without a tracer the headers pass as they are.

var traceContext = propagation.TraceContext{}

// startSpan begins the span of a request; the answer ends it.
func (x *exchange) startSpan() (end func()) {
	if x.g.conf.Tracer == nil {
		return func() {}
	}
	ctx := traceContext.Extract(x.ctx, propagation.HeaderCarrier(x.r.Header))
	name := x.r.Method
	if x.target.Route != nil {
		name += " " + x.target.Route.Name
	}
	ctx, span := x.g.conf.Tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("http.request.method", x.r.Method), attribute.String("url.path", x.r.URL.Path), attribute.String("atoll.gateway", x.g.name)))
	x.ctx, x.span = ctx, span
	return func() {
		span.SetAttributes(attribute.Int("http.response.status_code", x.status))
		if x.target.Keyed {
			span.SetAttributes(attribute.String("atoll.keyspace", string(x.target.Route.Keyspace)), attribute.Int("atoll.bucket", int(x.target.Bucket)))
		}
		if x.answer.site != "" {
			span.SetAttributes(attribute.String("atoll.site", string(x.answer.site)), attribute.Int64("atoll.epoch", int64(x.answer.epoch)))
		}
		if x.answer.reason != route.None {
			span.SetAttributes(attribute.String("atoll.reason", string(x.answer.reason)))
		}
		if x.status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, string(x.answer.reason))
		}
		span.End()
	}
}

// note puts something that happened to the request into its span.
func (x *exchange) note(what string, attrs ...attribute.KeyValue) {
	if x.span != nil {
		x.span.AddEvent(what, trace.WithAttributes(attrs...))
	}
}

// traced puts the span into the header of an attempt.
func (x *exchange) traced(ctx context.Context, h http.Header) {
	if x.span != nil {
		traceContext.Inject(ctx, propagation.HeaderCarrier(h))
	}
}

func (x *exchange) traceID() string {
	if x.span != nil && x.span.SpanContext().HasTraceID() {
		return x.span.SpanContext().TraceID().String()
	}
	return ""
}
