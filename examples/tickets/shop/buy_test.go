package shop_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

func TestBuy_ManyForFewSeats(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 50, Customers: 20})
	f.deliver()
	var wg sync.WaitGroup
	var mu sync.Mutex
	sold := map[string]string{}
	statuses := map[int]int{}
	for n := range 200 {
		wg.Go(func() {
			r := f.buy(seed.Customer(1, n%20), uuid.New(), anySeat())
			mu.Lock()
			defer mu.Unlock()
			statuses[r.status]++
			if r.status != 201 {
				return
			}
			if other := sold[r.Seat]; other != "" || r.Seat == "" {
				t.Errorf("seat %q went to orders %s and %s", r.Seat, other, r.ID)
			}
			sold[r.Seat] = r.ID
		})
	}
	wg.Wait()
	if statuses[201] != 50 || statuses[409] != 150 {
		t.Errorf("answers by status: %v, want 50 × 201 and 150 × 409", statuses)
	}
	f.eventually("50", "SELECT count(*) FROM orders WHERE status = 'confirmed'")
	f.want("50", "SELECT count(*) FROM seats s JOIN orders o ON o.id = s.sold_to AND o.seat_id = s.id")
	f.want("50", "SELECT count(*) FROM payments p JOIN orders o USING (customer_id) WHERE o.id = p.order_id AND p.status = 'captured'")
	f.want("50", "SELECT count(*) FROM outbox WHERE done_at IS NOT NULL")
	f.want("0", "SELECT count(*) FROM (SELECT number, row_number() OVER (PARTITION BY customer_id ORDER BY number) n FROM orders) o WHERE number <> n")
	f.want("0", "SELECT count(*) FROM customers c WHERE orders_count <> (SELECT count(*) FROM orders WHERE customer_id = c.id)")
	f.want("50", "SELECT count(*) FROM orders WHERE site = current_setting('cluster_name') AND site <> ''")
}

func TestBuy_RepeatedIsTheSameOrder(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 50, Customers: 2})
	who, key := seed.Customer(1, 0), uuid.New()
	var wg sync.WaitGroup
	replies := make([]reply, 8)
	for n := range replies {
		wg.Go(func() { replies[n] = f.buy(who, key, anySeat()) })
	}
	wg.Wait()
	made := 0
	for _, r := range append(replies, f.buy(who, key, anySeat())) {
		if r.status == 201 {
			made++
		} else if r.status != 200 {
			t.Errorf("status %d: %s", r.status, r.body)
		}
		if r.ID != key.String() || r.Number != 1 || r.Seat != replies[0].Seat {
			t.Errorf("order %s number %d seat %s, want %s number 1 seat %s", r.ID, r.Number, r.Seat, key, replies[0].Seat)
		}
	}
	if made != 1 {
		t.Errorf("%d of the same requests made an order", made)
	}
	f.want("1", "SELECT count(*) FROM orders")
	f.want("1", "SELECT orders_count FROM customers WHERE id = $1", who)
	f.want("1", "SELECT count(*) FROM seats WHERE reserved_by IS NOT NULL")

	// Another customer with the same key gets an order and a seat of his own.
	if r := f.buy(seed.Customer(1, 1), key, thisSeat(0)); r.status != 201 && r.status != 409 {
		t.Errorf("other customer: %d %s", r.status, r.body)
	}
	f.want("0", "SELECT count(*) FROM (SELECT seat_id FROM orders GROUP BY seat_id HAVING count(*) > 1) x")

	// A key of the client's own form means one order, too.
	text := []string{"X-Customer", who.String(), "Idempotency-Key", "cart-17"}
	first, second := f.ask("POST", "/buy", anySeat(), text...), f.ask("POST", "/buy", anySeat(), text...)
	if first.status != 201 || second.status != 200 || first.ID != second.ID {
		t.Errorf("key cart-17: %d %s, then %d %s", first.status, first.ID, second.status, second.ID)
	}
}

