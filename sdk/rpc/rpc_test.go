package rpc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/sdk"
	"github.com/atollhq/atoll/sdk/rpc"
	"github.com/atollhq/atoll/topo"
)

// message is one with a text in it, whatever it is made for.
type message = grpc_health_v1.HealthCheckRequest

// A real gRPC server per site, which answers with its name and the metadata that a gateway would add.

type server struct {
	name  string
	calls atomic.Int64
	// answer sets metadata or fails, for the nth call; nil: it takes it
	answer func(ctx context.Context, n int64) error
}

func start(t *testing.T, name string, answer func(context.Context, int64) error) (*server, string) {
	t.Helper()
	s := &server{name: name, answer: answer}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: "shop.Orders", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Buy", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			if err := decode(&message{}); err != nil {
				return nil, err
			}
			if err := s.take(ctx); err != nil {
				return nil, err
			}
			return &message{Service: s.name}, nil
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
			if err := stream.RecvMsg(&message{}); err != nil {
				return err
			}
			if err := s.take(stream.Context()); err != nil {
				return err
			}
			return stream.SendMsg(&message{Service: s.name})
		}}},
	}, s)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return s, l.Addr().String()
}

func (s *server) take(ctx context.Context) error {
	n := s.calls.Add(1)
	if s.answer == nil {
		return nil
	}
	return s.answer(ctx, n)
}

