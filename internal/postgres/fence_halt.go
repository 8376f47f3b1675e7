package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

var (
	// ErrHalted: nothing more of an origin is applied here until a failover from it has opened or is given up. See
	// [HaltedError].
	ErrHalted = errors.New("halted for a failover")
	// ErrNoProgress: nothing of the origin was ever applied or copied here.
	ErrNoProgress = errors.New("nothing of this site was ever applied here")
)

// HaltedError says which failover an origin is halted for.
type HaltedError struct {
	Origin   topo.SiteID
	Handover topo.HandoverID
}

func (e *HaltedError) Error() string {
	return fmt.Sprintf("changes of site %s wait until failover %s has opened or is given up", e.Origin, e.Handover)
}

func (e *HaltedError) Unwrap() error { return ErrHalted }

// Passing tells that the reason goes away by itself, soon.
func (e *HaltedError) Passing() bool { return true }

const (
	haltPatience = 200 * time.Millisecond // for an apply transaction under way, before one that only waits for its source is ended
	codeLockWait = "55P03"
)

// Halt stops the applying of an origin's changes and returns how far they are durably here: the cut. It waits, as long
// as ctx allows, for the apply transaction under way; one that waits for more of a large transaction is ended, because
// the rest may never come. Repeating it for the same failover gives the same position, also after the cut was recorded;
// then nothing is halted again.
func (f *Fence) Halt(ctx context.Context, origin topo.SiteID, id topo.HandoverID) (change.Position, error) {
	if id == "" {
		return 0, f.wrap("halt", errors.New("the order names no failover"))
	}
	var at int64
	for {
		err := f.conns.with(ctx, func(c *pgx.Conn) (err error) {
			at, err = halt(ctx, c, origin, id)
			return err
		})
		switch {
		case sqlState(err) != codeLockWait:
			return change.Position(at), f.wrap("halt the changes of site "+string(origin), err)
		case ctx.Err() != nil:
			return 0, f.wrap("halt the changes of site "+string(origin), fmt.Errorf("a transaction that applies them does not end: %w", context.Cause(ctx)))
		}
		if err := f.conns.with(ctx, func(c *pgx.Conn) error { return endWaitingAppliers(ctx, c, origin) }); err != nil {
			return 0, f.wrap("halt the changes of site "+string(origin), err)
		}
	}
}

func halt(ctx context.Context, c *pgx.Conn, origin topo.SiteID, id topo.HandoverID) (at int64, err error) {
	if plant.OpenBeforeApplierIdle {
		err = c.QueryRow(ctx, `SELECT position FROM atoll.progress WHERE origin = $1`, origin).Scan(&at)
		if errors.Is(err, pgx.ErrNoRows) {
			err = ErrNoProgress
		}
		return at, err
	}
	err = pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", haltPatience.Milliseconds())); err != nil {
			return err
		}
		var halted string
		var cut *int64
		err := tx.QueryRow(ctx, `SELECT greatest(position, split), halted FROM atoll.progress WHERE origin = $1 FOR UPDATE`, origin).Scan(&at, &halted)
		if err == nil { // in a second statement: the lock may have been waited for
			err = tx.QueryRow(ctx, `SELECT max(position) FROM atoll.cut WHERE origin = $1 AND handover = $2`, origin, id).Scan(&cut)
		}
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return ErrNoProgress
		case err != nil:
			return err
		case cut != nil:
			at = *cut
			return nil
		case halted == string(id):
			return nil
		case halted != "":
			return &HaltedError{origin, topo.HandoverID(halted)}
		}
		_, err = tx.Exec(ctx, `UPDATE atoll.progress SET halted = $2 WHERE origin = $1`, origin, id)
		return err
	})
	return at, err
}

