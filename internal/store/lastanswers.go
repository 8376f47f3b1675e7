package store

import (
	"context"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// lastAnswers lets a member that stops by itself end in order. etcd takes its database away then, when it is removed for
// instance, also from under requests that are being answered; they panic, and what the member had to say is not said.
type lastAnswers struct {
	stopping atomic.Pointer[<-chan struct{}] // closed: etcd stops. nil: it has not begun
}

func (l *lastAnswers) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	defer func() {
		stopping := l.stopping.Load()
		if stopping == nil {
			return
		}
		select {
		case <-*stopping:
			if recover() != nil {
				answer, err = nil, rpctypes.ErrGRPCStopped
			}
		default: // a panic is one
		}
	}()
	return handle(ctx, req)
}
