package recovery

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// revived is a real store that was left with a document, leases, and a switch that was under way.
func revived(t *testing.T) *store.Client {
	t.Helper()
	dir := t.TempDir()
	keys := filepath.Join(dir, "pki")
	if err := errors.Join(pki.Init(keys, "shop"), pki.Issue(keys, pki.Role{Kind: pki.Site, Name: "a"})); err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(keys, "site-a")
	if err != nil {
		t.Fatal(err)
	}
	addr := func() string {
		a, err := loopback.Addr()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	conf := store.MemberConfig{Deployment: "shop", Site: "a", Dir: filepath.Join(dir, "store"), AdvertiseClient: addr(), AdvertisePeer: addr(),
		Heartbeat: 50 * time.Millisecond, Election: 500 * time.Millisecond}
	conf.InitialCluster = map[topo.SiteID]string{"a": conf.AdvertisePeer}
	conf.CA, conf.Cert, conf.Key = id.Files()
	v, err := store.Revive(t.Context(), store.Revival{Member: conf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Discard(); err != nil {
			t.Error(err)
		}
	})
	return v.Client
}

func first() topo.Ownership {
	return topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 8, Hash: topo.HashMD5, Ranges: []topo.Range{
		{First: 0, Last: 7, Owner: "a", Epoch: 1, State: topo.Open}}}})
}

// databases are what the sites say, and what they were asked in which order.
type databases struct {
	mu    sync.Mutex
	says  map[topo.SiteID]topo.Evidence
	asked []string
}

func (d *databases) ask(_ context.Context, site topo.SiteID, seal uint64) (topo.Evidence, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.says[site]
	if !ok {
		return e, errors.New("connection refused")
	}
	if seal > 0 {
		d.asked = append(d.asked, "seal "+string(site))
		e.Generation = max(e.Generation, seal)
		d.says[site] = e
	}
	return e, nil
}

func row(site topo.SiteID, firstBucket, last topo.BucketID, e topo.Epoch, open bool, id topo.HandoverID) topo.FenceRow {
	return topo.FenceRow{Site: site, Keyspace: "users", First: firstBucket, Last: last, Epoch: e, Open: open, Handover: id}
}

