package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// pipelineWindow is how many statements go out before the answers of the window before are read. The answers of two
// windows fit the sockets' buffers, so neither side waits for the other to read.
const pipelineWindow = 512

// errRowMissing: a statement touched fewer rows than its change is about.
var errRowMissing = errors.New("the row is not here")

// applySession is one dedicated connection that applies. It never goes into a pool: the replication origin stays set
// until the connection ends.
type applySession struct {
	cfg        *ApplyConfig
	conn       *pgx.Conn
	pg         *pgconn.PgConn
	hasOrigin  bool
	isReplica  bool
	commitTime bool // track_commit_timestamp
	known      bool // a progress row exists
	position   change.Position
	split      change.Position // the ordinary rows of the transaction that ends there are here already
	cutCount   int             // of changes of the origin's cuts, as of when they were read
	cuts       cutSet
	targets    map[*change.Table]*applyTarget
	statements int
	texts      map[string]string // statements of run, and the names under which they are prepared
	begin      []*applyStatement
	keep       *applyStatement
}

func connectApply(ctx context.Context, cfg *ApplyConfig) (*applySession, error) {
	s, err := dialApply(ctx, cfg, applyName)
	if err == nil {
		err = s.setUpOrigin(ctx)
	}
	if err == nil {
		err = s.loadProgress(ctx)
	}
	if err != nil {
		if s != nil {
			s.close()
		}
		return nil, err
	}
	s.prepareBegin()
	return s, nil
}

// dialApply makes a session whose changes are the site's own, until setUpOrigin.
func dialApply(ctx context.Context, cfg *ApplyConfig, name string) (*applySession, error) {
	config := cfg.conn.Copy()
	config.RuntimeParams["application_name"] = name + string(cfg.Origin)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	s := &applySession{cfg: cfg, conn: conn, pg: conn.PgConn(), targets: make(map[*change.Table]*applyTarget), texts: make(map[string]string)}
	if err := s.setUp(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *applySession) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.conn.Close(ctx)
}

func (s *applySession) setUp(ctx context.Context) error {
	for _, sql := range []string{"SET client_min_messages = error", "SET synchronous_commit = on", "SET plan_cache_mode = force_generic_plan",
		// Statements are planned when their tables may still be empty, and stay as they are. The price that this puts on
		// a scan must not look like a reason to compile it.
		"SET enable_seqscan = off", "SET jit = off", noTransactionTimeout} {
		if _, err := s.conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	var err error
	if s.isReplica, err = s.privileged(ctx, "SET session_replication_role = replica"); err != nil {
		return err
	}
	var tracked string
	if err := s.conn.QueryRow(ctx, "SHOW track_commit_timestamp").Scan(&tracked); err != nil {
		return err
	}
	s.commitTime = tracked == "on"
	return nil
}

// setUpOrigin makes the session's changes those of the origin, where the role may do that.
func (s *applySession) setUpOrigin(ctx context.Context) (err error) {
	name := OriginName(s.cfg.Origin)
	if s.hasOrigin, err = s.privileged(ctx, "SELECT pg_replication_origin_create('"+name+"') WHERE pg_replication_origin_oid('"+name+"') IS NULL"); err != nil {
		return fmt.Errorf("replication origin %s: %w", name, err)
	}
	if s.hasOrigin {
		if s.hasOrigin, err = s.privileged(ctx, "SELECT pg_replication_origin_session_setup('"+name+"')"); err != nil {
			return fmt.Errorf("replication origin %s: %w", name, err)
		}
	}
	return nil
}

// privileged runs what may need a privilege that this role lacks, and tells whether it had it.
func (s *applySession) privileged(ctx context.Context, sql string) (bool, error) {
	_, err := s.conn.Exec(ctx, sql)
	if sqlState(err) == "42501" {
		return false, nil
	}
	return err == nil, err
}

// loadProgress reads how far the origin's changes are here, and where its epochs end.
func (s *applySession) loadProgress(ctx context.Context) error {
	tx, err := s.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	var position, split int64
	var halted topo.HandoverID
	err = tx.QueryRow(ctx, "SELECT position, split, halted, cuts FROM atoll.progress WHERE origin = $1", string(s.cfg.Origin)).
		Scan(&position, &split, &halted, &s.cutCount)
	s.known = err == nil
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		s.position, s.split, s.cutCount, s.cuts = 0, 0, 0, nil
		return nil
	case err != nil:
		return err
	}
	s.position, s.split = change.Position(position), change.Position(split)
	if s.cuts, err = readCuts(ctx, tx, s.cfg.Origin); err != nil {
		return err
	}
	if halted != "" {
		return &HaltedError{s.cfg.Origin, halted}
	}
	return nil
}

