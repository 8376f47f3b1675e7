package shop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// lockCustomer puts the changes of one customer in a row. It writes, so that what is read behind it was read where the
// customer's rows are written, and is not an old copy.
func lockCustomer(look *pgx.Batch, who uuid.UUID) {
	look.Queue(`UPDATE customers SET orders_count = orders_count WHERE id = $1`, who).Exec(func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() == 0 {
			return answer{http.StatusNotFound, "this shop does not know you"}
		}
		return nil
	})
}

type account struct {
	ID     uuid.UUID `json:"id"`
	Name   string    `json:"name"`
	Orders int       `json:"orders_count"`
}

func (s *Shop) findCustomer(ctx context.Context, who uuid.UUID) (a account, err error) {
	err = s.DB.QueryRow(ctx, `SELECT id, name, orders_count FROM customers WHERE id = $1`, who).Scan(&a.ID, &a.Name, &a.Orders)
	if errors.Is(err, pgx.ErrNoRows) {
		return a, answer{http.StatusNotFound, "this shop does not know you"}
	} else if err != nil {
		return a, fmt.Errorf("customer %s: %w", who, err)
	}
	return a, nil
}

func (s *Shop) me(w http.ResponseWriter, r *http.Request) error {
	who, err := customer(r)
	if err != nil {
		return err
	}
	a, err := s.findCustomer(r.Context(), who)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, a)
}

func (s *Shop) orders(w http.ResponseWriter, r *http.Request) error {
	who, err := customer(r)
	if err != nil {
		return err
	}
	rows, err := s.DB.Query(r.Context(), `SELECT `+orderColumns+` FROM orders WHERE customer_id = $1 ORDER BY number DESC LIMIT 50`, who)
	if err != nil {
		return fmt.Errorf("orders of customer %s: %w", who, err)
	}
	list, err := pgx.CollectRows(rows, scanOrder)
	if err != nil {
		return fmt.Errorf("orders of customer %s: %w", who, err)
	}
	if wantsPage(r) {
		return s.showOrders(w, r, who, list)
	}
	return writeJSON(w, http.StatusOK, map[string]any{"orders": list})
}

// cancel gives the money back at once and the seat through the outbox. Repeating it changes nothing.
func (s *Shop) cancel(w http.ResponseWriter, r *http.Request) error {
	who, err := customer(r)
	if err != nil {
		return err
	}
	id, err := parseID("order", r.PathValue("id"))
	if err != nil {
		return err
	}
	var o order
	var found bool
	var release *job
	err = s.inTx(r.Context(), func(look *pgx.Batch) {
		lockCustomer(look, who)
		look.Queue(orderByID, who, id).Query(func(rows pgx.Rows) (err error) {
			o, found, err = foundOrder(rows)
			return err
		})
	}, func(change *pgx.Batch) error {
		switch {
		case !found:
			return answer{http.StatusNotFound, "you have no such order"}
		case o.Status == "refunded":
			return answer{http.StatusConflict, "this order was refunded already"}
		case o.Status == "cancelled":
			return nil
		}
		giveBack(change, who, id, "cancelled")
		o.Status = "cancelled"
		release = &job{Customer: who, ID: uuid.NewSHA1(id, []byte("release")), Kind: "release", Order: id, Seat: o.SeatID}
		release.insert(change)
		return nil
	})
	if err != nil {
		return fmt.Errorf("cancel order %s of customer %s: %w", id, who, err)
	}
	if release != nil {
		s.soon(*release)
	}
	if wantsPage(r) {
		http.Redirect(w, r, "/orders", http.StatusSeeOther)
		return nil
	}
	return writeJSON(w, http.StatusOK, o)
}

// giveBack ends an order and returns its payment.
func giveBack(change *pgx.Batch, who, id uuid.UUID, status string) {
	change.Queue(`UPDATE orders SET status = $3 WHERE customer_id = $1 AND id = $2`, who, id, status)
	change.Queue(`UPDATE payments SET status = 'refunded' WHERE customer_id = $1 AND order_id = $2`, who, id)
}

// bulkNote is the report that every old application has somewhere: a transaction that stays open for long. It is
// served only when asked for, to see what a switch does with writers that do not come to an end.
func (s *Shop) bulkNote(w http.ResponseWriter, r *http.Request) error {
	who, err := customer(r)
	if err != nil {
		return err
	}
	var body struct {
		Note   string `json:"note"`
		Millis int    `json:"ms"` // how long the transaction stays open
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.Millis < 0 || body.Millis > 15000 {
		return answer{http.StatusBadRequest, `want {"note": "text", "ms": 0 to 15000}`}
	}
	var noted int64
	err = s.inTx(r.Context(), func(look *pgx.Batch) {
		lockCustomer(look, who)
		look.Queue(`UPDATE orders SET note = $2 WHERE customer_id = $1`, who, body.Note).Exec(func(tag pgconn.CommandTag) error {
			noted = tag.RowsAffected()
			return nil
		})
		look.Queue(`SELECT pg_sleep($1)`, (time.Duration(body.Millis) * time.Millisecond).Seconds())
	}, nothing)
	if err != nil {
		return fmt.Errorf("bulk note for customer %s: %w", who, err)
	}
	return writeJSON(w, http.StatusOK, map[string]int64{"noted": noted})
}
