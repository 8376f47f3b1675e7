package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/atollhq/atoll/topo"
)

// agentServer answers one path, or with 503 while it stands by.
func agentServer(t *testing.T, name string) (addr string, standby *atomic.Bool, calls *atomic.Int64) {
	t.Helper()
	standby, calls = new(atomic.Bool), new(atomic.Int64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		var req CaughtUpRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.Handover != "h1" {
			t.Errorf("%s got %+v, %v", name, req, err)
		}
		if standby.Load() {
			w.Header().Set(HeaderStandby, "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			_ = json.NewEncoder(w).Encode(Error{Code: CodeUnavailable, Message: name + " stands by"})
			return
		}
		_ = json.NewEncoder(w).Encode(CaughtUpAnswer{})
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://"), standby, calls
}

func TestSiteClient(t *testing.T) {
	t.Parallel()
	one, oneStandsBy, onesCalls := agentServer(t, "one")
	two, twoStandsBy, twosCalls := agentServer(t, "two")
	twoStandsBy.Store(true)
	ask := func(addrs ...string) error {
		c := NewSiteClient(addrs, nil, nil)
		defer c.Close()
		_, err := c.CaughtUp(t.Context(), CaughtUpRequest{Handover: "h1", From: topo.SiteID("a"), BoundMS: 10})
		return err
	}
	if err := ask(two, one); err != nil {
		t.Errorf("a standby first: %v", err)
	}
	if err := ask("127.0.0.1:1", one); err != nil {
		t.Errorf("an address where nobody listens first: %v", err)
	}
	oneStandsBy.Store(true)
	if err := ask(one, two); err == nil || !strings.Contains(err.Error(), "stands by") {
		t.Errorf("nobody active: %v", err)
	}
	if err := ask("127.0.0.1:1", two); err == nil || !strings.Contains(err.Error(), "two stands by") {
		t.Errorf("nobody active, one of them away: %v", err)
	}
	if err := ask("127.0.0.1:1", "127.0.0.1:2"); err == nil {
		t.Error("nobody there, and no error")
	}

	// Whoever took the last call is asked first.
	oneStandsBy.Store(false)
	c := NewSiteClient([]string{two, one}, nil, nil)
	defer c.Close()
	onesCalls.Store(0)
	twosCalls.Store(0)
	for range 5 {
		if _, err := c.CaughtUp(t.Context(), CaughtUpRequest{Handover: "h1"}); err != nil {
			t.Fatal(err)
		}
	}
	if onesCalls.Load() != 5 || twosCalls.Load() != 1 {
		t.Errorf("one was asked %d times, two %d", onesCalls.Load(), twosCalls.Load())
	}
}
