package lab

import (
	"context"
	"crypto/md5"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

//go:embed evidence.sql
var evidenceSQL string

// watchedTable is a table whose row changes the lab records.
type watchedTable struct {
	schema, name string
	keyspace     topo.KeyspaceID
	buckets      int
	key          string // column; "" for one home
}

func (w watchedTable) ident() string { return pgx.Identifier{w.schema, w.name}.Sanitize() }

// watchedTables lists the tables that have an owner; the others prove nothing about ownership.
func watchedTables(s *spec.Spec) []watchedTable {
	var out []watchedTable
	for name, t := range s.Tables {
		if t.Kind != topo.Keyed && t.Kind != topo.Home {
			continue
		}
		schema, table, _ := strings.Cut(name, ".")
		out = append(out, watchedTable{schema, table, t.Keyspace, s.Keyspaces[t.Keyspace].Buckets, t.Key})
	}
	slices.SortFunc(out, func(a, b watchedTable) int { return strings.Compare(a.ident(), b.ident()) })
	return out
}

// installEvidence puts the lab's witness into a database, after atoll's schema is there. The triggers are ALWAYS
// ones: an applier may run its session as a replica, in which ordinary triggers are silent.
func installEvidence(ctx context.Context, db *pgx.Conn, tables []watchedTable, agent string) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, evidenceSQL); err != nil {
			return fmt.Errorf("lab: evidence tables: %w", err)
		}
		var all []string
		for _, t := range tables {
			primary, err := primaryKey(ctx, tx, t.ident())
			if err != nil {
				return err
			}
			n := notes{t, primary}
			if _, err := tx.Exec(ctx, n.create()); err != nil {
				return fmt.Errorf("lab: witness of %s: %w", t.ident(), err)
			}
			if err := alwaysTrigger(ctx, tx, "zz_lab", t.ident(), "INSERT OR UPDATE", n.function("new")); err != nil {
				return err
			}
			if err := alwaysTrigger(ctx, tx, "zz_lab_gone", t.ident(), "DELETE", n.function("gone")); err != nil {
				return err
			}
			all = append(all, n.read())
		}
		if _, err := tx.Exec(ctx, changeView(all, agent)); err != nil {
			return fmt.Errorf("lab: view of what the witness saw: %w", err)
		}
		return alwaysTrigger(ctx, tx, "zz_lab", "atoll.bucket", "INSERT OR UPDATE", "lab.note_epoch()")
	})
}

// notes is where the witness writes what is done to one table. It runs for every row at every site and is not to be what a
// site spends its time on: one INSERT of what is at hand, as it is. What that means is worked out when it is read.
type notes struct {
	table   watchedTable
	primary []string
}

func (n notes) ident() string {
	return pgx.Identifier{"lab", "notes_" + n.table.schema + "_" + n.table.name}.Sanitize()
}

func (n notes) function(about string) string {
	return pgx.Identifier{"lab", about + "_" + n.table.schema + "_" + n.table.name}.Sanitize() + "()"
}

// columns are the row's: its routing key, if it has one, then its primary key.
func (n notes) columns() (names []string) {
	if n.table.key != "" {
		names = append(names, n.table.key)
	}
	return append(names, n.primary...)
}

// create makes the table and its trigger functions. was is the routing key before an update: a row that changes it is
// written in two buckets. Its index is one that costs next to nothing to write: what was not summed up yet is read whole.
func (n notes) create() string {
	columns := []string{"NULL::xid AS xid", "NULL::timestamptz AS at", "NULL::name AS role", "NULL::text AS application", "NULL::text AS op"}
	if n.table.key != "" {
		columns = append(columns, "t."+pgx.Identifier{n.table.key}.Sanitize()+" AS was")
	}
	for i, c := range n.columns() {
		columns = append(columns, fmt.Sprintf("t.%s AS c%d", pgx.Identifier{c}.Sanitize(), i))
	}
	function := func(about, row string) string {
		values := []string{"pg_current_xact_id()::xid", "clock_timestamp()", "session_user", "current_setting('application_name')", "TG_OP"}
		if n.table.key != "" {
			values = append(values, "OLD."+pgx.Identifier{n.table.key}.Sanitize())
		}
		for _, c := range n.columns() {
			values = append(values, row+"."+pgx.Identifier{c}.Sanitize())
		}
		return "CREATE FUNCTION " + n.function(about) + " RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO " + n.ident() + " VALUES (" +
			strings.Join(values, ", ") + "); RETURN NULL; END $$;\n"
	}
	return "CREATE TABLE " + n.ident() + " AS SELECT " + strings.Join(columns, ", ") + " FROM " + n.table.ident() + " t WITH NO DATA;\n" +
		"CREATE INDEX ON " + n.ident() + " USING brin (at) WITH (pages_per_range = " + strconv.Itoa(notesRange) + ");\n" +
		"GRANT INSERT ON " + n.ident() + " TO PUBLIC;\n" + function("new", "NEW") + function("gone", "OLD")
}

