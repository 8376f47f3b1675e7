package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// How installing and removing waits for a busy table: each try gives up its lock request soon, because everybody
// else queues behind it.
const (
	lockTry     = 500 * time.Millisecond
	lockPatient = 2 * time.Minute
)

// Apply executes a plan, one transaction per group. On a busy table it asks for the lock for half a second at a time,
// so that the table's users never queue for longer, and tries again for two minutes. What was applied stays; the rest
// is planned again the next time.
func Apply(ctx context.Context, adminDSN string, plan []Statement, log *slog.Logger) error {
	if len(plan) == 0 {
		return nil
	}
	c, err := adminConnect(ctx, adminDSN)
	if err != nil {
		return err
	}
	defer closeConn(c)
	for len(plan) > 0 {
		n := 1
		for n < len(plan) && plan[n].Group == plan[0].Group {
			n++
		}
		group := plan[:n]
		plan = plan[n:]
		log.Info("install", "group", group[0].Group, "statements", n)
		err := patiently(ctx, c, log, group[0].Group, func(tx pgx.Tx) error {
			for _, s := range group {
				if _, err := tx.Exec(ctx, s.SQL); err != nil {
					return fmt.Errorf("%s\n(%s): %w", s.SQL, s.Reason, err)
				}
				if s.Undo == "" {
					continue
				}
				if _, err := tx.Exec(ctx, `INSERT INTO atoll.undo (reason, sql) VALUES ($1, $2)`, s.Reason, s.Undo); err != nil {
					return fmt.Errorf("note how to take back %q: %w", s.SQL, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// patiently runs f in a transaction, again while it only fails for want of a lock.
func patiently(ctx context.Context, c *pgx.Conn, log *slog.Logger, what string, f func(pgx.Tx) error) error {
	until := time.Now().Add(lockPatient)
	for try := 1; ; try++ {
		err := pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", lockTry.Milliseconds())); err != nil {
				return err
			}
			return f(tx)
		})
		if !lockTrouble(err) || time.Now().After(until) {
			return err
		}
		log.Warn("busy, trying again", "group", what, "try", try, "error", err.Error())
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(lockTry/5 + rand.N(lockTry)):
		}
	}
}

// lockTrouble tells whether trying again may help: a lock was not to be had in time, or a deadlock was broken, or
// somebody changed the same row of a catalog at the same moment, for which the server takes no lock (grants on
// parameters belong to the whole server, and another database of it may be installed now).
func lockTrouble(err error) bool {
	switch sqlState(err) {
	case "55P03", "40P01", "40001":
		return true
	case "23505":
		var pgErr *pgconn.PgError
		return errors.As(err, &pgErr) && pgErr.SchemaName == "pg_catalog"
	case "XX000":
		return strings.Contains(err.Error(), "tuple concurrently updated") || strings.Contains(err.Error(), "tuple concurrently deleted")
	}
	return false
}
