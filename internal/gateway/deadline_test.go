package gateway

import (
	"context"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/atollhq/atoll/topo"
)

func TestRequestDeadline(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"750ms": 750 * time.Millisecond, "2s": 2 * time.Second, "0s": 0, "-1s": 0, "1h": time.Hour} {
		if got, ok := requestDeadline(http.Header{hDeadline: {text}}); !ok || got != want {
			t.Errorf("%q: %v, %v", text, got, ok)
		}
	}
	for _, bad := range [][]string{nil, {""}, {"750"}, {"1764442754"}, {"2026-11-29T20:00:00Z"}, {"2h"}, {"1s", "2s"}, {"soon"}} {
		if got, ok := requestDeadline(http.Header{hDeadline: bad}); ok {
			t.Errorf("%q: %v", bad, got)
		}
	}
	for d, want := range map[time.Duration]string{time.Millisecond: "1000u", 99 * time.Second: "99000000u", 100 * time.Second: "100000m", 100 * time.Hour: "360000S"} {
		got := grpcDuration(d)
		if back, ok := grpcTimeout(http.Header{"Grpc-Timeout": {got}}); got != want || !ok || back != d {
			t.Errorf("%s: %s, which is %s", d, got, back)
		}
	}
}

// What is left of the caller's time is told to whoever comes next, less at each hop; what is not understood is not.
func TestDeadlineIsPassedOn(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 1)
	a, b := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen <- r.Header.Get(hDeadline) }), echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	c := newClient(t)
	for _, s := range []*site{a, b} {
		for sent, passed := range map[string]bool{"30s": true, "1764442754": false, "": false} {
			req, _ := http.NewRequest("POST", s.url("/users"), nil)
			req.Header.Set("X-User", keyIn(0))
			if sent != "" {
				req.Header.Set(hDeadline, sent)
			}
			want(t, send(t, c, req), 200, "")
			text := <-seen
			left, err := time.ParseDuration(text)
			if passed && (err != nil || left >= 30*time.Second || left < 10*time.Second) || !passed && text != "" {
				t.Errorf("at %s: %q came as %q", s.id, sent, text)
			}
		}
	}
}

// A caller whose time is over while its request waits: it is told that nothing was done, and nothing is. One whose time is over
// while the application works is told that this is not known.
func TestDeadlineIsOver(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}, 10), make(chan struct{})
	a := newSite(t, "a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		select {
		case <-leave:
		case <-r.Context().Done():
		}
	}))
	defer close(leave)
	a.start(t, a.config())
	moving := change(half().StartMove("users", topo.SpansOf(0), "h", "b"))
	publish(moving, 2, a)
	a.ready(t, moving.Version)
	c := newClient(t)
	ask := func(bucket topo.BucketID, text string) answer {
		req, _ := http.NewRequest("POST", a.url("/users"), nil)
		req.Header.Set("X-User", keyIn(bucket))
		req.Header.Set(hDeadline, text)
		return send(t, c, req)
	}
	want(t, ask(0, "20ms"), 504, reasonExpired) // held
	want(t, ask(1, "0s"), 504, reasonExpired)
	if len(entered) > 0 {
		t.Error("sent although the time was over")
	}
	want(t, ask(1, "200ms"), 504, reasonTimeout)
	<-entered
}

// The same for gRPC: what is left is sent on in its own header, and its clients see their own status.
func TestGRPCDeadlineIsPassedOn(t *testing.T) {
	t.Parallel()
	a, b := grpcPair(t)
	for _, s := range []*site{a, b} {
		client := testgrpc.NewTestServiceClient(dialGRPC(t, s, keyIn(0)))
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		stream, err := client.FullDuplexCall(ctx)
		if err == nil {
			_, err = stream.Recv() // nothing comes: nothing was asked for
		}
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("at %s: %v", s.id, err)
		}
		cancel()
	}
}