// read selects what was written as (xid, at, role, application, op, tbl, was, key, pk).
func (n notes) read() string {
	was, key, from := "''", "''", 0
	if n.table.key != "" {
		was, key, from = "was::text", "c0::text", 1
	}
	var primary []string
	for i := range n.primary {
		primary = append(primary, fmt.Sprintf("c%d::text", from+i))
	}
	return "SELECT xid, at, role, application, op, '" + n.table.name + "' AS tbl, " + was + " AS was, " + key + " AS key, " + strings.Join(primary, " || '/' || ") + " AS pk FROM " + n.ident()
}

// changeView joins the notes. What was applied, and from where, the transactions' commit records say: an applier's session
// has a replication origin. What the agent's role did without one it decided, or began on Atoll's own account.
func changeView(all []string, agent string) string {
	return `CREATE VIEW lab.written AS ` + strings.Join(all, "\nUNION ALL ") + `;
CREATE VIEW lab.change AS
	SELECT n.xid, n.at, t.timestamp AS committed, t.roident <> 0 AS applied,
		CASE WHEN t.roident = 0 THEN '' WHEN starts_with(n.application, 'atoll apply from ') THEN substr(n.application, 18) ELSE '?' END AS origin,
		t.roident = 0 AND n.role = '` + strings.ReplaceAll(agent, "'", "''") + `' AS decided,
		n.tbl, n.op, k.key, n.pk, k.nth
	FROM lab.written n
	CROSS JOIN LATERAL pg_xact_commit_timestamp_origin(n.xid) t
	CROSS JOIN LATERAL (SELECT n.was AS key, 0 AS nth WHERE n.op = 'UPDATE' AND n.was <> n.key UNION ALL SELECT n.key, 1) k`
}

