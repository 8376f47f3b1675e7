package control

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

// plea is a site's, with where to say what became of it.
type plea struct {
	handover.Plea
	reply chan handover.Pledge
}

// Promise answers a site that asks to go on while the store does not answer. It is decided where a takeover would be
// begun, between two events of that machine.
func (c *Controller) Promise(ctx context.Context, from topo.SiteID, r api.PromiseRequest) (api.PromiseAnswer, error) {
	l := c.lookout(from)
	if l == nil {
		return api.PromiseAnswer{}, notActive()
	}
	p := plea{handover.Plea{Holder: r.Holder, For: time.Duration(r.ForMS) * time.Millisecond}, make(chan handover.Pledge, 1)}
	select {
	case l.pleas <- p:
	case <-ctx.Done():
		return api.PromiseAnswer{}, context.Cause(ctx)
	}
	answer := <-p.reply
	if answer.Refused != "" {
		return api.PromiseAnswer{}, &api.Error{Status: 409, Code: api.CodeRefused, Message: fmt.Sprintf("%s promises %s nothing: %s", c.cfg.Site, from, answer.Refused)}
	}
	return api.PromiseAnswer{ForMS: answer.For.Milliseconds()}, nil
}

func (s *Server) promise(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.PromiseRequest
	if err := decode(r.Body, &req, false); err != nil {
		return err
	}
	site, _ := peer.Site()
	answer, err := s.cfg.Controller.Promise(r.Context(), site, req)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, answer)
}
