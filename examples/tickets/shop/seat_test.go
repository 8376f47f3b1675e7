package shop

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

// TestSeat_AnyOrder lets the calls about one seat arrive in any order, often, late: nobody's seat is sold to another,
// and a released order never gets the seat back without reserving it again.
func TestSeat_AnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var st seat
		now := time.Unix(1_800_000_000, 0)
		orders := []uuid.UUID{{1}, {2}, {3}}
		for range rapid.IntRange(1, 40).Draw(t, "calls") {
			now = now.Add(time.Duration(rapid.IntRange(0, 70).Draw(t, "seconds")) * time.Second)
			order := rapid.SampledFrom(orders).Draw(t, "order")
			before := st
			switch rapid.SampledFrom([]string{"reserve", "confirm", "release"}).Draw(t, "call") {
			case "reserve":
				ok := st.reserve(order, order, now)
				if others := before.ReservedBy != nil && *before.ReservedBy != order; ok && others {
					if before.SoldTo != nil || now.Before(*before.ReservedUntil) {
						t.Fatalf("%v took the seat of %v", order, *before.ReservedBy)
					}
				}
				if ok && (!is(st.ReservedBy, order) || st.SoldTo == nil && !now.Before(*st.ReservedUntil)) {
					t.Fatal("reserved, but not held")
				}
			case "confirm":
				if ok := st.confirm(order); ok != is(before.ReservedBy, order) || ok != is(st.SoldTo, order) {
					t.Fatalf("confirm of %v: %v, seat was %+v", order, ok, before)
				}
			case "release":
				if st.release(order); is(st.ReservedBy, order) {
					t.Fatal("released, but held")
				}
			}
			if before.SoldTo != nil && st.SoldTo != nil && *before.SoldTo != *st.SoldTo {
				t.Fatal("sold twice")
			}
			if st.SoldTo != nil && !is(st.ReservedBy, *st.SoldTo) {
				t.Fatal("sold to one, reserved by another")
			}
		}
	})
}

func FuzzPurchase(f *testing.F) {
	f.Add("application/json", `{"event":"8c9a0b1e-6c6b-4f0b-9d0e-3a8a0f3d8a11"}`)
	f.Add("application/x-www-form-urlencoded", "seat=8c9a0b1e-6c6b-4f0b-9d0e-3a8a0f3d8a11&key=k")
	f.Add("application/x-www-form-urlencoded", "seat=%zz")
	f.Add(";", "{}")
	f.Fuzz(func(t *testing.T, kind, body string) {
		r := httptest.NewRequest(http.MethodPost, "/buy", strings.NewReader(body))
		r.Header.Set("Content-Type", kind)
		p, err := readPurchase(r)
		if err == nil && p.Event == uuid.Nil && p.Seat == uuid.Nil {
			t.Error("accepted a purchase of nothing")
		}
		if first := p.orderID(uuid.Nil); p.key != "" && first != p.orderID(uuid.Nil) {
			t.Error("one key, two orders")
		}
	})
}