// endWaitingAppliers ends sessions that hold a transaction open for more of it to come. Nothing is lost: it is rolled
// back, and would come again as a whole.
func endWaitingAppliers(ctx context.Context, c *pgx.Conn, origin topo.SiteID) error {
	_, err := c.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND usename = current_user AND application_name = $1
		AND state LIKE 'idle in transaction%' AND state_change < clock_timestamp() - $2 * interval '1 millisecond'`,
		applyName+string(origin), haltPatience.Milliseconds())
	return err
}

// Unhalt lets an origin's changes be applied again, if it is this failover that halted them.
func (f *Fence) Unhalt(ctx context.Context, origin topo.SiteID, id topo.HandoverID) error {
	return f.wrap("let the changes of site "+string(origin)+" go on", f.conns.with(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, `UPDATE atoll.progress SET halted = '' WHERE origin = $1 AND halted = $2 AND halted <> ''`, origin, id)
		return err
	}))
}

// Halts tells which origins are halted, and for which failover.
func (f *Fence) Halts(ctx context.Context) (map[topo.SiteID]topo.HandoverID, error) {
	halts := map[topo.SiteID]topo.HandoverID{}
	err := f.conns.with(ctx, func(c *pgx.Conn) error {
		clear(halts)
		rows, err := c.Query(ctx, `SELECT origin, halted FROM atoll.progress WHERE halted <> ''`)
		if err != nil {
			return err
		}
		var origin topo.SiteID
		var id topo.HandoverID
		_, err = pgx.ForEachRow(rows, []any{&origin, &id}, func() error { halts[origin] = id; return nil })
		return err
	})
	return halts, f.wrap("halts", err)
}

// wantedCut is one run of buckets in the form that the database's functions take.
type wantedCut struct {
	Keyspace topo.KeyspaceID `json:"keyspace"`
	First    topo.BucketID   `json:"first"`
	Last     topo.BucketID   `json:"last"`
	Epoch    topo.Epoch      `json:"epoch"`
	Position uint64          `json:"position"`
	Handover topo.HandoverID `json:"handover"`
	Mine     bool            `json:"mine"` // this site owns the buckets, and decides what is stale
}

// RecordCuts records where the epochs of lost sites end, and ends the halts of their failovers. From then on what a lost
// site committed beyond its cut is decided row by row where this site owns the bucket, and passed over where another one
// does (I5). It must come before the buckets are opened. What is recorded already costs one read.
func (f *Fence) RecordCuts(ctx context.Context, cuts []topo.CutRange) error {
	byOrigin := map[topo.SiteID][]wantedCut{}
	var origins []topo.SiteID
	for _, c := range cuts {
		if c.Cut.Handover == "" {
			return f.wrap("record cuts", fmt.Errorf("buckets %d-%d of keyspace %s have no cut of a failover", c.Range.First, c.Range.Last, c.Keyspace))
		}
		from := c.Cut.From
		if !slices.Contains(origins, from) {
			origins = append(origins, from)
		}
		byOrigin[from] = append(byOrigin[from], wantedCut{c.Keyspace, c.Range.First, c.Range.Last, c.Cut.Epoch, c.Cut.Position, c.Cut.Handover, c.Range.Owner == f.site})
	}
	for _, origin := range origins {
		err := f.conns.with(ctx, func(c *pgx.Conn) error { return recordCuts(ctx, c, origin, byOrigin[origin]) })
		if err != nil {
			return f.wrap("record where the epochs of site "+string(origin)+" end", err)
		}
	}
	return nil
}

func recordCuts(ctx context.Context, c *pgx.Conn, origin topo.SiteID, cuts []wantedCut) error {
	if plant.OpenBeforeApplierIdle {
		_, err := c.Exec(ctx, `SELECT atoll.put_cuts($1, $2)`, origin, cuts)
		return err
	}
	var done bool
	if err := c.QueryRow(ctx, `SELECT atoll.cuts_recorded($1, $2)`, origin, cuts).Scan(&done); err != nil || done {
		return err
	}
	var reply struct {
		Outcome  string
		Cut      uint64
		Position uint64
	}
	if err := c.QueryRow(ctx, `SELECT atoll.record_cuts($1, $2)`, origin, cuts).Scan(&reply); err != nil {
		return err
	}
	switch reply.Outcome {
	case "no progress":
		return ErrNoProgress
	case "beyond":
		return fmt.Errorf("BUG: changes up to %s are applied here, beyond the cut at %s; was applying let go on while the failover was under way?",
			lsn(change.Position(reply.Position)), lsn(change.Position(reply.Cut)))
	}
	return nil
}

// Tail counts the stale row changes of a failover's tail that this site has decided.
func (f *Fence) Tail(ctx context.Context, id topo.HandoverID) (applied, kept int, err error) {
	err = f.conns.with(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `SELECT count(*) FILTER (WHERE decision = 'applied'), count(*) FILTER (WHERE decision = 'kept')
			FROM atoll.conflict WHERE handover = $1`, id).Scan(&applied, &kept)
	})
	return applied, kept, f.wrap("tail of failover "+string(id), err)
}
