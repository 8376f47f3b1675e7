package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// An answer holds 4 MiB, and a byte of a row may become six of JSON.
const (
	maxConflictPage = 512 << 10 // versions of a page together
	maxConflictList = 64 << 10  // both versions of one entry in a list
	maxConflictRead = 512 << 10 // … of one that was asked for
)

// ConflictLog reads the conflict log of one database. Every call has a connection of its own: it is operators who
// wait, and what the agent does with its database must not wait behind them.
type ConflictLog struct{ config *pgx.ConnConfig }

// OpenConflictLog prepares reading; it does not connect.
func OpenConflictLog(dsn string) (*ConflictLog, error) {
	config, err := fenceConfig(dsn)
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["application_name"] = "atoll conflicts"
	config.RuntimeParams["default_transaction_read_only"] = "on"
	config.RuntimeParams["statement_timeout"] = "10s"
	return &ConflictLog{config}, nil
}

const conflictColumns = `SELECT id, at, origin, position, source_xid, kind, table_name, keyspace, bucket, epoch, handover, decision,
	coalesce(octet_length(local_row::text), 0) + coalesce(octet_length(remote_row::text), 0),
	CASE WHEN coalesce(octet_length(local_row::text), 0) + coalesce(octet_length(remote_row::text), 0) <= $1 THEN local_row::text END,
	CASE WHEN coalesce(octet_length(local_row::text), 0) + coalesce(octet_length(remote_row::text), 0) <= $1 THEN remote_row::text END
	FROM atoll.conflict `

// Conflicts returns the newest entries below q.Before, newest first, and whether older ones were left off.
func (l *ConflictLog) Conflicts(ctx context.Context, q api.ConflictQuery) (page []api.Conflict, more bool, err error) {
	limit := q.Limit
	if limit < 1 || limit > api.MaxConflicts {
		limit = api.DefaultConflicts
	}
	before := q.Before
	if before < 1 {
		before = math.MaxInt64
	}
	err = l.with(ctx, func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, conflictColumns+"WHERE id < $2 AND ($3 = '' OR table_name = $3) AND ($4 = '' OR handover = $4) ORDER BY id DESC LIMIT $5",
			maxConflictList, before, q.Table, string(q.Handover), limit+1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for size := 0; rows.Next(); {
			entry, err := scanConflict(rows)
			if err != nil {
				return err
			}
			size += len(entry.Local) + len(entry.Remote)
			if more = len(page) == limit || len(page) > 0 && size > maxConflictPage; more {
				return nil
			}
			page = append(page, entry)
		}
		return rows.Err()
	})
	return page, more, err
}

// Conflict returns one entry, with the key of its table.
func (l *ConflictLog) Conflict(ctx context.Context, id int64) (entry api.Conflict, found bool, err error) {
	err = l.with(ctx, func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, conflictColumns+"WHERE id = $2", maxConflictRead, id)
		if err != nil {
			return err
		}
		entry, err = pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (api.Conflict, error) { return scanConflict(row) })
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		found = true
		keys, err := c.Query(ctx, `SELECT a.attname::text FROM pg_index i
			JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
			JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
			WHERE i.indisprimary AND n.nspname || '.' || t.relname = $1 ORDER BY array_position(i.indkey::int2[], a.attnum)`, entry.Table)
		if err != nil {
			return err
		}
		entry.Key, err = pgx.CollectRows(keys, pgx.RowTo[string])
		return err
	})
	return entry, found, err
}

func (l *ConflictLog) with(ctx context.Context, f func(*pgx.Conn) error) error {
	c, err := pgx.ConnectConfig(ctx, l.config.Copy())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.Close(end)
	}()
	if err := f(c); err != nil {
		return fmt.Errorf("read atoll.conflict: %w", err)
	}
	return nil
}

// scanConflict reads a row of conflictColumns. An entry that is not as this build knows them says so in Problem: it
// must not hide the others.
func scanConflict(row pgx.Row) (api.Conflict, error) {
	var c api.Conflict
	var origin, keyspace, handover string
	var position, xid int64
	var bucket *int32
	var epoch *int64
	var size int
	var local, remote *string
	err := row.Scan(&c.ID, &c.At, &origin, &position, &xid, &c.Kind, &c.Table, &keyspace, &bucket, &epoch, &handover, &c.Decision, &size, &local, &remote)
	if err != nil {
		return c, err
	}
	c.At = c.At.UTC()
	c.Origin, c.Keyspace, c.Handover = topo.SiteID(origin), topo.KeyspaceID(keyspace), topo.HandoverID(handover)
	c.Position, c.XID = uint64(position), uint64(xid) // as they were written: an LSN fits
	if bucket != nil {
		n := int64(*bucket)
		c.Bucket = &n
	}
	if epoch != nil {
		n := uint64(max(*epoch, 0))
		c.Epoch = &n
	}
	if err := validConflict(c, local, remote); err != nil {
		c.Problem = fmt.Sprintf("it is not of a form that this version knows: %v", err)
		return c, nil
	}
	switch {
	case local == nil && remote == nil && size > 0:
		c.Problem = fmt.Sprintf("its versions have %d bytes, too many to show; read them in the database: SELECT * FROM atoll.conflict WHERE id = %d", size, c.ID)
	default:
		c.Local, c.Remote = rawVersion(local), rawVersion(remote)
	}
	return c, nil
}

func rawVersion(text *string) json.RawMessage {
	if text == nil {
		return nil
	}
	return json.RawMessage(*text)
}

// kindRE is what the names of kinds are made of; a newer version may know more of them.
var kindRE = regexp.MustCompile(`^[a-z][a-z_]{0,62}$`)

func validConflict(c api.Conflict, local, remote *string) error {
	switch {
	case !kindRE.MatchString(c.Kind):
		return fmt.Errorf("kind %.80q", c.Kind)
	case c.Decision != decisionApplied && c.Decision != decisionKept && c.Decision != decisionLogged:
		return fmt.Errorf("decision %.80q", c.Decision)
	case c.Table == "" || len(c.Table) > 200:
		return fmt.Errorf("table %.80q", c.Table)
	case len(c.Handover) > 200:
		return fmt.Errorf("handover %.80q", c.Handover)
	case c.Bucket != nil && (*c.Bucket < 0 || *c.Bucket >= topo.MaxBuckets):
		return fmt.Errorf("bucket %d", *c.Bucket)
	}
	if err := topo.CheckName(string(c.Origin)); err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	for _, v := range []*string{local, remote} {
		if v == nil {
			continue
		}
		if _, err := api.ParseVersion([]byte(*v)); err != nil {
			return err
		}
	}
	return nil
}
