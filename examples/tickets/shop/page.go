package shop

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

var pageFuncs = template.FuncMap{
	"money": func(cents int) string { return fmt.Sprintf("€ %d.%02d", cents/100, cents%100) },
	"day":   func(t time.Time) string { return t.UTC().Format("Monday 2 January 2006, 15:04") },
	"key":   func() string { return uuid.NewString() }, // of one form: pressing its button twice buys once
}

// view is what page.html shows; only one of the parts below Title is set.
type view struct {
	Title    string
	Site     string
	Customer *account
	Guests   []account // customers to try the shop as
	Events   []event
	Orders   []order
	New      string // id of the order that was just made
	Waiting  bool   // some order is still being confirmed
	Mine     bool
	Problem  string
}

func wantsPage(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }

func (s *Shop) render(w http.ResponseWriter, status int, v view) error {
	v.Site = s.Site
	var out bytes.Buffer
	if err := s.page.Execute(&out, v); err != nil {
		return fmt.Errorf("page %q: %w", v.Title, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	w.WriteHeader(status)
	w.Write(out.Bytes()) // the client is gone if this fails
	return nil
}

func (s *Shop) showProblem(w http.ResponseWriter, a answer) {
	if err := s.render(w, a.status, view{Title: "That did not work", Problem: a.text}); err != nil {
		s.Log.Error("cannot show a problem", "err", err)
		http.Error(w, a.text, a.status)
	}
}

// front shows the events to a customer, and to others a choice of customers: signing in is not what this shop shows.
func (s *Shop) front(w http.ResponseWriter, r *http.Request) error {
	v := view{Title: "Tickets"}
	if _, err := r.Cookie("customer"); err == nil {
		who, err := customer(r)
		if err != nil {
			return err
		}
		a, err := s.findCustomer(r.Context(), who)
		var unknown answer
		if err == nil {
			v.Customer = &a
		} else if !errors.As(err, &unknown) {
			return err
		}
	}
	if v.Customer == nil {
		rows, err := s.DB.Query(r.Context(), `SELECT id, name, orders_count FROM customers ORDER BY id < $1, id LIMIT 6`, uuid.New())
		if err != nil {
			return fmt.Errorf("customers: %w", err)
		}
		if v.Guests, err = pgx.CollectRows(rows, pgx.RowToStructByPos[account]); err != nil {
			return fmt.Errorf("customers: %w", err)
		}
		return s.render(w, http.StatusOK, v)
	}
	var err error
	if v.Events, err = s.listEvents(r.Context()); err != nil {
		return err
	}
	for i := range v.Events {
		if v.Events[i].Seats, err = s.freeSeats(r.Context(), v.Events[i].ID, 12); err != nil {
			return err
		}
		slices.SortFunc(v.Events[i].Seats, func(a, b seat) int { return cmp.Compare(b.PriceCents, a.PriceCents) })
	}
	return s.render(w, http.StatusOK, v)
}

// signIn sets the cookie that the page's requests carry the customer in.
func (s *Shop) signIn(w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		return answer{http.StatusBadRequest, "want a form"}
	}
	cookie := &http.Cookie{Name: "customer", Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: -1}
	if text := r.PostForm.Get("customer"); text != "" {
		who, err := parseID("customer", text)
		if err != nil {
			return err
		}
		cookie.Value, cookie.MaxAge = who.String(), int((30 * 24 * time.Hour).Seconds())
	}
	http.SetCookie(w, cookie)
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

func (s *Shop) showOrders(w http.ResponseWriter, r *http.Request, who uuid.UUID, list []order) error {
	a, err := s.findCustomer(r.Context(), who)
	if err != nil {
		return err
	}
	v := view{Title: "Your tickets", Customer: &a, Orders: list, Mine: true, New: r.URL.Query().Get("new")}
	for _, o := range list {
		v.Waiting = v.Waiting || o.Status == "pending"
	}
	return s.render(w, http.StatusOK, v)
}
