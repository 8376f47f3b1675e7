package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// copyChunk is how much of a table travels in one piece.
const copyChunk = 256 << 10

// Copy makes the slot anew and hands out every published table as of the moment at which the slot begins, so that
// copy and stream meet without gap or overlap. Of atoll's own tables only this site's rows go out; with all, for a
// target that is rebuilt, those of every site but the target, and how far this site has applied every other origin.
func (c *Capture) Copy(ctx context.Context, all bool, emit func(context.Context, change.Copy) error) error {
	if err := c.copy(ctx, all, emit); err != nil {
		return c.wrap(fmt.Errorf("initial copy: %w", err))
	}
	return nil
}

func (c *Capture) copy(ctx context.Context, all bool, emit func(context.Context, change.Copy) error) error {
	slot, err := c.newSlot(ctx)
	if err != nil {
		return err
	}
	defer slot.close(ctx)
	return c.admin(ctx, func(conn *pgx.Conn) error { return c.copySnapshot(ctx, conn, slot, all, emit) })
}

// Anew drops the target's slot, whoever holds it, and makes it anew, without a copy. It returns where it begins.
func (c *Capture) Anew(ctx context.Context) (change.Position, error) {
	slot, err := c.newSlot(ctx)
	if err != nil {
		return 0, c.wrap(err)
	}
	slot.close(ctx)
	return slot.at, nil
}

// Drop drops the target's slot, whoever holds it, if there is one.
func (c *Capture) Drop(ctx context.Context) error {
	if err := c.dropSlot(ctx); err != nil {
		return c.wrap(err)
	}
	return nil
}

// freshSlot is a slot that was just made, and a snapshot of the moment at which it begins. The snapshot can be taken
// until the slot's connection is closed.
type freshSlot struct {
	conn     *pgconn.PgConn
	at       change.Position
	snapshot string
}

func (s *freshSlot) close(ctx context.Context) { _ = s.conn.Close(context.WithoutCancel(ctx)) }

// newSlot drops the target's slot, whoever holds it, and makes it anew.
func (c *Capture) newSlot(ctx context.Context) (*freshSlot, error) {
	if err := c.admin(ctx, func(conn *pgx.Conn) error { return c.checkPublication(ctx, conn) }); err != nil {
		return nil, err
	}
	if err := c.dropSlot(ctx); err != nil {
		return nil, err
	}
	// The exported snapshot lives until this connection's next command or its end.
	conn, err := c.walsender(ctx)
	if err != nil {
		return nil, err
	}
	slot := &freshSlot{conn: conn}
	results, err := conn.Exec(ctx, fmt.Sprintf(`CREATE_REPLICATION_SLOT "%s" LOGICAL pgoutput EXPORT_SNAPSHOT`, c.slot)).ReadAll()
	switch {
	case err != nil:
		err = fmt.Errorf("create slot %s: %w", c.slot, err)
	case len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) < 3:
		err = fmt.Errorf("create slot %s: unexpected answer", c.slot)
	default:
		row := results[0].Rows[0]
		slot.snapshot = string(row[2])
		slot.at, err = parseLSN(string(row[1]))
	}
	if err != nil {
		slot.close(ctx)
		return nil, err
	}
	return slot, nil
}

func (c *Capture) copySnapshot(ctx context.Context, conn *pgx.Conn, slot *freshSlot, all bool, emit func(context.Context, change.Copy) error) error {
	if _, err := conn.Exec(ctx, noTransactionTimeout); err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, "SET TRANSACTION SNAPSHOT "+sqlLiteral(slot.snapshot)); err != nil {
		return err
	}
	tables, err := publishedTables(ctx, tx)
	if err != nil {
		return err
	}
	if all {
		tables = append(tables, othersTables()...)
	}
	for _, t := range tables {
		if err := c.copyTable(ctx, conn.PgConn(), t, all, emit); err != nil {
			return fmt.Errorf("table %s.%s: %w", t.Schema, t.Name, err)
		}
	}
	epochs, err := readEpochs(ctx, tx, c.cfg.Site)
	if err != nil {
		return err
	}
	if err := emit(ctx, change.Copy{Done: true, Position: slot.at, Epochs: epochs}); err != nil {
		return err
	}
	c.log.Info("initial copy sent", "tables", len(tables), "position", lsn(slot.at))
	return tx.Commit(ctx)
}

// dropSlot ends whoever holds the slot and drops it.
func (c *Capture) dropSlot(ctx context.Context) error {
	err := c.admin(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SELECT pg_terminate_backend(active_pid, $2) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL",
			c.slot, takeOverBound.Milliseconds())
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", c.slot)
		return err
	})
	if err != nil {
		return fmt.Errorf("drop slot %s: %w", c.slot, err)
	}
	return nil
}

// copiedTable is a published table as the copy reads it.
type copiedTable struct {
	change.Table
	kind    string // relkind: "r" ordinary, "p" partitioned
	parents []uint32
}

// publishedTables lists what is published, parents of foreign keys first where that is possible.
func publishedTables(ctx context.Context, db queryer) ([]*copiedTable, error) {
	rows, err := db.Query(ctx, `SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relreplident::text,
		array(SELECT confrelid FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f' AND k.confrelid <> c.oid),
		(SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
		(SELECT array_agg(a.atttypid ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '')
		FROM pg_publication_tables p JOIN pg_namespace n ON n.nspname = p.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
		WHERE p.pubname = $1 ORDER BY 2, 3`, PublicationName)
	if err != nil {
		return nil, err
	}
	var tables []*copiedTable
	for rows.Next() {
		t := new(copiedTable)
		var identity string
		var names []string
		var types []uint32
		if err := rows.Scan(&t.ID, &t.Schema, &t.Name, &t.kind, &identity, &t.parents, &names, &types); err != nil {
			return nil, err
		}
		t.Identity = identity[0]
		for i, name := range names {
			t.Columns = append(t.Columns, change.Column{Name: name, Type: types[i]})
		}
		tables = append(tables, t)
	}
	return parentsFirst(tables), rows.Err()
}

