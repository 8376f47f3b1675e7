package topo

import (
	"testing"
)

func placed(t *testing.T) Ownership {
	t.Helper()
	o := NewOwnership(map[KeyspaceID]Placement{
		"users": {Buckets: 8, Hash: HashMD5, Ranges: []Range{
			{First: 0, Last: 3, Owner: "a", Epoch: 4, State: Open},
			{First: 4, Last: 4, Owner: "a", Epoch: 6, State: Open},
			{First: 5, Last: 7, Owner: "b", Epoch: 2, State: Open},
		}},
		"catalog": {Buckets: 1, Hash: HashMD5, Ranges: []Range{{First: 0, Last: 0, Owner: "a", Epoch: 1, State: Open}}},
	})
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestTakeOver(t *testing.T) {
	t.Parallel()
	o := placed(t)
	moving, err := o.StartMove("users", Spans{{1, 1}}, "s-1", "b")
	if err != nil {
		t.Fatal(err)
	}
	next, taken, err := moving.TakeOver("a", "b", "f-1", 900)
	if err != nil {
		t.Fatal(err)
	}
	if next.Version != moving.Version+1 {
		t.Errorf("version %d after %d; want one more", next.Version, moving.Version)
	}
	back, err := DecodeOwnership(next.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if len(taken) != 2 || taken[0].Keyspace != "catalog" || len(taken[1].Buckets) != 3 {
		t.Errorf("taken %+v", taken)
	}
	if r, _ := back.At("users", 1); r.Owner != "a" || r.State != Moving || r.Cut != nil {
		t.Errorf("a bucket that moves was touched: %+v", r)
	}
	if r, _ := back.At("users", 4); r.Owner != "b" || r.Epoch != 7 || r.Cut == nil || *r.Cut != (Cut{From: "a", Epoch: 6, Position: 900, Handover: "f-1"}) {
		t.Errorf("bucket 4: %+v, cut %+v", r, r.Cut)
	}
	if r, _ := back.At("users", 6); r.Epoch != 2 || r.Cut != nil {
		t.Errorf("the taker's own bucket was touched: %+v", r)
	}
	if !moving.Busy() || !back.Busy() || o.Busy() {
		t.Errorf("busy: %v before, %v while a bucket moves, %v with a cut", o.Busy(), moving.Busy(), back.Busy())
	}
	if got := back.Unsettled("a"); got != "f-1" {
		t.Errorf("unsettled %q", got)
	}
	if _, _, err := back.TakeOver("b", "a", "f-2", 1); err == nil {
		t.Error("a site whose tail is not settled took over")
	}
	settled, err := back.Settle("f-1", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := settled.Validate(); err != nil || settled.Unsettled("a") != "" || len(settled.Cuts()) != 0 || settled.Version != back.Version+1 {
		t.Errorf("settled: %v, %+v", err, settled)
	}
	if _, err := settled.Settle("f-1", true); err == nil {
		t.Error("what has no cut was settled")
	}
}

func TestTakeOverOfNothing(t *testing.T) {
	t.Parallel()
	if _, _, err := placed(t).TakeOver("c", "b", "f-1", 1); err == nil {
		t.Error("a site that owns nothing was taken over")
	}
}
