package control

import (
	"context"
	"fmt"
	"net/http"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

// Returns is this site's part in the return of a site whose database is another one than before.
type Returns interface {
	// Rebuild brings this site's database to the content of another full site.
	Rebuild(ctx context.Context, who string, r api.RebuildRequest) (api.RebuildAnswer, error)
	// BeginAnew forgets how far this site has come in the former stream of the asking site.
	BeginAnew(ctx context.Context, r api.BeginAnewRequest) (api.BeginAnewAnswer, error)
	// Place makes ready for the rebuild of the asking site.
	Place(ctx context.Context, r api.PlaceRequest) (api.PlaceAnswer, error)
	// Standing is what this site knows of another one.
	Standing(ctx context.Context, of topo.SiteID) (api.Standing, error)
	// Point is a position behind all that is committed at this site.
	Point(ctx context.Context, r api.PointRequest) (api.PointAnswer, error)
	// Dismiss lets go of a site that is no member.
	Dismiss(ctx context.Context, r api.DismissRequest) (api.DismissAnswer, error)
	// ChangeMember takes a site in, or lets one go.
	ChangeMember(ctx context.Context, who string, r api.MemberRequest) (api.MemberAnswer, error)
}

func (s *Server) rebuild(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.RebuildRequest
	if err := decode(r.Body, &req, true); err != nil {
		return err
	}
	answer, err := s.cfg.Returns.Rebuild(r.Context(), peer.String(), req)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, answer)
}

// beginAnew is for a site about itself only: whoever asks it of another's stream would have changes skipped.
func (s *Server) beginAnew(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.BeginAnewRequest
	if err := decode(r.Body, &req, false); err != nil {
		return err
	}
	if site, _ := peer.Site(); site != req.Origin {
		return &api.Error{Status: 403, Code: api.CodeForbidden, Message: fmt.Sprintf("site %s may not speak for the stream of site %q", site, req.Origin)}
	}
	answer, err := s.cfg.Returns.BeginAnew(r.Context(), req)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, answer)
}

// place is for a site about itself only: whoever asks it for another's would have changes of that one lost.
func (s *Server) place(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.PlaceRequest
	if err := decode(r.Body, &req, false); err != nil {
		return err
	}
	if site, _ := peer.Site(); site != req.Site {
		return &api.Error{Status: 403, Code: api.CodeForbidden, Message: fmt.Sprintf("site %s may not speak for site %q", site, req.Site)}
	}
	answer, err := s.cfg.Returns.Place(r.Context(), req)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, answer)
}

func (s *Server) standing(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	var req api.StandingRequest
	if err := decode(r.Body, &req, false); err != nil {
		return err
	}
	answer, err := s.cfg.Returns.Standing(r.Context(), req.Of)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, answer)
}

func (s *Server) changeMember(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.MemberRequest
	if err := decode(r.Body, &req, true); err != nil { // typed by people: a misspelt dry_run must change nothing
		return err
	}
	answer, err := s.cfg.Returns.ChangeMember(r.Context(), peer.String(), req)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, answer)
}