func alwaysTrigger(ctx context.Context, tx pgx.Tx, name, table, events, call string) error {
	_, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TRIGGER %[1]s AFTER %[2]s ON %[3]s FOR EACH ROW EXECUTE FUNCTION %[4]s;
		ALTER TABLE %[3]s ENABLE ALWAYS TRIGGER %[1]s`, name, events, table, call))
	if err != nil {
		return fmt.Errorf("lab: trigger on %s: %w", table, err)
	}
	return nil
}

// querier is a connection, a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func primaryKey(ctx context.Context, db querier, table string) ([]string, error) {
	rows, err := db.Query(ctx, `SELECT a.attname FROM pg_index i
		CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(attnum, n)
		JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
		WHERE i.indrelid = $1::regclass AND i.indisprimary ORDER BY k.n`, table)
	if err != nil {
		return nil, fmt.Errorf("lab: primary key of %s: %w", table, err)
	}
	columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(columns) == 0 {
		err = errors.New("it has none")
	}
	if err != nil {
		return nil, fmt.Errorf("lab: primary key of %s: %w", table, err)
	}
	return columns, nil
}

// readEvidence reads what a database's witness saw, with the times of the commits, and its conflict log from a moment on.
func readEvidence(ctx context.Context, db querier, site topo.SiteID, tables []watchedTable, conflictsFrom time.Time) (Evidence, error) {
	byName := map[string]watchedTable{}
	for _, t := range tables {
		byName[t.name] = t
	}
	var e Evidence
	rows, err := db.Query(ctx, `SELECT xid::text::bigint, applied, origin, decided, tbl, op, key, pk, CASE WHEN applied THEN at ELSE committed END FROM lab.change ORDER BY at, nth`)
	if err != nil {
		return e, fmt.Errorf("lab: evidence of %s: %w", site, err)
	}
	var (
		c       Change
		xid     int64
		key     string
		at      *time.Time
		noTimes int
	)
	_, err = pgx.ForEachRow(rows, []any{&xid, &c.Applied, &c.Origin, &c.Decided, &c.Table, &c.Op, &key, &c.Row, &at}, func() error {
		if at == nil {
			noTimes++
			return nil
		}
		t := byName[c.Table]
		c.Database, c.XID, c.Keyspace, c.Bucket, c.At = site, uint32(xid), t.keyspace, bucketOf(key, t.buckets), *at
		e.Changes = append(e.Changes, c)
		return nil
	})
	if err != nil {
		return e, fmt.Errorf("lab: evidence of %s: %w", site, err)
	}
	if noTimes > 0 {
		return e, fmt.Errorf("lab: evidence of %s: %d commits without a time; track_commit_timestamp must be on", site, noTimes)
	}
	if e.Epochs, err = readEpochs(ctx, db, site); err != nil {
		return e, err
	}
	e.Conflicts, err = readConflicts(ctx, db, site, conflictsFrom)
	return e, err
}

func readEpochs(ctx context.Context, db querier, site topo.SiteID) ([]EpochRow, error) {
	rows, err := db.Query(ctx, `SELECT xid::text::bigint, site, keyspace, bucket, epoch, state = 'open', handover,
		CASE WHEN site = $1 THEN pg_xact_commit_timestamp(xid) ELSE at END FROM lab.epoch ORDER BY seq`, string(site))
	if err != nil {
		return nil, fmt.Errorf("lab: epochs of %s: %w", site, err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (EpochRow, error) {
		r := EpochRow{Database: site}
		return r, row.Scan(&r.XID, &r.Site, &r.Keyspace, &r.Bucket, &r.Epoch, &r.Open, &r.Handover, &r.At)
	})
	if err != nil {
		return nil, fmt.Errorf("lab: epochs of %s: %w", site, err)
	}
	return out, nil
}

// readConflicts reads a database's conflict log from a moment on.
func readConflicts(ctx context.Context, db querier, site topo.SiteID, from time.Time) ([]ConflictRow, error) {
	rows, err := db.Query(ctx, `SELECT origin, position, source_xid, kind, table_name, keyspace, coalesce(bucket, 0), coalesce(epoch, 0), handover,
		local_row, remote_row, decision, at, coalesce(decided_xid & 4294967295, 0) FROM atoll.conflict WHERE at >= $1 ORDER BY id`, from)
	if err != nil {
		return nil, fmt.Errorf("lab: conflicts of %s: %w", site, err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (ConflictRow, error) {
		r := ConflictRow{Database: site}
		return r, row.Scan(&r.Origin, &r.Position, &r.XID, &r.Kind, &r.Table, &r.Keyspace, &r.Bucket, &r.Epoch, &r.Handover,
			&r.Local, &r.Remote, &r.Decision, &r.At, &r.DecidedXID)
	})
	if err != nil {
		return nil, fmt.Errorf("lab: conflicts of %s: %w", site, err)
	}
	return out, nil
}

// bucketOf computes a key's bucket on the lab's own account: big-endian first four bytes of MD5(key) & (n-1).
func bucketOf(key string, n int) topo.BucketID {
	if n <= 1 {
		return 0
	}
	sum := md5.Sum([]byte(key))
	return topo.BucketID(binary.BigEndian.Uint32(sum[:]) & uint32(n-1))
}

// forgetChanges drops the row changes so far, made by the building of the deployment. Epoch rows stay: they say who
// owns what from the start.
func forgetChanges(ctx context.Context, db *pgx.Conn) error {
	names, err := notesTables(ctx, db)
	if err == nil && len(names) > 0 {
		_, err = db.Exec(ctx, "TRUNCATE "+strings.Join(names, ", "))
	}
	return err
}

func notesTables(ctx context.Context, db querier) ([]string, error) {
	rows, err := db.Query(ctx, `SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'lab'::regnamespace AND c.relkind = 'r' AND starts_with(c.relname, 'notes_')`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// notesRange is how many pages of notes their index sums up in one entry.
const notesRange = 8

// sumUp brings the notes' indexes up to date, which otherwise nothing but a vacuum does: the latest ranges, but for those
// that are being written, whose entries every row would move. A range that has no entry is read whole, so nothing is missed.
func sumUp(ctx context.Context, db *pgx.Conn) error {
	_, err := db.Exec(ctx, `SELECT brin_summarize_range(i.indexrelid, nth * $1::int)
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
		CROSS JOIN LATERAL (SELECT pg_relation_size(i.indrelid) / current_setting('block_size')::int / $1::int - 3) n (ranges)
		CROSS JOIN LATERAL generate_series(greatest(n.ranges - 16, 0), n.ranges) nth
		WHERE c.relnamespace = 'lab'::regnamespace AND m.amname = 'brin'`, notesRange)
	return err
}

// changesOf counts the row changes that a database has committed itself or applied.
func changesOf(ctx context.Context, db querier) (n int, err error) {
	rows, err := db.Query(ctx, `SELECT count(*) FROM lab.written`)
	if err != nil {
		return 0, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
}
