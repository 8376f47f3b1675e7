package control

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

// Readers answers for this site's database to gateways whose readers are to see no less than they have seen before.
type Readers interface {
	Seen(ctx context.Context, buckets []api.Seen) ([]api.Seen, error)
	Await(ctx context.Context, seen api.Seen, bound time.Duration) (api.AwaitAnswer, error)
	// End is where this site's change stream ends.
	End(ctx context.Context) (api.EndAnswer, error)
	// Stale is how old the copies of other sites are at most, as far as anybody asks for it. It must not block.
	Stale() map[topo.SiteID]time.Duration
}

const (
	mostSeen  = 4096 // buckets of one request: those whose answers have come to a gateway within a round trip
	mostAwait = time.Minute
)

func (s *Server) seen(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.SeenRequest
	if err := s.ownGateway(r, &req, peer); err != nil {
		return err
	}
	if len(req.Buckets) > mostSeen {
		return badRequest(fmt.Sprintf("%d buckets; at most %d", len(req.Buckets), mostSeen), "")
	}
	seen, err := s.cfg.Readers.Seen(r.Context(), req.Buckets)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, api.SeenAnswer{Buckets: seen})
}

func (s *Server) await(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.AwaitRequest
	if err := s.ownGateway(r, &req, peer); err != nil {
		return err
	}
	bound := time.Duration(req.BoundMS) * time.Millisecond
	if req.BoundMS < 0 || bound > mostAwait {
		return badRequest(fmt.Sprintf("bound of %d ms; want 0 to %d", req.BoundMS, mostAwait.Milliseconds()), "")
	}
	answer, err := s.cfg.Readers.Await(r.Context(), req.Seen, bound)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, answer)
}

func (s *Server) end(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	answer, err := s.cfg.Readers.End(r.Context())
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, answer)
}

// stale puts the ages of copies into an answer for a gateway.
func stale(ages map[topo.SiteID]time.Duration) map[topo.SiteID]int64 {
	out := make(map[topo.SiteID]int64, len(ages))
	for site, age := range ages {
		out[site] = age.Milliseconds() + 1
	}
	return out
}

// ownGateway reads the request of a gateway of this site.
func (s *Server) ownGateway(r *http.Request, into any, peer pki.Peer) error {
	if site, _ := peer.Site(); site != s.cfg.Site {
		return &api.Error{Status: 403, Code: api.CodeForbidden, Message: fmt.Sprintf("a gateway of site %s asks its own agent, not %s's", site, s.cfg.Site)}
	}
	return decode(r.Body, into, false)
}
