package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

// ServerConfig is what the API of an agent stands for.
type ServerConfig struct {
	Site       topo.SiteID
	Identity   *pki.Identity
	Controller *Controller
	Hub        *Hub
	Local      Site // this site's part in switches
	Returns    Returns
	Status     func(ctx context.Context, self bool) api.Status
	Health     func(ctx context.Context) api.Health
	Deadline   func() (time.Time, bool) // until when this site may accept writes; false: it may not. The hub has the document that it rests on
	Conflicts  ConflictLog
	Readers    Readers
	Instances  Instances    // nil: nobody registers here
	Page       http.Handler // the status page, for operators' browsers; served at pagePaths; nil: none
	Store      StoreMembers // nil: the store is an external one
	Evidence   func(ctx context.Context, seal uint64) (topo.Evidence, error)
	Standby    func() error // not nil: this agent is not its site's active one, and why; nil: it always is
	Logger     *slog.Logger
}

// Server is the HTTP side of an agent: mTLS, with a role for each path.
type Server struct {
	cfg ServerConfig
	log *slog.Logger
}

// NewServer makes a server; see Serve.
func NewServer(cfg ServerConfig) *Server { return &Server{cfg: cfg, log: cfg.Logger} }

// Serve answers on ln until ctx ends. Requests under way and view streams see ctx end; they have a second to return.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler(),
		TLSConfig:         s.cfg.Identity.ServerTLS(nil), // who may do what is said for each path
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // handshakes that fail
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // what is still open is broken off
		}
	})
	err := srv.ServeTLS(ln, "", "")
	if !stop() {
		<-ended
		return context.Cause(ctx)
	}
	return fmt.Errorf("API on %s: %w", ln.Addr(), err)
}

// role is who may use a path.
type role string

const (
	anybody   role = "an operator or a site"
	operators role = "an operator"
	sites     role = "a site"
	services  role = "an instance of a service"
)

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	add := func(pattern string, who role, h func(http.ResponseWriter, *http.Request, pki.Peer) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, api.MaxBody)
			peer, err := s.admit(r, who)
			if err == nil {
				err = h(w, r, peer)
			}
			if err != nil {
				s.fail(w, r, err)
			}
		})
	}
	add("GET /v1/view", sites, s.view)
	add("POST /v1/view/ack", sites, s.active(s.ack)) // else a gateway would take a standby's word for the site's lease
	add("POST /v1/view/seen", sites, s.active(s.seen))
	add("POST /v1/view/await", sites, s.active(s.await))
	add("GET /v1/status", anybody, s.status)
	add("GET /v1/health", anybody, s.health)
	add("POST /v1/switches", operators, s.active(s.startSwitch))
	add("GET /v1/handovers", anybody, s.handovers)
	add("GET /v1/handovers/{id}", anybody, s.handover)
	add("POST /v1/failovers", operators, s.active(s.startFailover))
	add("GET /v1/explain", anybody, s.active(s.explain))
	add("GET /v1/conflicts", operators, s.conflicts)
	add("GET /v1/conflicts/{id}", operators, s.conflict)
	if s.cfg.Instances != nil { // each of a site's agents for itself, active or not: which one is, may change at any moment
		add("POST /v1/services/register", services, s.register)
		add("POST /v1/services/leave", services, s.leave)
		add("GET /v1/services", anybody, s.services)
		add("GET /v1/services/{name}", sites, s.instances)
	}
	if s.cfg.Page != nil {
		for _, path := range pagePaths {
			add("GET "+path, operators, s.page)
		}
	}
	if s.cfg.Store != nil {
		add("GET /v1/store/members", operators, s.storeMembers)
		add("POST /v1/store/add", operators, s.storeAdd)
		add("POST /v1/store/remove", operators, s.storeRemove)
		add("GET /v1/store/backup", operators, s.storeBackup)
	}
	if s.cfg.Evidence != nil {
		add("POST /v1/evidence", operators, s.evidence)
	}
	local := s.cfg.Local
	add("POST /v1/site/ready", sites, step(s, local.Ready))
	add("POST /v1/site/settled", sites, step(s, local.Settled))
	add("POST /v1/site/close", sites, step(s, local.CloseBuckets))
	add("POST /v1/site/caught-up", sites, step(s, local.CaughtUp))
	add("POST /v1/site/open", sites, step(s, local.Open))
	add("POST /v1/site/abort", sites, step(s, local.Abort))
	add("POST /v1/site/halt", sites, step(s, local.Halt))
	add("POST /v1/site/unhalt", sites, step(s, local.Unhalt))
	add("POST /v1/site/end", sites, s.active(s.end))
	add("POST /v1/site/promise", sites, s.active(s.promise))
	if s.cfg.Returns != nil {
		add("POST /v1/rebuilds", operators, s.active(s.rebuild))
		add("POST /v1/site/begin-anew", sites, s.active(s.beginAnew))
		add("POST /v1/site/place", sites, s.active(s.place))
		add("POST /v1/site/standing", sites, s.active(s.standing))
		add("POST /v1/site/point", sites, step(s, s.cfg.Returns.Point))
		add("POST /v1/site/dismiss", sites, step(s, s.cfg.Returns.Dismiss))
		add("POST /v1/members", operators, s.active(s.changeMember))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, &api.Error{Status: 404, Code: api.CodeNotFound, Message: fmt.Sprintf("%s %s is not part of the API", r.Method, r.URL.Path)})
	})
	return mux
}

