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
)

// answer is an ordinary refusal, meant for the customer.
type answer struct {
	status int
	text   string
}

func (a answer) Error() string { return a.text }

// errUnknown says that a commit was sent and its outcome never came back.
var errUnknown = errors.New("the database did not say whether it committed")

// inTx runs f in a transaction. When it returns an error that is not errUnknown, nothing was written.
func (s *Shop) inTx(ctx context.Context, f func(pgx.Tx) error) error {
	tx, err := s.DB.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) // does nothing after the commit
	if err := f(tx); err != nil {
		return err
	}
	err = tx.Commit(ctx)
	var refused *pgconn.PgError
	if err != nil && !errors.As(err, &refused) && !errors.Is(err, pgx.ErrTxCommitRollback) {
		return fmt.Errorf("%w: %w", errUnknown, err)
	}
	return err
}

// fenced tells whether the database refused a write because the rows live at another site now, and what to tell the
// gateway: KEYSPACE/BUCKET/EPOCH. This function and its use in refuse are all that the shop knows of the fence.
func fenced(err error) (where string, ok bool) {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || !strings.HasPrefix(refused.Code, "AT") {
		return "", false
	}
	var d struct {
		Keyspace string `json:"keyspace"`
		Bucket   int    `json:"bucket"`
		Epoch    uint64 `json:"epoch"`
	}
	if json.Unmarshal([]byte(refused.Detail), &d) != nil || d.Keyspace == "" {
		return "", true
	}
	return fmt.Sprintf("%s/%d/%d", d.Keyspace, d.Bucket, d.Epoch), true
}

// refuse answers a request that failed. 503 is said only where nothing was written here; a 500 promises nothing.
func (s *Shop) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var a answer
	var tooLarge *http.MaxBytesError
	if where, ok := fenced(err); ok {
		if where != "" {
			w.Header().Set("Atoll-Fenced", where)
		}
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
