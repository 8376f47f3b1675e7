package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/atollhq/atoll/topo"
)

func firstOwnership(owner topo.SiteID) topo.Ownership {
	return topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{
		"users": {Buckets: 8, Hash: topo.HashMD5, Ranges: []topo.Range{{First: 0, Last: 7, Owner: owner, Epoch: 1, State: topo.Open}}},
	})
}

// What is a member's failure to answer, and what is an answer.
func TestTransient(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{
		rpctypes.ErrNoLeader:                                   true,
		rpctypes.ErrGRPCNoLeader:                               true,
		rpctypes.ErrTooManyRequests:                            true,
		rpctypes.Error(rpctypes.ErrGRPCNotSupportedForLearner): true, // so does one that was promoted a moment ago
		rpctypes.ErrGRPCNotSupportedForLearner:                 true,
		fmt.Errorf("get: %w", context.DeadlineExceeded):        true,
		status.Error(codes.Unknown, "raft proposal dropped"):   true, // the leader is leaving
		rpctypes.Error(rpctypes.ErrGRPCLeaderChanged):          true,
		rpctypes.ErrNoSpace:                                    false,
		rpctypes.ErrCompacted:                                  false,
		rpctypes.ErrMemberNotLearner:                           false,
		errors.New("anything else"):                            false,
	} {
		if got := transient(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

func moved(t testing.TB, o topo.Ownership, id topo.HandoverID, to topo.SiteID) topo.Ownership {
	t.Helper()
	next, err := o.StartMove("users", topo.Spans{{First: 0, Last: 1}}, id, to)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestOwnershipIsComparedAndSet(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t).client(t, "cas")
	ctx := within(t, 20*time.Second)
	if _, _, err := c.Ownership(ctx); !errors.Is(err, ErrNotFound) {
		t.Fatalf("before bootstrap: %v", err)
	}
	o := firstOwnership("a")
	if err := c.Bootstrap(ctx, o); err != nil {
		t.Fatal(err)
	}
	if err := c.Bootstrap(ctx, o); !errors.Is(err, ErrConflict) {
		t.Fatalf("second bootstrap: %v", err)
	}
	got, rev, err := c.Ownership(ctx)
	if err != nil || got.Checksum != o.Checksum {
		t.Fatalf("read back %+v, %v", got, err)
	}
	next := moved(t, o, "h1", "b")
	both := Change{
		Ownership: &OwnershipChange{rev, next},
		Handover:  &HandoverChange{"h1", 0, []byte(`{"state":"MOVING"}`)},
		Audit:     "ann moves users 0-1 to b",
	}
	rev2, err := c.Commit(ctx, both)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(ctx, both); !errors.Is(err, ErrConflict) {
		t.Errorf("stale commit: %v", err)
	}
	// One stale expectation spoils the whole transaction.
	if _, err := c.Commit(ctx, Change{
		Ownership: &OwnershipChange{rev2, next}, Handover: &HandoverChange{"h1", rev, []byte(`{}`)},
	}); !errors.Is(err, ErrConflict) {
		t.Errorf("half stale commit: %v", err)
	}
	body, hrev, err := c.Handover(ctx, "h1")
	if err != nil || hrev != rev2 || string(body) != `{"state":"MOVING"}` {
		t.Errorf("handover %s at %d, %v; want revision %d", body, hrev, err, rev2)
	}
	if _, err := c.Commit(ctx, Change{Handover: &HandoverChange{"h2", 0, []byte(`{}`)}}); err != nil {
		t.Error(err)
	}
	all, err := c.Handovers(ctx)
	if err != nil || len(all) != 2 || all[0].ID != "h2" || all[1].Revision != rev2 {
		t.Errorf("handovers %+v, %v", all, err)
	}
	audit, err := c.Audit(ctx, 1)
	if err != nil || len(audit) != 1 || !strings.HasPrefix(audit[0].What, "ann moves") {
		t.Errorf("audit %+v, %v", audit, err)
	}
}

func TestCommitRefusesNonsense(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t).client(t, "nonsense")
	broken := firstOwnership("a")
	broken.Checksum = "x"
	for name, ch := range map[string]Change{
		"nothing":        {},
		"broken":         {Ownership: &OwnershipChange{0, broken}},
		"handover id":    {Handover: &HandoverChange{"a/b", 0, []byte(`{}`)}},
		"handover body":  {Handover: &HandoverChange{"h", 0, []byte(`{`)}},
		"handover large": {Handover: &HandoverChange{"h", 0, []byte(`"` + strings.Repeat("x", maxBody) + `"`)}},
	} {
		if _, err := c.Commit(within(t, 5*time.Second), ch); err == nil || errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBootstrapRace(t *testing.T) {
	t.Parallel()
	cl := sharedCluster(t)
	ctx := within(t, 20*time.Second)
	for round := range 5 {
		var wg sync.WaitGroup
		errs := make([]error, 2)
		dep := fmt.Sprintf("race%d", round)
		for i, owner := range []topo.SiteID{"a", "b"} {
			cfg := cl.config(t, dep)
			cfg.Prefer = owner
			c := open(t, cfg)
			wg.Go(func() { errs[i] = c.Bootstrap(ctx, firstOwnership(owner)) })
		}
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs...), ErrConflict) {
			t.Fatalf("want one winner, got %v", errs)
		}
		o, _, err := cl.client(t, dep).Ownership(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if r, _ := o.At("users", 0); (errs[0] == nil) != (r.Owner == "a") {
			t.Errorf("winner %v, but the owner is %s", errs, r.Owner)
		}
	}
}

func TestLeaseRenewal(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t).client(t, "leases")
	ctx := within(t, 20*time.Second)
	l := Lease{Holder: "i1", Sequence: 1, Duration: 10 * time.Second, Database: topo.Identity{System: "7", Timeline: 2}, Version: 5}
	r, err := c.RenewLease(ctx, "a", l, 0)
	if err != nil || r.OwnershipRevision != 0 {
		t.Fatalf("before bootstrap: %+v, %v", r, err)
	}
	if err := c.Bootstrap(ctx, firstOwnership("a")); err != nil {
		t.Fatal(err)
	}
	l.Sequence = 2
	r2, err := c.RenewLease(ctx, "a", l, r.Revision)
	if err != nil || r2.Ownership.Version != 1 || r2.OwnershipRevision == 0 {
		t.Fatalf("renewal: %+v, %v", r2, err)
	}
	if _, err := c.RenewLease(ctx, "a", l, r.Revision); !errors.Is(err, ErrConflict) {
		t.Errorf("stale renewal: %v", err)
	}
	got, rev, err := c.Lease(ctx, "a")
	if err != nil || got != l || rev != r2.Revision {
		t.Errorf("lease %+v at %d, %v", got, rev, err)
	}
	if all, err := c.Leases(ctx); err != nil || len(all) != 1 || all["a"] != l {
		t.Errorf("leases %+v, %v", all, err)
	}
	for name, bad := range map[string]Lease{
		"no holder": {Sequence: 1, Duration: time.Second}, "no sequence": {Holder: "x", Duration: time.Second},
		"odd duration": {Holder: "x", Sequence: 1, Duration: time.Microsecond},
	} {
		if _, err := c.RenewLease(ctx, "b", bad, 0); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestNewerRecordsAreRefused(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t).client(t, "newer")
	ctx := within(t, 20*time.Second)
	put := func(key, value string) Revision {
		resp, err := c.members[0].etcd.Put(ctx, key, value)
		if err != nil {
			t.Fatal(err)
		}
		return Revision(resp.Header.Revision)
	}
	put(c.keys.ownership(), `{"format":2,"future":true}`)
	if _, _, err := c.Ownership(ctx); !errors.Is(err, topo.ErrNewerFormat) {
		t.Errorf("newer envelope: %v", err)
	}
	// A renewal goes through, but says that the document is not understood.
	r, err := c.RenewLease(ctx, "a", Lease{Holder: "i", Sequence: 1, Duration: time.Second}, 0)
	if !errors.Is(err, topo.ErrNewerFormat) || r.Revision == 0 {
		t.Errorf("renewal beside a newer document: %+v, %v", r, err)
	}
	put(c.keys.ownership(), `{"format":1,"write":"w","body":{"format":9}}`)
	if _, _, err := c.Ownership(ctx); !errors.Is(err, topo.ErrNewerFormat) {
		t.Errorf("newer document: %v", err)
	}
	put(c.keys.site("b"), `{"format":2}`)
	if _, _, err := c.Lease(ctx, "b"); !errors.Is(err, topo.ErrNewerFormat) {
		t.Errorf("newer lease: %v", err)
	}
	put(c.keys.handover("h"), "\x00garbage")
	if _, _, err := c.Handover(ctx, "h"); err == nil || !strings.Contains(err.Error(), "handover/h") {
		t.Errorf("garbage: %v", err)
	}
	if _, err := c.Handovers(ctx); err == nil {
		t.Error("garbage in the list passed")
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		"no deployment": {Endpoints: []Endpoint{{"a", "127.0.0.1:1"}}},
		"no endpoints":  {Deployment: "shop"},
		"bad endpoint":  {Deployment: "shop", Endpoints: []Endpoint{{"a", "127.0.0.1"}}},
		"plain, remote": {Deployment: "shop", Endpoints: []Endpoint{{"a", "http://10.0.0.1:2379"}}},
		"no TLS":        {Deployment: "shop", Endpoints: []Endpoint{{"a", "https://10.0.0.1:2379"}}},
	} {
		if c, err := Open(t.Context(), cfg); err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestWatchHints(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t).client(t, "watch")
	ctx := within(t, 20*time.Second)
	hints := c.Watch(ctx)
	<-hints
	if err := c.Bootstrap(ctx, firstOwnership("a")); err != nil {
		t.Fatal(err)
	}
	<-hints
	_, rev, err := c.Ownership(ctx)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := c.Commit(ctx, Change{Ownership: &OwnershipChange{rev, moved(t, firstOwnership("a"), "h", "b")}}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-hints:
		t.Logf("hint %s after the commit began", time.Since(start).Round(100*time.Microsecond))
	case <-ctx.Done():
		t.Fatal("no hint")
	}
	// Leases and audit give none.
	if _, err := c.RenewLease(ctx, "a", Lease{Holder: "i", Sequence: 1, Duration: time.Second}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.members[0].etcd.Get(ctx, "x", clientv3.WithSerializable()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-hints:
		t.Error("a lease renewal gave a hint")
	default:
	}
}

// When a watch told of a lease counts for that very lease only, as it was read.
func TestHeard(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t).client(t, "heard")
	ctx := within(t, 20*time.Second)
	hints := c.Watch(ctx)
	<-hints // it stands
	before := time.Now()
	r, err := c.RenewLease(ctx, "a", Lease{Holder: "i", Sequence: 1, Duration: time.Second}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Heard("a", r.Revision); ok {
		t.Error("heard of a lease that was not read")
	}
	eventually(t, 20*time.Second, "the watch tells of the lease", func() bool {
		if _, rev, err := c.Lease(ctx, "a"); err != nil || rev != r.Revision {
			t.Fatalf("revision %d, %v", rev, err)
		}
		at, ok := c.Heard("a", r.Revision)
		return ok && at.After(before) && at.Before(time.Now())
	})
	at, _ := c.Heard("a", r.Revision)
	c.hear("a", told{int64(r.Revision), "another record of the same number", time.Now()})
	if again, ok := c.Heard("a", r.Revision); !ok || again != at {
		t.Errorf("what was heard first is %v %v now", again, ok)
	}
	c.wasRead("a", told{int64(r.Revision) - 1, "an earlier one", at.Add(-time.Second)}) // a read that was under way
	if c.mu.heard["a"].rev != int64(r.Revision) {
		t.Error("a read that had begun before undid what was heard")
	}
	c.wasRead("a", told{int64(r.Revision) - 1, "an earlier one", time.Now()}) // another store: this one would have told of it
	if _, had := c.mu.heard["a"]; had {
		t.Error("what another store's watch told still counts")
	}
	c.hear("b", told{7, "as a former store had it", time.Now()})
	c.wasRead("b", told{7, "as it is", time.Now()})
	for site, rev := range map[topo.SiteID]Revision{"a": r.Revision - 1, "b": 7, "c": 0} {
		if _, ok := c.Heard(site, rev); ok {
			t.Errorf("heard of %s at revision %d", site, rev)
		}
	}
}

// A lease that is taken away with the change that lets its site go ends a renewal under way.
func TestLeaseGone(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t).client(t, "gone")
	ctx := t.Context()
	l := Lease{Holder: "h", Sequence: 1, Duration: time.Second}
	r, err := c.RenewLease(ctx, "c", l, 0)
	if err != nil {
		t.Fatal(err)
	}
	gone := Change{Lease: &LeaseChange{Site: "c", Expect: r.Revision, Gone: true}, Audit: "site c is let go"}
	if _, err := c.Commit(ctx, Change{Lease: gone.Lease}); err == nil {
		t.Error("a deletion that leaves no trace")
	}
	later, err := c.RenewLease(ctx, "c", Lease{Holder: "h", Sequence: 2, Duration: time.Second}, r.Revision)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(ctx, gone); !errors.Is(err, ErrConflict) {
		t.Errorf("the lease was renewed meanwhile: %v", err)
	}
	gone.Lease.Expect = later.Revision
	if _, err := c.Commit(ctx, gone); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Lease(ctx, "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := c.RenewLease(ctx, "c", Lease{Holder: "h", Sequence: 3, Duration: time.Second}, later.Revision); !errors.Is(err, ErrConflict) {
		t.Errorf("a renewal of what is gone: %v", err)
	}
}
