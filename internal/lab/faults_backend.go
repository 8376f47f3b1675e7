package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

const (
	// applierOf begins the application_name of the sessions that apply an origin's changes; the origin follows.
	applierOf = "atoll apply from "

	catchBackendBound = 10 * time.Second
	probeBound        = 200 * time.Millisecond
	lockNotAvailable  = "55P03"
)

// errNotYet: the backend was stopped at a moment that shows nothing.
var errNotYet = errors.New("not in the middle of a transaction")

// StopApplier stops, at one site, the backend that applies another site's changes, in the middle of a transaction.
// Load must run, or it finds no transaction.
func (d *Deployment) StopApplier(at, origin topo.SiteID) Fault {
	pid := 0
	return Fault{
		Name: fmt.Sprintf("SIGSTOP of the backend that applies %s's changes at %s, in the middle of a transaction", origin, at),
		Inject: func(ctx context.Context) (err error) {
			pid, err = d.catchApplier(ctx, at, origin)
			return err
		},
		Heal: func(context.Context) error {
			if pid == 0 {
				return nil
			}
			if err := signalBackend(pid, syscall.SIGCONT); !errors.Is(err, syscall.ESRCH) { // the server may have ended it
				return err
			}
			return nil
		},
	}
}

// catchApplier stops the backend again and again until it stands in a transaction that has locked the origin's
// progress, and holds nothing that the rest of the database needs: a backend that is stopped while it writes the log
// would stop every commit of its server, which is another fault.
func (d *Deployment) catchApplier(ctx context.Context, at, origin topo.SiteID) (pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, catchBackendBound)
	defer cancel()
	last := errNotYet
	err = every(ctx, 3*time.Millisecond, func() (bool, error) {
		caught, err := tryCatch(ctx, d.databases[at].CallerDSN(pgserver.Superuser, database), origin)
		if err == nil {
			pid = caught
			return true, nil
		}
		last = err
		return false, nil
	})
	if err != nil {
		return 0, fmt.Errorf("lab: stop the applier of %s's changes at %s: %w; last: %w", origin, at, err, last)
	}
	return pid, nil
}

func tryCatch(ctx context.Context, dsn string, origin topo.SiteID) (pid int, err error) {
	bounded, cancel := context.WithTimeout(ctx, 10*probeBound)
	defer cancel()
	db, err := pgx.Connect(bounded, dsn)
	if err != nil {
		return 0, err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = db.Close(closing) // the database may stand still
	}()
	if _, err := db.Exec(bounded, `CREATE TABLE IF NOT EXISTS lab.probe (n bigint GENERATED ALWAYS AS IDENTITY)`); err != nil {
		return 0, err
	}
	err = db.QueryRow(bounded, `SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()
		ORDER BY xact_start NULLS LAST LIMIT 1`, applierOf+string(origin)).Scan(&pid)
	if err != nil {
		return 0, err
	}
	for {
		if err = stopOnce(bounded, db, pid, origin); !errors.Is(err, errNotYet) || db.IsClosed() {
			return pid, err
		}
		if rest(bounded, time.Millisecond) != nil {
			return 0, err
		}
	}
}

// stopOnce stops the backend, looks, and lets it go on unless it stands where it should.
func stopOnce(ctx context.Context, db *pgx.Conn, pid int, origin topo.SiteID) (err error) {
	if err := signalBackend(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, signalBackend(pid, syscall.SIGCONT))
		}
	}()
	if err := standsStill(ctx, pid); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeBound)
	defer cancel()
	_, err = db.Exec(ctx, `SELECT FROM atoll.progress WHERE origin = $1 FOR UPDATE NOWAIT`, string(origin))
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return errNotYet
	case !errors.As(err, &pg) || pg.Code != lockNotAvailable:
		return fmt.Errorf("%w: the database stands still with it: %w", errNotYet, err)
	}
	if _, err := db.Exec(ctx, `INSERT INTO lab.probe DEFAULT VALUES`); err != nil {
		return fmt.Errorf("%w: no other transaction commits: %w", errNotYet, err)
	}
	return nil
}

// standsStill waits until a process that was told to stop has stopped.
func standsStill(ctx context.Context, pid int) error {
	return every(ctx, time.Millisecond, func() (bool, error) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false, fmt.Errorf("lab: backend %d: %w", pid, err)
		}
		_, state, _ := strings.Cut(string(data), ") ")
		return strings.HasPrefix(state, "T"), nil
	})
}

func signalBackend(pid int, sig syscall.Signal) error {
	if err := syscall.Kill(pid, sig); err != nil {
		return fmt.Errorf("lab: signal backend %d: %w", pid, err)
	}
	return nil
}
