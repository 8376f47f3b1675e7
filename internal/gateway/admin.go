package gateway

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// adminHandler serves what operators of this machine look at.
func (g *Gateway) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", g.serveHealth)
	mux.HandleFunc("GET /debug/view", g.serveDebugView)
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
