package control

import (
	"context"
	"io"
	"net/http"
	"testing"

	"github.com/atollhq/atoll/internal/api"
)

// memConflicts has one conflict, and answers a query with what it was asked for.
type memConflicts struct{}

func (memConflicts) Conflicts(_ context.Context, q api.ConflictQuery) ([]api.Conflict, bool, error) {
	return []api.Conflict{{ID: q.Before, Table: q.Table, Handover: q.Handover, Position: uint64(q.Limit)}}, true, nil
}

func (memConflicts) Conflict(_ context.Context, id int64) (api.Conflict, bool, error) {
	return api.Conflict{ID: id}, id == 1, nil
}

func somePage(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a page") }

// TestConflictsOverTheAPI: what an operator asks for arrives at the log, and every entry says whose it is.
func TestConflictsOverTheAPI(t *testing.T) {
	t.Parallel()
	ann := serve(t).as("operator-ann")
	list, err := ann.Conflicts(t.Context(), api.ConflictQuery{Table: "public.a&b", Handover: "h 1", Before: 9, Limit: 3})
	if err != nil || list.Site != "a" || !list.More || len(list.Conflicts) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	if c := list.Conflicts[0]; c.Site != "a" || c.ID != 9 || c.Table != "public.a&b" || c.Handover != "h 1" || c.Position != 3 {
		t.Errorf("asked for, and got %+v", c)
	}
	if c, err := ann.Conflict(t.Context(), 1); err != nil || c.Site != "a" || c.ID != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}
