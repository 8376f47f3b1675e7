package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// RaiseGeneration tells the database of a generation of the store, durably. From then on nothing opens here under an
// older one, and no opening that was decided under one is under way.
func (f *Fence) RaiseGeneration(ctx context.Context, generation uint64) error {
	return f.wrap("raise the generation", f.conns.with(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, `SELECT atoll.raise_generation($1)`, int64(generation))
		return err
	}))
}

// Evidence reads what this database knows of who owned what, its own rows and those that have come from other sites, as
// of one moment.
func (f *Fence) Evidence(ctx context.Context) (topo.Evidence, error) {
	var e topo.Evidence
	err := f.conns.with(ctx, func(c *pgx.Conn) error {
		e = topo.Evidence{Site: f.site, Rows: []topo.FenceRow{}, Cuts: []topo.CutRow{}}
		return pgx.BeginTxFunc(ctx, c, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			if err := tx.QueryRow(ctx, `SELECT coalesce((SELECT generation FROM atoll.generation), 0)`).Scan(&e.Generation); err != nil {
				return err
			}
			if err := readFenceRows(ctx, tx, &e); err != nil {
				return err
			}
			return readCutRows(ctx, tx, &e)
		})
	})
	return e, f.wrap("evidence", err)
}

func readFenceRows(ctx context.Context, tx pgx.Tx, e *topo.Evidence) error {
	rows, err := tx.Query(ctx, `SELECT site, keyspace, bucket, epoch, state = 'open', handover FROM atoll.bucket ORDER BY site, keyspace, bucket`)
	if err != nil {
		return err
	}
	var r topo.FenceRow
	_, err = pgx.ForEachRow(rows, []any{&r.Site, &r.Keyspace, &r.First, &r.Epoch, &r.Open, &r.Handover}, func() error {
		if n := len(e.Rows); n > 0 {
			last := e.Rows[n-1]
			if r.Last = last.Last; last.Last+1 == r.First && (topo.FenceRow{Site: last.Site, Keyspace: last.Keyspace, First: r.First, Last: r.Last,
				Epoch: last.Epoch, Open: last.Open, Handover: last.Handover}) == r {
				e.Rows[n-1].Last++
				return nil
			}
		}
		r.Last = r.First
		e.Rows = append(e.Rows, r)
		return nil
	})
	return err
}

func readCutRows(ctx context.Context, tx pgx.Tx, e *topo.Evidence) error {
	rows, err := tx.Query(ctx, `SELECT origin, keyspace, bucket, epoch, position, handover FROM atoll.cut ORDER BY origin, keyspace, handover, epoch, bucket`)
	if err != nil {
		return err
	}
	var r topo.CutRow
	_, err = pgx.ForEachRow(rows, []any{&r.From, &r.Keyspace, &r.First, &r.Epoch, &r.Position, &r.Handover}, func() error {
		if n := len(e.Cuts); n > 0 {
			last := e.Cuts[n-1]
			if r.Last = last.Last; last.Last+1 == r.First && (topo.CutRow{From: last.From, Keyspace: last.Keyspace, First: r.First, Last: r.Last,
				Epoch: last.Epoch, Position: last.Position, Handover: last.Handover}) == r {
				e.Cuts[n-1].Last++
				return nil
			}
		}
		r.Last = r.First
		e.Cuts = append(e.Cuts, r)
		return nil
	})
	return err
}
