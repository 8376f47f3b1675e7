package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// ErrRebuild is returned when a target asks for changes that the source no longer keeps. The target's copy of this
// origin's data must be made again.
var ErrRebuild = errors.New("the target must be rebuilt from a fresh copy")

// CaptureConfig says whose changes are read, and for whom.
type CaptureConfig struct {
	DSN        string
	Site       topo.SiteID // the database's site: the origin
	Target     topo.SiteID
	Deployment string
	Tables     []TableSpec
	Keyspaces  map[topo.KeyspaceID]topo.Keyspace
	Logger     *slog.Logger

	PartBytes int           // a transaction beyond this travels in parts; default 1 MiB
	IdleEvery time.Duration // how often an idle stream moves the target's position on; default 10 s
}

// Capture reads the changes that began at one site, for one target, from the database's logical replication slot for
// that target. Only one Run per target works at a time: a later one takes the slot over.
type Capture struct {
	cfg  CaptureConfig
	slot string
	conn *pgx.ConnConfig
	log  *slog.Logger

	confirmed chan struct{} // a hint that mu.flushed moved
	asked     chan struct{} // a hint that the server is to say where it is
	mu        struct {
		sync.Mutex
		flushed change.Position // durable at the target
		emitted change.Position // the furthest that was handed to the target
		wanted  change.Position // somebody at the target waits for it; 0: nobody
		asks    int             // how often the server may still be asked whether it is there
	}
}

// OpenCapture checks that the database answers and can serve a stream.
func OpenCapture(ctx context.Context, cfg CaptureConfig) (*Capture, error) {
	c := &Capture{cfg: cfg, slot: SlotName(cfg.Deployment, cfg.Target), confirmed: make(chan struct{}, 1), asked: make(chan struct{}, 1)}
	if len(c.slot) > maxIdentifier {
		return nil, fmt.Errorf("slot name %s is longer than %d bytes; choose a shorter name for the deployment or for site %s", c.slot, maxIdentifier, cfg.Target)
	}
	if c.cfg.PartBytes <= 0 {
		c.cfg.PartBytes = 1 << 20
	}
	if c.cfg.IdleEvery <= 0 {
		c.cfg.IdleEvery = 10 * time.Second
	}
	c.log = cfg.Logger
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.log = c.log.With("origin", cfg.Site, "target", cfg.Target)
	var err error
	if c.conn, err = streamConfig(cfg.DSN, "atoll capture for "+string(cfg.Target)); err != nil {
		return nil, c.wrap(err)
	}
	err = c.admin(ctx, func(conn *pgx.Conn) error {
		var level string
		if err := conn.QueryRow(ctx, "SHOW wal_level").Scan(&level); err != nil {
			return err
		}
		if level != "logical" {
			return fmt.Errorf("wal_level is %s; set it to logical and restart the database", level)
		}
		return nil
	})
	if err != nil {
		return nil, c.wrap(err)
	}
	return c, nil
}

// Close has nothing to wait for: streams end with the context of their Run.
func (c *Capture) Close() error { return nil }

func (c *Capture) wrap(err error) error {
	return fmt.Errorf("capture at %s for %s: %w", c.cfg.Site, c.cfg.Target, err)
}

// admin runs f on an ordinary connection.
func (c *Capture) admin(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.ConnectConfig(ctx, c.conn.Copy())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return f(conn)
}

// walsender opens a replication connection.
func (c *Capture) walsender(ctx context.Context) (*pgconn.PgConn, error) {
	cfg := c.conn.Config.Copy()
	cfg.RuntimeParams["replication"] = "database"
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return gather(conn), nil
	}
	return pgconn.ConnectConfig(ctx, cfg)
}

// Confirmed is the position up to which the target's slot has let go of the stream.
func (c *Capture) Confirmed(ctx context.Context) (pos change.Position, exists bool, err error) {
	err = c.admin(ctx, func(conn *pgx.Conn) error {
		pos, exists, err = c.confirmedOn(ctx, conn)
		return err
	})
	if err != nil {
		return 0, false, c.wrap(err)
	}
	return pos, exists, nil
}

func (c *Capture) confirmedOn(ctx context.Context, conn *pgx.Conn) (change.Position, bool, error) {
	var lsn *int64
	var status *string
	err := conn.QueryRow(ctx, `SELECT (confirmed_flush_lsn - '0/0')::bigint, wal_status FROM pg_replication_slots
		WHERE slot_name = $1 AND database = current_database()`, c.slot).Scan(&lsn, &status)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	if status != nil && *status == "lost" || lsn == nil {
		return 0, false, fmt.Errorf("the server gave up slot %s (max_slot_wal_keep_size, or invalidated): %w", c.slot, ErrRebuild)
	}
	return change.Position(*lsn), true, nil
}

