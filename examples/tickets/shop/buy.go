package shop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// order is a row of orders.
type order struct {
	ID         uuid.UUID `json:"id"`
	Number     int       `json:"number"`
	SeatID     uuid.UUID `json:"seat"`
	Event      string    `json:"event"`
	Seat       string    `json:"seat_label"`
	PriceCents int       `json:"price_cents"`
	Status     string    `json:"status"`
	Site       string    `json:"site"`
	CreatedAt  time.Time `json:"created_at"`
}

const orderColumns = `id, number, seat_id, event, seat, price_cents, status, site, created_at`

func scanOrder(row pgx.CollectableRow) (order, error) {
	var o order
	return o, row.Scan(&o.ID, &o.Number, &o.SeatID, &o.Event, &o.Seat, &o.PriceCents, &o.Status, &o.Site, &o.CreatedAt)
}

// purchase is the body of POST /buy: a seat, or an event of which any seat will do.
type purchase struct {
	Event uuid.UUID `json:"event"`
	Seat  uuid.UUID `json:"seat"`
	key   string
}

// orderID follows from the client's key, so that a request that is sent again, at this site or at another, means the
// same order.
func (p purchase) orderID(customer uuid.UUID) uuid.UUID {
	if p.key == "" {
		return uuid.New()
	}
	if id, err := uuid.Parse(p.key); err == nil {
		return id
	}
	return uuid.NewSHA1(customer, []byte(p.key))
}

func readPurchase(r *http.Request) (purchase, error) {
	p := purchase{key: r.Header.Get("Idempotency-Key")}
	if len(p.key) > 200 {
		return p, answer{http.StatusBadRequest, "Idempotency-Key: want at most 200 characters"}
	}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "application/json" {
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			return p, fmt.Errorf("%w (%w)", answer{http.StatusBadRequest, `want {"event": "UUID"} or {"seat": "UUID"}`}, err)
		}
	} else {
		if err := r.ParseForm(); err != nil {
			return p, fmt.Errorf("%w (%w)", answer{http.StatusBadRequest, "want a form with event or seat"}, err)
		}
		for field, to := range map[string]*uuid.UUID{"event": &p.Event, "seat": &p.Seat} {
			if text := r.PostForm.Get(field); text != "" {
				id, err := parseID(field, text)
				if err != nil {
					return p, err
				}
				*to = id
			}
		}
		if p.key == "" {
			p.key = r.PostForm.Get("key")
		}
	}
	if p.Event == uuid.Nil && p.Seat == uuid.Nil {
		return p, answer{http.StatusBadRequest, "which event, or which seat?"}
	}
	return p, nil
}

func (s *Shop) buy(w http.ResponseWriter, r *http.Request) error {
	who, err := customer(r)
	if err != nil {
		return err
	}
	want, err := readPurchase(r)
	if err != nil {
		return err
	}
	id := want.orderID(who)
	o, found, err := s.findOrder(r.Context(), who, id)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if !found {
		st, err := s.takeSeat(r.Context(), want, id, who)
		if err != nil {
			return err
		}
		var made bool
		if o, made, err = s.placeOrder(r.Context(), who, id, st); err != nil {
			return err
		}
		if made {
			status = http.StatusCreated
		}
	}
	if wantsPage(r) {
		http.Redirect(w, r, "/orders?new="+o.ID.String(), http.StatusSeeOther)
		return nil
	}
	return writeJSON(w, status, o)
}

const orderByID = `SELECT ` + orderColumns + ` FROM orders WHERE customer_id = $1 AND id = $2`

func (s *Shop) findOrder(ctx context.Context, who, id uuid.UUID) (o order, found bool, err error) {
	rows, err := s.DB.Query(ctx, orderByID, who, id)
	if err == nil {
		o, found, err = foundOrder(rows)
	}
	if err != nil {
		return o, false, fmt.Errorf("order %s: %w", id, err)
	}
	return o, found, nil
}

func foundOrder(rows pgx.Rows) (o order, found bool, err error) {
	o, err = pgx.CollectExactlyOneRow(rows, scanOrder)
	if errors.Is(err, pgx.ErrNoRows) {
		return o, false, nil
	}
	return o, err == nil, err
}

