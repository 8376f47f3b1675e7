package lab

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// readShop reads the ticket shop's tables of one site.
func readShop(ctx context.Context, db querier, site topo.SiteID) (Shop, error) {
	s := Shop{Site: site, Counts: map[string]int{}, Orders: map[string]Order{}, Sold: map[string]string{}, Registers: map[string]string{}, Lists: map[string][]string{}}
	var (
		o            Order
		customer     string
		n            int
		seat, soldTo string
		address      string
		wishes       []string
		ordersOfShop = `SELECT o.id::text, o.customer_id::text, o.number, o.seat_id::text, o.status,
			(SELECT count(*)::int FROM payments p WHERE p.customer_id = o.customer_id AND p.order_id = o.id) FROM orders o`
		countsOfShop = `SELECT id::text, orders_count, address, wishes FROM customers`
		seatsOfShop  = `SELECT id::text, sold_to::text FROM seats WHERE sold_to IS NOT NULL`
	)
	err := eachRow(ctx, db, ordersOfShop, []any{&o.ID, &o.Customer, &o.Number, &o.Seat, &o.Status, &o.Payments}, func() error {
		if _, twice := s.Orders[o.ID]; twice {
			return fmt.Errorf("order %s is there twice, for two customers", o.ID)
		}
		s.Orders[o.ID] = o
		return nil
	})
	if err == nil {
		err = eachRow(ctx, db, countsOfShop, []any{&customer, &n, &address, &wishes}, func() error {
			s.Counts[customer] = n
			if address != "" {
				s.Registers[customer] = address
			}
			if len(wishes) > 0 {
				s.Lists[customer] = slices.Clone(wishes)
			}
			return nil
		})
	}
	if err == nil {
		err = eachRow(ctx, db, seatsOfShop, []any{&seat, &soldTo}, func() error { s.Sold[seat] = soldTo; return nil })
	}
	if err != nil {
		return s, fmt.Errorf("lab: read the shop of site %s: %w", site, err)
	}
	return s, nil
}

func eachRow(ctx context.Context, db querier, sql string, into []any, each func() error) error {
	rows, err := db.Query(ctx, sql)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, into, each)
	return err
}

// openJobs counts what the shop still has to do by itself: rows of its outbox that are not done.
func openJobs(ctx context.Context, db querier) (int, error) {
	rows, err := db.Query(ctx, `SELECT count(*)::int FROM outbox WHERE done_at IS NULL`)
	if err != nil {
		return 0, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
}

// customersIn lists up to limit customers whose bucket is in the set. It leaves out the registers and lists, whose
// checks want them to be written by nobody else.
func customersIn(ctx context.Context, db querier, buckets topo.Spans, n, limit int) ([]string, error) {
	rows, err := db.Query(ctx, `SELECT id::text FROM customers WHERE address = '' AND wishes = '{}' ORDER BY id`)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	var out []string
	for _, c := range all {
		if len(out) < limit && buckets.Contains(bucketOf(c, n)) {
			out = append(out, c)
		}
	}
	return out, err
}
