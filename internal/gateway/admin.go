package gateway

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// adminHandler serves what operators and applications of this machine look at. Streams end with stopping.
func (g *Gateway) adminHandler(stopping <-chan struct{}) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", g.serveHealth)
	mux.HandleFunc("GET /debug/view", g.serveDebugView)
	mux.HandleFunc("GET /v1/view", func(w http.ResponseWriter, r *http.Request) { g.serveView(w, r, stopping) })
	mux.HandleFunc("GET /debug/services", g.serveDebugServices)
	mux.HandleFunc("GET /debug/moves", g.serveDebugMoves)
	mux.HandleFunc("GET /debug/shadow", g.serveDebugShadow)
	return mux
}

// serveHealth answers 200 as soon as the gateway can route. A lease that ran out does not count: reads go on, and a
// balancer that took every gateway of the site away would make it worse.
func (g *Gateway) serveHealth(w http.ResponseWriter, r *http.Request) {
	snap := g.views.load()
	status, ready := http.StatusOK, true
	if snap.site == nil {
		status, ready = http.StatusServiceUnavailable, false
	}
	writeJSON(w, status, map[string]any{"ready": ready, "gateway": g.name, "view": snap.version().String()})
}

func (g *Gateway) serveDebugView(w http.ResponseWriter, r *http.Request) {
	snap := g.views.load()
	out := debugView{
		Gateway: g.name, View: snap.version().String(), Opened: snap.opened, LeaseMS: g.lease.remaining().Milliseconds(),
		Held: g.room.held(), InFlight: make(map[string]int), GeneratedAt: time.Now().UTC(),
	}
	for id, n := range g.flights.moving(snap) {
		out.InFlight[string(id)] = n
	}
	if snap.site != nil {
		out.Ownership = snap.site.View.Ownership.Encode()
	}
	writeJSON(w, http.StatusOK, out)
}

// serveDebugServices shows every instance of this site's applications as this gateway sees it.
func (g *Gateway) serveDebugServices(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	out := make(map[string]debugService)
	for name, s := range g.upstreams.services {
		summary := s.pool.Summary(now)
		one := debugService{Fit: summary.Fit, Panic: summary.Panic}
		if s.gate != nil {
			state := s.gate.state()
			one.Concurrency = &state
		}
		for _, in := range s.pool.States(now) {
			one.Instances = append(one.Instances, debugInstance{
				Address: in.Address, Zone: in.Zone, Weight: in.Weight, Active: in.Active, Healthy: in.Healthy,
				Ejections: in.Ejections, EjectedMS: max(in.Ejected.Sub(now), 0).Milliseconds(),
			})
		}
		out[name] = one
	}
	writeJSON(w, http.StatusOK, out)
}

// debugService is one application in what /debug/services shows.
type debugService struct {
	Fit         int             `json:"fit"`
	Panic       bool            `json:"panic,omitempty"` // too few are fit: all are used
	Concurrency *gateState      `json:"concurrency,omitempty"`
	Instances   []debugInstance `json:"instances"`
}

type debugInstance struct {
	Address   string `json:"address"`
	Zone      string `json:"zone,omitempty"`
	Weight    int    `json:"weight"`
	Active    int64  `json:"active"` // requests that are there now
	Healthy   bool   `json:"healthy"`
	Ejections int    `json:"ejections,omitempty"`  // lately
	EjectedMS int64  `json:"ejected_ms,omitempty"` // for how much longer
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(body)
}

// debugView is what /debug/view shows.
type debugView struct {
	Gateway     string          `json:"gateway"`
	View        string          `json:"view"`
	Opened      uint64          `json:"opened_version"`
	LeaseMS     int64           `json:"lease_remaining_ms"`
	Held        int             `json:"held"`
	InFlight    map[string]int  `json:"in_flight_of_moving,omitempty"`
	Ownership   json.RawMessage `json:"ownership,omitempty"`
	GeneratedAt time.Time       `json:"generated_at"`
}
