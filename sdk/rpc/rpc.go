// Package rpc is package sdk for gRPC: interceptors that send each call to the site that owns its key, and carry sessions.
//
// The main type is [Router]. A call is read as the gateway reads it: POST /SERVICE/METHOD with the outgoing metadata as
// headers, so its key is where the routes say (metadata "x-customer" for a header X-Customer). The connection that was dialled
// leads to this site's gateways; those of other sites are given to [New].
//
// It guarantees that a unary call is sent again only where a gateway said that the one before was not executed. Streams are
// never sent again: what they have said is gone. Without a view, and for sites without a connection, calls go to this site.
//
// Servers answer what the fence refused with [Fenced].
package rpc

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/textproto"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/sdk"
	"github.com/atollhq/atoll/topo"
)

// Names of metadata; those of package sdk as gRPC writes them.
const (
	mdSession = "atoll-session"
	mdLost    = "atoll-session-lost"
	mdReason  = "atoll-reason"
	mdFenced  = "atoll-fenced"
)

const (
	maxAgain   = 2
	againPause = 100 * time.Millisecond
)

// Router decides which connection takes a call.
type Router struct {
	view   *sdk.View
	remote map[topo.SiteID]*grpc.ClientConn
}

// New makes a router. view may be nil. remote are connections to gateways of other sites, dialled without interceptors of a
// router; who made them closes them.
func New(view *sdk.View, remote map[topo.SiteID]*grpc.ClientConn) *Router {
	return &Router{view: view, remote: remote}
}

// DialOptions are both interceptors, for the connection to this site's gateways.
func (r *Router) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(r.Unary), grpc.WithChainStreamInterceptor(r.Stream)}
}

// pick is the connection for a call. One that cannot be used at the moment is passed over: this site's gateways reach the
// owner too.
func (r *Router) pick(ctx context.Context, method string, local *grpc.ClientConn) *grpc.ClientConn {
	if r.view == nil {
		return local
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	header := make(map[string][]string, len(md))
	for name, values := range md {
		header[textproto.CanonicalMIMEHeaderKey(name)] = values
	}
	site := r.view.Decide(&route.Request{Method: "POST", Host: local.CanonicalTarget(), Path: method, Header: header})
	far := r.remote[site]
	if site == r.view.Site() || far == nil {
		return local
	}
	if s := far.GetState(); s == connectivity.TransientFailure || s == connectivity.Shutdown {
		return local
	}
	return far
}

// outgoing adds the session.
func outgoing(ctx context.Context, s *sdk.Session) context.Context {
	if s == nil {
		return ctx
	}
	if md, _ := metadata.FromOutgoingContext(ctx); len(md[mdSession]) > 0 {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, mdSession, s.Outgoing())
}

func learn(s *sdk.Session, of ...metadata.MD) {
	if s != nil {
		s.Learn(first(mdSession, of...), first(mdLost, of...))
	}
}

func first(name string, of ...metadata.MD) string {
	for _, md := range of {
		if v := md[name]; len(v) > 0 {
			return v[0]
		}
	}
	return ""
}

// Unary is the interceptor for unary calls.
func (r *Router) Unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	session := sdk.SessionOf(ctx)
	for n := 0; ; n++ {
		var header, trailer metadata.MD
		all := append(opts[:len(opts):len(opts)], grpc.Header(&header), grpc.Trailer(&trailer))
		err := invoke(outgoing(ctx, session), method, req, reply, r.pick(ctx, method, cc), all...)
		learn(session, header, trailer)
		_, again := sdk.ReasonOutcome(first(mdReason, header, trailer))
		if err == nil || !again || n >= maxAgain || status.Code(err) != codes.Unavailable {
			return err
		}
		pause := time.NewTimer(time.Duration(n+1) * (againPause/2 + rand.N(againPause)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err // it says more than that the caller is gone
		}
	}
}

// Stream is the interceptor for streams.
func (r *Router) Stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	session := sdk.SessionOf(ctx)
	stream, err := open(outgoing(ctx, session), desc, r.pick(ctx, method, cc), method, opts...)
	if err != nil || session == nil {
		return stream, err
	}
	return &learning{ClientStream: stream, session: session}, nil
}

// learning takes a stream's session from its header, and from its trailer when it ends.
type learning struct {
	grpc.ClientStream
	session *sdk.Session
	header  sync.Once
}

func (l *learning) Header() (metadata.MD, error) {
	md, err := l.ClientStream.Header()
	if err == nil {
		l.header.Do(func() { learn(l.session, md) })
	}
	return md, err
}

func (l *learning) RecvMsg(m any) error {
	err := l.ClientStream.RecvMsg(m)
	if err != nil {
		learn(l.session, l.Trailer())
		return err
	}
	_, _ = l.Header() // it has come
	return nil
}

// Fenced turns a refusal of the fence into the answer that a gateway understands: UNAVAILABLE, with the trailer atoll-fenced:
// KEYSPACE/BUCKET/EPOCH. A server's handler returns it after the rollback. Any other error comes back as it is.
func Fenced(ctx context.Context, err error) error {
	e, ok := sdk.Fenced(err)
	if !ok {
		return err
	}
	if where := e.Where(); where != "" {
		if set := grpc.SetTrailer(ctx, metadata.Pairs(mdFenced, where)); set != nil {
			return errors.Join(status.Error(codes.Unavailable, e.Error()), set)
		}
	}
	return status.Error(codes.Unavailable, e.Error())
}