// may is the role of each kind of certificate.
var may = map[pki.Kind]role{pki.Site: sites, pki.Operator: operators, pki.Service: services}

func (s *Server) admit(r *http.Request, who role) (pki.Peer, error) {
	if r.TLS == nil {
		return pki.Peer{}, &api.Error{Status: 403, Code: api.CodeForbidden, Message: "a certificate is needed"}
	}
	peer, err := s.cfg.Identity.Peer(*r.TLS)
	if err != nil {
		return peer, &api.Error{Status: 403, Code: api.CodeForbidden, Message: err.Error()}
	}
	if who == may[peer.Kind] || who == anybody && peer.Kind != pki.Service {
		return peer, nil
	}
	return peer, &api.Error{Status: 403, Code: api.CodeForbidden, Message: fmt.Sprintf("%s may not call %s; it is for %s", peer, r.URL.Path, who)}
}

// active lets only the site's active agent serve a path.
func (s *Server) active(h func(http.ResponseWriter, *http.Request, pki.Peer) error) func(http.ResponseWriter, *http.Request, pki.Peer) error {
	return func(w http.ResponseWriter, r *http.Request, p pki.Peer) error {
		if err := s.refuseStandby(w); err != nil {
			return err
		}
		return h(w, r, p)
	}
}

// refuseStandby answers for an agent that stands by, in a way that sends the caller on to the site's other one.
func (s *Server) refuseStandby(w http.ResponseWriter) error {
	err := s.standby()
	if err == nil {
		return nil
	}
	w.Header().Set(api.HeaderStandby, "1")
	return &api.Error{Status: 503, Code: api.CodeUnavailable, Message: err.Error()}
}

func (s *Server) standby() error {
	if s.cfg.Standby == nil {
		return nil
	}
	return s.cfg.Standby()
}

// step makes a handler of one of the local site's steps.
func step[Request, Answer any](s *Server, do func(context.Context, Request) (Answer, error)) func(http.ResponseWriter, *http.Request, pki.Peer) error {
	return s.active(func(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
		var req Request
		if err := decode(r.Body, &req, false); err != nil {
			return err
		}
		answer, err := do(r.Context(), req)
		if err != nil {
			return err
		}
		return write(w, http.StatusOK, answer)
	})
}

func (s *Server) status(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	if r.URL.Query().Has("active") {
		if err := s.refuseStandby(w); err != nil {
			return err
		}
	}
	return write(w, http.StatusOK, s.cfg.Status(r.Context(), r.URL.Query().Has("self")))
}

func (s *Server) health(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	h := s.cfg.Health(r.Context())
	if err := r.Context().Err(); err != nil { // an answer without sites would say that nothing is known of any
		return err
	}
	return write(w, http.StatusOK, h)
}

// pagePaths are the paths of the status page.
var pagePaths = []string{"/{$}", "/events", "/status.json", "/assets/"}

func (s *Server) page(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	s.cfg.Page.ServeHTTP(w, r)
	return nil
}

func (s *Server) startSwitch(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.SwitchRequest
	if err := decode(r.Body, &req, true); err != nil { // typed by people: a misspelt dry_run must not switch
		return err
	}
	answer, err := s.cfg.Controller.Switch(r.Context(), peer.String(), req)
	if err != nil {
		return err
	}
	if req.DryRun {
		return write(w, http.StatusOK, answer)
	}
	return write(w, http.StatusAccepted, answer)
}

