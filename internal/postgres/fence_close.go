package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

// ErrWritersRemain: a closing reached its bound before every writer in flight had ended. See [WritersRemainError].
var ErrWritersRemain = errors.New("writers remain")

// ErrStale: an order speaks of epochs that the fence has left behind. See [StaleError].
var ErrStale = errors.New("stale order")

// CloseOrder says which buckets to close, at which epochs.
type CloseOrder struct {
	Handover    topo.HandoverID
	Keyspace    topo.KeyspaceID
	Buckets     []topo.EpochSpan
	Bound       time.Duration // how long to wait for writers in flight
	EndBlockers bool          // past the bound, end those that remain instead of giving up
}

// Blocker is a transaction that a closing waits for.
type Blocker struct {
	Transaction string    // virtual transaction id
	PID         int       // 0 for a prepared transaction
	GID         string    // of a prepared transaction
	Role        string    // who runs or prepared it
	Application string    // its application_name
	Client      string    // its address
	Since       time.Time // when it began, or was prepared; zero if this role may not see it
	Query       string    // its last statement, if this role may see it
}

func (b Blocker) String() string {
	var s strings.Builder
	if b.GID != "" {
		fmt.Fprintf(&s, "prepared transaction %q of role %s", b.GID, b.Role)
	} else {
		fmt.Fprintf(&s, "backend %d of role %s", b.PID, b.Role)
	}
	if b.Application != "" {
		fmt.Fprintf(&s, " (%s)", b.Application)
	}
	if !b.Since.IsZero() {
		fmt.Fprintf(&s, " since %s", b.Since.UTC().Format(time.RFC3339))
	}
	if b.Query != "" {
		fmt.Fprintf(&s, ": %.80s", strings.Join(strings.Fields(b.Query), " "))
	}
	return s.String()
}

// WritersRemainError says who did not end in time. The fence is open again as it was before.
type WritersRemainError struct {
	Bound    time.Duration
	Blockers []Blocker
}

func (e *WritersRemainError) Error() string {
	names := make([]string, len(e.Blockers))
	for i, b := range e.Blockers {
		names[i] = b.String()
	}
	return fmt.Sprintf("%d transactions that may have written have not ended within %s: %s; the buckets were reopened; "+
		"end these transactions, or set end_blockers", len(e.Blockers), e.Bound, strings.Join(names, "; "))
}

func (e *WritersRemainError) Unwrap() error { return ErrWritersRemain }

// LateBucket is a bucket for which an order came too late.
type LateBucket struct {
	Bucket   topo.BucketID   `json:"bucket"`
	Asked    topo.Epoch      `json:"asked"` // the order's epoch
	Epoch    topo.Epoch      `json:"epoch"` // the fence's
	State    string          `json:"state"`
	Handover topo.HandoverID `json:"handover"`
}

// StaleError lists the buckets for which an order came too late; for those nothing was done.
type StaleError struct {
	Keyspace topo.KeyspaceID
	Late     []LateBucket
}

func (e *StaleError) Error() string {
	l := e.Late[0]
	return fmt.Sprintf("the order is out of date for %d buckets of keyspace %s: bucket %d is asked for at epoch %d and stands at %d (%s, handover %q)",
		len(e.Late), e.Keyspace, l.Bucket, l.Asked, l.Epoch, l.State, l.Handover)
}

func (e *StaleError) Unwrap() error { return ErrStale }

// fenceReply is what the fence's functions answer.
type fenceReply struct {
	Outcome string           `json:"outcome"`
	Buckets []topo.EpochSpan `json:"buckets"`
	Vector  topo.Vector      `json:"vector"`
	Late    []LateBucket     `json:"late"`
	Opened  int              `json:"opened"`
	Attempt int64            `json:"attempt"`
}

