package sdk

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
)

// memAgent is an agent that grants what it is asked for, unless it is away.
type memAgent struct {
	mu      sync.Mutex
	away    error
	renewed []time.Time
	tried   int
	left    []time.Time
	hangs   chan struct{} // not nil: an answer takes until it is closed
}

func (a *memAgent) Register(ctx context.Context, r api.RegisterRequest) (api.RegisterAnswer, error) {
	a.mu.Lock()
	hangs := a.hangs
	a.mu.Unlock()
	if hangs != nil {
		select {
		case <-hangs:
		case <-ctx.Done():
			return api.RegisterAnswer{}, ctx.Err()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tried++
	if a.away != nil {
		return api.RegisterAnswer{}, a.away
	}
	a.renewed = append(a.renewed, time.Now())
	return api.RegisterAnswer{TTLMS: 30_000}, nil
}

func (a *memAgent) Leave(context.Context, api.LeaveRequest) (api.LeaveAnswer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left = append(a.left, time.Now())
	return api.LeaveAnswer{Known: true}, a.away
}

func (a *memAgent) Close() {}

func (a *memAgent) be(away error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.away = away
}

// count is how often it was asked to register an instance, and did.
func (a *memAgent) count() (tried, taken int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tried, len(a.renewed)
}

// run starts a registrar at agents in memory.
func (a *memAgent) run(others ...*memAgent) (stop func() time.Duration) {
	r := &Registrar{instance: api.RegisterRequest{Service: "shop", Instance: api.Instance{Address: "h:1"}}}
	for _, one := range append(others, a) {
		r.agents = append(r.agents, &registering{agent: one, log: slog.New(slog.DiscardHandler)})
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	return func() time.Duration {
		began := time.Now()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			panic(err)
		}
		return time.Since(began)
	}
}

// It renews so often that two renewals in a row may fail, never in step with others, and leaves at the end.
func TestRegistrar_Renews(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &memAgent{}
		stop := a.run()
		time.Sleep(time.Hour)
		took := stop()
		gaps := map[time.Duration]bool{}
		for i, at := range a.renewed[1:] {
			gap := at.Sub(a.renewed[i])
			gaps[gap] = true
			if gap > 9*time.Second || gap < 6*time.Second {
				t.Errorf("renewed after %s", gap)
			}
		}
		if len(gaps) < 100 {
			t.Errorf("only %d different times between renewals", len(gaps))
		}
		if len(a.left) != 1 || took != leaveLinger {
			t.Errorf("left %d times; the end took %s", len(a.left), took)
		}
	})
}

// An agent that is away is tried again, soon at first, and is no matter of the other one's; what is refused is not asked in a loop.
func TestRegistrar_AgentAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := &memAgent{}, &memAgent{away: errors.New("away")}
		stop := a.run(b)
		time.Sleep(time.Second)
		_, taken := a.count()
		if tried, _ := b.count(); taken != 1 || tried < 3 {
			t.Errorf("%d registrations, and %d tries at the other agent", taken, tried)
		}
		time.Sleep(time.Hour)
		if tried, _ := b.count(); tried > 3600 {
			t.Errorf("%d tries in an hour", tried)
		}
		b.be(nil)
		time.Sleep(2 * registerRetryTo)
		if _, taken := b.count(); taken == 0 {
			t.Error("not registered where the agent has come back")
		}
		a.be(errors.New("away"))
		if took := stop(); took != leaveLinger {
			t.Errorf("the end took %s, though one agent passes the goodbye on", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		stop := (&memAgent{away: errors.New("away")}).run()
		time.Sleep(time.Minute)
		if took := stop(); took != 0 {
			t.Errorf("waited %s for gateways that have heard of nothing", took)
		}
	})
}

// The goodbye comes behind a registration that is under way, not before it.
func TestRegistrar_LeavesLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &memAgent{hangs: make(chan struct{})}
		stop := a.run()
		synctest.Wait()
		time.AfterFunc(time.Second, func() { close(a.hangs) })
		took := stop()
		if len(a.renewed) != 1 || len(a.left) != 1 || a.left[0].Before(a.renewed[0]) || took != time.Second+leaveLinger {
			t.Errorf("registered %v, left %v, the end took %s", a.renewed, a.left, took)
		}
	})
}
