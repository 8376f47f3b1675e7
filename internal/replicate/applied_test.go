package replicate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

func TestWaitMarker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := newTarget(t, "b")
		early := change.Marker{Kind: change.MarkerClosed, Site: "a", Handover: "early"}
		db.mu.markers = []change.Marker{early, {Kind: change.MarkerOpened, Site: "a", Handover: "h"}}
		a, err := LoadApplied(t.Context(), "b", db)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := a.WaitMarker(t.Context(), "a", "early"); err != nil || m.Handover != "early" {
			t.Errorf("a marker that is in the database: %v, %v", m, err)
		}
		type result struct {
			m   change.Marker
			err error
		}
		results := make(chan result, 3)
		for range 2 {
			go func() {
				m, err := a.WaitMarker(t.Context(), "a", "h")
				results <- result{m, err}
			}()
		}
		synctest.Wait()
		// Others' markers, other handovers and opening markers wake nobody.
		a.advance("a", 10, []change.Marker{{Kind: change.MarkerOpened, Site: "a", Handover: "h"}, {Kind: change.MarkerClosed, Site: "a", Handover: "x"}})
		a.advance("c", 10, []change.Marker{{Kind: change.MarkerClosed, Site: "c", Handover: "h"}})
		synctest.Wait()
		if len(results) != 0 {
			t.Fatal("woken by another marker")
		}
		closed := change.Marker{Kind: change.MarkerClosed, Site: "a", Handover: "h"}
		a.advance("a", 20, []change.Marker{closed, closed})
		for range 2 {
			if r := <-results; r.err != nil || r.m.Handover != "h" || r.m.Kind != change.MarkerClosed {
				t.Errorf("%+v", r)
			}
		}
		// One that has come needs no look into the database.
		db.mu.Lock()
		if _, err := a.WaitMarker(t.Context(), "a", "x"); err != nil {
			t.Error(err)
		}
		db.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := a.WaitMarker(ctx, "a", "never"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting for what never comes: %v", err)
		}
		if len(a.mu.waiting) != 0 {
			t.Errorf("%d waiters are left behind", len(a.mu.waiting))
		}
	})
}

// A failover leaves one marker per keyspace: they are waited for together, wherever each of them was seen.
func TestWaitMarkers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		marker := func(ks topo.KeyspaceID) change.Marker {
			return change.Marker{Kind: change.MarkerClosed, Site: "a", Handover: "h", Keyspace: ks}
		}
		db := newTarget(t, "b")
		db.mu.markers = []change.Marker{marker("catalog")}
		a, err := LoadApplied(t.Context(), "b", db)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- a.WaitMarkers(t.Context(), "a", "h", []topo.KeyspaceID{"catalog", "orders", "users"}) }()
		synctest.Wait()
		a.advance("a", 10, []change.Marker{marker("users")})
		synctest.Wait()
		if len(done) != 0 {
			t.Fatal("did not wait for the marker of orders")
		}
		a.advance("a", 20, []change.Marker{marker("orders"), marker("users")})
		if err := <-done; err != nil {
			t.Error(err)
		}
		// All are remembered: no look into the database is needed.
		db.mu.Lock()
		defer db.mu.Unlock()
		if err := a.WaitMarkers(t.Context(), "a", "h", []topo.KeyspaceID{"users", "catalog"}); err != nil {
			t.Error(err)
		}
	})
}

func TestWaitVector(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := newTarget(t, "b")
		db.mu.progress["a"] = change.Progress{Known: true, Position: 5}
		a, err := LoadApplied(t.Context(), "b", db)
		if err != nil {
			t.Fatal(err)
		}
		// A site's own changes are always there; what is recorded counts from the start.
		if err := a.WaitVector(t.Context(), topo.Vector{"b": 1 << 60, "a": 5}); err != nil {
			t.Error(err)
		}
		done := make(chan error, 1)
		go func() { done <- a.WaitVector(t.Context(), topo.Vector{"a": 10, "c": 3}) }()
		for _, step := range []struct {
			origin topo.SiteID
			pos    change.Position
		}{{"a", 9}, {"c", 3}, {"a", 8}} {
			a.advance(step.origin, step.pos, nil)
			synctest.Wait()
			if len(done) != 0 {
				t.Fatalf("covered at %v", a.Vector())
			}
		}
		a.advance("a", 11, nil)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if v := a.Vector(); v["a"] != 11 || v["c"] != 3 {
			t.Errorf("vector %v", v)
		}
	})
}

func TestEverywhere(t *testing.T) {
	t.Parallel()
	a, err := LoadApplied(t.Context(), "b", newTarget(t, "b"))
	if err != nil {
		t.Fatal(err)
	}
	a.heard("c", topo.Vector{"a": 9})
	if got := a.everywhere("a", []topo.SiteID{"c", "d"}); got != 0 {
		t.Errorf("a site that never spoke has position %d", got)
	}
	a.heard("d", topo.Vector{"a": 7})
	if got := a.everywhere("a", []topo.SiteID{"c", "d"}); got != 7 {
		t.Errorf("the least is %d", got)
	}
}

func TestDatabaseThatWentBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, err := LoadApplied(t.Context(), "b", newTarget(t, "b"))
		if err != nil {
			t.Fatal(err)
		}
		a.advance("a", 50, []change.Marker{{Kind: change.MarkerClosed, Site: "a", Handover: "h"}})
		a.advance("c", 9, nil)
		if err := a.reload(t.Context(), "a", 40); err != nil {
			t.Fatal(err)
		}
		if v := a.Vector(); v["a"] != 40 || v["c"] != 9 {
			t.Errorf("vector %v", v)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if m, err := a.WaitMarker(ctx, "a", "h"); err == nil {
			t.Errorf("marker %v is said to be here", m)
		}
	})
}

// What markers ask of an origin's former stream is not waited for while some may still be under way; of its new one it is.
func TestAppliedAnew(t *testing.T) {
	t.Parallel()
	a, err := LoadApplied(t.Context(), "c", newTarget(t, "c"))
	if err != nil {
		t.Fatal(err)
	}
	a.advance("a", 900, nil)
	a.heard("b", topo.Vector{"a": 800, "c": 7})
	former := topo.Vector{"a": 900}
	a.Anew("a", 50, false)
	if lacking := a.lacks(former); lacking != "" || a.Vector()["a"] != 50 {
		t.Errorf("lacks %q at %v", lacking, a.Vector())
	}
	if err := a.WaitVector(t.Context(), former); err != nil {
		t.Error(err)
	}
	over, end := context.WithCancel(t.Context())
	end()
	if err := a.WaitApplied(over, "a", 900); err == nil {
		t.Error("readers are told that a former stream's changes are here")
	}
	if err := a.WaitApplied(over, "a", 50); err != nil {
		t.Error(err)
	}
	if a.said("b", "a") != 0 || a.said("b", "c") != 7 {
		t.Errorf("what b has said of the former stream counts: %d", a.said("b", "a"))
	}
	a.Anew("a", 50, true)
	if a.lacks(former) != "a" || a.lacks(topo.Vector{"a": 50}) != "" {
		t.Error("positions of the new stream are not waited for")
	}
}
