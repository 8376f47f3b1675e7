package dashboard

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Serve answers on ln, a loopback address without TLS, until ctx ends. Viewers see ctx end; they have a second to go.
func Serve(ctx context.Context, ln net.Listener, p *Page) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", p.health)
	mux.Handle("/", p)
	srv := &http.Server{
		Handler:           loopbackOnly(mux),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(ln)
	if !stop() {
		<-ended
		return context.Cause(ctx)
	}
	return fmt.Errorf("status page on %s: %w", ln.Addr(), err)
}

// health answers 200 while the agent answers at all; starting it again would not bring back a database or the store,
// so that their absence is told, not turned into a status.
func (p *Page) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), statusBound)
	defer cancel()
	st := p.cfg.Status(ctx, true)
	out := map[string]any{"site": st.Site, "deployment": st.Deployment}
	for _, s := range st.Sites {
		if s.Site == st.Site {
			out["lease"], out["database"], out["version"], out["opened_version"] = s.Lease.Live, s.Database.Connected, s.Version, s.Opened
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, out)
}

// loopbackOnly refuses what is addressed to another name: a page of a foreign site whose name was made to point here
// would otherwise read this one through the browser of somebody on this machine.
func loopbackOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, fmt.Sprintf("this address is for http://127.0.0.1 and http://localhost only; it was asked for as %.80q", r.Host), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