// parentsFirst orders tables so that a foreign key's rows follow what they point to; cycles stay as they are.
func parentsFirst(tables []*copiedTable) []*copiedTable {
	byID := make(map[uint32]*copiedTable, len(tables))
	for _, t := range tables {
		byID[t.ID] = t
	}
	out := make([]*copiedTable, 0, len(tables))
	seen := make(map[uint32]bool, len(tables))
	var visit func(t *copiedTable)
	visit = func(t *copiedTable) {
		if t == nil || seen[t.ID] {
			return
		}
		seen[t.ID] = true
		for _, p := range t.parents {
			visit(byID[p])
		}
		out = append(out, t)
	}
	for _, t := range tables {
		visit(t)
	}
	return out
}

// othersTables are what this database says of how far it is in other origins' streams. They are not published; a
// target that is rebuilt takes them with the rows that they belong to.
func othersTables() []*copiedTable {
	const text, bigint, integer, moment = 25, 20, 23, 1184
	table := func(name string, columns ...change.Column) *copiedTable {
		return &copiedTable{kind: "r", Table: change.Table{Schema: "atoll", Name: name, Identity: 'd', Columns: columns}}
	}
	return []*copiedTable{
		table("progress", change.Column{Name: "origin", Type: text}, change.Column{Name: "position", Type: bigint},
			change.Column{Name: "committed_at", Type: moment}, change.Column{Name: "split", Type: bigint}),
		table("cut", change.Column{Name: "origin", Type: text}, change.Column{Name: "keyspace", Type: text}, change.Column{Name: "bucket", Type: integer},
			change.Column{Name: "epoch", Type: bigint}, change.Column{Name: "position", Type: bigint}, change.Column{Name: "handover", Type: text}),
	}
}

// atollRows says which rows of one of atoll's own tables go out.
func (c *Capture) atollRows(t *copiedTable, all bool) string {
	column := "site"
	if t.Name == "progress" || t.Name == "cut" {
		column = "origin"
	}
	if all {
		return " WHERE " + column + " <> '" + string(c.cfg.Target) + "'" // checked names: letters, digits, hyphens
	}
	return " WHERE " + column + " = '" + string(c.cfg.Site) + "'"
}

func (c *Capture) copyTable(ctx context.Context, conn *pgconn.PgConn, t *copiedTable, all bool, emit func(context.Context, change.Copy) error) error {
	if len(t.Columns) == 0 {
		return nil
	}
	only := "ONLY "
	if t.kind == "p" {
		only = ""
	}
	sql := fmt.Sprintf("COPY (SELECT %s FROM %s%s", columnList(t.Columns), only, pgx.Identifier{t.Schema, t.Name}.Sanitize())
	if t.Schema == "atoll" {
		sql += c.atollRows(t, all)
	}
	w := &copyWriter{ctx: ctx, table: &t.Table, emit: emit}
	if _, err := conn.CopyTo(ctx, w, sql+") TO STDOUT"); err != nil {
		return err
	}
	return w.flush(len(w.buf))
}

func columnList(columns []change.Column) string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = pgx.Identifier{c.Name}.Sanitize()
	}
	return strings.Join(names, ", ")
}

// copyWriter cuts COPY's output into pieces of whole rows: in the text form a newline only ever ends a row.
type copyWriter struct {
	ctx   context.Context
	table *change.Table
	emit  func(context.Context, change.Copy) error
	buf   []byte
}

func (w *copyWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	if len(w.buf) < copyChunk {
		return len(p), nil
	}
	return len(p), w.flush(bytes.LastIndexByte(w.buf, '\n') + 1)
}

func (w *copyWriter) flush(n int) error {
	if n == 0 {
		return nil
	}
	piece := change.Copy{Table: w.table, Data: w.buf[:n:n]}
	w.buf = append(make([]byte, 0, copyChunk+copyChunk/4), w.buf[n:]...)
	return w.emit(w.ctx, piece)
}

// queryer is what reading needs of a connection, a transaction or a pool.
type queryer interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// readEpochs reads at which epochs a site held its buckets, as its rows here say.
func readEpochs(ctx context.Context, db queryer, site topo.SiteID) (change.Epochs, error) {
	rows, err := db.Query(ctx, "SELECT keyspace, bucket, epoch FROM atoll.bucket WHERE site = $1", string(site))
	if err != nil {
		return nil, err
	}
	epochs := make(change.Epochs)
	var ks string
	var bucket, epoch int64
	_, err = pgx.ForEachRow(rows, []any{&ks, &bucket, &epoch}, func() error {
		if bucket < 0 || bucket >= topo.MaxBuckets || epoch < 0 {
			return fmt.Errorf("row of atoll.bucket: keyspace %s, bucket %d, epoch %d", ks, bucket, epoch)
		}
		in := epochs[topo.KeyspaceID(ks)]
		if in == nil {
			in = make(map[topo.BucketID]topo.Epoch)
			epochs[topo.KeyspaceID(ks)] = in
		}
		in[topo.BucketID(bucket)] = topo.Epoch(epoch)
		return nil
	})
	return epochs, err
}

func parseLSN(text string) (change.Position, error) {
	high, low, ok := strings.Cut(text, "/")
	h, err1 := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	if err := errors.Join(err1, err2); err != nil || !ok {
		return 0, fmt.Errorf("position %q is not of the form X/X", text)
	}
	return change.Position(h<<32 | l), nil
}