func dial(t *testing.T, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// view is one in which bucket 0 is a's and bucket 1 is b's.
func view(t *testing.T) *sdk.View {
	t.Helper()
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 2, Hash: "md5", Ranges: []topo.Range{
		{First: 0, Last: 0, Owner: "a", Epoch: 1, State: topo.Open}, {First: 1, Last: 1, Owner: "b", Epoch: 1, State: topo.Open}}}})
	line, err := json.Marshal(api.ViewUpdate{Format: 1, Ownership: o.Encode(), OpenedVersion: 1, Gateway: &api.GatewayWord{Site: "a", LeaseMS: 60_000, Table: &api.RouteTable{
		Keyspaces: map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: 2, Hash: topo.HashMD5, Key: topo.TextKey}},
		Routes:    []topo.Route{{Name: "orders", Path: "/shop.Orders", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-Customer"}}, WithoutKey: topo.RefuseKeyless}}}}})
	if err != nil {
		t.Fatal(err)
	}
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s\n", line)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(gateway.Close)
	v, err := sdk.NewView(sdk.ViewConfig{Site: "a", Gateways: []string{gateway.URL}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	wait, end := context.WithTimeout(t.Context(), 30*time.Second)
	defer end()
	if err := v.Wait(wait); err != nil {
		t.Fatal(err)
	}
	return v
}

func buy(ctx context.Context, c *grpc.ClientConn, key string) (string, error) {
	var out message
	err := c.Invoke(metadata.AppendToOutgoingContext(ctx, "x-customer", key), "/shop.Orders/Buy", &message{}, &out)
	return out.Service, err
}

func watch(ctx context.Context, c *grpc.ClientConn, key string) (string, error) {
	stream, err := c.NewStream(metadata.AppendToOutgoingContext(ctx, "x-customer", key), &grpc.StreamDesc{ServerStreams: true}, "/shop.Orders/Watch")
	if err != nil {
		return "", err
	}
	if err := errors.Join(stream.SendMsg(&message{}), stream.CloseSend()); err != nil {
		return "", err
	}
	var out message
	err = stream.RecvMsg(&out)
	return out.Service, err
}

// seen answers as a gateway does on a route with sessions: with what the caller brought, and the place of this answer.
func seen(place string) func(context.Context, int64) error {
	return func(ctx context.Context, _ int64) error {
		token := "1~" + place
		if md, _ := metadata.FromIncomingContext(ctx); len(md["atoll-session"]) == 1 && md["atoll-session"][0] != "new" {
			token += md["atoll-session"][0][1:]
		}
		return grpc.SetHeader(ctx, metadata.Pairs("atoll-session", token))
	}
}

func TestRouter_CallsTheOwner(t *testing.T) {
	t.Parallel()
	_, at := start(t, "a", seen("users.0.1.a.10"))
	_, bt := start(t, "b", seen("users.1.1.b.20"))
	v := view(t)
	r := rpc.New(v, map[topo.SiteID]*grpc.ClientConn{"b": dial(t, bt)})
	conn, blind := dial(t, at, r.DialOptions()...), dial(t, at, rpc.New(nil, nil).DialOptions()...)
	for i := range 20 {
		key := fmt.Sprintf("user-%d", i)
		place, err := v.Place("users", key)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := buy(t.Context(), conn, key); err != nil || got != string(place.Owner) {
			t.Errorf("%s: %q %v, want %s", key, got, err, place.Owner)
		}
		if got, err := watch(t.Context(), conn, key); err != nil || got != string(place.Owner) {
			t.Errorf("%s, stream: %q %v, want %s", key, got, err, place.Owner)
		}
		if got, err := buy(t.Context(), blind, key); err != nil || got != "a" {
			t.Errorf("%s without a view: %q %v", key, got, err)
		}
	}
	s := &sdk.Session{}
	ctx := sdk.WithSession(t.Context(), s)
	if _, err := buy(ctx, conn, keyOf(t, v, "a")); err != nil || s.Token() != "1~users.0.1.a.10" {
		t.Errorf("%v, token %q", err, s.Token())
	}
	if _, err := watch(ctx, conn, keyOf(t, v, "b")); err != nil || s.Token() != "1~users.1.1.b.20~users.0.1.a.10" {
		t.Errorf("%v, token %q", err, s.Token())
	}
}

func keyOf(t *testing.T, v *sdk.View, owner topo.SiteID) string {
	for i := 0; ; i++ {
		key := fmt.Sprintf("user-%d", i)
		if p, err := v.Place("users", key); err != nil {
			t.Fatal(err)
		} else if p.Owner == owner {
			return key
		}
	}
}

func TestRouter_CallsAgainOnlyWhatWasNotExecuted(t *testing.T) {
	t.Parallel()
	refuse := func(code codes.Code, reason string, times int64) func(context.Context, int64) error {
		return func(ctx context.Context, n int64) error {
			if n > times {
				return nil
			}
			return errors.Join(grpc.SetTrailer(ctx, metadata.Pairs("atoll-reason", reason)), status.Error(code, reason))
		}
	}
	for _, c := range []struct {
		name   string
		answer func(context.Context, int64) error
		calls  int64
		code   codes.Code
	}{
		{"a lease that comes back", refuse(codes.Unavailable, "lease", 1), 2, codes.OK},
		{"refused for good", refuse(codes.Unavailable, "no-view", 9), 3, codes.Unavailable},
		{"held for long enough", refuse(codes.Unavailable, "hold-timeout", 1), 1, codes.Unavailable},
		{"outcome unknown", refuse(codes.Unknown, "upstream-lost", 1), 1, codes.Unknown},
		{"the server's own", func(context.Context, int64) error { return status.Error(codes.Unavailable, "busy") }, 1, codes.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, addr := start(t, "a", c.answer)
			_, err := buy(t.Context(), dial(t, addr, rpc.New(nil, nil).DialOptions()...), "user-1")
			if s.calls.Load() != c.calls || status.Code(err) != c.code {
				t.Errorf("%d calls, %v", s.calls.Load(), err)
			}
		})
	}
}

func TestFenced_SaysWhere(t *testing.T) {
	t.Parallel()
	refused := &pgconn.PgError{Code: "AT001", Detail: `{"keyspace":"users","bucket":83,"owner":"b","epoch":7}`}
	own := errors.New("the server's own")
	_, addr := start(t, "a", func(ctx context.Context, n int64) error {
		if n == 1 {
			return rpc.Fenced(ctx, fmt.Errorf("order 17: %w", refused))
		}
		return rpc.Fenced(ctx, own)
	})
	c := dial(t, addr)
	call := func() (metadata.MD, error) {
		var trailer metadata.MD
		err := c.Invoke(t.Context(), "/shop.Orders/Buy", &message{}, &message{}, grpc.Trailer(&trailer))
		return trailer, err
	}
	if trailer, err := call(); status.Code(err) != codes.Unavailable || len(trailer["atoll-fenced"]) != 1 || trailer["atoll-fenced"][0] != "users/83/7" {
		t.Errorf("%v, %v", trailer, err)
	}
	if trailer, err := call(); status.Code(err) != codes.Unknown || len(trailer["atoll-fenced"]) != 0 {
		t.Errorf("%v, %v", trailer, err)
	}
}
