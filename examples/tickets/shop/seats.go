package shop

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// reserveFor is how long a seat is kept for an order that has not been confirmed.
const reserveFor = 60 * time.Second

// seat is a row of seats. A sold seat keeps reserved_by; both name the order.
type seat struct {
	ID            uuid.UUID  `json:"id"`
	EventID       uuid.UUID  `json:"event_id"`
	Event         string     `json:"event"`
	Label         string     `json:"label"`
	PriceCents    int        `json:"price_cents"`
	ReservedBy    *uuid.UUID `json:"-"`
	ReservedFor   *uuid.UUID `json:"-"`
	ReservedUntil *time.Time `json:"reserved_until,omitempty"`
	SoldTo        *uuid.UUID `json:"-"`
}

func is(id *uuid.UUID, want uuid.UUID) bool { return id != nil && *id == want }

// The three changes of a seat. Each may be repeated, arrive late, or arrive in another order than it was sent; false
// means that the seat is somebody else's.

func (st *seat) reserve(order, customer uuid.UUID, now time.Time) bool {
	if is(st.ReservedBy, order) && is(st.ReservedFor, customer) {
		if st.SoldTo == nil {
			until := now.Add(reserveFor)
			st.ReservedUntil = &until
		}
		return true
	}
	if st.SoldTo != nil || st.ReservedUntil != nil && now.Before(*st.ReservedUntil) {
		return false
	}
	until := now.Add(reserveFor)
	st.ReservedBy, st.ReservedFor, st.ReservedUntil = &order, &customer, &until
	return true
}

// confirm sells the seat. A reservation that ran out still counts while nobody else took the seat. After a release
// it does not: a confirm that was overtaken by a cancellation sells nothing.
func (st *seat) confirm(order uuid.UUID) bool {
	if !is(st.ReservedBy, order) {
		return false
	}
	st.SoldTo = &order
	return true
}

func (st *seat) release(order uuid.UUID) bool {
	if is(st.ReservedBy, order) {
		st.ReservedBy, st.ReservedFor, st.ReservedUntil, st.SoldTo = nil, nil, nil, nil
	}
	return true
}

func (s *Shop) reserve(w http.ResponseWriter, r *http.Request) error {
	who, err := parseID("customer", r.URL.Query().Get("for"))
	if err != nil {
		return err
	}
	return s.changeSeat(w, r, func(st *seat, order uuid.UUID, now time.Time) bool { return st.reserve(order, who, now) })
}

func (s *Shop) confirm(w http.ResponseWriter, r *http.Request) error {
	return s.changeSeat(w, r, func(st *seat, order uuid.UUID, _ time.Time) bool { return st.confirm(order) })
}

func (s *Shop) release(w http.ResponseWriter, r *http.Request) error {
	return s.changeSeat(w, r, func(st *seat, order uuid.UUID, _ time.Time) bool { return st.release(order) })
}

// changeSeat answers 200 with the seat, or 409. The row is written in either case: a refusal that rests on reading
// alone could come from a copy that is behind; one that wrote was made where the seats are written.
func (s *Shop) changeSeat(w http.ResponseWriter, r *http.Request, change func(*seat, uuid.UUID, time.Time) bool) error {
	id, err := parseID("seat", r.PathValue("id"))
	if err != nil {
		return err
	}
	order, err := parseID("Idempotency-Key (the order)", r.Header.Get("Idempotency-Key"))
	if err != nil {
		return err
	}
	var st seat
	var now time.Time
	var ok bool
	err = s.inTx(r.Context(), func(look *pgx.Batch) {
		look.Queue(`SELECT s.id, s.event_id, e.title, s.label, s.price_cents,
				s.reserved_by, s.reserved_for, s.reserved_until, s.sold_to, clock_timestamp()
			FROM seats s JOIN events e ON e.id = s.event_id WHERE s.id = $1 FOR UPDATE OF s`, id).QueryRow(func(row pgx.Row) error {
			err := row.Scan(&st.ID, &st.EventID, &st.Event, &st.Label, &st.PriceCents,
				&st.ReservedBy, &st.ReservedFor, &st.ReservedUntil, &st.SoldTo, &now)
			if errors.Is(err, pgx.ErrNoRows) {
				return answer{http.StatusNotFound, "there is no such seat"}
			}
			return err
		})
	}, func(write *pgx.Batch) error {
		ok = change(&st, order, now)
		write.Queue(`UPDATE seats SET reserved_by = $2, reserved_for = $3, reserved_until = $4, sold_to = $5
			WHERE id = $1`, id, st.ReservedBy, st.ReservedFor, st.ReservedUntil, st.SoldTo)
		return nil
	})
	if err != nil {
		return fmt.Errorf("seat %s: %w", id, err)
	}
	if !ok {
		return answer{http.StatusConflict, "this seat is taken"}
	}
	return writeJSON(w, http.StatusOK, st)
}

