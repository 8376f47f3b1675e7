package shop_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

func TestAddress(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 1, Customers: 2})
	who, other := seed.Customer(1, 0).String(), seed.Customer(1, 1).String()
	ask := func(method, body, who string, status int, answer string) {
		t.Helper()
		if r := f.ask(method, "/me/address", body, "X-Customer", who); r.status != status || !strings.Contains(r.body, answer) {
			t.Errorf("%s %s: %d %s, want %d %s", method, body, r.status, r.body, status, answer)
		}
	}
	ask("GET", "", who, 200, `{"address":""}`)
	for range 2 { // it may be repeated
		ask("PUT", `{"address": "Pier 7"}`, who, 200, `{"address":"Pier 7"}`)
	}
	ask("GET", "", who, 200, `{"address":"Pier 7"}`)
	ask("GET", "", other, 200, `{"address":""}`)
	ask("PUT", `{"address": ""}`, who, 200, `{"address":""}`)
	for _, bad := range []string{`{}`, `{"address": 7}`, `x`, `{"address": "` + strings.Repeat("x", 201) + `"}`} {
		ask("PUT", bad, who, 400, "want")
	}
	stranger := uuid.NewString()
	ask("GET", "", stranger, 404, "does not know you")
	ask("PUT", `{"address": "x"}`, stranger, 404, "does not know you")
	f.fence("customers", "NEW.address = 'Pier 9'", "")
	r := f.ask("PUT", "/me/address", `{"address": "Pier 9"}`, "X-Customer", who)
	if r.status != 503 || r.header.Get("Atoll-Fenced") != "users/83/7" {
		t.Errorf("fenced: %d %v", r.status, r.header)
	}
	f.want("", "SELECT address FROM customers WHERE id = $1", who)
}
