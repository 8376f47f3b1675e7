package rejoin

import (
	"context"
	"sync"
)

// Gate lets functions run while nobody holds it. The zero Gate is open.
type Gate struct {
	mu     sync.Mutex
	held   chan struct{} // not nil: held; closed at the release
	cancel map[*bool]context.CancelFunc
	inside sync.WaitGroup
}

// Run runs f, and runs it again behind every hold, until ctx ends or f ends by itself.
func (g *Gate) Run(ctx context.Context, f func(context.Context) error) error {
	for {
		g.mu.Lock()
		if held := g.held; held != nil {
			g.mu.Unlock()
			select {
			case <-held:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		one, cancel := context.WithCancel(ctx)
		key := new(bool)
		if g.cancel == nil {
			g.cancel = map[*bool]context.CancelFunc{}
		}
		g.cancel[key] = cancel
		g.inside.Add(1)
		g.mu.Unlock()
		err := f(one)
		ended := one.Err() == nil
		g.mu.Lock()
		delete(g.cancel, key)
		g.mu.Unlock()
		cancel()
		g.inside.Done()
		if ended || ctx.Err() != nil {
			return err
		}
	}
}

// Hold ends what runs, waits for it, and keeps it from running until release is called. One holds at a time.
func (g *Gate) Hold() (release func()) {
	for {
		g.mu.Lock()
		held := g.held
		if held == nil {
			break
		}
		g.mu.Unlock()
		<-held
	}
	held := make(chan struct{})
	g.held = held
	for _, cancel := range g.cancel {
		cancel()
	}
	g.mu.Unlock()
	g.inside.Wait()
	return sync.OnceFunc(func() {
		g.mu.Lock()
		g.held = nil
		g.mu.Unlock()
		close(held)
	})
}