// Create makes the slot, without a copy, if it is missing.
func (c *Capture) Create(ctx context.Context) error {
	if err := c.admin(ctx, func(conn *pgx.Conn) error { return c.checkPublication(ctx, conn) }); err != nil {
		return c.wrap(err)
	}
	conn, err := c.walsender(ctx)
	if err != nil {
		return c.wrap(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, fmt.Sprintf(`CREATE_REPLICATION_SLOT "%s" LOGICAL pgoutput NOEXPORT_SNAPSHOT`, c.slot)).ReadAll()
	if err != nil && sqlState(err) != "42710" { // exists already
		return c.wrap(fmt.Errorf("create slot %s: %w", c.slot, err))
	}
	return nil
}

// Confirm tells the database that the target has everything up to pos on disk. It is sent on at once. What was never
// handed to the target is not confirmed, whatever the target says.
func (c *Capture) Confirm(pos change.Position) {
	c.mu.Lock()
	pos = min(pos, c.mu.emitted)
	moved := pos > c.mu.flushed
	if moved {
		c.mu.flushed = pos
	}
	c.mu.Unlock()
	if moved {
		select {
		case c.confirmed <- struct{}{}:
		default:
		}
	}
}

// Reach has the target told as soon as the stream is at a position: the server is asked where it is until then, for a
// while, because what is not on its disk yet is not in the stream either.
func (c *Capture) Reach(pos change.Position) {
	c.mu.Lock()
	c.mu.wanted, c.mu.asks = pos, mostAsks
	c.mu.Unlock()
	c.ask()
}

func (c *Capture) ask() {
	select {
	case c.asked <- struct{}{}:
	default:
	}
}

// awaited tells whether somebody waits for a position that the stream has come to, and forgets it then. If it has not, the
// server is asked again in a moment.
func (c *Capture) awaited(at change.Position) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mu.wanted == 0:
		return false
	case c.mu.wanted <= at:
		c.mu.wanted = 0
		return true
	case c.mu.asks > 0:
		c.mu.asks--
		time.AfterFunc(askEvery, c.ask)
	default:
		c.mu.wanted = 0
	}
	return false
}

func (c *Capture) flushed() change.Position {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.flushed
}

func (c *Capture) emitted(pos change.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.emitted = max(c.mu.emitted, pos)
}

// checkPublication: a table that is not published would be lost without a word.
func (c *Capture) checkPublication(ctx context.Context, conn *pgx.Conn) error {
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)", PublicationName).Scan(&exists); err != nil {
		return err
	}
	if !exists {
		return fmt.Errorf("publication %s does not exist; run atoll apply at site %s", PublicationName, c.cfg.Site)
	}
	rows, err := conn.Query(ctx, "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = $1", PublicationName)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	published := make(map[string]bool, len(names))
	for _, n := range names {
		published[n] = true
	}
	var missing []string
	for _, t := range append([]TableSpec{{Schema: "atoll", Name: "bucket", Kind: topo.Shared}, {Schema: "atoll", Name: "marker", Kind: topo.Shared}}, c.cfg.Tables...) {
		if t.Published() && !published[t.String()] {
			missing = append(missing, t.String())
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("publication %s lacks %s; run atoll apply at site %s", PublicationName, strings.Join(missing, ", "), c.cfg.Site)
	}
	return nil
}

// Run hands the changes behind from to emit, in commit order, until ctx ends or something fails. It refuses a from
// that the slot no longer reaches back to (ErrRebuild), and one that lies ahead of the database's stream.
func (c *Capture) Run(ctx context.Context, from change.Position, epochs change.Epochs, emit func(context.Context, change.Tx) error) error {
	var version int
	err := c.admin(ctx, func(conn *pgx.Conn) error {
		if err := c.checkPublication(ctx, conn); err != nil {
			return err
		}
		confirmed, exists, err := c.confirmedOn(ctx, conn)
		if err != nil {
			return err
		}
		if !exists {
			return fmt.Errorf("slot %s does not exist: %w", c.slot, ErrRebuild)
		}
		if from < confirmed {
			return fmt.Errorf("asked for changes behind %s, but slot %s keeps only those behind %s: %w", lsn(from), c.slot, lsn(confirmed), ErrRebuild)
		}
		var end int64
		if err := conn.QueryRow(ctx, "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint, current_setting('server_version_num')::int").Scan(&end, &version); err != nil {
			return err
		}
		if from > change.Position(end) {
			return fmt.Errorf("asked for changes behind %s, but this database only reached %s; was it restored from a backup? %w", lsn(from), lsn(change.Position(end)), ErrRebuild)
		}
		return nil
	})
	if err != nil {
		return c.wrap(err)
	}
	conn, err := c.start(ctx, from, version)
	if err != nil {
		return c.wrap(err)
	}
	c.mu.Lock()
	c.mu.flushed, c.mu.emitted = from, from
	c.mu.Unlock()
	s := &captureStream{Capture: c, conn: conn.Conn, front: conn.Frontend, emit: emit,
		decoder: newPgDecoder(), stamper: newStamper(&c.cfg, epochs), last: from, lastAt: time.Now(), tailTables: tailTables{}}
	return c.wrap(s.run(ctx))
}

// lsn prints a position as PostgreSQL does.
func lsn(p change.Position) string { return fmt.Sprintf("%X/%X", uint64(p)>>32, uint32(p)) }
