package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// WritersLeftError says which transactions could not be ended, and what is missing for that.
type WritersLeftError struct {
	Blockers []Blocker
	Cause    error // nil: they were told to end, and have not
}

func (e *WritersLeftError) Error() string {
	names := make([]string, len(e.Blockers))
	for i, b := range e.Blockers {
		names[i] = b.String()
	}
	text := fmt.Sprintf("%d transactions that may have written are not ended: %s", len(e.Blockers), strings.Join(names, "; "))
	if e.Cause != nil {
		return text + "; " + e.Cause.Error()
	}
	return text + "; they were told to end; if their processes are stopped or hang, end them on the database's host"
}

func (e *WritersLeftError) Unwrap() error { return e.Cause }

// EndWriters ends every transaction of applications that holds a write lock on a fenced table at this moment: it leaves
// them patience to end by themselves, then ends their sessions and rolls prepared ones back, and returns when they are
// gone, with those that it ended. At the bound, counted from the call, the error is a [WritersLeftError].
//
// Whatever passed the guards before the call holds such a lock until its commit is written, so once this has returned,
// and while the guards refuse, nothing is committed any more (W of the lease). No clock but this process's is involved.
func (f *Fence) EndWriters(ctx context.Context, patience, bound time.Duration) (ended []Blocker, err error) {
	start := time.Now()
	err = f.conns.with(ctx, func(c *pgx.Conn) error {
		ended = nil
		left, err := writersOf(ctx, c, "")
		if err != nil {
			return err
		}
		if left, err = awaitGone(ctx, c, left, start.Add(patience)); err != nil || len(left) == 0 {
			return err
		}
		if ended, err = blockersOf(ctx, c, left); err != nil {
			return err
		}
		cause := explainGrants(ctx, c, endBlockers(ctx, c, left))
		if left, err = awaitGone(ctx, c, left, start.Add(bound)); err != nil || len(left) == 0 {
			return err
		}
		stay, err := blockersOf(ctx, c, left)
		if err != nil || len(stay) == 0 {
			return err
		}
		ended = slices.DeleteFunc(ended, func(b Blocker) bool { return slices.Contains(left, b.Transaction) })
		return &WritersLeftError{Blockers: stay, Cause: cause}
	})
	return ended, f.wrap("end writers", err)
}

// awaitGone waits until none of the transactions holds a write lock any more, or the moment passes, and returns those
// that do. It looks at least once.
func awaitGone(ctx context.Context, c *pgx.Conn, left []string, until time.Time) ([]string, error) {
	for pause := time.Millisecond; len(left) > 0 && time.Now().Before(until); pause = min(2*pause, 20*time.Millisecond) {
		select {
		case <-ctx.Done():
			return left, context.Cause(ctx)
		case <-time.After(min(pause, time.Until(until))):
		}
		now, err := writersOf(ctx, c, "")
		if err != nil {
			return left, err
		}
		left = slices.DeleteFunc(left, func(v string) bool { return !slices.Contains(now, v) })
	}
	return left, nil
}

// explainGrants adds to a refusal what an administrator has to grant.
func explainGrants(ctx context.Context, c *pgx.Conn, refused error) error {
	if refused == nil {
		return nil
	}
	var pgErr *pgconn.PgError
	if !errors.As(refused, &pgErr) || pgErr.Code != "42501" {
		return refused
	}
	var me string
	var may bool
	if err := c.QueryRow(ctx, `SELECT current_user::text, pg_has_role('pg_signal_backend', 'USAGE')`).Scan(&me, &may); err != nil {
		return errors.Join(refused, err)
	}
	if !may {
		return fmt.Errorf("%w; run, as a superuser: GRANT pg_signal_backend TO %s", refused, pgx.Identifier{me}.Sanitize())
	}
	return fmt.Errorf("%w; role %s may end sessions of every role but superusers, and roll back only what it prepared itself: end the others as their role", refused, me)
}
