package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// ApplyConfig says whose changes are applied, and where.
type ApplyConfig struct {
	DSN    string
	Site   topo.SiteID // the database's site: the target
	Origin topo.SiteID
	Tables []TableSpec
	Logger *slog.Logger

	BatchRows  int // how many rows join into one target transaction; default 4000
	BatchBytes int // and how many bytes; default 4 MiB

	tailBytes int // how much of one transaction is decided as one, when it is stale; 256 MiB
	conn      *pgx.ConnConfig
	tables    map[string]TableSpec
}

// StopError says why applying stopped and what to look at. Applying goes on from the same place once the reason is
// removed; nothing was skipped.
type StopError struct {
	Origin   topo.SiteID
	Position change.Position
	XID      uint64 // the source's transaction
	Table    string // "" when no single row is to blame
	Key      string
	Err      error
}

func (e *StopError) Error() string {
	where := ""
	if e.Table != "" {
		where = fmt.Sprintf(", table %s (%s)", e.Table, e.Key)
	}
	return fmt.Sprintf("transaction %d of site %s, ending at %s%s: %v", e.XID, e.Origin, lsn(e.Position), where, e.Err)
}

func (e *StopError) Unwrap() error { return e.Err }

// Applier writes one origin's changes into a site's database: each source transaction whole or not at all, exactly
// once, in commit order. Consecutive ones share a target transaction; progress is a row that is written in it.
type Applier struct {
	cfg ApplyConfig
	log *slog.Logger
}

// applyName begins the application_name of every applier's session; the origin follows.
const applyName = "atoll apply from "

// OpenApply checks that the database answers and what the role may do there.
func OpenApply(ctx context.Context, cfg ApplyConfig) (*Applier, error) {
	a := &Applier{cfg: cfg, log: cfg.Logger}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	a.log = a.log.With("origin", cfg.Origin, "target", cfg.Site)
	if cfg.Origin == cfg.Site {
		return nil, a.wrap(errors.New("a site does not apply its own changes"))
	}
	if a.cfg.BatchRows <= 0 {
		a.cfg.BatchRows = 4000
	}
	if a.cfg.BatchBytes <= 0 {
		a.cfg.BatchBytes = 4 << 20
	}
	a.cfg.tailBytes = 256 << 20
	a.cfg.tables = make(map[string]TableSpec, len(cfg.Tables))
	shared := ""
	for _, t := range cfg.Tables {
		a.cfg.tables[t.String()] = t
		if t.Kind == topo.Shared {
			shared = t.String()
		}
	}
	var err error
	if a.cfg.conn, err = streamConfig(cfg.DSN, applyName+string(cfg.Origin)); err != nil {
		return nil, a.wrap(err)
	}
	s, err := a.connect(ctx)
	if err != nil {
		return nil, a.wrap(err)
	}
	defer s.close()
	if !s.isReplica {
		a.log.Warn("may not set session_replication_role: triggers and foreign keys fire for applied changes", "grant", "GRANT SET ON PARAMETER session_replication_role")
	}
	if !s.hasOrigin {
		a.log.Warn("may not use replication origins: applied changes carry this site's commit times", "grant", "GRANT EXECUTE ON FUNCTION pg_replication_origin_…")
	}
	if shared != "" && (!s.hasOrigin || !s.commitTime) {
		return nil, a.wrap(fmt.Errorf("table %s is shared, and last update wins needs track_commit_timestamp = on and EXECUTE on the functions pg_replication_origin_create, _oid, _session_setup and _xact_setup", shared))
	}
	return a, nil
}

// connect opens a session; a predecessor's origin may be held for a moment after its connection ended.
func (a *Applier) connect(ctx context.Context) (*applySession, error) {
	for wait := newBackoff(); ; {
		s, err := connectApply(ctx, &a.cfg)
		if err == nil || sqlState(err) != "55006" || !wait.next(ctx) {
			return s, err
		}
	}
}

// Close has nothing to wait for: connections end with their Run.
func (a *Applier) Close() error { return nil }

func (a *Applier) wrap(err error) error {
	return fmt.Errorf("apply at %s from %s: %w", a.cfg.Site, a.cfg.Origin, err)
}

