package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

func TestCloseAndOpenAreIdempotentAndMonotonic(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	ctx := t.Context()
	s.exec(s.agentDSN, "INSERT INTO atoll.progress (origin, position) VALUES ('b', 4711), ('a', 1)")
	order := CloseOrder{Handover: "h1", Keyspace: "users", Buckets: []topo.EpochSpan{{First: 30, Last: 34, Epoch: 1}}, Bound: time.Second}
	var markers []change.Marker
	for range 2 {
		m, err := s.fence.CloseBuckets(ctx, order)
		if err != nil {
			t.Fatal(err)
		}
		markers = append(markers, m)
	}
	want := change.Marker{Kind: change.MarkerClosed, Site: "a", Handover: "h1", Keyspace: "users", Buckets: order.Buckets, Vector: topo.Vector{"b": 4711}}
	if fmt.Sprint(markers) != fmt.Sprint([]change.Marker{want, want}) {
		t.Errorf("markers %+v, want twice %+v", markers, want)
	}
	if got := s.state().Bits["users"].String(); got != "0-29,35-63" {
		t.Errorf("bits %s", got)
	}

	stale := func(err error, buckets int) {
		t.Helper()
		var e *StaleError
		if !errors.As(err, &e) || len(e.Late) != buckets || !errors.Is(err, ErrStale) {
			t.Errorf("got %v, want a stale order for %d buckets", err, buckets)
		}
	}
	open := func(epoch topo.Epoch) error {
		return s.fence.OpenBuckets(ctx, OpenOrder{Handover: topo.HandoverID(fmt.Sprint("o", epoch)), Keyspace: "users", Buckets: []topo.EpochSpan{{First: 29, Last: 34, Epoch: epoch}}})
	}
	stale(open(1), 5) // closed at 1 already; bucket 29 stays open
	if got := s.state().Bits["users"].String(); got != "0-29,35-63" {
		t.Errorf("bits %s after a late opening", got)
	}
	for range 2 {
		if err := open(3); err != nil {
			t.Fatal(err)
		}
	}
	stale(open(2), 6)
	other := order
	other.Handover = "h2"
	_, err := s.fence.CloseBuckets(ctx, other)
	stale(err, 5)
	if m, err := s.fence.CloseBuckets(ctx, order); err != nil || m.Handover != "h1" {
		t.Errorf("the repeated closing of epoch 1 answered %+v, %v", m, err)
	}
	if got := s.state().Bits["users"].String(); got != "0-63" {
		t.Errorf("bits %s after a late closing", got)
	}
	for name, bad := range map[string][]topo.EpochSpan{"none": nil, "reversed": {{First: 2, Last: 1, Epoch: 1}}, "no epoch": {{First: 1, Last: 1}}, "overlap": {{First: 1, Last: 3, Epoch: 1}, {First: 3, Last: 4, Epoch: 1}}} {
		if s.fence.OpenBuckets(ctx, OpenOrder{Handover: "x", Keyspace: "users", Buckets: bad}) == nil {
			t.Errorf("spans %s were accepted", name)
		}
	}
}

