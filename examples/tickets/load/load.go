// Package load puts an open loop of requests on a ticket shop and writes down what became of each.
//
// Open loop: requests start at moments that are drawn in advance (Poisson arrivals at a fixed rate), however slow the
// answers are, and latency counts from the drawn moment. So a shop that stalls for a second shows as many slow requests,
// not as one slow request and a pause. Nothing is ever sent twice.
//
// The main type is [Config]; [Run] returns when the duration is over or its context ends, and every request has been
// answered or given up.
package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

// Gateway is a place to send requests to.
type Gateway struct {
	Name string // as the gateway calls itself: a/g1
	URL  string
}

// ParseGateways reads a/g1=http://127.0.0.1:8080,b/g1=http://127.0.0.1:8081.
func ParseGateways(text string) ([]Gateway, error) {
	var out []Gateway
	for part := range strings.SplitSeq(text, ",") {
		name, address, ok := strings.Cut(strings.TrimSpace(part), "=")
		u, err := url.Parse(address)
		if !ok || name == "" || err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, fmt.Errorf("gateway %q: write NAME=URL, for example a/g1=http://127.0.0.1:8080", part)
		}
		out = append(out, Gateway{name, strings.TrimSuffix(address, "/")})
	}
	return out, nil
}

// Config says what to send where.
type Config struct {
	Gateways []Gateway
	Shape    seed.Shape // of the shop, as it was given to tickets init
	Mix      Mix
	Rate     float64       // requests a second
	Duration time.Duration // 0: until the context ends
	Timeout  time.Duration // of one request
	Clients  int           // each with its own connections
	Stick    float64       // share of a client's requests that goes to its own gateway; the rest goes to any
	Seed     uint64        // of arrivals and choices

	Registers       int           // the last customers, whom the other requests leave alone
	Lists           int           // the customers before those, likewise
	PerKey          int           // clients of each register and list, default 1; each has its own connections and sends one request at a time
	RegisterEvery   time.Duration // the requests of a register's or list's client begin at this interval, or when the one before has ended
	RegisterTimeout time.Duration // of one such request, and of a session's

	Sessions     int           // clients that carry a session, each with a list of its own that others use too; the customers before the lists
	SessionEvery time.Duration // their rounds begin at this interval, or when the one before has ended

	History  io.Writer // one JSON line for each request
	Progress io.Writer // one JSON line each second
}

func (c Config) validate() error {
	share := func(x float64) bool { return x >= 0 && x <= 1 }
	switch {
	case len(c.Gateways) == 0:
		return errors.New("no gateway to send to")
	case !(c.Rate > 0 && c.Rate <= 1e6):
		return fmt.Errorf("rate %v: want requests a second, above 0", c.Rate)
	case c.Timeout <= 0 || c.Duration < 0:
		return errors.New("a time-out must be above 0, a duration not below")
	case c.Clients < 1 || c.Shape.Customers < 1 || c.Shape.Events < 1:
		return errors.New("want at least one client, one customer and one event")
	case !share(c.Stick) || !share(c.Mix.Writes) || !share(c.Mix.Hot) || !share(c.Mix.Slow):
		return errors.New("a share is a number from 0 to 1")
	case c.Registers < 0 || c.Lists < 0 || c.PerKey < 0 || c.Sessions < 0 || c.setApart() >= c.Shape.Customers:
		return fmt.Errorf("%d registers, %d lists and %d sessions: want fewer than customers (%d), some are left for the other requests",
			c.Registers, c.Lists, c.Sessions, c.Shape.Customers)
	case c.Registers+c.Lists > 0 && (c.RegisterEvery <= 0 || c.RegisterTimeout <= 0):
		return errors.New("a register's interval and time-out must be above 0")
	case c.Sessions > 0 && (c.SessionEvery <= 0 || c.RegisterTimeout <= 0):
		return errors.New("a session's interval and time-out must be above 0")
	case c.Mix.Hot > 0 && c.Mix.HotCustomers < 1:
		return errors.New("a share for hot customers needs at least one hot customer")
	}
	return nil
}

