package control

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

// ConflictLog is the conflict log of this site's database.
type ConflictLog interface {
	// Conflicts returns a page, newest first, and whether there are older ones.
	Conflicts(ctx context.Context, q api.ConflictQuery) (page []api.Conflict, more bool, err error)
	// Conflict returns one entry; false if there is none of that id.
	Conflict(ctx context.Context, id int64) (api.Conflict, bool, error)
}

// conflicts lists them. They hold the application's data, so that they are for operators only.
func (s *Server) conflicts(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	q, err := conflictQuery(r.URL.Query())
	if err != nil {
		return err
	}
	page, more, err := s.cfg.Conflicts.Conflicts(r.Context(), q)
	if err != nil {
		return unavailable("the conflict log", err)
	}
	list := api.ConflictList{Site: s.cfg.Site, Conflicts: make([]api.Conflict, len(page)), More: more}
	for i, c := range page {
		c.Site = s.cfg.Site
		list.Conflicts[i] = c
	}
	return write(w, http.StatusOK, list)
}

func (s *Server) conflict(w http.ResponseWriter, r *http.Request, _ pki.Peer) error {
	text := r.PathValue("id")
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 {
		return badRequest(fmt.Sprintf("conflict %.80q; want a number from 1 on", text), "atoll conflicts list shows them")
	}
	c, found, err := s.cfg.Conflicts.Conflict(r.Context(), id)
	switch {
	case err != nil:
		return unavailable("the conflict log", err)
	case !found:
		return &api.Error{Status: 404, Code: api.CodeNotFound, Message: fmt.Sprintf("site %s has no conflict %d", s.cfg.Site, id), Hint: "atoll conflicts list shows them"}
	}
	c.Site = s.cfg.Site
	return write(w, http.StatusOK, c)
}

func conflictQuery(v url.Values) (api.ConflictQuery, error) {
	q := api.ConflictQuery{Table: v.Get("table"), Handover: topo.HandoverID(v.Get("handover")), Limit: api.DefaultConflicts}
	for name := range v { // a misspelt filter must not show everything
		switch name {
		case "table", "handover", "before", "limit":
		default:
			return q, badRequest(fmt.Sprintf("unknown parameter %.80q", name), "want table, handover, before or limit")
		}
	}
	if len(q.Table) > 200 || len(q.Handover) > 200 {
		return q, badRequest("table or handover is longer than 200 bytes", "")
	}
	if text := v.Get("before"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 1 {
			return q, badRequest(fmt.Sprintf("before %.80q; want the id of a conflict", text), "")
		}
		q.Before = n
	}
	if text := v.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > api.MaxConflicts {
			return q, badRequest(fmt.Sprintf("limit %.80q; want a number from 1 to %d", text, api.MaxConflicts), "")
		}
		q.Limit = n
	}
	return q, nil
}
