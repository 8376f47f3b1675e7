// Package seed fills an empty shop with events, seats and customers. Every id follows from a number and the seed, so a
// load generator knows the customers and events of a shop without asking it.
package seed

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/examples/tickets/shop"
)

// Shape says how much there is; equal shapes give equal rows.
type Shape struct {
	Seed      int64
	Events    int
	Seats     int // in all, dealt out to the events in turn
	Customers int
}

var namespace = uuid.MustParse("6f1b1c5e-6c6b-4f0b-9d0e-3a8a0f3d8a11")

func id(seed int64, kind string, n int) uuid.UUID {
	return uuid.NewSHA1(namespace, []byte(strconv.FormatInt(seed, 10)+"/"+kind+"/"+strconv.Itoa(n)))
}

// Customer is the id of the n-th customer, from 0.
func Customer(seed int64, n int) uuid.UUID { return id(seed, "customer", n) }

// Event is the id of the n-th event, from 0.
func Event(seed int64, n int) uuid.UUID { return id(seed, "event", n) }

// Seat is the id of the n-th seat, from 0.
func Seat(seed int64, n int) uuid.UUID { return id(seed, "seat", n) }

// Schema creates the shop's tables where they are missing. A site that receives its rows from another one needs no
// more than this.
func Schema(ctx context.Context, db *pgx.Conn) error {
	if _, err := db.Exec(ctx, shop.Schema); err != nil {
		return fmt.Errorf("create the shop's tables: %w", err)
	}
	return nil
}

// Grant lets another role use the tables, for a shop that does not run as their owner.
func Grant(ctx context.Context, db *pgx.Conn, role string) error {
	name := pgx.Identifier{role}.Sanitize()
	_, err := db.Exec(ctx, "GRANT SELECT, INSERT, UPDATE, DELETE ON customers, orders, payments, outbox, events, seats TO "+name)
	if err != nil {
		return fmt.Errorf("grant the shop's tables to %s: %w", role, err)
	}
	return nil
}

// Fill inserts the rows in one transaction; rows that exist stay as they are.
func Fill(ctx context.Context, db *pgx.Conn, shape Shape) error {
	if shape.Events < 1 || shape.Seats < 0 || shape.Customers < 0 {
		return fmt.Errorf("%d events, %d seats, %d customers: want at least one event and no negative numbers",
			shape.Events, shape.Seats, shape.Customers)
	}
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if err := fillEvents(ctx, tx, shape); err != nil {
			return fmt.Errorf("insert events: %w", err)
		}
		if err := fillSeats(ctx, tx, shape); err != nil {
			return fmt.Errorf("insert seats: %w", err)
		}
		if err := fillCustomers(ctx, tx, shape); err != nil {
			return fmt.Errorf("insert customers: %w", err)
		}
		return nil
	})
}

func fillEvents(ctx context.Context, tx pgx.Tx, shape Shape) error {
	titles := []string{"The Lighthouse Sessions", "Harbour Jazz Night", "Tides: a Symphony", "Reef & Roll"}
	venues := []string{"Old Customs House", "Pier 7", "Lagoon Hall", "The Drydock"}
	first := time.Date(2027, time.May, 14, 20, 0, 0, 0, time.UTC)
	for n := range shape.Events {
		title := titles[n%len(titles)]
		if round := n / len(titles); round > 0 {
			title += fmt.Sprintf(" (evening %d)", round+1)
		}
		_, err := tx.Exec(ctx, `INSERT INTO events (id, title, venue, starts_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
			Event(shape.Seed, n), title, venues[n%len(venues)], first.AddDate(0, 0, 7*n))
		if err != nil {
			return err
		}
	}
	return nil
}

func fillSeats(ctx context.Context, tx pgx.Tx, shape Shape) error {
	ids := make([]uuid.UUID, shape.Seats)
	events := make([]uuid.UUID, shape.Seats)
	labels := make([]string, shape.Seats)
	prices := make([]int, shape.Seats)
	for n := range shape.Seats {
		place := n / shape.Events // of this event
		row := place / 40
		ids[n], events[n] = Seat(shape.Seed, n), Event(shape.Seed, n%shape.Events)
		labels[n] = fmt.Sprintf("Row %d, seat %d", row+1, place%40+1)
		prices[n] = max(9500-250*row, 1900)
	}
	_, err := tx.Exec(ctx, `INSERT INTO seats (id, event_id, label, price_cents)
		SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::int[]) ON CONFLICT DO NOTHING`, ids, events, labels, prices)
	return err
}

func fillCustomers(ctx context.Context, tx pgx.Tx, shape Shape) error {
	given := []string{"Ada", "Bruno", "Chiara", "Dele", "Edith", "Farid", "Grete", "Hugo", "Ines", "Jun", "Kofi", "Lena", "Malik", "Noor", "Otto", "Priya"}
	family := []string{"Abel", "Brandt", "Costa", "Diallo", "Eriksen", "Fischer", "Garcia", "Haddad", "Ito", "Jansen", "Keller", "Lind", "Moreau"}
	ids := make([]uuid.UUID, shape.Customers)
	names := make([]string, shape.Customers)
	for n := range shape.Customers {
		ids[n] = Customer(shape.Seed, n)
		names[n] = given[n%len(given)] + " " + family[n%len(family)]
	}
	_, err := tx.Exec(ctx, `INSERT INTO customers (id, name)
		SELECT * FROM unnest($1::uuid[], $2::text[]) ON CONFLICT DO NOTHING`, ids, names)
	return err
}
