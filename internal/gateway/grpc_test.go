package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/atollhq/atoll/sdk/rpc"
	"github.com/atollhq/atoll/topo"
)

// grpcApp is gRPC's own interop server; where it is asked says the answer's header.
func grpcApp(t testing.TB, name string, with ...grpc.ServerOption) string {
	t.Helper()
	ln, err := net.Listen("tcp", freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	mark := func(ctx context.Context) { _ = grpc.SetHeader(ctx, metadata.Pairs("app", name)) }
	s := grpc.NewServer(append(with,
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			mark(ctx)
			return h(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			mark(ss.Context())
			return h(srv, ss)
		}))...)
	testgrpc.RegisterTestServiceServer(s, interop.NewTestServer())
	go func() { _ = s.Serve(ln) }() // ends with Stop
	t.Cleanup(s.Stop)
	return "h2c://" + ln.Addr().String()
}

// grpcPair is two sites with gRPC applications.
func grpcPair(t testing.TB, with ...grpc.ServerOption) (a, b *site) {
	t.Helper()
	apps := map[topo.SiteID]string{"a": grpcApp(t, "a", with...), "b": grpcApp(t, "b", with...)}
	a, b = pair(t, echo("a"), echo("b"), func(c *Config) {
		c.Upstreams = map[string]Upstream{"app": At(apps[c.Site])}
		c.Routes = []topo.Route{
			{Name: "test", Path: "/grpc.testing.TestService", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless, FencedRetry: true},
			{Name: "rest", Path: "/grpc.testing.UnimplementedService", Upstream: "app"},
		}
	})
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	return a, b
}

// dialGRPC connects a client whose calls carry a key; "" for none.
func dialGRPC(t testing.TB, s *site, key string) *grpc.ClientConn {
	t.Helper()
	with := func(ctx context.Context) context.Context {
		if key == "" {
			return ctx
		}
		return metadata.AppendToOutgoingContext(ctx, "x-user", key)
	}
	cc, err := grpc.NewClient("passthrough:///"+s.gw.UserAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return call(with(ctx), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(with(ctx), desc, cc, method, opts...)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// TestGRPCInterop runs gRPC's interop cases through the owner's gateway, and through another site's. They end the process
// where one fails.
func TestGRPCInterop(t *testing.T) {
	t.Parallel()
	a, b := grpcPair(t)
	for _, at := range []*site{a, b} {
		cc := dialGRPC(t, at, keyIn(0))
		tc := testgrpc.NewTestServiceClient(cc)
		ctx := t.Context()
		for _, run := range []func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption){
			interop.DoEmptyUnaryCall, interop.DoLargeUnaryCall, interop.DoClientStreaming, interop.DoServerStreaming, interop.DoPingPong,
			interop.DoEmptyStream, interop.DoTimeoutOnSleepingServer, interop.DoCancelAfterBegin, interop.DoCancelAfterFirstResponse,
			interop.DoCustomMetadata, interop.DoStatusCodeAndMessage, interop.DoSpecialStatusMessage,
		} {
			run(ctx, tc)
		}
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(cc))
		var header metadata.MD
		if _, err := tc.EmptyCall(ctx, &testgrpc.Empty{}, grpc.Header(&header)); err != nil || header.Get("app")[0] != "a" || header.Get(hSite)[0] != "a" {
			t.Errorf("asked at %s: %v, %v", at.id, header, err)
		}
	}
	eventually(t, "no call is left", func() bool { return a.gw.streams.count()+b.gw.streams.count() == 0 })
}

// A call that the fence refused goes to the new owner, or again to the old one where a view explains the refusal; where nothing does,
// its caller hears so.
func TestGRPCFenced(t *testing.T) {
	t.Parallel()
	var open atomic.Bool
	refused := make(chan bool, 10)
	a, b := grpcPair(t, grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		if open.Load() {
			return h(ctx, req)
		}
		refused <- true
		return nil, rpc.Fenced(ctx, &pgconn.PgError{Code: "AT001", Detail: `{"keyspace": "users", "bucket": 0, "epoch": 1}`})
	}))
	call := func(size int) (app []string, err error) {
		var header metadata.MD
		_, err = testgrpc.NewTestServiceClient(dialGRPC(t, a, keyIn(0))).UnaryCall(t.Context(), &testgrpc.SimpleRequest{Payload: &testgrpc.Payload{Body: make([]byte, size)}}, grpc.Header(&header))
		return header.Get("app"), err
	}
	for _, size := range []int{1, 2 * keepBody} {
		_, err := call(size) // of the large one nothing is kept
		if <-refused; status.Code(err) != codes.Unavailable {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	moving := change(half().StartMove("users", topo.SpansOf(0), "h", "b"))
	committed := change(moving.CommitMove("users", topo.SpansOf(0), "h"))
	got := make(chan error, 1)
	var app []string
	go func() {
		var err error
		app, err = call(1)
		got <- err
	}()
	<-refused
	open.Store(true)
	publish(committed, committed.Version, a, b)
	if err := <-got; err != nil || len(app) != 1 || app[0] != "b" {
		t.Errorf("behind the switch: %v, %v", app, err)
	}
}

// What the gateway says itself is a status that clients understand.
func TestGRPCRefusals(t *testing.T) {
	t.Parallel()
	a, b := grpcPair(t)
	tc := testgrpc.NewTestServiceClient(dialGRPC(t, a, ""))
	_, err := tc.EmptyCall(t.Context(), &testgrpc.Empty{})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "carries no key") {
		t.Errorf("without a key: %v", err)
	}
	if err := dialGRPC(t, a, "").Invoke(t.Context(), "/other.Service/Call", &testgrpc.Empty{}, &testgrpc.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("no route: %v", err)
	}
	b.stop()
	ofB := testgrpc.NewTestServiceClient(dialGRPC(t, a, keyIn(8)))
	if _, err = ofB.EmptyCall(t.Context(), &testgrpc.Empty{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("the owner is away: %v", err)
	}
	// The caller's time ends while the call is held.
	moving := change(half().StartMove("users", topo.SpansOf(0), "h", "b"))
	publish(moving, moving.Version, a)
	a.ready(t, moving.Version)
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := testgrpc.NewTestServiceClient(dialGRPC(t, a, keyIn(0))).EmptyCall(short, &testgrpc.Empty{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("held for longer than the caller waits: %v", err)
	}
	eventually(t, "nothing is held", func() bool { return a.gw.room.held() == 0 })
}

// A stream whose bucket moves is told to come back, and finds the new owner; a call that is held goes there.
func TestGRPCStreamsLeaveWithTheirBucket(t *testing.T) {
	t.Parallel()
	a, b := grpcPair(t)
	ctx := t.Context()
	say := &testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 10}}}
	open := func(at *site) (testgrpc.TestService_FullDuplexCallClient, string) {
		t.Helper()
		s, err := testgrpc.NewTestServiceClient(dialGRPC(t, at, keyIn(0))).FullDuplexCall(ctx)
		if err == nil {
			err = s.Send(say)
		}
		if err == nil {
			_, err = s.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		header, err := s.Header()
		if err != nil {
			t.Fatal(err)
		}
		return s, header.Get("app")[0]
	}
	var streams []testgrpc.TestService_FullDuplexCallClient
	for range 5 {
		for _, at := range []*site{a, b} {
			s, app := open(at)
			if app != "a" {
				t.Fatalf("opened at %s", app)
			}
			streams = append(streams, s)
		}
	}
	moving := change(half().StartMove("users", topo.SpansOf(0), "h", "b"))
	publish(moving, 1, a, b)
	a.ready(t, moving.Version)
	b.ready(t, moving.Version)
	held := make(chan string, 1)
	go func() {
		var header metadata.MD
		_, err := testgrpc.NewTestServiceClient(dialGRPC(t, a, keyIn(0))).EmptyCall(ctx, &testgrpc.Empty{}, grpc.Header(&header))
		if err != nil {
			held <- err.Error()
			return
		}
		held <- header.Get("app")[0]
	}()
	eventually(t, "a call is held", func() bool { return a.gw.room.held() == 1 })
	for _, s := range streams { // they go on while it moves
		if err := s.Send(say); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	moved := change(moving.CommitMove("users", topo.SpansOf(0), "h"))
	publish(moved, moved.Version, a, b)
	if app := <-held; app != "b" {
		t.Errorf("the held call: %s", app)
	}
	for _, s := range streams {
		_, err := s.Recv()
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "moved") {
			t.Errorf("a stream ends with %v", err)
		}
	}
	if _, app := open(a); app != "b" {
		t.Errorf("who comes back is at %s", app)
	}
}

