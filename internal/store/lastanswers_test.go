package store

import (
	"context"
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// A request that panics because etcd stops is told so; any other panic is one.
func TestLastAnswers(t *testing.T) {
	t.Parallel()
	var l lastAnswers
	ask := func(fails bool) (answer any, err error, panicked bool) {
		defer func() { panicked = recover() != nil }()
		answer, err = l.unary(t.Context(), nil, nil, func(context.Context, any) (any, error) {
			if fails {
				panic("the database is gone")
			}
			return "all", nil
		})
		return answer, err, false
	}
	if _, _, panicked := ask(true); !panicked {
		t.Error("before it has begun: no panic")
	}
	stop := make(chan struct{})
	var stopping <-chan struct{} = stop
	l.stopping.Store(&stopping)
	if _, _, panicked := ask(true); !panicked {
		t.Error("while it goes on: no panic")
	}
	close(stop)
	if answer, err, panicked := ask(true); panicked || answer != nil || !errors.Is(err, rpctypes.ErrGRPCStopped) {
		t.Errorf("while it stops: %v, %v, panic %v", answer, err, panicked)
	}
	if answer, err, panicked := ask(false); panicked || answer != "all" || err != nil {
		t.Errorf("an answer while it stops: %v, %v, panic %v", answer, err, panicked)
	}
}