// unsold selects the seats that may be reserved now by order $2; a copy that is behind may show too many.
const unsold = `sold_to IS NULL AND (reserved_by IS NULL OR reserved_by = $2 OR reserved_until < clock_timestamp())`

// nextSeat looks for a free seat of an event behind the given id, in the local copy. found is false at the end.
func (s *Shop) nextSeat(ctx context.Context, event, order, after uuid.UUID) (id uuid.UUID, found bool, err error) {
	err = s.DB.QueryRow(ctx, `SELECT id FROM seats WHERE event_id = $1 AND id > $3 AND `+unsold+` ORDER BY id LIMIT 1`,
		event, order, after).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return uuid.Nil, false, nil
	}
	return id, err == nil, err
}

func (s *Shop) seats(w http.ResponseWriter, r *http.Request) error {
	event, err := parseID("event", r.PathValue("id"))
	if err != nil {
		return err
	}
	limit := 100
	if text := r.URL.Query().Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > 1000 {
			return answer{http.StatusBadRequest, "limit: want a number from 1 to 1000"}
		}
	}
	list, err := s.freeSeats(r.Context(), event, limit)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]any{"event_id": event, "free": list})
}

func (s *Shop) freeSeats(ctx context.Context, event uuid.UUID, limit int) ([]seat, error) {
	start := uuid.New() // everybody is shown other seats, so that fewer want the same one
	rows, err := s.DB.Query(ctx, `(SELECT id, label, price_cents FROM seats WHERE event_id = $1 AND id > $2 AND `+unsold+`
		ORDER BY id LIMIT $3) UNION ALL (SELECT id, label, price_cents FROM seats WHERE event_id = $1 AND id <= $2 AND `+unsold+`
		ORDER BY id LIMIT $3) LIMIT $3`, event, start, limit)
	if err != nil {
		return nil, fmt.Errorf("free seats of event %s: %w", event, err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (seat, error) {
		st := seat{EventID: event}
		return st, row.Scan(&st.ID, &st.Label, &st.PriceCents)
	})
}

// event is a row of events, with what is left of it.
type event struct {
	ID        uuid.UUID `json:"id"`
	Title     string    `json:"title"`
	Venue     string    `json:"venue"`
	StartsAt  time.Time `json:"starts_at"`
	FreeSeats int       `json:"free_seats"`
	FromCents int       `json:"from_cents"`
	Seats     []seat    `json:"-"` // a few to choose from, on the page
}

func (s *Shop) listEvents(ctx context.Context) ([]event, error) {
	rows, err := s.DB.Query(ctx, `SELECT e.id, e.title, e.venue, e.starts_at, count(s.id), coalesce(min(s.price_cents), 0)
		FROM events e LEFT JOIN seats s ON s.event_id = e.id AND s.sold_to IS NULL
			AND (s.reserved_by IS NULL OR s.reserved_until < clock_timestamp())
		GROUP BY e.id ORDER BY e.starts_at, e.id`)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (event, error) {
		var e event
		return e, row.Scan(&e.ID, &e.Title, &e.Venue, &e.StartsAt, &e.FreeSeats, &e.FromCents)
	})
}

func (s *Shop) events(w http.ResponseWriter, r *http.Request) error {
	list, err := s.listEvents(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]any{"events": list})
}