// Server-sent events end between two pieces when their bucket moves; browsers connect again by themselves.
func TestEventStreamsLeaveWithTheirBucket(t *testing.T) {
	t.Parallel()
	events := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: "+name+"\n\n")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
	}
	a, b := pair(t, events("a"), events("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	ended := make(chan string, 2)
	var began []chan struct{}
	for _, at := range []*site{a, b} {
		first := make(chan struct{})
		began = append(began, first)
		req, err := http.NewRequest("GET", at.url("/users"), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-User", keyIn(0))
		c := newClient(t)
		go func() {
			resp, err := c.Do(req)
			if err != nil {
				ended <- err.Error()
				close(first)
				return
			}
			defer resp.Body.Close()
			line := make([]byte, len("data: a\n\n"))
			_, err = io.ReadFull(resp.Body, line)
			close(first)
			rest, err2 := io.ReadAll(resp.Body)
			if err := errors.Join(err, err2); err != nil {
				ended <- err.Error()
				return
			}
			ended <- string(line) + string(rest)
		}()
	}
	for _, first := range began {
		<-first
	}
	moved := takenOver()
	publish(moved, moved.Version, a, b)
	for range 2 {
		if got := <-ended; got != "data: a\n\n" {
			t.Errorf("it ends with %q", got)
		}
	}
}

func TestGRPCTimeouts(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"1H": time.Hour, "250m": 250 * time.Millisecond, "99999999u": 99999999 * time.Microsecond, "0n": 0,
		"": -1, "5": -1, "m": -1, "123456789m": -1, "1x": -1, "-1m": -1, "99999999H": -1} {
		got, ok := grpcTimeout(http.Header{"Grpc-Timeout": {text}})
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %s, %v", text, got, ok)
		}
	}
	if got := grpcText("a%b\nc – d"); got != "a%25b%0Ac %E2%80%93 d" {
		t.Errorf("text %q", got)
	}
}
