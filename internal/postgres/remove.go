package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
)

// Remove takes everything out of a database that Apply and the agents put there: slots, publication, guards, grants
// on the application's tables, replica identities, replication origins, and the atoll schema. Data is untouched. The
// agents must be stopped. It can be repeated until it succeeds.
func Remove(ctx context.Context, adminDSN string, log *slog.Logger) error {
	c, err := adminConnect(ctx, adminDSN)
	if err != nil {
		return err
	}
	defer closeConn(c)
	installed, err := isInstalled(ctx, c)
	if err != nil {
		return err
	}
	if !installed {
		log.Info("nothing is installed")
		return nil
	}
	for _, step := range []struct {
		what string
		do   func(context.Context, *pgx.Conn, *slog.Logger) error
	}{
		{"replication slots", removeSlots},
		{"publication", removePublication},
		{"guards", removeGuards},
		{"grants and settings", removeChanges},
		{"replication origins", removeOrigins},
		{"schema", removeSchema},
	} {
		if err := step.do(ctx, c, log); err != nil {
			return fmt.Errorf("remove %s: %w", step.what, err)
		}
		log.Info("removed", "what", step.what)
	}
	return nil
}

func removeSlots(ctx context.Context, c *pgx.Conn, _ *slog.Logger) error {
	var deployment string
	if err := c.QueryRow(ctx, `SELECT deployment FROM atoll.install`).Scan(&deployment); err != nil {
		return err
	}
	rows, err := c.Query(ctx, `SELECT slot_name::text, coalesce(active_pid, 0) FROM pg_replication_slots
		WHERE database = current_database() AND plugin = 'pgoutput' AND starts_with(slot_name, $1)`,
		SlotName(deployment, ""))
	if err != nil {
		return err
	}
	slots := map[string]int{}
	var name string
	var pid int
	if _, err := pgx.ForEachRow(rows, []any{&name, &pid}, func() error {
		slots[name] = pid
		return nil
	}); err != nil {
		return err
	}
	for name, pid := range slots {
		if pid != 0 {
			return fmt.Errorf("slot %s is in use by backend %d; stop the site's agent first", name, pid)
		}
		if _, err := c.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, name); err != nil {
			return err
		}
	}
	return nil
}

func removePublication(ctx context.Context, c *pgx.Conn, log *slog.Logger) error {
	return patiently(ctx, c, log, "publication", func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "DROP PUBLICATION IF EXISTS "+PublicationName)
		return err
	})
}

// removeGuards takes one partition tree at a time, so that no lock is held while the next is waited for.
func removeGuards(ctx context.Context, c *pgx.Conn, log *slog.Logger) error {
	guards, err := readGuarded(ctx, c)
	if err != nil {
		return err
	}
	for len(guards) > 0 {
		n := 1
		for n < len(guards) && guards[n].root == guards[0].root {
			n++
		}
		err := patiently(ctx, c, log, guards[0].root, func(tx pgx.Tx) error {
			statements := []string{lockTreeSQL(guards[0].rootSQL)}
			for _, g := range guards[:n] {
				statements = append(statements, dropTriggerSQL(g.sql, g.trigger))
			}
			for _, sql := range statements {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return fmt.Errorf("%s: %w", sql, err)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("table %s: %w", guards[0].root, err)
		}
		guards = guards[n:]
	}
	return nil
}

// removeChanges takes back, newest first, what was changed outside the schema. A change whose object is gone is done.
func removeChanges(ctx context.Context, c *pgx.Conn, log *slog.Logger) error {
	for {
		var id int64
		var sql string
		err := c.QueryRow(ctx, `SELECT id, sql FROM atoll.undo ORDER BY id DESC LIMIT 1`).Scan(&id, &sql)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		err = patiently(ctx, c, log, sql, func(tx pgx.Tx) error {
			if err := pgx.BeginFunc(ctx, tx, func(try pgx.Tx) error {
				_, err := try.Exec(ctx, sql)
				return err
			}); err != nil && !objectGone(err) {
				return fmt.Errorf("%s: %w", sql, err)
			}
			_, err := tx.Exec(ctx, `DELETE FROM atoll.undo WHERE id = $1`, id)
			return err
		})
		if err != nil {
			return err
		}
	}
}

func removeOrigins(ctx context.Context, c *pgx.Conn, _ *slog.Logger) error {
	rows, err := c.Query(ctx, `SELECT o.roname FROM pg_replication_origin o JOIN atoll.progress p ON o.roname = $1 || p.origin`, OriginName(""))
	if err != nil {
		return err
	}
	origins, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, o := range origins {
		if _, dropErr := c.Exec(ctx, `SELECT pg_replication_origin_drop($1)`, o); dropErr != nil {
			err = errors.Join(err, fmt.Errorf("origin %s: %w", o, dropErr))
		}
	}
	return err
}

func removeSchema(ctx context.Context, c *pgx.Conn, log *slog.Logger) error {
	return patiently(ctx, c, log, "schema", func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "DROP SCHEMA atoll CASCADE")
		return err
	})
}

// objectGone tells whether a statement failed because what it speaks of does not exist any more.
func objectGone(err error) bool {
	switch sqlState(err) {
	case "42P01", "3F000", "42704", "42883", "42703":
		return true
	}
	return false
}