// CloseBuckets closes buckets at their epochs: it turns their bits off, waits until every transaction that may have
// written to them is gone, and then writes closed rows and the marker in one durable transaction. Every write of the
// closed epochs stands before that marker in this site's change stream (I3); no clock is involved.
//
// Closing again answers the same marker. If the bound is reached, the buckets are reopened and the error is a
// [WritersRemainError]. If ctx ends or the database goes away in between, the buckets stay closed: a repeated call goes
// on, or an opening at a higher epoch follows.
func (f *Fence) CloseBuckets(ctx context.Context, o CloseOrder) (change.Marker, error) {
	if err := checkEpochSpans(o.Buckets); err != nil || o.Handover == "" {
		return change.Marker{}, f.wrap("close", errors.Join(err, missing(o.Handover == "", "the order names no handover")))
	}
	if o.Bound <= 0 {
		return change.Marker{}, f.wrap("close", errors.New("the order has no bound for waiting writers out"))
	}
	var reply fenceReply
	err := f.conns.with(ctx, func(c *pgx.Conn) (err error) {
		reply, err = closeOn(ctx, c, o)
		return err
	})
	if err != nil {
		return change.Marker{}, f.wrap(fmt.Sprintf("close %d spans of keyspace %s for handover %s", len(o.Buckets), o.Keyspace, o.Handover), err)
	}
	return change.Marker{Kind: change.MarkerClosed, Site: f.site, Handover: o.Handover, Keyspace: o.Keyspace,
		Buckets: reply.Buckets, Vector: reply.Vector}, nil
}

// closeOn does the whole closing on one connection. What it saw of pg_locks is worth nothing after a reconnect: a
// server that restarted gives prepared transactions new ids. Then everything begins again.
func closeOn(ctx context.Context, c *pgx.Conn, o CloseOrder) (fenceReply, error) {
	var reply fenceReply
	err := c.QueryRow(ctx, `SELECT atoll.begin_close($1, $2, $3)`, o.Keyspace, o.Handover, o.Buckets).Scan(&reply)
	switch {
	case err != nil:
		return reply, err
	case reply.Outcome == "stale":
		return reply, &StaleError{o.Keyspace, reply.Late}
	case reply.Outcome == "closed":
		return reply, nil
	}
	if !plant.WaitOutRemoved {
		if err := waitOut(ctx, c, o); err != nil {
			return reply, err
		}
	}
	attempt := reply.Attempt
	reply = fenceReply{}
	err = c.QueryRow(ctx, `SELECT atoll.finish_close($1, $2, $3, $4)`, o.Keyspace, o.Handover, o.Buckets, attempt).Scan(&reply)
	if err == nil && reply.Outcome != "closed" {
		err = fmt.Errorf("the closing was overtaken by an opening at a higher epoch, or given up by another agent (and perhaps begun anew): %w", ErrStale)
	}
	return reply, err
}

