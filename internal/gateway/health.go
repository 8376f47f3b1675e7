package gateway

import (
	"cmp"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/balance"
)

// HealthCheck asks instances themselves whether they are well. Zero fields take their defaults.
type HealthCheck struct {
	Path     string        // that answers with a 2xx; "": instances are not asked
	Interval time.Duration // default 5 s, give or take a quarter
	Timeout  time.Duration // default 1 s
	Rules    balance.Health
}

// Source finds instances of a service. It calls found with all of them whenever they changed, and returns when ctx ends. What
// it said last is believed as long as it says nothing else.
type Source func(ctx context.Context, found func([]balance.Instance)) error

// run finds the instances of every service, and asks them whether they are well, until ctx ends.
func (u *upstreams) run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, s := range u.services {
		for i, source := range s.sources {
			wg.Go(func() {
				if err := source(ctx, func(in []balance.Instance) { s.found(i, in) }); err != nil && ctx.Err() == nil {
					s.log.Error("instances are not looked for any more", "error", err)
				}
			})
		}
		if s.health.Path != "" {
			wg.Go(func() { s.checkAll(ctx) })
		}
	}
	<-ctx.Done()
	wg.Wait()
	return ctx.Err()
}

// found takes in what one source says.
func (s *service) found(source int, instances []balance.Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.bySource[source] = instances
	all := s.static
	for _, some := range s.mu.bySource {
		all = append(all[:len(all):len(all)], some...)
	}
	s.pool.Update(all, time.Now())
	s.log.Info("instances", "found", len(instances), "all", s.pool.Len())
	kick(s.changed)
}

// checkAll keeps one checker per instance, as they come and go.
func (s *service) checkAll(ctx context.Context) {
	client := &http.Client{Transport: s.checks, Timeout: s.health.Timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var wg sync.WaitGroup
	defer wg.Wait()
	checked := make(map[string]context.CancelFunc)
	for {
		there := make(map[string]bool)
		for _, in := range s.pool.States(time.Now()) {
			there[in.Address] = true
			if checked[in.Address] == nil {
				one, cancel := context.WithCancel(ctx)
				checked[in.Address] = cancel
				wg.Go(func() { s.checkOne(one, client, in.Address) }) // ends with its instance, or with ctx
			}
		}
		for address, cancel := range checked {
			if !there[address] {
				cancel()
				delete(checked, address)
			}
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			for _, cancel := range checked {
				cancel()
			}
			return
		}
	}
}

// checkOne asks one instance from time to time. The first question is asked at once: a new instance waits for it.
func (s *service) checkOne(ctx context.Context, client *http.Client, address string) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		err := s.ask(ctx, client, address)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.metrics.checksGood.Inc()
		} else {
			s.metrics.checksBad.Inc()
		}
		if s.pool.Checked(address, err == nil, time.Now()) {
			s.log.Info("instance checked", "address", address, "well", err == nil, "error", err)
		}
		timer.Reset(s.health.Interval*3/4 + rand.N(s.health.Interval/2))
	}
}

func (s *service) ask(ctx context.Context, client *http.Client, address string) error {
	u := url.URL{Scheme: s.base.Scheme, Host: address, Path: s.health.Path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Host = s.base.Host
	req.Header["User-Agent"] = []string{"atoll"}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	if resp.StatusCode/100 != 2 {
		return statusError(resp.Status)
	}
	return nil
}

type statusError string

func (e statusError) Error() string { return "it answered " + string(e) }

func (h HealthCheck) withDefaults() HealthCheck {
	h.Interval = cmp.Or(h.Interval, 5*time.Second)
	h.Timeout = cmp.Or(h.Timeout, time.Second)
	return h
}