// A purchase whose look for itself failed is none, and no repetition either: the same request may come again.
func TestBuy_FailsWhereItCannotLook(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 5, Customers: 1})
	who, key := seed.Customer(1, 0), uuid.New()
	f.exec(`CREATE FUNCTION blind() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN PERFORM set_config('search_path', 'pg_catalog', true); RETURN new; END $$`)
	f.exec(`CREATE TRIGGER blind BEFORE UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION blind()`)
	if r := f.buy(who, key, anySeat()); r.status < 500 {
		t.Errorf("%d %s, want an error", r.status, r.body)
	}
	f.want("0", "SELECT count(*) FROM orders")
	f.exec(`DROP TRIGGER blind ON customers`)
	if r := f.buy(who, key, anySeat()); r.status != 201 || r.ID != key.String() {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// A commit is under way when the shop loses its database: one that the database ends wrote nothing, and of one whose
// answer is lost the shop does not say that.
func TestBuy_SaysWhatItKnowsOfACommit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		lose   func(*fixture)
		status int
	}{
		{"ended by the database", func(f *fixture) {
			f.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'`)
		}, 503},
		{"cut off", (*fixture).cut, 500},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 5, Customers: 1})
			who, key := seed.Customer(1, 0), uuid.New()
			f.exec(`CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$`)
			f.exec(`CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON payments DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()`)
			holder, err := pgx.Connect(t.Context(), f.db.Config().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Close(context.Background())
			if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_lock(4711)`); err != nil {
				t.Fatal(err)
			}
			answered := make(chan reply, 1)
			go func() { answered <- f.buy(who, key, anySeat()) }()
			f.eventually("1", `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'`)
			c.lose(f)
			if r := <-answered; r.status != c.status {
				t.Errorf("%d %s, want %d", r.status, r.body, c.status)
			}
			if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_unlock(4711)`); err != nil {
				t.Fatal(err)
			}
			if r := f.buy(who, key, anySeat()); r.status != 201 && (c.status == 503 || r.status != 200) || r.ID != key.String() {
				t.Errorf("asked again: %d %s", r.status, r.body)
			}
			f.want("1", "SELECT count(*) FROM orders")
		})
	}
}

func TestBuy_SameKeyOfAnotherCustomerNeverSharesASeat(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 1, Customers: 2})
	key := uuid.New()
	if r := f.buy(seed.Customer(1, 0), key, thisSeat(0)); r.status != 201 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if r := f.buy(seed.Customer(1, 1), key, thisSeat(0)); r.status != 409 {
		t.Errorf("%d %s, want 409", r.status, r.body)
	}
}

func TestBuy_TakenAndSoldOut(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 1, Customers: 2})
	if r := f.buy(seed.Customer(1, 0), uuid.New(), thisSeat(0)); r.status != 201 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if r := f.buy(seed.Customer(1, 1), uuid.New(), thisSeat(0)); r.status != 409 || !strings.Contains(r.body, "taken") {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := f.buy(seed.Customer(1, 1), uuid.New(), anySeat()); r.status != 409 || !strings.Contains(r.body, "sold out") {
		t.Errorf("%d %s", r.status, r.body)
	}
	f.want("0", "SELECT orders_count FROM customers WHERE id = $1", seed.Customer(1, 1))
}

func TestBuy_ExpiredReservationOfAnother(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 2, Customers: 2})
	late, kept, second := uuid.New(), uuid.New(), uuid.New()
	for key, body := range map[uuid.UUID]string{late: thisSeat(0), kept: thisSeat(1)} {
		if r := f.buy(seed.Customer(1, 0), key, body); r.status != 201 || r.Status != "pending" {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	f.exec("UPDATE seats SET reserved_until = clock_timestamp() - interval '1 s'")
	if r := f.buy(seed.Customer(1, 1), second, thisSeat(0)); r.status != 201 {
		t.Fatalf("the seat whose reservation ran out: %d %s", r.status, r.body)
	}
	f.deliver()
	f.eventually("confirmed", "SELECT status FROM orders WHERE id = $1", second)
	f.eventually("refunded", "SELECT status FROM orders WHERE id = $1", late)
	f.want("refunded", "SELECT status FROM payments WHERE order_id = $1", late)
	// Nobody took the other one, so it is sold although its reservation ran out.
	f.eventually("confirmed", "SELECT status FROM orders WHERE id = $1", kept)
	f.want("2", "SELECT count(*) FROM seats WHERE sold_to IN ($1, $2)", second, kept)
}

func TestCancel(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 3, Customers: 2})
	who, early, late := seed.Customer(1, 0), uuid.New(), uuid.New()
	cancel := func(who, order uuid.UUID) reply {
		return f.ask("POST", "/orders/"+order.String()+"/cancel", "{}", "X-Customer", who.String())
	}
	if r := f.buy(who, early, thisSeat(0)); r.status != 201 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	for range 2 { // before it is confirmed, and again
		if r := cancel(who, early); r.status != 200 || r.Status != "cancelled" || r.ID != early.String() {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	f.deliver() // confirm and release, in any order
	f.eventually("2", "SELECT count(*) FROM outbox WHERE order_id = $1 AND done_at IS NOT NULL", early)
	f.want("cancelled refunded", "SELECT o.status || ' ' || p.status FROM orders o JOIN payments p ON p.order_id = o.id WHERE o.id = $1", early)
	f.want("3", "SELECT count(*) FROM seats WHERE reserved_by IS NULL AND sold_to IS NULL")

	if r := f.buy(who, late, thisSeat(0)); r.status != 201 || r.Number != 2 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	f.eventually("confirmed", "SELECT status FROM orders WHERE id = $1", late)
	if r := cancel(seed.Customer(1, 1), late); r.status != 404 {
		t.Errorf("another's order: %d %s", r.status, r.body)
	}
	if r := cancel(who, late); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	f.eventually("3", "SELECT count(*) FROM seats WHERE reserved_by IS NULL AND sold_to IS NULL")
}

func TestRequests_BadInput(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 1, Customers: 1})
	me := []string{"X-Customer", seed.Customer(1, 0).String()}
	stranger := []string{"X-Customer", uuid.NewString()}
	seat := "/seats/" + seed.Seat(1, 0).String()
	for _, c := range []struct {
		method, path, body string
		headers            []string
		want               int
	}{
		{"POST", "/buy", anySeat(), nil, 400},
		{"POST", "/buy", anySeat(), []string{"X-Customer", "42"}, 400},
		{"POST", "/buy", anySeat(), stranger, 404},
		{"POST", "/buy", "", me, 400},
		{"POST", "/buy", "{", me, 400},
		{"POST", "/buy", `{"event": 7}`, me, 400},
		{"POST", "/buy", "seat=seven", me, 400},
		{"POST", "/buy", "seat=%zz", me, 400},
		{"POST", "/buy", `{"seat": "` + uuid.NewString() + `"}`, me, 404},
		{"POST", "/buy", `{"event": "` + uuid.NewString() + `"}`, me, 409},
		{"POST", "/buy", `{"event": "` + strings.Repeat("x", 70<<10) + `"}`, me, 413},
		{"POST", "/buy", anySeat(), append([]string{"Idempotency-Key", strings.Repeat("k", 300)}, me...), 400},
		{"GET", "/buy", "", me, 405},
		{"GET", "/me", "", stranger, 404},
		{"GET", "/orders", "", nil, 400},
		{"POST", "/orders/7/cancel", "{}", me, 400},
		{"POST", "/orders/" + uuid.NewString() + "/cancel", "{}", me, 404},
		{"POST", "/orders/" + uuid.NewString() + "/cancel", "{}", stranger, 404},
		{"GET", "/events/7/seats", "", nil, 400},
		{"GET", "/events/" + uuid.NewString() + "/seats?limit=0", "", nil, 400},
		{"POST", seat + "/reserve", "", nil, 400},
		{"POST", seat + "/reserve?for=" + uuid.NewString(), "", nil, 400},
		{"POST", seat + "/confirm", "", []string{"Idempotency-Key", uuid.NewString()}, 409},
		{"POST", seat + "/release", "", []string{"Idempotency-Key", uuid.NewString()}, 200},
		{"POST", "/orders/bulk-note", `{"ms": 999999}`, me, 400},
		{"POST", "/session", "customer=7", nil, 400},
		{"GET", "/nothing", "", nil, 404},
	} {
		if r := f.ask(c.method, c.path, c.body, c.headers...); r.status != c.want {
			t.Errorf("%s %s %.40q %.60v: %d %s, want %d", c.method, c.path, c.body, c.headers, r.status, r.body, c.want)
		}
	}
	f.want("0", "SELECT count(*) FROM orders")
	if strings.Contains(f.log.String(), "level=ERROR") {
		t.Errorf("bad input is not an error of the shop:\n%s", f.log)
	}
}

func TestReading(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 2, Seats: 10, Customers: 1})
	me := []string{"X-Customer", seed.Customer(1, 0).String()}
	bought := f.buy(seed.Customer(1, 0), uuid.New(), anySeat())
	if r := f.ask("GET", "/me", "", me...); r.status != 200 || !strings.Contains(r.body, `"orders_count":1`) {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := f.ask("GET", "/orders", "", me...); r.status != 200 || !strings.Contains(r.body, bought.ID) {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := f.ask("GET", "/events", ""); r.status != 200 || !strings.Contains(r.body, `"free_seats":4`) || !strings.Contains(r.body, `"free_seats":5`) {
		t.Errorf("%d %s", r.status, r.body)
	}
	for limit, want := range map[int]int{3: 3, 100: 4} {
		r := f.ask("GET", fmt.Sprintf("/events/%s/seats?limit=%d", seed.Event(1, 0), limit), "")
		if got := strings.Count(r.body, `"label"`); r.status != 200 || got != want || strings.Contains(r.body, bought.Seat) {
			t.Errorf("limit %d: %d, %d seats, want %d without the reserved one: %s", limit, r.status, got, want, r.body)
		}
	}
	if r := f.ask("GET", "/healthz", ""); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}