// waitOut returns when every transaction that held a write lock on the keyspace's tables after the bits were turned
// off has ended. Such a lock is taken before the first row is written and kept until after the commit record, also by
// prepared transactions, which keep their virtual transaction id. Later writers read the bits, so nobody waits for them.
func waitOut(ctx context.Context, c *pgx.Conn, o CloseOrder) error {
	remaining, err := writersOf(ctx, c, o.Keyspace)
	if err != nil {
		return err
	}
	bound := time.Now().Add(o.Bound)
	ended := false
	pause := 200 * time.Microsecond
	for len(remaining) > 0 {
		if left := time.Until(bound); left <= 0 {
			if !o.EndBlockers || ended {
				return giveUp(ctx, c, o, remaining)
			}
			if err := endBlockers(ctx, c, remaining); err != nil {
				return errors.Join(err, giveUp(ctx, c, o, remaining))
			}
			ended, bound = true, time.Now().Add(max(o.Bound, time.Second))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(2*pause, 10*time.Millisecond)
		now, err := writersOf(ctx, c, o.Keyspace)
		if err != nil {
			return err
		}
		remaining = slices.DeleteFunc(remaining, func(v string) bool { return !slices.Contains(now, v) })
	}
	return nil
}

// writersOf lists the virtual transaction ids that hold a write lock on a fenced table of the keyspace (of any, if ks is
// empty), or on one of its partitions. On a partitioned table stronger locks count too: their holder may be adding a
// partition that is still invisible here, and have written to it.
//
// Appliers are left out: what they write are other sites' changes, which the marker speaks of by its vector alone; and
// after a cut one of them may be busy for longer than a switch can wait. They are the agent's own sessions by role and
// name; a session of that role that calls itself otherwise is waited for.
func writersOf(ctx context.Context, c *pgx.Conn, ks topo.KeyspaceID) ([]string, error) {
	rows, err := c.Query(ctx, `
		SELECT DISTINCT l.virtualtransaction
		FROM pg_locks l
		JOIN pg_class r ON r.oid = l.relation
		LEFT JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE (a.usename = current_user AND starts_with(a.application_name, '`+applyName+`')) IS NOT TRUE
		AND l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
		AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND (l.mode = 'RowExclusiveLock' OR r.relkind = 'p'
		     AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
		AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = l.relation
		            AND t.tgfoid = 'atoll.check_commit'::regproc AND ($1 = '' OR starts_with(encode(t.tgargs, 'escape'), $1 || '\000')))`, ks)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// giveUp reopens what the closing had turned off and names those who were in its way.
func giveUp(ctx context.Context, c *pgx.Conn, o CloseOrder, remaining []string) error {
	blockers, err := blockersOf(ctx, c, remaining)
	if err != nil {
		return err
	}
	if _, err := c.Exec(ctx, `SELECT atoll.abandon_close($1, $2)`, o.Keyspace, o.Handover); err != nil {
		return err
	}
	return &WritersRemainError{Bound: o.Bound, Blockers: blockers}
}

func blockersOf(ctx context.Context, c *pgx.Conn, vxids []string) ([]Blocker, error) {
	rows, err := c.Query(ctx, `
		SELECT l.virtualtransaction, coalesce(max(l.pid), 0), coalesce(max(p.gid), ''),
		       coalesce(max(a.usename), max(p.owner), '?')::text, coalesce(max(a.application_name), ''),
		       coalesce(max(host(a.client_addr)), ''), coalesce(max(a.xact_start), max(p.prepared)), coalesce(max(a.query), '')
		FROM pg_locks l
		LEFT JOIN pg_stat_activity a ON a.pid = l.pid
		LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND l.locktype = 'transactionid' AND p.transaction = l.transactionid
		WHERE l.virtualtransaction = ANY($1) GROUP BY 1 ORDER BY 7 NULLS LAST`, vxids)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (b Blocker, err error) {
		var since *time.Time
		err = row.Scan(&b.Transaction, &b.PID, &b.GID, &b.Role, &b.Application, &b.Client, &since, &b.Query)
		if since != nil {
			b.Since = *since
		}
		return b, err
	})
}

// endBlockers ends sessions and rolls prepared transactions back.
func endBlockers(ctx context.Context, c *pgx.Conn, vxids []string) error {
	blockers, err := blockersOf(ctx, c, vxids)
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range blockers {
		if b.GID != "" {
			_, err = c.Exec(ctx, "ROLLBACK PREPARED "+sqlLiteral(b.GID))
		} else {
			// the transaction is looked up again, so that a session that has moved on is left alone
			_, err = c.Exec(ctx, `SELECT pg_terminate_backend(l.pid) FROM pg_locks l
				WHERE l.pid = $1 AND l.virtualtransaction = $2 AND l.locktype = 'relation' LIMIT 1`, b.PID, b.Transaction)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("end %s: %w", b, err))
		}
	}
	return errors.Join(errs...)
}

// sqlLiteral quotes a string as an SQL literal.
func sqlLiteral(s string) string {
	q := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(q, `\`, `\\`)
	}
	return q
}

// checkEpochSpans refuses a set of buckets that is empty, reversed, unordered or without epochs.
func checkEpochSpans(spans []topo.EpochSpan) error {
	if len(spans) == 0 {
		return errors.New("the order names no buckets")
	}
	for i, s := range spans {
		if s.First > s.Last || s.Last >= topo.MaxBuckets || s.Epoch == 0 || s.Epoch > 1<<62 || i > 0 && s.First <= spans[i-1].Last {
			return fmt.Errorf("the order's buckets %d-%d at epoch %d are out of order or out of range", s.First, s.Last, s.Epoch)
		}
	}
	return nil
}

func missing(is bool, what string) error {
	if is {
		return errors.New(what)
	}
	return nil
}
