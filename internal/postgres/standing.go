package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// LastApplied tells how far an origin's changes are applied here, and how long ago its progress last moved, on this
// database's own clock. known is false where nothing was ever applied or copied.
func LastApplied(ctx context.Context, db queryer, origin topo.SiteID) (at change.Position, ago time.Duration, known bool, err error) {
	var position int64
	var seconds float64
	err = db.QueryRow(ctx, "SELECT position, extract(epoch FROM clock_timestamp() - applied_at)::float8 FROM atoll.progress WHERE origin = $1",
		string(origin)).Scan(&position, &seconds)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("read atoll.progress: %w", err)
	}
	return change.Position(position), max(0, time.Duration(seconds*float64(time.Second))), true, nil
}
