package postgres

import (
	"errors"
	"fmt"
	"testing"

	"github.com/atollhq/atoll/topo"
)

// TestGenerationClosesTheDoor: a database that was told of a generation opens nothing under an older one, and says what it
// knows.
func TestGenerationClosesTheDoor(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	order := func(b topo.BucketID, generation uint64) error {
		return s.fence.OpenBuckets(t.Context(), OpenOrder{Handover: topo.HandoverID(fmt.Sprint("o", b, "-", generation)), Keyspace: "users", Buckets: []topo.EpochSpan{at(b, 1)}, Generation: generation})
	}
	if err := order(3, 1); err != nil {
		t.Fatal(err)
	}
	for _, g := range []uint64{2, 1} { // it only grows
		if err := s.fence.RaiseGeneration(t.Context(), g); err != nil {
			t.Fatal(err)
		}
	}
	if err := order(4, 1); !errors.Is(err, ErrFormerStore) {
		t.Errorf("opened under generation 1: %v", err)
	}
	if err := order(4, 2); err != nil {
		t.Error(err)
	}
	st, err := s.fence.State(t.Context())
	if err != nil || st.Generation != 2 {
		t.Errorf("generation %d, %v", st.Generation, err)
	}
	e, err := s.fence.Evidence(t.Context())
	if err != nil || e.Site != "a" || e.Generation != 2 || len(e.Cuts) != 0 {
		t.Fatalf("evidence %+v, %v", e, err)
	}
	found := 0
	for _, r := range e.Rows {
		if r.Site == "a" && r.Keyspace == "users" && r.Open && r.Epoch == 1 && r.First <= 4 && r.Last >= 3 {
			found++
		}
	}
	if found == 0 {
		t.Errorf("rows %+v", e.Rows)
	}
}
