package lab

import (
	"context"
	"crypto/md5"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
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
		for _, t := range tables {
			columns, err := primaryKey(ctx, tx, t.ident())
			if err != nil {
				return err
			}
			note := pgx.Identifier{"lab", "note_" + t.schema + "_" + t.name}.Sanitize() + "()"
			if _, err := tx.Exec(ctx, noteChange(note, t, columns, agent)); err != nil {
				return fmt.Errorf("lab: witness of %s: %w", t.ident(), err)
			}
			if err := alwaysTrigger(ctx, tx, t.ident(), "INSERT OR UPDATE OR DELETE", note); err != nil {
				return err
			}
		}
		return alwaysTrigger(ctx, tx, "atoll.bucket", "INSERT OR UPDATE", "lab.note_epoch()")
	})
}

// noteChange is a trigger function that records a table's changes. It is written out per table, and not a general one,
// because it runs for every row at every site, and is not to be what a site spends its time on. A row that changes its
// key is written in two buckets.
func noteChange(name string, t watchedTable, primary []string, agent string) string {
	of := func(row string) (pk, key string) {
		var parts []string
		for _, c := range primary {
			parts = append(parts, row+"."+pgx.Identifier{c}.Sanitize()+"::text")
		}
		key = "''"
		if t.key != "" {
			key = row + "." + pgx.Identifier{t.key}.Sanitize() + "::text"
		}
		return strings.Join(parts, " || '/' || "), key
	}
	newPK, newKey := of("NEW")
	oldPK, oldKey := of("OLD")
	const insert = `INSERT INTO lab.change (applied, origin, decided, tbl, op, key, pk) VALUES (by_applier, origin, by_agent AND NOT by_applier, TG_TABLE_NAME, TG_OP, `
	return `CREATE FUNCTION ` + name + ` RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    by_agent boolean := session_user = '` + strings.ReplaceAll(agent, "'", "''") + `';
    by_applier boolean := false;
    origin text := '';
BEGIN
    IF by_agent AND lab.applies() THEN
        by_applier := true;
        origin := CASE WHEN starts_with(current_setting('application_name'), 'atoll apply from ')
                       THEN substr(current_setting('application_name'), 18) ELSE '?' END;
    END IF;
    IF TG_OP = 'DELETE' THEN
        ` + insert + oldKey + `, ` + oldPK + `);
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND ` + oldKey + ` <> ` + newKey + ` THEN
        ` + insert + oldKey + `, ` + newPK + `);
    END IF;
    ` + insert + newKey + `, ` + newPK + `);
    RETURN NULL;
END $$`
}

func alwaysTrigger(ctx context.Context, tx pgx.Tx, table, events, call string) error {
	_, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TRIGGER zz_lab AFTER %s ON %s FOR EACH ROW EXECUTE FUNCTION %s;
		ALTER TABLE %s ENABLE ALWAYS TRIGGER zz_lab`, events, table, call, table))
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
	rows, err := db.Query(ctx, `SELECT xid::text::bigint, applied, origin, decided, tbl, op, key, pk, CASE WHEN applied THEN at ELSE pg_xact_commit_timestamp(xid) END FROM lab.change ORDER BY seq`)
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
	_, err := db.Exec(ctx, `TRUNCATE lab.change`)
	return err
}

// progressOf says how many row changes a database has committed itself, as an owner or in deciding about a tail, and how
// many it has applied.
func progressOf(ctx context.Context, db querier) (born, applied int, err error) {
	rows, err := db.Query(ctx, `SELECT count(*) FILTER (WHERE NOT applied), count(*) FILTER (WHERE applied) FROM lab.change`)
	if err != nil {
		return 0, 0, err
	}
	type counts struct{ Born, Applied int }
	c, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[counts])
	return c.Born, c.Applied, err
}
