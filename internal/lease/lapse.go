package lease

import (
	"context"
	"errors"
	"time"

	"github.com/atollhq/atoll/internal/postgres"
)

// watchLapse ends what application transactions are left whenever the lease has run out without being renewed, until
// ctx ends (W): half of W is theirs to end by themselves, at lapse + W none is left, or the status says which.
func (k *Keeper) watchLapse(ctx context.Context) {
	for {
		k.mu.Lock()
		lapses, change := k.mu.lapses, k.mu.lapsesChange
		k.mu.Unlock()
		if lapses.IsZero() {
			select {
			case <-change:
				continue
			case <-ctx.Done():
				return
			}
		}
		timer := time.NewTimer(time.Until(lapses))
		select {
		case <-timer.C:
		case <-change:
			timer.Stop()
			continue
		case <-ctx.Done():
			timer.Stop()
			return
		}
		k.lapsed(ctx, lapses, change)
	}
}

// lapsed ends the writers of a lease that has run out, and tries again where that fails, until it is done and the lease
// is in force again, or ctx ends.
func (k *Keeper) lapsed(ctx context.Context, since time.Time, renewed <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-renewed: // nobody took over: the writers may stay
			cancel()
		case <-stop:
		}
	}()
	for patience := k.cfg.W / 2; ; patience = 0 {
		left := max(k.cfg.W-time.Since(since), k.cfg.W/4) // the bound for those that a stopped database kept from ending in time
		if k.endWriters(ctx, min(patience, left), left) == nil {
			<-ctx.Done()
			return
		}
		if sleep(ctx, time.Now().Add(k.t.every)) != nil {
			return
		}
	}
}

// endWriters ends the applications' transactions that may have written, and keeps what came of it for the status.
func (k *Keeper) endWriters(ctx context.Context, patience, bound time.Duration) error {
	ask, cancel := context.WithTimeout(ctx, bound+k.t.every)
	defer cancel()
	ended, err := k.cfg.Fence.EndWriters(ask, patience, bound)
	if ctx.Err() != nil {
		return err
	}
	for _, b := range ended {
		k.log.Warn("a transaction outlived the lease, and was ended", "site", k.cfg.Site, "transaction", b.String())
	}
	k.mu.Lock()
	k.mu.status.WritersEnded += len(ended)
	said := k.mu.status.WritersLeft
	k.mu.status.WritersLeft = ""
	if err != nil {
		k.mu.status.WritersLeft = err.Error()
	}
	k.mu.Unlock()
	var left *postgres.WritersLeftError
	if errors.As(err, &left) && said != err.Error() {
		k.log.Warn("transactions that outlive the lease cannot be ended", "site", k.cfg.Site, "error", err)
	}
	return err
}