// Handovers of different buckets of one word, all at the same moment: none undoes what another did to the word.
func TestHandoversInOneWord(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	const buckets = 6
	var fences [buckets]*Fence // each its own, as of another agent: a Fence opens one thing at a time
	for b := range fences {
		var err error
		if fences[b], err = OpenFence(t.Context(), s.agentDSN, "a"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(fences[b].Close)
	}
	rounds := 30
	if plant.ControlRowLockRemoved { // until it is noticed
		rounds *= 20
	}
	flips := 0
	all := func(what, bits string, flip func(topo.BucketID) error) {
		t.Helper()
		var wg sync.WaitGroup
		for b := range topo.BucketID(buckets) {
			wg.Go(func() {
				if err := flip(b); err != nil {
					t.Errorf("%s bucket %d: %v", what, b, err)
				}
			})
		}
		wg.Wait()
		flips += buckets
		if got := s.state().Bits["users"].String(); got != bits || t.Failed() {
			t.Fatalf("after %d flips in one word its bits are %s, want %s", flips, got, bits)
		}
	}
	for epoch := range topo.Epoch(rounds) {
		ho := topo.HandoverID(fmt.Sprint("h", epoch+1))
		all("close", "6-63", func(b topo.BucketID) error {
			_, err := fences[b].CloseBuckets(t.Context(), CloseOrder{Handover: ho + topo.HandoverID(fmt.Sprint("-", b)), Keyspace: "users",
				Buckets: []topo.EpochSpan{at(b, epoch+1)}, Bound: 5 * time.Second})
			return err
		})
		all("open", "0-63", func(b topo.BucketID) error {
			return fences[b].OpenBuckets(t.Context(), OpenOrder{Handover: ho + topo.HandoverID(fmt.Sprint("-", b)), Keyspace: "users", Buckets: []topo.EpochSpan{at(b, epoch+2)}})
		})
	}
}

// The last word of a bucket that this site never had: a later opening at that epoch is refused.
func TestCloseOfWhatWasNeverOpened(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.close("h1", "users", at(3, 5))
	err := s.fence.OpenBuckets(t.Context(), OpenOrder{Handover: "late", Keyspace: "users", Buckets: []topo.EpochSpan{at(3, 5)}})
	if !errors.Is(err, ErrStale) {
		t.Fatalf("got %v", err)
	}
	s.open("users", at(3, 6))
}

func TestWritersThatRemain(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	b := s.bucketOf("7")
	c := s.connect(s.appDSN)
	mustExec(t, c, "SET application_name = 'slow report'")
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "INSERT INTO part VALUES (7)")
	order := CloseOrder{Handover: "h1", Keyspace: "users", Buckets: []topo.EpochSpan{at(b, 1)}, Bound: 30 * time.Millisecond}
	_, err := s.fence.CloseBuckets(t.Context(), order)
	var remain *WritersRemainError
	if !errors.As(err, &remain) || !errors.Is(err, ErrWritersRemain) || len(remain.Blockers) != 1 {
		t.Fatalf("got %v", err)
	}
	if got := remain.Blockers[0]; got.PID != int(c.PgConn().PID()) || got.Role != s.app || got.Application != "slow report" || !strings.Contains(err.Error(), "INSERT INTO part") {
		t.Errorf("blocker %+v; error %v", got, err)
	}
	if got := s.state().Bits["users"].String(); got != "0-63" {
		t.Errorf("bits %s, want all reopened", got)
	}
	if err := s.try("INSERT INTO item VALUES (7)"); err != nil {
		t.Errorf("after the closing was given up: %v", err)
	}

	// a keyspace that the writer has not touched closes at once
	s.close("h1", "catalog", at(0, 1))

	// the writer prepares while it is waited for: it keeps its virtual transaction, and is waited for on
	order.Bound = 20 * time.Second
	done := make(chan error, 1)
	go func() {
		_, err := s.fence.CloseBuckets(context.Background(), order)
		done <- err
	}()
	waitUntil(t, "the closing has begun", func() bool { return !s.state().Bits["users"].Contains(b) })
	mustExec(t, c, "PREPARE TRANSACTION 'gid '' 1'")
	select {
	case err := <-done:
		t.Fatalf("the closing ended (%v) before the prepared transaction", err)
	case <-time.After(100 * time.Millisecond):
	}
	mustExec(t, c, "COMMIT PREPARED 'gid '' 1'")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestEndBlockers(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	c, p := s.connect(s.appDSN), s.connect(s.agentDSN)
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "INSERT INTO item VALUES (7)")
	mustExec(t, p, "BEGIN")
	mustExec(t, p, "INSERT INTO item VALUES (8)")
	mustExec(t, p, `PREPARE TRANSACTION 'back\slash''s'`)
	_, err := s.fence.CloseBuckets(t.Context(), CloseOrder{Handover: "h1", Keyspace: "users", EndBlockers: true,
		Buckets: []topo.EpochSpan{{Last: 63, Epoch: 1}}, Bound: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), "COMMIT"); err == nil {
		t.Error("the blocker is still there")
	}
	if _, err := s.fence.CloseBuckets(t.Context(), CloseOrder{Handover: "h1", Keyspace: "users", Buckets: []topo.EpochSpan{{Last: 63, Epoch: 1}}, Bound: time.Second}); err != nil {
		t.Error(err)
	}
}