// Progress is how far the origin's stream is applied, durably, and at which epochs the origin held its buckets there.
func (a *Applier) Progress(ctx context.Context) (change.Progress, error) {
	conn, err := pgx.ConnectConfig(ctx, a.cfg.conn.Copy())
	if err != nil {
		return change.Progress{}, a.wrap(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	p, err := readProgress(ctx, conn, a.cfg.Origin)
	if err != nil {
		return change.Progress{}, a.wrap(err)
	}
	return p, nil
}

// Run applies what comes from in until it is closed, ctx ends or something fails. applied is called, from one
// goroutine, after each durable commit. A transaction with markers is applied alone: everything before it is durable
// and reported first.
//
// One batch is being applied while the next grows, so that batches are as large as the target's pace makes them.
func (a *Applier) Run(ctx context.Context, in <-chan change.Tx, applied func(change.Position, []change.Marker)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &applyWorker{Applier: a, applied: applied}
	work := make(chan []change.Tx)
	idle := make(chan struct{}, 1)
	ended := make(chan struct{})
	go func() { // ends when work is closed, or with an error that ends ctx; joined below
		defer close(ended)
		defer w.reset()
		for group := range work {
			if err := w.apply(ctx, group); err != nil {
				cancel(err)
				return
			}
			idle <- struct{}{}
		}
	}()
	err := a.feed(ctx, in, work, idle)
	close(work)
	<-ended
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(nil)
	if err != nil {
		return a.wrap(err)
	}
	return nil
}

// feed collects transactions and hands groups of them to the worker whenever that is idle: with all that is here by then,
// because what came together was sent together, and a commit of its own for the first of it is one too many.
func (a *Applier) feed(ctx context.Context, in <-chan change.Tx, work chan<- []change.Tx, idle <-chan struct{}) error {
	var q applyQueue
	busy := false
	for in != nil || busy || len(q.waiting) > 0 {
		if !busy && len(q.waiting) > 0 {
			if q.under(&a.cfg, 1) {
				select {
				case tx, ok := <-in:
					if ok {
						q.add(tx)
					} else {
						in = nil
					}
					continue
				default:
				}
			}
			select {
			case work <- q.take(&a.cfg):
				busy = true
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		more := in
		if !q.under(&a.cfg, 2) {
			more = nil // the source waits
		}
		select {
		case tx, ok := <-more:
			if !ok {
				in = nil
				continue
			}
			q.add(tx)
		case <-idle:
			busy = false
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// applyQueue is what arrived and is not yet being applied.
type applyQueue struct {
	waiting []change.Tx
	sizes   []int
	rows    int
	bytes   int
}

func (q *applyQueue) add(tx change.Tx) {
	size := sizeOf(&tx)
	q.waiting, q.sizes = append(q.waiting, tx), append(q.sizes, size)
	q.rows += len(tx.Rows)
	q.bytes += size
}

// under tells whether less than some batches' worth waits.
func (q *applyQueue) under(cfg *ApplyConfig, batches int) bool {
	return q.rows < batches*cfg.BatchRows && q.bytes < batches*cfg.BatchBytes
}

func sizeOf(tx *change.Tx) int {
	n := rowOverhead
	for i := range tx.Rows {
		n += rowOverhead
		for _, image := range [2][]change.Value{tx.Rows[i].Old, tx.Rows[i].New} {
			for j := range image {
				n += len(image[j].Bytes)
			}
		}
	}
	return n
}

// take cuts the next group off: one transaction that must stand alone, one part of a large one, or as many
// consecutive ordinary ones as the bounds allow.
func (q *applyQueue) take(cfg *ApplyConfig) []change.Tx {
	n, rows, size := 0, 0, 0
	for n < len(q.waiting) {
		tx := &q.waiting[n]
		if cfg.alone(tx) {
			if n == 0 {
				n, rows, size = 1, len(tx.Rows), q.sizes[0]
			}
			break
		}
		if n > 0 && (rows+len(tx.Rows) > cfg.BatchRows || size+q.sizes[n] > cfg.BatchBytes) {
			break
		}
		rows += len(tx.Rows)
		size += q.sizes[n]
		n++
	}
	group := append([]change.Tx(nil), q.waiting[:n]...)
	clear(q.waiting[:n])
	q.waiting, q.sizes = q.waiting[n:], q.sizes[n:]
	q.rows -= rows
	q.bytes -= size
	return group
}

// alone tells whether a transaction may not share a target transaction: a part of a large one, one with markers (a
// full barrier), one that writes shared tables (each of its rows keeps its own commit time).
func (cfg *ApplyConfig) alone(tx *change.Tx) bool {
	if !tx.First || !tx.Last || len(tx.Markers) > 0 {
		return true
	}
	return cfg.hasShared(tx)
}

func (cfg *ApplyConfig) hasShared(tx *change.Tx) bool {
	var last *change.Table
	for i := range tx.Rows {
		if t := tx.Rows[i].Table; t != last {
			last = t
			if tx.Rows[i].Keyspace == "" && cfg.tables[t.Schema+"."+t.Name].Kind == topo.Shared {
				return true
			}
		}
	}
	return false
}

// backoff paces retries: 20 ms, doubling up to a second, ten times.
type backoff struct {
	wait time.Duration
	left int
}

func newBackoff() *backoff { return &backoff{wait: 20 * time.Millisecond, left: 10} }

// next waits; it is false when there were enough retries or ctx ended.
func (b *backoff) next(ctx context.Context) bool {
	if b.left == 0 {
		return false
	}
	b.left--
	timer := time.NewTimer(b.wait)
	defer timer.Stop()
	b.wait = min(2*b.wait, time.Second)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
