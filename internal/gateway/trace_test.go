package gateway

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// A request's trace goes on through both gateways to the application, and says what became of it.
func TestTraces(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	seen := make(chan string, 10)
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen <- r.Header.Get("Traceparent") })
	a, b := pair(t, app, app, func(c *Config) { c.Tracer = provider.Tracer("test") })
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	req, err := http.NewRequest("POST", b.url("/users"), strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-User", keyIn(0))
	req.Header.Set("Traceparent", parent)
	want(t, send(t, newClient(t), req), 200, "")
	got := <-seen
	if len(got) != len(parent) || got[3:35] != parent[3:35] || got[36:52] == parent[36:52] {
		t.Errorf("the application is told of trace %q", got)
	}
	eventually(t, "both gateways have ended their spans", func() bool { return len(spans.GetSpans()) == 2 })
	for _, s := range spans.GetSpans() {
		var names []string
		for _, e := range s.Events {
			names = append(names, e.Name)
		}
		of := ""
		for _, attr := range s.Attributes {
			if attr.Key == "atoll.gateway" {
				of = attr.Value.AsString()
			}
		}
		if s.SpanContext.TraceID().String() != parent[3:35] || s.Name != "POST users" || (of == "b/g1") != slices.Contains(names, "forwarded") {
			t.Errorf("span %s of %s, events %q, trace %s", s.Name, of, names, s.SpanContext.TraceID())
		}
	}
}

// Every answer is a line of JSON, a refusal with its reason; nothing of a query or a header is in it.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	lines := &lockedBuffer{}
	a := alone(t, echo("a"), func(c *Config) { c.AccessLog = lines })
	c := newClient(t)
	want(t, do(t, c, "POST", a.url("/users?token=secret"), keyIn(0), "hello"), 200, "")
	want(t, do(t, c, "GET", a.url("/users/"), "", ""), 400, "no-key")
	eventually(t, "two lines", func() bool { return strings.Count(lines.String(), "\n") == 2 })
	if strings.Contains(lines.String(), "secret") {
		t.Errorf("a query is in the log: %s", lines.String())
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(lines.String())))
	for _, w := range []map[string]any{
		{"gateway": "a/g1", "client": "127.0.0.1", "method": "POST", "path": "/users", "route": "users", "keyspace": "users", "bucket": 0.0, "site": "a", "epoch": 1.0, "status": 200.0, "bytes": 8.0},
		{"method": "GET", "path": "/users/", "status": 400.0, "reason": "no-key"},
	} {
		var got map[string]any
		if err := dec.Decode(&got); err != nil {
			t.Fatal(err)
		}
		for key, value := range w {
			if got[key] != value {
				t.Errorf("%s is %v, want %v, in %v", key, got[key], value, got)
			}
		}
		if got["time"] == nil || got["us"] == nil || got["level"] != nil {
			t.Errorf("line %v", got)
		}
	}
}
