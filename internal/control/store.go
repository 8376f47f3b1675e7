package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// StoreMembers is what operators may do with the store's members; it is nil where the store is an external one.
type StoreMembers interface {
	Members(context.Context) (store.Membership, error)
	AddMember(ctx context.Context, site topo.SiteID, peer string) (store.Standing, error)
	RemoveMember(ctx context.Context, site topo.SiteID, force bool) error
	Backup(context.Context, io.Writer) (topo.SiteID, error)
}

func (s *Server) storeMembers(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	all, err := s.cfg.Store.Members(r.Context())
	if err != nil {
		return storeError(err)
	}
	out := api.StoreMembers{Members: []api.StoreMember{}, Voters: all.Voters, Healthy: all.Healthy, Quorum: all.Quorum, Problem: all.Problem}
	for _, m := range all.Members {
		one := api.StoreMember{Member: m.Site, ID: m.ID, Peer: m.Peer, Client: m.Client, Leader: m.Leader, Index: m.Index, Lag: m.Lag,
			Healthy: m.Problem == "", Problem: m.Problem}
		switch {
		case m.Learner:
			one.Role = "learner"
		case m.ID != "":
			one.Role = "voter"
		}
		out.Members = append(out.Members, one)
	}
	return write(w, http.StatusOK, out)
}

func (s *Server) storeAdd(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.StoreAddRequest
	if err := decode(r.Body, &req, true); err != nil {
		return err
	}
	standing, err := s.cfg.Store.AddMember(r.Context(), req.Member, req.Peer)
	if err != nil {
		return storeError(err)
	}
	if standing == store.Voting {
		s.audit(r.Context(), fmt.Sprintf("store: member %s at %s has a vote (by %s%s)", req.Member, req.Peer, peer, because(req.Why)))
	}
	return write(w, http.StatusOK, api.StoreAddAnswer{Member: req.Member, Standing: string(standing)})
}

func (s *Server) storeRemove(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.StoreRemoveRequest
	if err := decode(r.Body, &req, true); err != nil {
		return err
	}
	if err := s.cfg.Store.RemoveMember(r.Context(), req.Member, req.Force); err != nil {
		return storeError(err)
	}
	s.audit(r.Context(), fmt.Sprintf("store: member %s was removed (by %s%s)", req.Member, peer, because(req.Why)))
	return write(w, http.StatusOK, api.StoreAddAnswer{Member: req.Member, Standing: "removed"})
}

// storeBackup streams. What it cannot finish lacks its checksum.
func (s *Server) storeBackup(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	w.Header().Set("Content-Type", "application/octet-stream")
	begun := &begunWriter{w: w}
	from, err := s.cfg.Store.Backup(r.Context(), begun)
	switch {
	case err != nil && begun.begun:
		s.log.Warn("a backup of the store was broken off", "for", peer, "error", err)
		panic(http.ErrAbortHandler) // the other end must not take it for the end
	case err != nil:
		return storeError(err)
	}
	s.log.Info("the store was backed up", "from", from, "for", peer)
	return nil
}

type begunWriter struct {
	w     io.Writer
	begun bool
}

func (b *begunWriter) Write(p []byte) (int, error) {
	b.begun = true
	return b.w.Write(p)
}

// evidence says what the site's database knows; sealing it is for operators who recover the store.
func (s *Server) evidence(w http.ResponseWriter, r *http.Request, peer pki.Peer) error {
	var req api.EvidenceRequest
	if err := decode(r.Body, &req, true); err != nil {
		return err
	}
	e, err := s.cfg.Evidence(r.Context(), req.Seal)
	if err != nil {
		return err
	}
	if req.Seal > 0 {
		s.log.Warn("the database was told of a generation of the store", "generation", req.Seal, "by", peer)
	}
	return write(w, http.StatusOK, e)
}

func (s *Server) audit(ctx context.Context, text string) {
	if err := s.cfg.Controller.writeAudit(ctx, text); err != nil {
		s.log.Warn("not written to the audit", "text", text, "error", err)
	}
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

func storeError(err error) error {
	e := &api.Error{Status: 503, Code: api.CodeUnavailable, Message: err.Error()}
	switch {
	case errors.Is(err, store.ErrWouldLoseQuorum):
		e.Status, e.Code = 409, api.CodeRefused
	case errors.Is(err, store.ErrNoMember):
		e.Status, e.Code = 404, api.CodeNotFound
	case !errors.Is(err, store.ErrUnavailable):
		e.Status, e.Code = 409, api.CodeRefused
	}
	return e
}
