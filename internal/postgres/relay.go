package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// Relay keeps an origin's changes in atoll.relay for those sites that still lack them. Keeping the same transaction
// again changes nothing. It is safe for concurrent use, one origin at a time.
type Relay struct {
	conf *pgx.ConnConfig

	mu struct {
		sync.Mutex
		conn *pgx.Conn             // nil: to be made
		next map[topo.SiteID]place // where an origin's parts go on
	}
}

// place is the part of a transaction that comes next.
type place struct {
	position change.Position
	part     int
}

// OpenRelay makes a relay; the database is connected to when it is first needed.
func OpenRelay(dsn string, site topo.SiteID) (*Relay, error) {
	conf, err := streamConfig(dsn, "atoll relay of "+string(site))
	if err != nil {
		return nil, err
	}
	// What is kept needs no flush of its own: the commit that applies it stands behind in the same WAL, and whatever crash
	// loses the one loses the other. Where an applier is about to keep the same, whoever comes second waits for the first.
	conf.RuntimeParams["synchronous_commit"] = "off"
	r := &Relay{conf: conf}
	r.mu.next = map[topo.SiteID]place{}
	return r, nil
}

// Close ends the connection.
func (r *Relay) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hangUpLocked()
}

func (r *Relay) hangUpLocked() {
	if r.mu.conn != nil {
		closeConn(r.mu.conn)
		r.mu.conn = nil
	}
}

// Keep stores transactions, all or none; they are durable as soon as anything is that this database commits behind it.
// The parts of a large one must come in order; after an error all parts of an unfinished one must come again.
func (r *Relay) Keep(ctx context.Context, txs []change.Tx) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	origins, positions, parts, bodies := make([]string, len(txs)), make([]int64, len(txs)), make([]int32, len(txs)), make([][]byte, len(txs))
	next := map[topo.SiteID]place{}
	for i := range txs {
		tx := &txs[i]
		at, known := next[tx.Origin]
		if !known {
			at = r.mu.next[tx.Origin]
		}
		switch {
		case tx.First:
			at = place{position: tx.Position}
		case at.position != tx.Position:
			return fmt.Errorf("relay of site %s: a part of the transaction at %s without the parts before it", tx.Origin, lsn(tx.Position))
		}
		origins[i], positions[i], parts[i], bodies[i] = string(tx.Origin), int64(tx.Position), int32(at.part), change.EncodeTx(tx)
		at.part++
		next[tx.Origin] = at
	}
	err := r.withLocked(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `INSERT INTO atoll.relay (origin, position, part, body)
			SELECT * FROM unnest($1::text[], $2::bigint[], $3::int[], $4::bytea[])
			ON CONFLICT (origin, position, part) DO NOTHING`, origins, positions, parts, bodies)
		return err
	})
	if err != nil {
		return fmt.Errorf("keep %d transactions for other sites: %w", len(txs), err)
	}
	for origin, at := range next {
		r.mu.next[origin] = at
	}
	return nil
}

// Trim drops an origin's transactions up to a position that every other site has reached.
func (r *Relay) Trim(ctx context.Context, origin topo.SiteID, through change.Position) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.withLocked(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM atoll.relay WHERE origin = $1 AND position <= $2`, string(origin), int64(through))
			if err == nil {
				_, err = tx.Exec(ctx, `UPDATE atoll.progress SET relay_from = greatest(relay_from, $2) WHERE origin = $1 AND relay_from IS NOT NULL`, string(origin), int64(through))
			}
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("drop what every site has of site %s: %w", origin, err)
	}
	return nil
}

// Begin says that from the recorded progress on all of an origin's changes are kept, unless that was said before; or, with
// keeps false, that none are: then what was kept before is dropped, nobody is left who could lack it.
func (r *Relay) Begin(ctx context.Context, origin topo.SiteID, keeps bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.withLocked(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if !keeps {
				_, err := tx.Exec(ctx, `UPDATE atoll.progress SET relay_from = NULL WHERE origin = $1 AND relay_from IS NOT NULL`, string(origin))
				if err == nil {
					_, err = tx.Exec(ctx, `DELETE FROM atoll.relay WHERE origin = $1`, string(origin))
				}
				return err
			}
			began, err := tx.Exec(ctx, `UPDATE atoll.progress SET relay_from = position WHERE origin = $1 AND relay_from IS NULL`, string(origin))
			if err == nil && began.RowsAffected() > 0 { // what is left of an earlier time has a gap behind it
				_, err = tx.Exec(ctx, `DELETE FROM atoll.relay r USING atoll.progress p WHERE p.origin = $1 AND r.origin = $1 AND r.position <= p.position`, string(origin))
			}
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("begin to keep changes of site %s: %w", origin, err)
	}
	return nil
}

// withLocked runs f on the relay's connection; one that broke is given up, so that the next call makes a new one.
func (r *Relay) withLocked(ctx context.Context, f func(*pgx.Conn) error) error {
	if r.mu.conn == nil {
		conn, err := pgx.ConnectConfig(ctx, r.conf)
		if err != nil {
			return err
		}
		r.mu.conn = conn
	}
	err := f(r.mu.conn)
	if err != nil && (r.mu.conn.IsClosed() || errors.Is(err, context.Canceled)) {
		r.hangUpLocked()
	}
	return err
}
