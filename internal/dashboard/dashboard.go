// Package dashboard is the status page of an agent: one page that shows what GET /v1/status knows, problems first, and
// follows it by server-sent events. The main type is [Page], an http.Handler.
//
//	GET /             the page; without JavaScript it is a snapshot
//	GET /events       text/event-stream: the page's content, rendered again every second
//	GET /status.json  api.Status
//	GET /healthz      200 while the agent answers, with what it has; only under [Serve]
//	GET /assets/…     style, script and icon
//
// It guarantees that any number of viewers asks the agent for its status no more than once per interval, and that a
// page that is not fed any more says how old it is. It loads nothing from elsewhere, and its content policy lets
// nothing else be loaded.
//
// It refuses to change anything: it only reads. Under [Serve], which asks nobody who he is, it also refuses requests
// that are not addressed to the loopback, so that no web page of another name can read it through a browser.
package dashboard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"path"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/internal/api"
)

const (
	defaultEvery = time.Second
	statusBound  = 5 * time.Second
	writeBound   = 5 * time.Second // a viewer that hangs is let go
	maxViewers   = 64
)

// Config says what the page shows.
type Config struct {
	Status func(ctx context.Context, self bool) api.Status
	Every  time.Duration // between updates; default one second
	Logger *slog.Logger  // nil discards
}

// Page is the status page. It is safe for concurrent use.
type Page struct {
	cfg     Config
	mux     *http.ServeMux
	log     *slog.Logger
	viewers atomic.Int64

	turn  chan struct{} // held by who asks for the status; guards the two below
	last  api.Status
	asked time.Time // zero: never
}

// New makes a page; nothing is asked before somebody looks at it.
func New(cfg Config) *Page {
	if cfg.Every <= 0 {
		cfg.Every = defaultEvery
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Page{cfg: cfg, log: cfg.Logger, mux: http.NewServeMux(), turn: make(chan struct{}, 1)}
	p.mux.HandleFunc("GET /{$}", p.index)
	p.mux.HandleFunc("GET /events", p.events)
	p.mux.HandleFunc("GET /status.json", p.statusJSON)
	p.mux.HandleFunc("GET /assets/{name}", p.asset)
	return p
}

func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	p.mux.ServeHTTP(w, r)
}

// status returns what is known, not older than the interval. An error means that the viewer has gone.
func (p *Page) status(ctx context.Context) (api.Status, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return api.Status{}, context.Cause(ctx)
	}
	if !p.asked.IsZero() && time.Since(p.asked) < p.cfg.Every*9/10 {
		return p.last, nil
	}
	asked := time.Now()
	bounded, cancel := context.WithTimeout(ctx, statusBound)
	defer cancel()
	st := p.cfg.Status(bounded, false)
	if ctx.Err() != nil { // what was asked for somebody who has gone may say that nobody answers
		return api.Status{}, context.Cause(ctx)
	}
	p.last, p.asked = st, asked
	return st, nil
}

//go:embed page.html
var pageHTML string

//go:embed assets
var assets embed.FS

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{"asset": assetPath}).Parse(pageHTML))

func (p *Page) index(w http.ResponseWriter, r *http.Request) { p.render(w, r, "page") }

func (p *Page) render(w http.ResponseWriter, r *http.Request, name string) {
	st, err := p.status(r.Context())
	if err != nil {
		return
	}
	var out bytes.Buffer
	if err := pageTemplate.ExecuteTemplate(&out, name, look(st)); err != nil {
		p.log.Error("the status page cannot be rendered", "error", err)
		http.Error(w, "the page cannot be rendered: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(out.Bytes()) // the viewer has gone; nobody to tell
}

// events sends the content again at every interval, until the viewer goes or the server ends.
func (p *Page) events(w http.ResponseWriter, r *http.Request) {
	if p.viewers.Add(1) > maxViewers {
		p.viewers.Add(-1)
		http.Error(w, fmt.Sprintf("%d viewers follow this page already", maxViewers), http.StatusServiceUnavailable)
		return
	}
	defer p.viewers.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy in between must pass each event on at once
	tick := time.NewTicker(p.cfg.Every)
	defer tick.Stop()
	for {
		if err := p.event(w, r); err != nil {
			p.log.Debug("a viewer of the status page has gone", "cause", err)
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

func (p *Page) event(w http.ResponseWriter, r *http.Request) error {
	st, err := p.status(r.Context())
	if err != nil {
		return err
	}
	var content bytes.Buffer
	if err := pageTemplate.ExecuteTemplate(&content, "content", look(st)); err != nil {
		return err
	}
	var out bytes.Buffer
	out.WriteString("event: status\nretry: 1000\n")
	for line := range bytes.Lines(bytes.ReplaceAll(content.Bytes(), []byte("\r"), nil)) { // alone, it would end a line as well
		out.WriteString("data: ")
		out.Write(bytes.TrimSuffix(line, []byte("\n")))
		out.WriteByte('\n')
	}
	out.WriteByte('\n')
	to := http.NewResponseController(w)
	if err := to.SetWriteDeadline(time.Now().Add(writeBound)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := w.Write(out.Bytes()); err != nil {
		return err
	}
	return to.Flush()
}

func (p *Page) statusJSON(w http.ResponseWriter, r *http.Request) {
	st, err := p.status(r.Context())
	if err != nil {
		return
	}
	writeJSON(w, st)
}

func writeJSON(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(body)
}

// asset serves a file under a name that changes with its content, so that a browser may keep it for ever.
func (p *Page) asset(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	data, err := assets.ReadFile("assets/" + name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	if r.URL.Query().Get("v") == digest(data) {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	w.Header().Set("Content-Type", map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}[path.Ext(name)])
	_, _ = w.Write(data)
}

func assetPath(name string) (string, error) {
	data, err := assets.ReadFile("assets/" + name)
	return "/assets/" + name + "?v=" + digest(data), err
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}