func TestRecoveryOfASwitchUnderWay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := revived(t)
	o := first()
	if err := s.Bootstrap(ctx, o); err != nil {
		t.Fatal(err)
	}
	moving, err := o.StartMove("users", topo.Spans{{First: 0, Last: 1}}, "s-1", "b")
	if err != nil {
		t.Fatal(err)
	}
	_, rev, err := s.Ownership(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rec := handover.Record{Format: handover.Format, ID: "s-1", Kind: handover.Switch, Move: handover.Move{Keyspace: "users", Buckets: topo.Spans{{First: 0, Last: 1}}, From: "a", To: "b",
		Epochs: []topo.EpochSpan{{First: 0, Last: 1, Epoch: 1}}}, Sites: []topo.SiteID{"a", "b"}, Phase: handover.Fenced, Driver: "a/1", Claimed: 2,
		Steps: []handover.Step{{Phase: handover.Fenced, At: time.Now(), Driver: "a/1"}}}
	if _, err := s.Commit(ctx, store.Change{Ownership: &store.OwnershipChange{Expect: rev, Next: moving}, Handover: &store.HandoverChange{ID: "s-1", Body: rec.Encode()}}); err != nil {
		t.Fatal(err)
	}
	left := store.Lease{Holder: "h", Sequence: 5, Duration: time.Second}
	if _, err := s.RenewLease(ctx, "a", left, 0); err != nil {
		t.Fatal(err)
	}
	d := &databases{says: map[topo.SiteID]topo.Evidence{
		"a": {Site: "a", Generation: 1, Rows: []topo.FenceRow{row("a", 0, 1, 1, false, "s-1"), row("a", 2, 7, 1, true, "open")}}}}
	cfg := Config{Deployment: "shop", Member: "a", Sites: []topo.SiteID{"a", "b"}, First: first(), Store: s, Ask: d.ask, Who: "ann", Now: time.Now}

	var doubt *topo.Doubt
	if _, err := Look(ctx, cfg); !errors.As(err, &doubt) || !strings.Contains(err.Error(), "site b: connection refused") {
		t.Fatalf("without b: %v", err)
	}
	given := cfg
	given.Without = []topo.SiteID{"b"} // the target of the switch may have opened what a has closed
	if _, err := Look(ctx, given); !errors.As(err, &doubt) || !strings.Contains(err.Error(), "site b, which was left out, may have opened it") {
		t.Fatalf("with b given up: %v", err)
	}

	d.says["b"] = topo.Evidence{Site: "b", Generation: 1}
	plan, err := Look(ctx, cfg)
	if err != nil || !slices.Equal(plan.Conclude, []topo.HandoverID{"s-1"}) {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	if want := "begin generation 2 of the store of shop at a"; plan.Words(cfg) != want {
		t.Errorf("words %q, want %q", plan.Words(cfg), want)
	}
	if len(d.asked) > 0 {
		t.Errorf("a look has sealed: %v", d.asked)
	}

	// The former store lives after all, and decides the switch between look and seal.
	d.says["b"] = topo.Evidence{Site: "b", Generation: 1, Rows: []topo.FenceRow{row("b", 0, 1, 2, true, "s-1")}}
	if err := Carry(ctx, cfg, plan); !errors.Is(err, ErrChanged) {
		t.Fatalf("carried out what was not agreed to: %v", err)
	}
	if now, _, err := s.Ownership(ctx); err != nil || now.Generation != 1 {
		t.Fatalf("something was written: %d, %v", now.Generation, err)
	}
	plan, err = Look(ctx, cfg)
	if err != nil || plan.Next.Generation != 3 { // the seal of the first try stands
		t.Fatalf("plan %d, %v", plan.Next.Generation, err)
	}
	if err := Carry(ctx, cfg, plan); err != nil {
		t.Fatal(err)
	}
	now, _, err := s.Ownership(ctx)
	if err != nil || now.Generation != 3 || !now.Newer(moving) {
		t.Fatalf("ownership %d.%d, %v", now.Generation, now.Version, err)
	}
	for b, owner := range map[topo.BucketID]topo.SiteID{0: "b", 1: "b", 2: "a", 7: "a"} {
		if at, _ := now.At("users", b); at.Owner != owner || at.Epoch != 2+topo.RecoveryLift || at.State != topo.Open {
			t.Errorf("bucket %d: %+v, want %s", b, at, owner)
		}
	}
	body, _, err := s.Handover(ctx, "s-1")
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := handover.DecodeRecord(body); err != nil || rec.Outcome != handover.OutcomeDone || rec.Driver != driver {
		t.Errorf("record %+v, %v", rec, err)
	}
	l, _, err := s.Lease(ctx, "a")
	if err != nil || !l.Released || l.Sequence <= left.Sequence || l.Holder != "h" {
		t.Errorf("lease %+v, %v", l, err)
	}
}

// TestRecoveryFromNothing: every folder and every backup is lost; the databases know.
func TestRecoveryFromNothing(t *testing.T) {
	t.Parallel()
	s := revived(t)
	d := &databases{says: map[topo.SiteID]topo.Evidence{
		"a": {Site: "a", Generation: 4, Rows: []topo.FenceRow{row("a", 0, 7, 9, true, "open"), row("b", 0, 3, 8, false, "x")}},
		"b": {Site: "b", Generation: 4, Rows: []topo.FenceRow{row("b", 0, 3, 10, true, "s-9"), row("a", 0, 3, 9, false, "s-9")}}}}
	cfg := Config{Deployment: "shop", Member: "a", Sites: []topo.SiteID{"a", "b"}, First: first(), Store: s, Ask: d.ask, Now: time.Now}
	plan, err := Look(t.Context(), cfg)
	if err == nil {
		err = Carry(t.Context(), cfg, plan)
	}
	if err != nil {
		t.Fatal(err)
	}
	o, _, err := s.Ownership(t.Context())
	low, _ := o.At("users", 0)
	high, _ := o.At("users", 7)
	if err != nil || o.Generation != 5 || low.Owner != "b" || high.Owner != "a" || high.Epoch != 10+topo.RecoveryLift {
		t.Errorf("generation %d, %+v, %+v, %v", o.Generation, low, high, err)
	}
}
