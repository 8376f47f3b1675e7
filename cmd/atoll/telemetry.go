package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/atollhq/atoll/internal/spec"
)

// defaultSample is the share of traces that begin at a gateway and are recorded.
const defaultSample = 0.01

// openTracer makes what sends spans to the spec's collector; nil without one. What is not sent when it is closed is lost
// after a moment: a collector that is away holds nothing up.
func openTracer(ctx context.Context, t *spec.Telemetry, instance string) (tracer trace.Tracer, end func(), err error) {
	if t == nil {
		return nil, func() {}, nil
	}
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(t.OTLP)}
	if t.Plaintext {
		options = append(options, otlptracegrpc.WithInsecure())
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("telemetry: %w", err)
	}
	sample := defaultSample
	if t.Sample != nil {
		sample = *t.Sample
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(sample))),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "atoll-gateway"), attribute.String("service.instance.id", instance))),
	)
	return provider.Tracer("github.com/atollhq/atoll/internal/gateway"), func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_ = provider.Shutdown(ctx)
	}, nil
}

// openAccessLog opens what a gateway writes its lines to; nil without one.
func openAccessLog(name string) (io.Writer, func(), error) {
	switch name {
	case "":
		return nil, func() {}, nil
	case "-":
		return os.Stdout, func() {}, nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, nil, fmt.Errorf("access_log: %w", err)
	}
	return f, func() { _ = f.Close() }, nil
}