func (s *Server) startFailover(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.FailoverRequest
	if err := decode(r.Body, &req, true); err != nil { // typed by people: a misspelt dry_run must not take over
		return err
	}
	answer, err := s.cfg.Controller.Failover(r.Context(), peer.String(), req)
	if err != nil {
		return err
	}
	if req.DryRun {
		return write(w, http.StatusOK, answer)
	}
	return write(w, http.StatusAccepted, answer)
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	e, err := s.cfg.Controller.Explain(r.Context(), topo.SiteID(r.URL.Query().Get("site")))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, e)
}

func (s *Server) handovers(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	limit := 20
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return badRequest(fmt.Sprintf("limit %q; want a number from 1 on", text), "")
		}
		limit = n
	}
	list, err := s.cfg.Controller.Handovers(r.Context(), limit)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, api.HandoverList{Handovers: list})
}

func (s *Server) handover(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	var wait time.Duration
	if text := r.URL.Query().Get("wait"); text != "" {
		var err error
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 || wait > 5*time.Minute {
			return badRequest(fmt.Sprintf("wait %q; want a duration up to 5m, for example 30s", text), "")
		}
	}
	h, err := s.cfg.Controller.Handover(r.Context(), topo.HandoverID(r.PathValue("id")), wait)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, h)
}

// view streams the document to a gateway. A gateway of another site, whose own agent is away, may listen too; no wait
// depends on it here.
func (s *Server) view(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	gateway := r.URL.Query().Get("gateway")
	if err := checkGateway(gateway); err != nil {
		return err
	}
	site, _ := peer.Site()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	err := s.cfg.Hub.Stream(r.Context(), gateway, site == s.cfg.Site, func(u api.ViewUpdate) error {
		u.Standby = s.standby() != nil
		line, err := json.Marshal(u)
		if err != nil {
			return err
		}
		if err := out.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil { // a gateway that hangs is let go
			return err
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
		return out.Flush()
	})
	s.log.Debug("view stream ended", "gateway", gateway, "site", site, "cause", err)
	return nil // the answer has begun; its end says it all
}

func (s *Server) ack(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	received := time.Now()
	var a api.ViewAck
	if err := decode(r.Body, &a, false); err != nil {
		return err
	}
	if err := checkGateway(a.Gateway); err != nil {
		return err
	}
	if site, _ := peer.Site(); site != s.cfg.Site {
		return &api.Error{Status: 403, Code: api.CodeForbidden, Message: fmt.Sprintf("a gateway of site %s acknowledges to its own agent, not to %s's", site, s.cfg.Site)}
	}
	s.cfg.Hub.Ack(a)
	var state api.LeaseState
	if deadline, live := s.cfg.Deadline(); live {
		state.RemainingMS = deadline.Sub(received).Milliseconds()
	}
	if o, ok := s.cfg.Hub.Ownership(); ok { // after the deadline: it may be newer than what the deadline rests on, not older
		state.Generation, state.Version = o.Generation, o.Version
	}
	if s.cfg.Readers != nil {
		state.StaleMS = stale(s.cfg.Readers.Stale())
	}
	return write(w, http.StatusOK, state)
}

func checkGateway(name string) error {
	if name == "" || len(name) > 64 {
		return badRequest(fmt.Sprintf("gateway name %.80q; want 1 to 64 bytes", name), "")
	}
	return nil
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var coded *api.Error
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &coded):
	case errors.As(err, &big):
		coded = &api.Error{Status: 413, Code: api.CodeBadRequest, Message: fmt.Sprintf("request is larger than %d bytes", big.Limit)}
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		coded = &api.Error{Status: 503, Code: api.CodeUnavailable, Message: err.Error()}
	default:
		coded = &api.Error{Status: 500, Code: "internal", Message: err.Error()}
	}
	status := coded.Status
	if status < 400 || status > 599 {
		status = 500
	}
	s.log.Debug("API request failed", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
	if err := write(w, status, coded); err != nil {
		s.log.Debug("API answer not sent", "path", r.URL.Path, "error", err)
	}
}

func write(w http.ResponseWriter, status int, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // the other end is gone; nobody to tell
	return nil
}

// decode reads one JSON document from a request.
func decode(r io.Reader, into any, strict bool) error {
	dec := json.NewDecoder(r)
	if strict {
		dec.DisallowUnknownFields()
	}
	err := dec.Decode(into)
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return err
	case err != nil:
		return badRequest("request body: "+err.Error(), "")
	case dec.More():
		return badRequest("request body: more than one JSON document", "")
	}
	return nil
}