// prepareBegin lists what every applying transaction starts with. Progress comes before the rows: a second applier of
// the same origin waits there and then finds that the position is no longer the one it knows.
func (s *applySession) prepareBegin() {
	s.begin = []*applyStatement{{name: "begin", sql: "BEGIN ISOLATION LEVEL READ COMMITTED", want: -1}}
	if s.hasOrigin {
		// Position 0/0: it sets commit time and origin, and never moves the origin's progress, which from 16 on an
		// aborted transaction would move too. It is session state, so it is set anew in every transaction.
		s.begin = append(s.begin, &applyStatement{name: "setup", sql: "SELECT pg_replication_origin_xact_setup('0/0', $1::text::timestamptz)", want: -1})
	}
	s.begin = append(s.begin,
		&applyStatement{name: "mark", sql: "SELECT pg_logical_emit_message(true, '" + markPrefix + "', $1::text)", want: -1},
		&applyStatement{name: "progress", want: 1, sql: `INSERT INTO atoll.progress AS p (origin, position, committed_at) VALUES ($1::text, $2::text::bigint, $3::text::timestamptz)
			ON CONFLICT (origin) DO UPDATE SET position = excluded.position, committed_at = coalesce(excluded.committed_at, p.committed_at), applied_at = clock_timestamp()
			WHERE p.position = $4::text::bigint AND excluded.position > p.position AND p.halted = '' AND p.cuts = $5::text::int`})
	s.keep = keepStatement()
}

// applyItem is a statement with its arguments; tx says which source transaction it belongs to, -1 for none.
type applyItem struct {
	st   *applyStatement
	args [][]byte
	tx   int
}

// beginItems are the statements that open a target transaction which ends at position. What of txs is to be kept for other
// sites is kept in it, before progress: whoever drops what is kept takes its locks in that order.
func (s *applySession) beginItems(items []applyItem, position change.Position, committed time.Time, txs ...change.Tx) []applyItem {
	var at []byte
	if !committed.IsZero() {
		at = committed.UTC().AppendFormat(nil, "2006-01-02 15:04:05.999999Z07:00")
	}
	for _, st := range s.begin {
		it := applyItem{st: st, tx: -1}
		switch st.name {
		case "setup":
			it.args = [][]byte{at}
			if at == nil {
				it.args[0] = []byte("now")
			}
		case "mark":
			it.args = [][]byte{[]byte(s.cfg.Origin)}
		case "progress":
			items = s.keepItems(items, txs)
			it.args = [][]byte{[]byte(s.cfg.Origin), fmt.Appendf(nil, "%d", position), at, fmt.Appendf(nil, "%d", s.position), fmt.Appendf(nil, "%d", s.cutCount)}
		}
		items = append(items, it)
	}
	return items
}

func (s *applySession) prepare(ctx context.Context, st *applyStatement) error {
	if st.prepared {
		return nil
	}
	if _, err := s.pg.Prepare(ctx, st.name, st.sql, nil); err != nil {
		return err
	}
	st.prepared = true
	return nil
}

// pipeline sends the items without waiting for each answer. On failure it says which item it was, -1 when that is
// unknown. The transaction is then still open, in whatever state, unless the connection is gone.
func (s *applySession) pipeline(ctx context.Context, items []applyItem) (failed int, err error) {
	for i, it := range items {
		if err := s.prepare(ctx, it.st); err != nil {
			return i, err
		}
	}
	stop := context.AfterFunc(ctx, func() { s.pg.Conn().SetDeadline(time.Unix(1, 0)) })
	defer stop()
	sent, read := 0, 0
	for read < len(items) {
		from := sent
		if sent < len(items) && err == nil {
			sent = min(sent+pipelineWindow, len(items))
			if err := s.sendWindow(items[from:sent]); err != nil {
				return -1, s.lost(ctx, err)
			}
			if from == 0 && sent < len(items) {
				continue // two windows are under way from here on
			}
		}
		upTo := min(read+pipelineWindow, len(items))
		at, answer, lost := s.readWindow(items[read:upTo])
		if lost != nil {
			return -1, s.lost(ctx, lost)
		}
		if answer != nil && err == nil {
			failed, err = read+at, answer
		}
		read = upTo
		if err != nil && read >= sent {
			return failed, err
		}
	}
	return failed, err
}