// takeSeat reserves the seat that was asked for, or some free seat of the event. The local copy of the catalogue may
// be behind and show a seat that is taken: then the next one. The search starts at the order's id, so that the same
// order asks for the same seat again.
func (s *Shop) takeSeat(ctx context.Context, want purchase, order, who uuid.UUID) (seat, error) {
	if want.Seat != uuid.Nil {
		return s.reserveSeat(ctx, want.Seat, order, who)
	}
	after, wrapped := order, false
	for range 64 {
		id, found, err := s.nextSeat(ctx, want.Event, order, after)
		if err != nil {
			return seat{}, fmt.Errorf("free seat of event %s: %w", want.Event, err)
		}
		if !found && wrapped {
			return seat{}, answer{http.StatusConflict, "sold out"}
		}
		if !found {
			after, wrapped = uuid.Nil, true
			continue
		}
		st, err := s.reserveSeat(ctx, id, order, who)
		var a answer
		if errors.As(err, &a) && a.status == http.StatusConflict {
			after = id
			continue
		}
		return st, err
	}
	return seat{}, answer{http.StatusConflict, "the last seats are going fast; please try again"}
}

func (s *Shop) reserveSeat(ctx context.Context, id, order, who uuid.UUID) (st seat, err error) {
	err = s.call(ctx, "/seats/"+id.String()+"/reserve?for="+who.String(), order, &st)
	return st, err
}

// call posts to another part of the shop through the local gateway, which knows where that part is served. It does
// not try again, the gateway does what can be done; should the request arrive twice all the same, it changes nothing.
func (s *Shop) call(ctx context.Context, path string, order uuid.UUID, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Gateway+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Idempotency-Key", order.String())
	resp, err := s.http.Do(req)
	if err != nil {
		s.Log.Warn("call through the gateway failed", "path", path, "err", err)
		return answer{http.StatusServiceUnavailable, "the seat plan does not answer; please try again"}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	switch {
	case err != nil || resp.StatusCode >= 500:
		s.Log.Warn("call through the gateway failed", "path", path, "status", resp.StatusCode, "err", err)
		return answer{http.StatusServiceUnavailable, "the seat plan does not answer; please try again"}
	case resp.StatusCode == http.StatusConflict:
		return answer{http.StatusConflict, "this seat is taken"}
	case resp.StatusCode == http.StatusNotFound:
		return answer{http.StatusNotFound, "there is no such seat"}
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s answered %d: %.200s", path, resp.StatusCode, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s answered no seat: %w", path, err)
	}
	return nil
}

// placeOrder commits order, payment and outbox row. Made is false when the order was there already: two requests with
// one key met, and the customer's row let one pass after the other.
func (s *Shop) placeOrder(ctx context.Context, who, id uuid.UUID, st seat) (o order, made bool, err error) {
	confirm := job{Customer: who, ID: uuid.NewSHA1(id, []byte("confirm")), Kind: "confirm", Order: id, Seat: st.ID}
	var number int
	var there bool
	err = s.inTx(ctx, func(look *pgx.Batch) {
		look.Queue(`UPDATE customers SET orders_count = orders_count + 1 WHERE id = $1 RETURNING orders_count`, who).QueryRow(func(row pgx.Row) error {
			err := row.Scan(&number)
			if errors.Is(err, pgx.ErrNoRows) {
				return answer{http.StatusNotFound, "this shop does not know you"}
			}
			return err
		})
		look.Queue(orderByID, who, id).Query(func(rows pgx.Rows) (err error) {
			o, there, err = foundOrder(rows)
			return err
		})
	}, func(change *pgx.Batch) error {
		if there {
			return errRepeated
		}
		change.Queue(`INSERT INTO orders (customer_id, id, number, seat_id, event, seat, price_cents)
			VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING `+orderColumns, who, id, number, st.ID, st.Event, st.Label, st.PriceCents).Query(func(rows pgx.Rows) (err error) {
			o, err = pgx.CollectExactlyOneRow(rows, scanOrder)
			return err
		})
		change.Queue(`INSERT INTO payments (customer_id, id, order_id, amount_cents) VALUES ($1, $2, $3, $4)`,
			who, uuid.NewSHA1(id, []byte("payment")), id, st.PriceCents)
		confirm.insert(change)
		return nil
	})
	if errors.Is(err, errRepeated) {
		return o, false, nil
	} else if err != nil {
		return o, false, fmt.Errorf("order %s of customer %s: %w", id, who, err)
	}
	s.soon(confirm)
	return o, true, nil
}

var errRepeated = errors.New("this order was made already")
