package lease

import (
	"errors"
	"slices"
	"testing"

	"github.com/atollhq/atoll/topo"
)

// What a failover took is opened only when the database knows where the lost site's epochs end.
func TestCutsAreRecordedBeforeOpening(t *testing.T) {
	t.Parallel()
	bubble(t, "cuts first", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		o := users()
		s.own(o)
		x := start(t, s, f)
		if f.did("cuts") != 0 {
			t.Error("cuts are recorded that do not exist")
		}
		taken, _, err := o.TakeOver("b", "a", "f1", 77)
		if err != nil {
			t.Fatal(err)
		}
		f.set(func(f *memFence) { f.refuse["cuts"] = errors.New("the applier is busy") })
		if err := x.keeper.Observe(t.Context(), taken); err == nil {
			t.Error("nobody says that the cuts are not recorded")
		}
		x.wantOn("0-3")
		f.set(func(f *memFence) { delete(f.refuse, "cuts") })
		if err := x.keeper.Observe(t.Context(), taken); err != nil {
			t.Fatal(err)
		}
		x.wantOn("0-7")
		f.set(func(f *memFence) {
			if cuts, opened := slices.Index(f.calls, "cuts"), slices.Index(f.calls, "open f1"); cuts < 0 || opened < cuts {
				t.Errorf("calls %q", f.calls)
			}
			want := topo.Cut{From: "b", Epoch: 1, Position: 77, Handover: "f1"}
			if len(f.cuts) != 1 || f.cuts[0].Cut != want || f.cuts[0].Range.First != 4 || f.cuts[0].Range.Last != 7 {
				t.Errorf("recorded %+v", f.cuts)
			}
		})
		if row := f.row(4); row.Epoch != 2 || row.Handover != "f1" {
			t.Errorf("row %+v", row)
		}
		n := f.did("cuts")
		s.own(taken)
		after(2 * d) // what is open costs nothing more
		if f.did("cuts") != n {
			t.Error("recorded again without need")
		}
	})
}