// lost says why the connection can no longer be used.
func (s *applySession) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errConnection, err)
}

func (s *applySession) sendWindow(items []applyItem) error {
	front := s.pg.Frontend()
	size := 0
	for i := range items {
		it := &items[i]
		front.SendBind(&pgproto3.Bind{PreparedStatement: it.st.name, ParameterFormatCodes: it.st.formats, Parameters: it.args})
		front.SendExecute(&pgproto3.Execute{})
		for _, a := range it.args {
			size += len(a)
		}
		if size > 128<<10 {
			if err := front.Flush(); err != nil {
				return err
			}
			size = 0
		}
	}
	front.SendSync(&pgproto3.Sync{})
	return front.Flush()
}

// readWindow reads the answers of one window up to the server's ready-for-query.
func (s *applySession) readWindow(items []applyItem) (at int, answer, lost error) {
	i := 0
	for {
		msg, err := s.pg.ReceiveMessage(context.Background())
		if err != nil {
			return 0, nil, err
		}
		switch msg := msg.(type) {
		case *pgproto3.CommandComplete:
			if i < len(items) && answer == nil {
				if want := items[i].st.want; want >= 0 && touched(msg.CommandTag) != want {
					at, answer = i, errRowMissing
				}
			}
			i++
		case *pgproto3.ErrorResponse:
			if answer == nil {
				at, answer = i, pgconn.ErrorResponseToPgError(msg)
			}
		case *pgproto3.ReadyForQuery:
			return at, answer, nil
		}
	}
}

// touched reads the row count off a command tag such as "UPDATE 1".
func touched(tag []byte) int64 {
	n, scale := int64(0), int64(1)
	for i := len(tag) - 1; i >= 0 && tag[i] >= '0' && tag[i] <= '9'; i-- {
		n += int64(tag[i]-'0') * scale
		scale *= 10
	}
	return n
}

// command runs a statement without parameters.
func (s *applySession) command(ctx context.Context, sql string) error {
	_, err := s.pg.Exec(ctx, sql).ReadAll()
	return err
}

// commit ends the target transaction and moves the known position.
func (s *applySession) commit(ctx context.Context, position change.Position) error {
	if err := s.end(ctx); err != nil {
		return err
	}
	s.position, s.known = position, true
	return nil
}

// end commits.
func (s *applySession) end(ctx context.Context) error {
	results, err := s.pg.Exec(ctx, "COMMIT").ReadAll()
	if err != nil {
		return err
	}
	if len(results) != 1 || results[0].CommandTag.String() != "COMMIT" {
		return errors.New("the server rolled the transaction back at its commit")
	}
	return nil
}

// mostTexts bounds the statements of run that stay prepared.
const mostTexts = 256

// run executes one statement and returns its rows as text. The statement stays prepared.
func (s *applySession) run(ctx context.Context, sql string, args ...[]byte) ([][][]byte, int64, error) {
	name, prepared := s.texts[sql]
	if !prepared && len(s.texts) >= mostTexts {
		result := s.pg.ExecParams(ctx, sql, args, nil, nil, nil).Read()
		return result.Rows, result.CommandTag.RowsAffected(), result.Err
	}
	if !prepared {
		name = "r" + strconv.Itoa(len(s.texts))
		if _, err := s.pg.Prepare(ctx, name, sql, nil); err != nil {
			return nil, 0, err
		}
		s.texts[sql] = name
	}
	result := s.pg.ExecPrepared(ctx, name, args, nil, nil).Read()
	return result.Rows, result.CommandTag.RowsAffected(), result.Err
}
