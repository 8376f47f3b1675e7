package shop_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

func TestWishes(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 1, Customers: 2})
	who, other := seed.Customer(1, 0).String(), seed.Customer(1, 1).String()
	ask := func(method, body, who string, status int, answer string) {
		t.Helper()
		if r := f.ask(method, "/me/wishes", body, "X-Customer", who); r.status != status || !strings.Contains(r.body, answer) {
			t.Errorf("%s %s: %d %s, want %d %s", method, body, r.status, r.body, status, answer)
		}
	}
	ask("GET", "", who, 200, `{"wishes":[]}`)
	ask("POST", `{"wish": "jazz, late"}`, who, 200, `{"wishes":["jazz, late"]}`)
	ask("POST", `{"wish": "jazz, late"}`, who, 200, `{"wishes":["jazz, late","jazz, late"]}`) // a list is no set
	ask("POST", `{"wish": "{}"}`, who, 200, `{"wishes":["jazz, late","jazz, late","{}"]}`)
	ask("GET", "", who, 200, `{"wishes":["jazz, late","jazz, late","{}"]}`)
	ask("GET", "", other, 200, `{"wishes":[]}`)
	for _, bad := range []string{`{}`, `{"wish": ""}`, `{"wish": 7}`, `x`, `{"wish": "` + strings.Repeat("x", 101) + `"}`} {
		ask("POST", bad, who, 400, "want")
	}
	stranger := uuid.NewString()
	ask("GET", "", stranger, 404, "does not know you")
	ask("POST", `{"wish": "x"}`, stranger, 404, "does not know you")
	f.fence("customers", "NEW.wishes @> '{late}'", "")
	r := f.ask("POST", "/me/wishes", `{"wish": "late"}`, "X-Customer", other)
	if r.status != 503 || r.header.Get("Atoll-Fenced") != "users/83/7" {
		t.Errorf("fenced: %d %v", r.status, r.header)
	}
	f.want("{}", "SELECT wishes FROM customers WHERE id = $1", other)
}
