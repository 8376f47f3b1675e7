package shop_test

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

func TestPage_BuyATicket(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 2, Seats: 20, Customers: 8})
	html := []string{"Accept", "text/html,application/xhtml+xml"}
	if r := f.ask("GET", "/", "", html...); r.status != 200 || strings.Count(r.body, `name="customer"`) != 6 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	who := seed.Customer(1, 3).String()
	r := f.ask("POST", "/session", "customer="+who, html...)
	cookie, _, _ := strings.Cut(r.header.Get("Set-Cookie"), ";")
	if r.status != 303 || cookie != "customer="+who {
		t.Fatalf("%d %v", r.status, r.header)
	}
	html = append(html, "Cookie", cookie)

	r = f.ask("GET", "/", "", html...)
	if r.status != 200 || strings.Count(r.body, "Buy a ticket") != 2 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	key := regexp.MustCompile(`name="key" value="([^"]+)"`).FindStringSubmatch(r.body)[1]
	seat := regexp.MustCompile(`<option value="([0-9a-f-]{36})"`).FindStringSubmatch(r.body)[1]
	form := url.Values{"key": {key}, "event": {seed.Event(1, 0).String()}, "seat": {seat}}.Encode()
	for range 2 { // the button is pressed twice
		if r = f.ask("POST", "/buy", form, html...); r.status != 303 || r.header.Get("Location") != "/orders?new="+key {
			t.Fatalf("%d %v %s", r.status, r.header, r.body)
		}
	}
	r = f.ask("GET", "/orders?new="+key, "", html...)
	if r.status != 200 || strings.Count(r.body, "Cancel this order") != 1 || !strings.Contains(r.body, "being confirmed") {
		t.Errorf("%d %s", r.status, r.body)
	}
	f.want(seat, "SELECT seat_id FROM orders")
	if r = f.ask("POST", "/orders/"+key+"/cancel", "", html...); r.status != 303 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r = f.ask("GET", "/orders", "", html...); !strings.Contains(r.body, "cancelled") {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r = f.ask("POST", "/buy", "seat="+uuid.NewString(), html...); r.status != 404 || !strings.Contains(r.body, "there is no such seat") {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r = f.ask("POST", "/session", "", html...); r.status != 303 || !strings.Contains(r.header.Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("signing out: %d %v", r.status, r.header)
	}
}

func TestPage_ShowsTheFence(t *testing.T) {
	t.Parallel()
	f := open(t, seed.Shape{Seed: 1, Events: 1, Seats: 1, Customers: 1})
	f.fence("customers", "true", "")
	r := f.ask("POST", "/buy", "event="+seed.Event(1, 0).String(), "Accept", "text/html", "Cookie", "customer="+seed.Customer(1, 0).String())
	if r.status != 503 || r.header.Get("Atoll-Fenced") != "users/83/7" || !strings.Contains(r.body, "<html") {
		t.Errorf("%d %v %s", r.status, r.header, r.body)
	}
}
