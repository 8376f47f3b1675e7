package store

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"google.golang.org/grpc"
)

// leaderships lets no transaction wait for an answer that may never come. What a member has sent to a leader that is about
// to leave, or has died, is dropped there without a word; the client would find out at the end of its try. So a
// transaction that began before the leader changed, and has no answer a while after, is given one: the leader has changed.
// It may have been carried out all the same, as after any failure to answer: the client looks it up.
type leaderships struct {
	patience time.Duration // what came through is answered within

	mu struct {
		sync.Mutex
		under context.Context // ends a while after the present leader has gone
		end   context.CancelFunc
	}
}

func newLeaderships(election time.Duration) *leaderships {
	l := &leaderships{patience: election / 4} // an election time-out is ten round trips and more
	l.begin()
	return l
}

// begin returns what ends the time before.
func (l *leaderships) begin() context.CancelFunc {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.mu.end
	l.mu.under, l.mu.end = context.WithCancel(context.Background())
	return before
}

// watch follows the leadership until ctx ends.
func (l *leaderships) watch(ctx context.Context, server *etcdserver.EtcdServer) {
	for {
		changed := server.LeaderChangedNotify()
		select {
		case <-changed:
			time.AfterFunc(l.patience, l.begin())
		case <-ctx.Done():
			return
		}
	}
}

func (l *leaderships) unary(ctx context.Context, req any, call *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if call.FullMethod != etcdserverpb.KV_Txn_FullMethodName {
		return handle(ctx, req)
	}
	l.mu.Lock()
	under := l.mu.under
	l.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(under, func() { cancel(rpctypes.ErrGRPCLeaderChanged) })()
	answer, err := handle(ctx, req)
	if err != nil && context.Cause(ctx) == rpctypes.ErrGRPCLeaderChanged {
		return nil, rpctypes.ErrGRPCLeaderChanged
	}
	return answer, err
}
