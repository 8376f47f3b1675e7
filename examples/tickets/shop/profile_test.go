package shop_test

import (
	"encoding/json"
	"testing"

	"github.com/google/uuid"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

func TestProfile(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 2, Customers: 1})
	id := seed.Customer(1, 0)
	who := id.String()
	want := func(address string, wishes, orders int) {
		t.Helper()
		r := f.ask("GET", "/me/profile", "", "X-Customer", who)
		var p struct {
			Name, Address *string
			Wishes        []string
			Orders        *int
		}
		if err := json.Unmarshal([]byte(r.body), &p); err != nil || r.status != 200 || p.Name == nil || *p.Name == "" || p.Address == nil || *p.Address != address ||
			p.Wishes == nil || len(p.Wishes) != wishes || p.Orders == nil || *p.Orders != orders {
			t.Errorf("%d %s, want address %q, %d wishes, %d orders (%v)", r.status, r.body, address, wishes, orders, err)
		}
	}
	want("", 0, 0)
	f.ask("PUT", "/me/address", `{"address": "Pier 7"}`, "X-Customer", who)
	f.ask("POST", "/me/wishes", `{"wish": "jazz"}`, "X-Customer", who)
	want("Pier 7", 1, 0)
	f.buy(id, uuid.New(), anySeat())
	want("Pier 7", 1, 1)
	for stranger, status := range map[string]int{uuid.NewString(): 404, "ada": 400, "": 400} {
		if r := f.ask("GET", "/me/profile", "", "X-Customer", stranger); r.status != status {
			t.Errorf("%q: %d %s, want %d", stranger, r.status, r.body, status)
		}
	}
}
