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

const (
	relayPage  = 500                   // parts that are read at a time
	relayPoll  = 50 * time.Millisecond // from one look for more to the next
	relayQuiet = 2 * time.Second       // without more, the stream ends: whoever asks had better look for the origin
	relayTurn  = 10 * time.Second      // and so it does after this, with more: a busy origin is never quiet, and may be reached again
)

// RelaySource hands on what this database keeps of another origin's changes. It satisfies replicate.Source, but has no
// beginning to give.
type RelaySource struct {
	origin topo.SiteID
	conn   *pgx.Conn
	turn   time.Duration
}

var errRelayBegins = errors.New("a relay has no beginning to give; ask the origin")

// OpenRelaySource connects to the database.
func OpenRelaySource(ctx context.Context, dsn string, site, origin topo.SiteID) (*RelaySource, error) {
	conf, err := streamConfig(dsn, "atoll relay of "+string(site))
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, conf)
	if err != nil {
		return nil, fmt.Errorf("relay of site %s: %w", origin, err)
	}
	return &RelaySource{origin: origin, conn: conn, turn: relayTurn}, nil
}

// Confirmed is the position from which on everything is kept.
func (s *RelaySource) Confirmed(ctx context.Context) (pos change.Position, exists bool, err error) {
	var from *int64
	err = s.conn.QueryRow(ctx, "SELECT relay_from FROM atoll.progress WHERE origin = $1", string(s.origin)).Scan(&from)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil || from == nil {
		return 0, false, err
	}
	return change.Position(*from), true, nil
}

// Copy is refused.
func (s *RelaySource) Copy(context.Context, bool, func(context.Context, change.Copy) error) error {
	return errRelayBegins
}

// Create is refused.
func (s *RelaySource) Create(context.Context) error { return errRelayBegins }

// Confirm does nothing: what may be dropped follows from what every site says.
func (s *RelaySource) Confirm(change.Position) {}

// Reach does nothing: a relay has what it has.
func (s *RelaySource) Reach(change.Position) {}

// Close ends the connection.
func (s *RelaySource) Close() error {
	closeConn(s.conn)
	return nil
}

// Run hands out what follows from, in order, and the position that this database itself has reached, until ctx ends,
// something fails, or nothing has come for a while, or its turn is over; then it returns nil. It refuses a from behind what is kept. A
// transaction whose end has not come is not begun.
func (s *RelaySource) Run(ctx context.Context, from change.Position, _ change.Epochs, emit func(context.Context, change.Tx) error) error {
	began := time.Now()
	for quiet := began; ; {
		kept, exists, err := s.Confirmed(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("relay of site %s: %w", s.origin, err)
		case !exists:
			return fmt.Errorf("this site keeps no changes of site %s", s.origin)
		case from < kept:
			return fmt.Errorf("changes of site %s are kept from %s on, and asked for from %s on", s.origin, lsn(kept), lsn(from))
		}
		to, err := s.pass(ctx, from, emit)
		if err != nil {
			return err
		}
		if time.Since(began) > s.turn {
			return nil
		}
		if to > from {
			from, quiet = to, time.Now()
			continue
		}
		if time.Since(quiet) > relayQuiet {
			return nil
		}
		select {
		case <-time.After(relayPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// pass hands out what is there behind from, and says how far that was.
func (s *RelaySource) pass(ctx context.Context, from change.Position, emit func(context.Context, change.Tx) error) (change.Position, error) {
	var reached int64 // before what is kept is read: all of it up to here is there, or is nothing but a position
	if err := s.conn.QueryRow(ctx, "SELECT position FROM atoll.progress WHERE origin = $1", string(s.origin)).Scan(&reached); err != nil {
		return from, fmt.Errorf("relay of site %s: %w", s.origin, err)
	}
	for {
		n, to, err := s.page(ctx, from, emit)
		if err != nil {
			return to, err
		}
		from = to
		if n < relayPage {
			break
		}
	}
	if at := change.Position(reached); at > from {
		if err := emit(ctx, change.Tx{Origin: s.origin, Position: at, First: true, Last: true}); err != nil {
			return from, err
		}
		from = at
	}
	return from, nil
}

// page hands out whole transactions of at most so many parts, or one larger one. n counts parts.
func (s *RelaySource) page(ctx context.Context, from change.Position, emit func(context.Context, change.Tx) error) (n int, to change.Position, err error) {
	rows, err := s.conn.Query(ctx, `SELECT r.position, r.body FROM atoll.relay r WHERE r.origin = $1 AND r.position > $2 AND r.position <= coalesce(
			(SELECT max(q.position) FROM (SELECT position FROM atoll.relay WHERE origin = $1 AND position > $2 ORDER BY position, part LIMIT $3) q), 0)
		ORDER BY r.position, r.part`, string(s.origin), int64(from), relayPage)
	if err != nil {
		return 0, from, fmt.Errorf("relay of site %s: %w", s.origin, err)
	}
	defer rows.Close()
	to = from
	var open []change.Tx // parts of a transaction whose end has not been read
	for rows.Next() {
		var at int64
		var body []byte
		if err := rows.Scan(&at, &body); err != nil {
			return n, to, fmt.Errorf("relay of site %s: %w", s.origin, err)
		}
		tx, err := change.DecodeTx(body)
		if err == nil && (tx.Origin != s.origin || tx.Position != change.Position(at)) {
			err = fmt.Errorf("it is of site %s, at %s", tx.Origin, lsn(tx.Position))
		}
		if err != nil {
			return n, to, fmt.Errorf("relay of site %s: the transaction at %s: %w", s.origin, lsn(change.Position(at)), err)
		}
		if tx.First {
			open = open[:0]
		}
		open = append(open, tx)
		n++
		if !tx.Last {
			continue
		}
		for _, part := range open {
			if err := emit(ctx, part); err != nil {
				return n, to, err
			}
		}
		to, open = tx.Position, open[:0]
	}
	if len(open) > 0 { // nothing behind it can be there
		n = 0
	}
	return n, to, rows.Err()
}
