// Package shop is a ticket shop as people write one: net/http, PostgreSQL, a page to buy a ticket on.
//
// Buying takes three steps, because seats and customers may be written at different sites: the seat is reserved by an
// HTTP call through the local gateway, the order is committed with its payment and an outbox row in one local
// transaction, and the outbox worker confirms the seat afterwards. An order whose seat is gone by then is refunded.
//
// Of Atoll it knows three things and no more: the customer's id travels in every request (header X-Customer, or the
// cookie of the page), other parts of the shop are called through the local gateway, and a write that the database
// refuses because its row lives at another site is answered with 503 and Atoll-Fenced after the rollback (package sdk reads
// the refusal and sets the header, see refusal.go).
package shop

import (
	"context"
	_ "embed"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Schema creates the shop's tables where they are missing.
//
//go:embed schema.sql
var Schema string

//go:embed page.html
var pageSource string

// requestTimeout bounds one request, calls through the gateway included. A gateway may hold a request while its rows
// move to another site, so this is longer than a hold.
const requestTimeout = 18 * time.Second

// Config is what a shop needs.
type Config struct {
	DB      *pgxpool.Pool
	Gateway string // base URL of this site's gateway
	Site    string // shown on the page
	Slow    bool   // serve POST /orders/bulk-note, a transaction that stays open as long as the request says
	Log     *slog.Logger
}

// Shop answers requests and works off the outbox. Make one with [New].
type Shop struct {
	Config
	page *template.Template
	http *http.Client
	fast chan job // orders that were just committed here; the scan finds what does not fit

	elsewhere elsewhere // rows of the outbox that the fence refused
}

// New checks the configuration.
func New(cfg Config) (*Shop, error) {
	u, err := url.Parse(cfg.Gateway)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("gateway %q is not a base URL; write for example http://127.0.0.1:8080", cfg.Gateway)
	}
	page, err := template.New("page").Funcs(pageFuncs).Parse(pageSource)
	if err != nil {
		return nil, fmt.Errorf("the shop's page: %w", err)
	}
	transport := &http.Transport{MaxIdleConns: 256, MaxIdleConnsPerHost: 256, IdleConnTimeout: 30 * time.Second}
	return &Shop{Config: cfg, page: page, http: &http.Client{Transport: transport}, fast: make(chan job, 1024)}, nil
}

// Handler serves the shop.
func (s *Shop) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
			defer cancel()
			r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
			if err := f(w, r.WithContext(ctx)); err != nil {
				s.refuse(w, r, err)
			}
		})
	}
	// The customer's own: keyspace users.
	handle("POST /buy", s.buy)
	handle("GET /me", s.me)
	handle("GET /me/profile", s.profile)
	handle("GET /me/address", s.address)
	handle("PUT /me/address", s.setAddress)
	handle("GET /me/wishes", s.wishes)
	handle("POST /me/wishes", s.wish)
	handle("GET /orders", s.orders)
	handle("POST /orders/{id}/cancel", s.cancel)
	if s.Slow {
		handle("POST /orders/bulk-note", s.bulkNote)
	}
	// Everybody's: keyspace catalog.
	handle("GET /events", s.events)
	handle("GET /events/{id}/seats", s.seats)
	handle("POST /seats/{id}/reserve", s.reserve)
	handle("POST /seats/{id}/confirm", s.confirm)
	handle("POST /seats/{id}/release", s.release)
	// Nobody's: any site answers.
	handle("GET /{$}", s.front)
	handle("POST /session", s.signIn)
	handle("GET /healthz", s.health)
	return mux
}

// customer is who asks: the header that a client or the login in front sets, else the page's cookie.
func customer(r *http.Request) (uuid.UUID, error) {
	text := r.Header.Get("X-Customer")
	if text == "" {
		if c, err := r.Cookie("customer"); err == nil {
			text = c.Value
		}
	}
	if text == "" {
		return uuid.Nil, answer{http.StatusBadRequest, "who are you? Send your customer id in the header X-Customer"}
	}
	return parseID("customer", text)
}

func parseID(what, text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil {
		return uuid.Nil, answer{http.StatusBadRequest, fmt.Sprintf("%s %q is not a UUID", what, text)}
	}
	return id, nil
}

func (s *Shop) health(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := s.DB.Ping(ctx); err != nil {
		return answer{http.StatusServiceUnavailable, "the database does not answer"}
	}
	return writeJSON(w, http.StatusOK, map[string]string{"site": s.Site, "status": "ok"})
}
