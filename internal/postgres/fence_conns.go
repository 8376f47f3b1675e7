package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// errFenceClosed is returned by a Fence that was closed.
var errFenceClosed = errors.New("closed already")

// maxIdleFenceConns covers a keeper and a few handovers at a time.
const maxIdleFenceConns = 8

// fenceConns hands out connections, so that a heartbeat never waits behind a closing that waits for writers.
type fenceConns struct {
	config *pgx.ConnConfig
	mu     struct {
		sync.Mutex
		idle   []*pgx.Conn
		closed bool
	}
}

// fenceConfig reads a DSN and pins what the fence's statements rely on.
func fenceConfig(dsn string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("the DSN cannot be read: %w", err)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 5 * time.Second
	}
	for name, value := range map[string]string{
		"application_name":              "atoll",
		"default_transaction_isolation": "read committed", // each statement of a function must see what its lock waited for
		"default_transaction_read_only": "off",
		"synchronous_commit":            "on",
		"lock_timeout":                  "10s",
		"statement_timeout":             "30s",
		"search_path":                   "pg_catalog",
		"jit":                           "off", // compiling would take longer than any of them
	} {
		config.RuntimeParams[name] = value
	}
	return config, nil
}

func newFenceConns(dsn string) (*fenceConns, error) {
	config, err := fenceConfig(dsn)
	if err != nil {
		return nil, err
	}
	return &fenceConns{config: config}, nil
}

// with runs f on a connection of its own. A connection that had gone stale while it was idle is replaced once, so f
// must be safe to repeat.
func (p *fenceConns) with(ctx context.Context, f func(*pgx.Conn) error) error {
	c, idle, err := p.take(ctx)
	if err != nil {
		return err
	}
	err = f(c)
	if err != nil && idle && c.IsClosed() && ctx.Err() == nil {
		p.dropIdle()
		if c, _, err = p.take(ctx); err != nil {
			return err
		}
		err = f(c)
	}
	p.put(c)
	return err
}

func (p *fenceConns) take(ctx context.Context) (c *pgx.Conn, idle bool, err error) {
	p.mu.Lock()
	if p.mu.closed {
		p.mu.Unlock()
		return nil, false, errFenceClosed
	}
	if n := len(p.mu.idle); n > 0 {
		c, p.mu.idle = p.mu.idle[n-1], p.mu.idle[:n-1]
		p.mu.Unlock()
		return c, true, nil
	}
	p.mu.Unlock()
	c, err = pgx.ConnectConfig(ctx, p.config)
	return c, false, err
}

func (p *fenceConns) put(c *pgx.Conn) {
	if c.IsClosed() {
		return
	}
	p.mu.Lock()
	keep := !p.mu.closed && len(p.mu.idle) < maxIdleFenceConns
	if keep {
		p.mu.idle = append(p.mu.idle, c)
	}
	p.mu.Unlock()
	if !keep {
		closeConn(c)
	}
}

func (p *fenceConns) dropIdle() {
	p.mu.Lock()
	idle := p.mu.idle
	p.mu.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		closeConn(c)
	}
}

func (p *fenceConns) close() {
	p.mu.Lock()
	p.mu.closed = true
	p.mu.Unlock()
	p.dropIdle()
}

func closeConn(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Close(ctx) // nothing is left to lose on it
}