// setApart counts the last customers, whom the open loop leaves alone.
func (c Config) setApart() int { return c.Registers + c.Lists + c.Sessions }

// generator is one run.
type generator struct {
	Config
	random  *rand.Rand // of the goroutine that starts requests
	clients []*client
	tally   tally
	orders  orderBook
	history chan Record
	base    time.Time // all times are this wall clock plus monotonic time since
}

func (g *generator) micros(t time.Time) int64 {
	return g.base.UnixMicro() + t.Sub(g.base).Microseconds()
}

// Run sends until the duration is over or ctx ends, waits for what is under way, and sums up.
func Run(ctx context.Context, cfg Config) (Summary, error) {
	if err := cfg.validate(); err != nil {
		return Summary{}, fmt.Errorf("load: %w", err)
	}
	g := &generator{
		Config:  cfg,
		random:  rand.New(rand.NewPCG(cfg.Seed, 0x7469636b657473)),
		history: make(chan Record, 4096),
		base:    time.Now(),
	}
	for n := range cfg.Clients {
		g.clients = append(g.clients, newClient(n, cfg.Gateways[n%len(cfg.Gateways)]))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var failure error
	var writer, reporter sync.WaitGroup
	writer.Go(func() { failure = g.writeHistory(cancel) }) // ends when the channel is closed, behind the last request
	stopReport := make(chan struct{})
	reporter.Go(func() { g.report(stopReport) })

	registers, sessions := g.registers(ctx), g.sessions(ctx)
	g.arrivals(ctx).Wait()
	registers.Wait()
	sessions.Wait()

	close(g.history)
	writer.Wait()
	close(stopReport)
	reporter.Wait()
	for _, c := range g.clients {
		c.http.CloseIdleConnections()
	}
	return g.tally.summary(time.Since(g.base)), failure
}

// arrivals starts requests, and returns what to wait for.
func (g *generator) arrivals(ctx context.Context) *sync.WaitGroup {
	var inFlight sync.WaitGroup
	timer := time.NewTimer(0)
	defer timer.Stop()
	for next := g.base; ; {
		next = next.Add(time.Duration(g.random.ExpFloat64() / g.Rate * float64(time.Second)))
		if g.Duration > 0 && next.Sub(g.base) >= g.Duration {
			return &inFlight
		}
		timer.Reset(time.Until(next)) // at once when late: the moment stays as it was drawn
		select {
		case <-ctx.Done():
			return &inFlight
		case <-timer.C:
		}
		c, op := g.clients[g.random.IntN(len(g.clients))], g.choose()
		to := c.home
		if g.random.Float64() >= g.Stick {
			to = g.Gateways[g.random.IntN(len(g.Gateways))]
		}
		g.tally.start()
		inFlight.Go(func() { g.perform(c, to, op, next) })
	}
}

// perform sends one request and records its outcome. It does not end with the run's context: what is under way is
// waited for.
func (g *generator) perform(c *client, to Gateway, op operation, intended time.Time) Record {
	rec := Record{ID: op.id, Client: c.number, Op: op.name, Keyspace: op.keyspace, Key: op.key, Write: op.write, Target: to.Name, Value: op.value, Session: op.session}
	timeout := g.Timeout
	if op.isRegister() || op.isList() {
		timeout = g.RegisterTimeout
	}
	c.send(to, op, timeout, &rec)
	returned := time.Now()
	rec.InvokedUS, rec.ReturnedUS = g.micros(intended), g.micros(returned)
	if op.name == "buy" && rec.Order != nil {
		g.orders.add(bought{op.key, rec.Order.ID})
	}
	g.tally.end(&rec, returned.Sub(intended))
	g.history <- rec
	return rec
}
