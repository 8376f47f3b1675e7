package control

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
)

// Instances keeps the instances of services that have registered themselves at this agent. Refusals are *api.Error.
type Instances interface {
	Register(api.RegisterRequest) (api.RegisterAnswer, error)
	Leave(api.LeaveRequest) (api.LeaveAnswer, error)
	// List returns as soon as a service's list has another version than after, and when the wait is over.
	List(ctx context.Context, service, after string, wait time.Duration) (api.InstanceList, error)
	All() []api.InstanceList
}

// mostListWait bounds how long a gateway may have its agent wait.
const mostListWait = time.Minute

func (s *Server) register(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.RegisterRequest
	if err := decode(r.Body, &req, false); err != nil {
		return err
	}
	if err := onlyItself(peer, req.Service); err != nil {
		return err
	}
	answer, err := s.cfg.Instances.Register(req)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, answer)
}

func (s *Server) leave(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.LeaveRequest
	if err := decode(r.Body, &req, false); err != nil {
		return err
	}
	if err := onlyItself(peer, req.Service); err != nil {
		return err
	}
	answer, err := s.cfg.Instances.Leave(req)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, answer)
}

// onlyItself keeps a service from taking another one's requests.
func onlyItself(peer pki.Peer, service string) error {
	if peer.Name == service {
		return nil
	}
	return &api.Error{Status: 403, Code: api.CodeForbidden, Message: fmt.Sprintf("the certificate is of service %s; it does not speak for %.80q", peer.Name, service),
		Hint: "name the service of the certificate, or make one with `atoll ca issue service NAME`"}
}

func (s *Server) services(w http.ResponseWriter, _ *http.Request, _ pki.Peer) error {
	return write(w, http.StatusOK, api.ServiceList{Services: s.cfg.Instances.All()})
}

func (s *Server) instances(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	if site, _ := peer.Site(); site != s.cfg.Site {
		return &api.Error{Status: 403, Code: api.CodeForbidden, Message: fmt.Sprintf("a gateway of site %s asks its own agent, not %s's", site, s.cfg.Site)}
	}
	query := r.URL.Query()
	var wait time.Duration
	if text := query.Get("wait"); text != "" {
		var err error
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 || wait > mostListWait {
			return badRequest(fmt.Sprintf("wait %.80q; want a duration up to %s, for example 20s", text, mostListWait), "")
		}
	}
	list, err := s.cfg.Instances.List(r.Context(), r.PathValue("name"), query.Get("after"), wait)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, list)
}
