package shop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/sdk"
)

// answer is an ordinary refusal, meant for the customer.
type answer struct {
	status int
	text   string
}

func (a answer) Error() string { return a.text }

// errUnknown says that a commit was sent and its outcome never came back.
var errUnknown = errors.New("the database did not say whether it committed")

// inTx runs a transaction in two round trips: what look queues goes out behind the BEGIN, and what change queues, who
// has the answers by then, goes out with the COMMIT. Behind a statement that fails nothing is carried out. When inTx
// returns an error that is not errUnknown, nothing was written.
func (s *Shop) inTx(ctx context.Context, look func(*pgx.Batch), change func(*pgx.Batch) error) error {
	conn, err := s.DB.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	var first, second pgx.Batch
	first.BeginTx(pgx.TxOptions{})
	look(&first)
	answers := conn.SendBatch(ctx, &first)
	committed := false
	defer func() {
		if !committed {
			answers.Tx().Rollback(context.WithoutCancel(ctx)) // where it fails the pool throws the connection away
		}
	}()
	if err := answers.Close(); err != nil {
		return err
	}
	if err := change(&second); err != nil {
		return err
	}
	second.Queue("commit").Exec(func(tag pgconn.CommandTag) error {
		if tag.String() == "ROLLBACK" {
			return pgx.ErrTxCommitRollback
		}
		committed = true // whatever becomes of the connection behind this answer
		return nil
	})
	err = conn.SendBatch(ctx, &second).Close()
	var refused *pgconn.PgError
	switch {
	case committed || err == nil:
		return nil
	case errors.As(err, &refused), errors.Is(err, pgx.ErrTxCommitRollback), pgconn.SafeToRetry(err):
		return err
	}
	return fmt.Errorf("%w: %w", errUnknown, err)
}

// nothing is what a transaction looks for or changes that does only the other.
func nothing(*pgx.Batch) error { return nil }

// refuse answers a request that failed. 503 is said only where nothing was written here; a 500 promises nothing.
func (s *Shop) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var a answer
	var tooLarge *http.MaxBytesError
	if fenced, ok := sdk.Fenced(err); ok {
		fenced.Mark(w.Header())
		a = answer{http.StatusServiceUnavailable, "this customer or seat is served at another site at the moment; please try again"}
	} else if errors.As(err, &tooLarge) {
		a = answer{http.StatusRequestEntityTooLarge, "the request is too large"}
	} else if !errors.As(err, &a) {
		a = answer{http.StatusInternalServerError, "something went wrong here"}
		if unwritten(err) {
			a = answer{http.StatusServiceUnavailable, "the shop cannot reach its database in time; please try again"}
		}
		s.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "status", a.status, "err", err)
	}
	if a.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	if wantsPage(r) {
		s.showProblem(w, a)
		return
	}
	writeJSON(w, a.status, map[string]string{"error": a.text})
}

// unwritten tells whether an error is the database's state rather than our mistake, and surely before the commit.
func unwritten(err error) bool {
	if errors.Is(err, errUnknown) {
		return false
	}
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		// connection, rolled back to be tried again, resources, locks, shutting down
		return slices.ContainsFunc([]string{"08", "40", "53", "55", "57"}, func(class string) bool {
			return strings.HasPrefix(refused.Code, class)
		})
	}
	var connect *pgconn.ConnectError
	return errors.As(err, &connect) || errors.Is(err, context.DeadlineExceeded) || pgconn.SafeToRetry(err)
}

func writeJSON(w http.ResponseWriter, status int, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(data, '\n')) // the client is gone if this fails
	return nil
}
