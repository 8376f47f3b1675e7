package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

const (
	registerTimeout = 3 * time.Second
	registerRetry   = 200 * time.Millisecond // doubled up to registerRetryTo, or the time to the next renewal if that is shorter
	registerRetryTo = 5 * time.Second
	// leaveLinger is how long a registrar that has left waits for gateways to hear of it: they ask ten times a second.
	leaveLinger = 500 * time.Millisecond
)

// RegistrarConfig says what is registered, and where.
type RegistrarConfig struct {
	Site   topo.SiteID // where the instance runs; an agent of another site is refused
	Agents []string    // host:port of the API of each of the site's agents: the instance registers at all of them
	PKI    string      // folder with ca.crt, service-NAME.crt and service-NAME.key of `atoll ca issue service NAME`

	Service string // the upstream's name in atoll.yaml, which says register: under discover:
	Address string // host:port, as the site's gateways reach this instance
	Zone    string // gateways of the same zone prefer it; "": none
	Weight  int    // how much it gets of what the others get, 1 to 1000; 0 means 1

	TTL time.Duration // how long it stays without renewing; 0: as long as the spec allows
	Log *slog.Logger  // nil: none
}

// Registrar keeps one instance of a service registered at the agents of its site, so that gateways send requests there. Keep
// it in [Registrar.Run].
type Registrar struct {
	instance api.RegisterRequest
	agents   []*registering
}

// registering is an instance's standing at one agent.
type registering struct {
	agent instanceAgent
	log   *slog.Logger
	ttl   time.Duration // that was granted last; 0: none yet
}

// instanceAgent is where an instance registers.
type instanceAgent interface {
	Register(context.Context, api.RegisterRequest) (api.RegisterAnswer, error)
	Leave(context.Context, api.LeaveRequest) (api.LeaveAnswer, error)
	Close()
}

// NewRegistrar checks the configuration and reads the certificate. Nothing is dialled before [Registrar.Run].
func NewRegistrar(conf RegistrarConfig) (*Registrar, error) {
	r := &Registrar{instance: api.RegisterRequest{Service: conf.Service, TTLMS: conf.TTL.Milliseconds(), Instance: api.Instance{Address: conf.Address, Zone: conf.Zone, Weight: conf.Weight}}}
	if err := topo.CheckName(string(conf.Site)); err != nil {
		return nil, fmt.Errorf("site: %w", err)
	}
	if err := topo.CheckName(conf.Service); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	if err := r.instance.Check(); err != nil {
		return nil, fmt.Errorf("instance of service %s: %w", conf.Service, err)
	}
	if conf.TTL < 0 || conf.TTL > 0 && conf.TTL < time.Millisecond {
		return nil, fmt.Errorf("instance of service %s: TTL %s: want some seconds, or 0 for as long as the spec allows", conf.Service, conf.TTL)
	}
	if len(conf.Agents) == 0 {
		return nil, errors.New("no agent to register at; name the API addresses of the site's agents, such as a.agent.example:7400")
	}
	id, err := pki.Load(conf.PKI, pki.Role{Kind: pki.Service, Name: conf.Service}.File())
	if err != nil {
		return nil, err
	}
	log := conf.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for _, addr := range conf.Agents {
		if err := api.CheckAddress(addr); err != nil {
			return nil, fmt.Errorf("agent: %w", err)
		}
		r.agents = append(r.agents, &registering{agent: api.NewClient(addr, id.ClientTLS(conf.Site), nil),
			log: log.With("service", conf.Service, "address", conf.Address, "agent", addr)})
	}
	return r, nil
}

// Run registers the instance and renews that until ctx ends, whose error it returns; refusals are logged, and tried again. At
// the end it leaves, and waits a moment for gateways to hear of it. Only then should the instance stop to serve:
//
//	err := registrar.Run(ctx) // ctx ends with the signal to stop
//	server.Shutdown(…)
//
// Begin it when the instance can serve.
func (r *Registrar) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	left := make([]bool, len(r.agents))
	for i, a := range r.agents {
		wg.Go(func() {
			defer a.agent.Close()
			a.keep(ctx, r.instance)
			left[i] = a.leave(context.WithoutCancel(ctx), api.LeaveRequest{Service: r.instance.Service, Address: r.instance.Address})
		})
	}
	wg.Wait()
	for _, told := range left {
		if told {
			<-time.After(leaveLinger)
			break
		}
	}
	return ctx.Err()
}

// keep registers again and again until ctx ends, a little more often than three times in the time that is granted.
func (a *registering) keep(ctx context.Context, instance api.RegisterRequest) {
	said, pause := "", registerRetry
	for {
		word := "registered"
		err := a.register(ctx, instance)
		rest := a.renewal() * 9 / 10
		rest -= rand.N(rest / 4)
		if err == nil {
			pause = registerRetry
		} else {
			word = err.Error()
			rest = min(rest, pause/2+rand.N(pause))
			pause = min(2*pause, registerRetryTo)
		}
		if word != said {
			said = word
			a.log.Info("registration", "ttl", a.ttl, "error", err)
		}
		timer := time.NewTimer(rest)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// renewal is how long a registration may stand before it is renewed.
func (a *registering) renewal() time.Duration {
	if a.ttl == 0 {
		return registerRetryTo
	}
	return a.ttl / 3
}

// register is not broken off when ctx ends: the agent might carry it out behind the goodbye.
func (a *registering) register(ctx context.Context, instance api.RegisterRequest) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), registerTimeout)
	defer cancel()
	answer, err := a.agent.Register(ctx, instance)
	if err != nil {
		return err
	}
	if answer.TTLMS < time.Second.Milliseconds() || answer.TTLMS > time.Hour.Milliseconds() {
		return fmt.Errorf("the agent grants %d ms, which is no sensible time", answer.TTLMS)
	}
	a.ttl = time.Duration(answer.TTLMS) * time.Millisecond
	return nil
}

// leave says goodbye, also where no answer to a registration came: it may have been taken.
func (a *registering) leave(ctx context.Context, instance api.LeaveRequest) bool {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	if _, err := a.agent.Leave(ctx, instance); err != nil {
		a.log.Warn("left without a goodbye; gateways send requests until the instance's time is over", "error", err)
		return false
	}
	return true
}
