package gateway

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

const (
	passEvery = time.Second     // a line at least this often
	passWrite = 5 * time.Second // an application that takes none for so long is let go
)

// heard is when an agent last said something; the zero value: never.
type heard struct{ at atomic.Pointer[time.Time] }

func (h *heard) now() {
	now := time.Now()
	h.at.Store(&now)
}

// age is negative before the first word.
func (h *heard) age() time.Duration {
	at := h.at.Load()
	if at == nil {
		return -time.Millisecond
	}
	return time.Since(*at)
}

// serveView passes the view on to applications of this site, line by line as an agent does, with how fresh it is and what is
// left of the lease. Nothing that a switch waits for hangs on who listens (docs/adr/018).
func (g *Gateway) serveView(w http.ResponseWriter, r *http.Request, stopping <-chan struct{}) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	rc, lines := http.NewResponseController(w), json.NewEncoder(w)
	beat := time.NewTicker(passEvery)
	defer beat.Stop()
	table := &api.RouteTable{Keyspaces: g.conf.Keyspaces, Routes: g.conf.Routes}
	var sent *topo.View
	for {
		snap := g.views.load()
		u := api.ViewUpdate{Format: api.ViewFormat, OpenedVersion: snap.opened, Gateway: g.word(snap)}
		u.Gateway.Table, table = table, nil
		if snap.site != nil && snap.site.View != sent {
			sent = snap.site.View
			u.Ownership = sent.Ownership.Encode()
		}
		_ = rc.SetWriteDeadline(time.Now().Add(passWrite))
		if lines.Encode(u) != nil || rc.Flush() != nil {
			return
		}
		select {
		case <-snap.next:
		case <-beat.C:
		case <-stopping:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// word is what this gateway says of itself. A lease that was given under a newer document than the view in use says nothing
// about what that view shows.
func (g *Gateway) word(snap *snapshot) *api.GatewayWord {
	out := &api.GatewayWord{Site: g.conf.Site, Name: g.conf.Name, AgeMS: g.heard.age().Milliseconds()}
	if lease := g.lease.current.Load(); lease.live() && !snap.version().before(lease.view) {
		out.LeaseMS = time.Until(lease.until).Milliseconds()
	}
	return out
}
