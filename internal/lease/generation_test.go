package lease

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// TestFormerStore: what a store grants that a newer generation has replaced counts for nothing, also after a restart of
// the agent, which then only its database reminds.
func TestFormerStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f)
		x.wantOn("0-3")
		if f.generation != 1 {
			t.Errorf("the database was told of generation %d, want 1", f.generation)
		}
		second := lifted(users())
		s.own(second)
		after(d)
		x.wantOn("0-3")
		if f.generation != 2 {
			t.Fatalf("the database was told of generation %d, want 2", f.generation)
		}

		s.own(users()) // a member of the former store answers
		after(2 * d)
		if _, live := x.keeper.Deadline(); live {
			t.Error("the lease is extended by a former store")
		}
		x.stop()
		y := start(t, s, f)
		after(2 * d)
		if _, live := y.keeper.Deadline(); live {
			t.Error("the lease is extended by a former store, after a restart")
		}
		if err := y.keeper.Observe(t.Context(), users()); !errors.Is(err, ErrNotActive) && !errors.Is(err, postgres.ErrFormerStore) {
			t.Errorf("observed a former ownership: %v", err)
		}
		s.own(second)
		after(d)
		y.wantOn("0-3")
		if _, live := y.keeper.Deadline(); !live {
			t.Errorf("the lease is not extended by the new store: %s", y.keeper.Status().Problem)
		}
	})
}

// TestSealedBeforeTheNewStore: a database that was told of the next generation goes on under no older one.
func TestSealedBeforeTheNewStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f)
		x.wantOn("0-3")
		f.set(func(f *memFence) { f.generation = 2 })
		after(2 * d)
		if _, live := x.keeper.Deadline(); live {
			t.Error("the lease is extended under a generation that is over")
		}
		s.own(lifted(users()))
		after(d)
		if _, live := x.keeper.Deadline(); !live {
			t.Errorf("the lease is not extended by the new store: %s", x.keeper.Status().Problem)
		}
	})
}

// lifted is o as generation 2, every epoch lifted.
func lifted(o topo.Ownership) topo.Ownership {
	r := must(o.Recover(topo.Recovery{Sites: []topo.SiteID{"a", "b"},
		Evidence: map[topo.SiteID]topo.Evidence{"a": {Site: "a", Generation: 1}, "b": {Site: "b", Generation: 1}}}))
	return r.Ownership
}
