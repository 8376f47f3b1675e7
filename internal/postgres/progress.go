package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// Marker reads the last word of an epoch that a handover left in site's change stream, if it is in this database.
func Marker(ctx context.Context, db queryer, site topo.SiteID, handover topo.HandoverID) (change.Marker, bool, error) {
	all, err := markers(ctx, db, "WHERE site = $1 AND handover = $2 AND kind = 'closed'", string(site), string(handover))
	if err != nil || len(all) == 0 {
		return change.Marker{}, false, err
	}
	return all[0], true, nil
}

// Markers reads the closing markers that a handover left in site's change stream, one per keyspace.
func Markers(ctx context.Context, db queryer, site topo.SiteID, handover topo.HandoverID) ([]change.Marker, error) {
	return markers(ctx, db, "WHERE site = $1 AND handover = $2 AND kind = 'closed'", string(site), string(handover))
}

func markers(ctx context.Context, db queryer, where string, args ...any) ([]change.Marker, error) {
	rows, err := db.Query(ctx, "SELECT site, handover, kind, keyspace, buckets, vector FROM atoll.marker "+where+" ORDER BY written_at", args...)
	if err != nil {
		return nil, fmt.Errorf("read atoll.marker: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (change.Marker, error) {
		var site, handover, kind, keyspace string
		var buckets, vector []byte
		if err := row.Scan(&site, &handover, &kind, &keyspace, &buckets, &vector); err != nil {
			return change.Marker{}, err
		}
		m, err := parseMarker(site, handover, kind, keyspace, buckets, vector)
		if err != nil {
			return change.Marker{}, err
		}
		return *m, nil
	})
}

// Vector reads how far this database has applied each origin's changes.
func Vector(ctx context.Context, db queryer) (topo.Vector, error) {
	rows, err := db.Query(ctx, "SELECT origin, position FROM atoll.progress")
	if err != nil {
		return nil, fmt.Errorf("read atoll.progress: %w", err)
	}
	v := make(topo.Vector)
	var origin string
	var position int64
	_, err = pgx.ForEachRow(rows, []any{&origin, &position}, func() error {
		v[topo.SiteID(origin)] = uint64(position)
		return nil
	})
	return v, err
}

// readProgress reads the progress of one origin and the epochs that belong to it. Both are written in one
// transaction, so they are read in one snapshot.
func readProgress(ctx context.Context, conn *pgx.Conn, origin topo.SiteID) (change.Progress, error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return change.Progress{}, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	var position int64
	err = tx.QueryRow(ctx, "SELECT position FROM atoll.progress WHERE origin = $1", string(origin)).Scan(&position)
	if errors.Is(err, pgx.ErrNoRows) {
		return change.Progress{}, nil
	}
	if err != nil {
		return change.Progress{}, fmt.Errorf("read atoll.progress: %w", err)
	}
	epochs, err := readEpochs(ctx, tx, origin)
	return change.Progress{Known: true, Position: change.Position(position), Epochs: epochs}, err
}
