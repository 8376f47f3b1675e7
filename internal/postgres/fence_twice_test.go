package postgres

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Two controllers close for one handover at once. The first gives up, so that writers pass again; a third call begins
// anew. The second has waited for none of the writers between: it must not write the marker (I3). The model found this.
func TestAClosingThatBeganAnewIsNotFinishedByAnEarlierOne(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	b := s.bucketOf("7")
	order := func(bound time.Duration) CloseOrder {
		return CloseOrder{Handover: "h1", Keyspace: "users", Buckets: []topo.EpochSpan{at(b, 1)}, Bound: bound}
	}
	closing := func(bound time.Duration) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := s.fence.CloseBuckets(context.Background(), order(bound))
			done <- err
		}()
		return done
	}
	first := s.connect(s.appDSN)
	mustExec(t, first, "BEGIN")
	mustExec(t, first, "INSERT INTO part VALUES (7)")
	early := closing(20 * time.Second)
	waitUntil(t, "the bits are off", func() bool { return !s.state().Bits["users"].Contains(b) })
	if _, err := s.fence.CloseBuckets(t.Context(), order(30*time.Millisecond)); !errors.Is(err, ErrWritersRemain) {
		t.Fatalf("the second closing: %v", err)
	}
	second := s.connect(s.appDSN)
	mustExec(t, second, "BEGIN")
	mustExec(t, second, "INSERT INTO item VALUES (7)")
	anew := closing(20 * time.Second)
	waitUntil(t, "the bits are off again", func() bool { return !s.state().Bits["users"].Contains(b) })
	mustExec(t, first, "COMMIT")
	if err := <-early; !errors.Is(err, ErrStale) {
		t.Errorf("the closing from before ended with %v while a writer was under way; want it superseded", err)
	}
	select {
	case err := <-anew:
		t.Fatalf("the closing that began anew did not wait for its writer: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	mustExec(t, second, "COMMIT")
	if err := <-anew; err != nil {
		t.Errorf("the closing that began anew: %v", err)
	}
}