// A transaction that adds a partition and writes to it holds no lock on a relation that others can see yet, except
// on the partitioned table.
func TestPartitionAddedInFlight(t *testing.T) {
	t.Parallel()
	d := fenceDeployment()
	d.Tables = []TableSpec{{Schema: "public", Name: "log", Kind: topo.Keyed, Keyspace: "users", Key: "id"}}
	s := newFenceSite(t, pgserver.Shared(t), `CREATE TABLE log (id bigint NOT NULL, day int NOT NULL, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
		CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (1) TO (2)`, d).install()
	s.openAll(1)
	c := s.connect(s.srv.DSN(s.owner, s.db))
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM (2) TO (3)")
	mustExec(t, c, "INSERT INTO log_2 VALUES (7, 2)")
	order := CloseOrder{Handover: "h1", Keyspace: "users", Buckets: []topo.EpochSpan{{Last: 63, Epoch: 1}}, Bound: 50 * time.Millisecond}
	if _, err := s.fence.CloseBuckets(t.Context(), order); !errors.Is(err, ErrWritersRemain) {
		t.Fatalf("got %v, want the transaction that adds a partition to be waited for", err)
	}
	mustExec(t, c, "COMMIT")
	if got := s.state().Gaps; len(got) != 1 || got[0] != "public.log_2" {
		t.Errorf("gaps %q, want the new partition, whose truncate guard is missing", got)
	}
	s.apply()
	if got := s.state().Gaps; len(got) != 0 {
		t.Errorf("gaps %q after apply", got)
	}
	s.exec(s.adminDSN, "GRANT ALL ON log_2 TO "+s.app)
	wantCode(t, s.try("TRUNCATE log_2"), CodeTruncateFenced)
	if _, err := s.fence.CloseBuckets(t.Context(), order); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.try("INSERT INTO log_2 VALUES (8, 2)"), CodeNotOwned)
}

func TestRestrict(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	ctx := t.Context()
	old, err := OpenFence(ctx, s.agentDSN, "a") // another agent's, about to be overtaken
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := s.fence.Restrict(ctx, map[topo.KeyspaceID]topo.Spans{"users": {{First: 0, Last: 2}, {First: 31, Last: 40}}}); err != nil {
		t.Fatal(err)
	}
	st := s.state()
	if got := st.Bits["users"].String() + "|" + st.Bits["catalog"].String(); got != "0-2,31-40|" {
		t.Errorf("bits %s", got)
	}
	late := OpenOrder{Handover: "late", Keyspace: "users", Buckets: []topo.EpochSpan{at(50, 1)}}
	if err := old.OpenBuckets(ctx, late); !errors.Is(err, ErrStale) {
		t.Errorf("an opening of the overtaken agent: %v", err)
	}
	if err := s.fence.OpenBuckets(ctx, late); err != nil {
		t.Errorf("an opening of the present agent: %v", err)
	}

	// a closing that is given up must not bring back what a restriction took away
	c := s.connect(s.appDSN)
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "INSERT INTO item VALUES ("+fmt.Sprint(s.keyIn(31))+")")
	done := make(chan error, 1)
	go func() {
		_, err := s.fence.CloseBuckets(context.Background(), CloseOrder{Handover: "h1", Keyspace: "users", Buckets: []topo.EpochSpan{{First: 31, Last: 32, Epoch: 1}}, Bound: 500 * time.Millisecond})
		done <- err
	}()
	waitUntil(t, "the closing has begun", func() bool { return !s.state().Bits["users"].Contains(31) })
	if err := old.Restrict(ctx, map[topo.KeyspaceID]topo.Spans{"users": {{First: 32, Last: 32}}}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrWritersRemain) {
		t.Fatalf("got %v", err)
	}
	if got := s.state().Bits["users"].String(); got != "32" {
		t.Errorf("bits %s, want only what the restriction keeps", got)
	}
}

// An agent dies between the halves of a closing: the buckets stay closed at that epoch, another agent goes on, or a
// higher epoch opens.
func TestCloseInterrupted(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	c := s.connect(s.appDSN)
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "INSERT INTO item VALUES (1)")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	order := CloseOrder{Handover: "h1", Keyspace: "users", Buckets: []topo.EpochSpan{{Last: 9, Epoch: 1}}, Bound: time.Minute}
	go func() {
		_, err := s.fence.CloseBuckets(ctx, order)
		done <- err
	}()
	waitUntil(t, "the closing has begun", func() bool { return !s.state().Bits["users"].Contains(0) })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if err := s.fence.OpenBuckets(t.Context(), OpenOrder{Handover: "again", Keyspace: "users", Buckets: []topo.EpochSpan{at(3, 1)}}); !errors.Is(err, ErrStale) {
		t.Errorf("an opening at the epoch that is being closed: %v", err)
	}
	s.open("users", at(3, 2)) // the abort's epoch
	mustExec(t, c, "COMMIT")
	if _, err := s.fence.CloseBuckets(t.Context(), order); !errors.Is(err, ErrStale) {
		t.Errorf("closing on after bucket 3 opened at a higher epoch: %v", err)
	}
	order.Buckets = []topo.EpochSpan{{First: 4, Last: 9, Epoch: 1}}
	if _, err := s.fence.CloseBuckets(t.Context(), order); err != nil {
		t.Errorf("closing on: %v", err)
	}
}
