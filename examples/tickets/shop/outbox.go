package shop

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/sdk"
)

const (
	deliverers = 8
	scanEvery  = time.Second
	// claimFor is how long a row is left to the one that claimed it, at this site or another; longer than the call
	// takes, or two would make it (harmless, every call may be repeated).
	claimFor    = 10 * time.Second
	callTimeout = 8 * time.Second
	// settleFor keeps the scan away from young rows: the site that committed one delivers it at once, and at the
	// other sites, where a copy arrives, a claim would only be refused.
	settleFor = 2 * time.Second
)

// job is a row of outbox: what is still to be said to the catalogue about an order.
type job struct {
	Customer uuid.UUID
	ID       uuid.UUID
	Kind     string // confirm or release
	Order    uuid.UUID
	Seat     uuid.UUID
}

func (j job) insert(change *pgx.Batch) {
	change.Queue(`INSERT INTO outbox (customer_id, id, kind, order_id, seat_id) VALUES ($1, $2, $3, $4, $5)`,
		j.Customer, j.ID, j.Kind, j.Order, j.Seat)
}

// soon hands a job that was just committed to the deliverers. When they are busy, the scan finds it later.
func (s *Shop) soon(j job) {
	select {
	case s.fast <- j:
	default:
	}
}

// Deliver works off the outbox of this site's database until ctx ends, then finishes what it began. Every site does so:
// a row that another site should deliver is refused by the database when it is claimed, and skipped.
func (s *Shop) Deliver(ctx context.Context) error {
	var wg sync.WaitGroup
	found := make(chan job)
	for range deliverers {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case j := <-s.fast:
					s.deliver(context.WithoutCancel(ctx), j)
				case j := <-found:
					s.deliver(context.WithoutCancel(ctx), j)
				}
			}
		})
	}
	wg.Go(func() { s.scan(ctx, found) })
	wg.Wait()
	return nil
}

// scan feeds rows that are left over: their site stopped before it delivered them, or the customer moved here.
func (s *Shop) scan(ctx context.Context, found chan<- job) {
	tick := time.NewTicker(scanEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		jobs, err := s.openJobs(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.Log.Warn("cannot read the outbox; trying again", "err", err)
			}
			continue
		}
		for _, j := range s.elsewhere.due(jobs, time.Now()) {
			select {
			case <-ctx.Done():
				return
			case found <- j:
			}
		}
	}
}

func (s *Shop) openJobs(ctx context.Context) ([]job, error) {
	// In any order: rows that are refused here stay open, and must not keep others from their turn.
	rows, err := s.DB.Query(ctx, `SELECT customer_id, id, kind, order_id, seat_id FROM outbox
		WHERE done_at IS NULL AND next_try_at <= clock_timestamp() AND created_at <= clock_timestamp() - $1::interval
		ORDER BY random() LIMIT 200`, settleFor)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[job])
}

// deliver claims a row, makes the call, and records its outcome. Whatever fails is tried again when the claim has run out.
func (s *Shop) deliver(ctx context.Context, j job) {
	ctx, cancel := context.WithTimeout(ctx, claimFor)
	defer cancel()
	err := s.claim(ctx, j)
	if err == nil {
		err = s.say(ctx, j)
	}
	if _, elsewhere := sdk.Fenced(err); elsewhere {
		s.elsewhere.refused(j.ID, time.Now())
		return
	}
	if err == nil || errors.Is(err, errClaimed) {
		return // done, or another's to do
	}
	s.Log.Warn("outbox row stays open", "kind", j.Kind, "order", j.Order, "customer", j.Customer, "err", err)
}

var errClaimed = errors.New("done or claimed already")

func (s *Shop) claim(ctx context.Context, j job) error {
	tag, err := s.DB.Exec(ctx, `UPDATE outbox SET attempts = attempts + 1, next_try_at = clock_timestamp() + $3::interval
		WHERE customer_id = $1 AND id = $2 AND done_at IS NULL AND next_try_at <= clock_timestamp()`, j.Customer, j.ID, claimFor)
	if err == nil && tag.RowsAffected() == 0 {
		return errClaimed
	}
	return err
}

func (s *Shop) say(ctx context.Context, j job) error {
	callCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var st seat
	err := s.call(callCtx, "/seats/"+j.Seat.String()+"/"+j.Kind, j.Order, &st)
	var a answer
	taken := errors.As(err, &a) && a.status == http.StatusConflict
	if err != nil && !taken {
		return err
	}
	var status string
	err = s.inTx(ctx, func(look *pgx.Batch) {
		lockCustomer(look, j.Customer)
		look.Queue(`UPDATE outbox SET done_at = clock_timestamp() WHERE customer_id = $1 AND id = $2`, j.Customer, j.ID)
		look.Queue(`SELECT status FROM orders WHERE customer_id = $1 AND id = $2`, j.Customer, j.Order).QueryRow(func(row pgx.Row) error { return row.Scan(&status) })
	}, func(change *pgx.Batch) error {
		if j.Kind == "confirm" {
			settle(change, j, status, taken)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record %s of order %s: %w", j.Kind, j.Order, err)
	}
	return nil
}

// settle ends the wait of an order: its seat is sold to it, or was taken by another after the reservation ran out.
// An order that was cancelled meanwhile stays so.
func settle(change *pgx.Batch, j job, status string, taken bool) {
	switch {
	case status != "pending":
	case taken:
		giveBack(change, j.Customer, j.Order, "refunded")
	default:
		change.Queue(`UPDATE orders SET status = 'confirmed' WHERE customer_id = $1 AND id = $2`, j.Customer, j.Order)
	}
}
