package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// Point answers a position in this database's change stream behind all that was committed before the call, and makes
// sure that targets reach it soon, also where nothing else happens.
func (f *Fence) Point(ctx context.Context) (change.Position, error) {
	var at int64
	err := f.conns.with(ctx, func(c *pgx.Conn) error {
		if err := c.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`).Scan(&at); err != nil {
			return err
		}
		_, err := c.Exec(ctx, `SELECT pg_logical_emit_message(true, '`+pointPrefix+`', '')`)
		return err
	})
	return change.Position(at), f.wrap("point", err)
}

// Remark writes the closing marker of an order again where it is missing though the buckets are closed: where the
// stream that it stood in is no more (Resync). There is nobody to wait out: the buckets have not been open since.
func (f *Fence) Remark(ctx context.Context, o CloseOrder) error {
	if err := checkEpochSpans(o.Buckets); err != nil || o.Handover == "" {
		return f.wrap("mark", errors.Join(err, missing(o.Handover == "", "the order names no handover")))
	}
	return f.wrap("mark", f.conns.with(ctx, func(c *pgx.Conn) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SELECT atoll.lock_keyspace($1)`, o.Keyspace); err != nil {
				return err
			}
			var open int
			err := tx.QueryRow(ctx, `SELECT count(*) FILTER (WHERE w.closing IS NOT NULL OR (w.epoch > w.asked OR w.epoch = w.asked AND w.state = 'closed') IS NOT TRUE)
				FROM atoll.standing($1, $2) w`, o.Keyspace, o.Buckets).Scan(&open)
			if err != nil {
				return err
			}
			if open > 0 {
				return fmt.Errorf("%d buckets of keyspace %s are not closed at their epochs", open, o.Keyspace)
			}
			_, err = tx.Exec(ctx, `INSERT INTO atoll.marker (site, handover, kind, keyspace, buckets, vector)
				SELECT i.site, $2, 'closed', $1, $3::jsonb,
				       (SELECT coalesce(jsonb_object_agg(p.origin, p.position), '{}') FROM atoll.progress p WHERE p.origin <> i.site)
				FROM atoll.install i ON CONFLICT DO NOTHING`, o.Keyspace, o.Handover, o.Buckets)
			return err
		})
	}))
}

// Anew says where an origin's stream begins that has nothing to do with the one before.
type Anew struct {
	Origin    topo.SiteID
	Position  change.Position
	Epochs    change.Epochs     // of the origin, which owns none of these buckets
	Handovers []topo.HandoverID // failovers from the origin that are not settled: their closing markers will come anew
}

// BeginAnew forgets how far this database has applied an origin's former stream, and begins at a place of its new one.
// Whatever still applies the former one fails at its next commit. It is refused while a failover has halted the origin.
func (f *Fence) BeginAnew(ctx context.Context, a Anew) error {
	what := fmt.Sprintf("begin anew with site %s", a.Origin)
	if a.Origin == f.site || a.Position == 0 {
		return f.wrap(what, errors.New("neither this site's own stream nor one without a position can begin anew"))
	}
	return f.wrap(what, f.conns.with(ctx, func(c *pgx.Conn) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error { return beginAnew(ctx, tx, a) })
	}))
}

func beginAnew(ctx context.Context, tx pgx.Tx, a Anew) error {
	// The mark keeps the origin's fence rows, which are published, from going out as this site's own.
	if _, err := tx.Exec(ctx, `SELECT pg_logical_emit_message(true, '`+markPrefix+`', $1)`, string(a.Origin)); err != nil {
		return err
	}
	var halted string
	err := tx.QueryRow(ctx, `INSERT INTO atoll.progress AS p (origin, position) VALUES ($1, $2)
		ON CONFLICT (origin) DO UPDATE SET position = CASE p.halted WHEN '' THEN excluded.position ELSE p.position END,
			committed_at = NULL, applied_at = clock_timestamp(), split = 0, relay_from = NULL RETURNING p.halted`, string(a.Origin), int64(a.Position)).Scan(&halted)
	if err != nil {
		return fmt.Errorf("progress: %w", err)
	}
	if halted != "" {
		return fmt.Errorf("failover %s from site %s is under way here", halted, a.Origin)
	}
	if _, err := tx.Exec(ctx, `DELETE FROM atoll.bucket WHERE site = $1`, string(a.Origin)); err != nil {
		return fmt.Errorf("epoch rows: %w", err)
	}
	var keyspaces []string
	var buckets, epochs []int64
	for ks, in := range a.Epochs {
		for b, e := range in {
			keyspaces, buckets, epochs = append(keyspaces, string(ks)), append(buckets, int64(b)), append(epochs, int64(e))
		}
	}
	if _, err := tx.Exec(ctx, `INSERT INTO atoll.bucket (site, keyspace, bucket, epoch, state)
		SELECT $1, k, b, e, 'closed' FROM unnest($2::text[], $3::bigint[], $4::bigint[]) u(k, b, e)`, string(a.Origin), keyspaces, buckets, epochs); err != nil {
		return fmt.Errorf("epoch rows: %w", err)
	}
	if _, err := tx.Exec(ctx, `DELETE FROM atoll.marker WHERE site = $1 AND kind = 'closed' AND handover = ANY($2)`, string(a.Origin), a.Handovers); err != nil {
		return fmt.Errorf("markers: %w", err)
	}
	_, err = tx.Exec(ctx, `DELETE FROM atoll.relay WHERE origin = $1`, string(a.Origin))
	return err
}

// OwnEpochs are the epochs at which this site last held its buckets.
func (f *Fence) OwnEpochs(ctx context.Context) (e change.Epochs, err error) {
	err = f.conns.with(ctx, func(c *pgx.Conn) error {
		e, err = readEpochs(ctx, c, f.site)
		return err
	})
	return e, f.wrap("epochs", err)
}

// Dismiss forgets all that this database has of and for a site that is no member any more: how far it had applied its
// stream, what it keeps of that for others, its epoch rows, markers and cuts. Its rows in the application's tables stay.
func (f *Fence) Dismiss(ctx context.Context, gone topo.SiteID) error {
	what := fmt.Sprintf("let go of site %s", gone)
	if gone == f.site || gone == "" {
		return f.wrap(what, errors.New("a site keeps its own"))
	}
	return f.wrap(what, f.conns.with(ctx, func(c *pgx.Conn) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			// The mark keeps the deletion of published rows from going out as this site's own change.
			if _, err := tx.Exec(ctx, `SELECT pg_logical_emit_message(true, '`+markPrefix+`', $1)`, string(gone)); err != nil {
				return err
			}
			for _, sql := range []string{"DELETE FROM atoll.progress WHERE origin = $1", "DELETE FROM atoll.relay WHERE origin = $1",
				"DELETE FROM atoll.bucket WHERE site = $1", "DELETE FROM atoll.marker WHERE site = $1", "DELETE FROM atoll.cut WHERE origin = $1"} {
				if _, err := tx.Exec(ctx, sql, string(gone)); err != nil {
					return fmt.Errorf("%s: %w", sql, err)
				}
			}
			return nil
		})
	}))
}
