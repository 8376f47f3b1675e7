package shop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// stopWithin bounds a clean stop: requests that are under way may finish.
const stopWithin = requestTimeout + 2*time.Second

// Serve answers requests on the listener and works off the outbox until ctx ends. It stops in this order: no new
// requests, the ones under way finish, the deliverers finish; the database connections are the caller's to close.
func (s *Shop) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      requestTimeout + 5*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
	}
	group, ctx := errgroup.WithContext(ctx)
	deliverCtx, stopDelivering := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error { return s.Deliver(deliverCtx) })
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		defer stopDelivering()
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		if err := server.Shutdown(stopCtx); err != nil {
			server.Close()
			return fmt.Errorf("requests did not end within %v and were broken off: %w", stopWithin, err)
		}
		return nil
	})
	return group.Wait()
}
