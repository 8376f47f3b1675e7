package shop_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

func TestFence_BecomesARequestToTheGateway(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, table, atCommit string }{
		{"refused at once", "customers", ""},
		{"refused at the last row", "outbox", ""},
		{"refused at the commit", "payments", "yes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 40, Customers: 1})
			who, key := seed.Customer(1, 0), uuid.New()
			f.fence(c.table, "true", c.atCommit)
			r := f.buy(who, key, anySeat())
			if r.status != 503 || r.header.Get("Atoll-Fenced") != "users/83/7" {
				t.Fatalf("%d, Atoll-Fenced %q: %s", r.status, r.header.Get("Atoll-Fenced"), r.body)
			}
			f.want("0 0 0", `SELECT (SELECT count(*) FROM orders) || ' ' || (SELECT count(*) FROM payments) || ' ' ||
				(SELECT sum(orders_count) FROM customers)`)
			f.want("1", "SELECT count(*) FROM seats WHERE reserved_by = $1", key)

			// The gateway sends the same request where it may be written: same order, same seat.
			f.unfence(c.table)
			if r := f.buy(who, key, anySeat()); r.status != 201 || r.ID != key.String() {
				t.Fatalf("%d %s", r.status, r.body)
			}
			f.want("1", "SELECT count(*) FROM seats WHERE reserved_by IS NOT NULL")
		})
	}
}

func TestFence_EveryWriteSaysSo(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 2, Customers: 1})
	who, order := seed.Customer(1, 0), uuid.New()
	if r := f.buy(who, order, thisSeat(0)); r.status != 201 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	f.fence("customers", "true", "")
	f.fence("seats", "true", "")
	me := []string{"X-Customer", who.String(), "Idempotency-Key", uuid.NewString()}
	taken := "/seats/" + seed.Seat(1, 0).String()
	for path, body := range map[string]string{
		"/orders/" + order.String() + "/cancel": "{}",
		// Refusals, too, are given only where the rows are written: this copy may be behind.
		"/orders/" + uuid.NewString() + "/cancel": "{}",
		"/orders/bulk-note":                       `{"note": "x"}`,
		taken + "/reserve?for=" + who.String():    "",
		taken + "/confirm":                        "",
		taken + "/release":                        "",
	} {
		if r := f.ask("POST", path, body, me...); r.status != 503 || r.header.Get("Atoll-Fenced") != "users/83/7" {
			t.Errorf("%s: %d, Atoll-Fenced %q: %s", path, r.status, r.header.Get("Atoll-Fenced"), r.body)
		}
	}
	// A seat that cannot be reserved is no fence of the customer's: nothing for the gateway to send elsewhere.
	if r := f.buy(who, uuid.New(), thisSeat(1)); r.status != 503 || r.header.Get("Atoll-Fenced") != "" {
		t.Errorf("%d, Atoll-Fenced %q: %s", r.status, r.header.Get("Atoll-Fenced"), r.body)
	}
	f.want("pending", "SELECT status FROM orders WHERE id = $1", order)
}

func TestOutbox_SkipsWhatTheFenceRefuses(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 10, Customers: 2})
	elsewhere, here := uuid.New(), uuid.New()
	for n, order := range []uuid.UUID{elsewhere, here} {
		if r := f.buy(seed.Customer(1, n), order, anySeat()); r.status != 201 {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	f.fence("outbox", "NEW.customer_id = '"+seed.Customer(1, 0).String()+"'", "")
	f.deliver()
	f.eventually("confirmed", "SELECT status FROM orders WHERE id = $1", here)
	f.want("pending", "SELECT status FROM orders WHERE id = $1", elsewhere)
	f.want("0", "SELECT count(*) FROM seats WHERE sold_to = $1", elsewhere)

	// The customer moves here: the scan finds the row.
	f.unfence("outbox")
	f.eventually("confirmed", "SELECT status FROM orders WHERE id = $1", elsewhere)
	f.want("2", "SELECT sum(attempts) FROM outbox")
	if log := f.log.String(); strings.Contains(log, "WARN") || strings.Contains(log, "ERROR") {
		t.Errorf("a refused row is nothing to report:\n%s", log)
	}
}

func TestOutbox_FindsRowsOfAShopThatDied(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 1, Customers: 1})
	order := uuid.New()
	if r := f.buy(seed.Customer(1, 0), order, anySeat()); r.status != 201 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	// It had claimed the row.
	f.exec("UPDATE outbox SET attempts = 1, next_try_at = clock_timestamp() + interval '1 s'")
	f.deliver()
	f.eventually("confirmed", "SELECT status FROM orders WHERE id = $1", order)
}

func TestServe_AnswersWhatIsUnderWayBeforeItStops(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 1, Customers: 1})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- f.shop.Serve(ctx, listener) }()
	answered := make(chan int, 1)
	go func() {
		req, _ := http.NewRequest("POST", "http://"+listener.Addr().String()+"/orders/bulk-note", strings.NewReader(`{"note": "slow", "ms": 700}`))
		req.Header.Set("X-Customer", seed.Customer(1, 0).String())
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			answered <- 0
			return
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		answered <- resp.StatusCode
	}()
	f.eventually("1", "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep($1)%' AND state = 'active' AND pid <> pg_backend_pid()")
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	select {
	case status := <-answered:
		if status != 200 {
			t.Errorf("status %d", status)
		}
	default:
		t.Error("Serve returned before the request that was under way was answered")
	}
	if conn, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("still listening")
	}
}
