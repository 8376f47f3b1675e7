package topo

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestRecover(t *testing.T) {
	t.Parallel()
	open := func(site SiteID, b BucketID, e Epoch) FenceRow {
		return FenceRow{Site: site, Keyspace: "users", First: b, Last: b, Epoch: e, Open: true, Handover: "open"}
	}
	closed := func(site SiteID, b BucketID, e Epoch, id HandoverID) FenceRow {
		r := open(site, b, e)
		r.Open, r.Handover = false, id
		return r
	}
	says := func(site SiteID, rows ...FenceRow) Evidence { return Evidence{Site: site, Generation: 1, Rows: rows} }
	cut := func(e Evidence, c CutRow) Evidence { e.Cuts = append(e.Cuts, c); return e }
	failed := CutRow{From: "a", Keyspace: "users", First: 1, Last: 1, Epoch: 4, Position: 77, Handover: "f-9"}
	moving := func(o Ownership) Ownership {
		next, err := o.StartMove("users", Spans{{1, 1}}, "s-1", "b")
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	same := func(o Ownership) Ownership { return o }
	ab := []SiteID{"a", "b"}
	cases := []struct {
		name    string
		change  func(Ownership) Ownership
		sites   []SiteID
		ev      []Evidence
		without []SiteID
		known   []HandoverID
		owner   SiteID // of users 1, which is a's at epoch 4
		because string
		cut     HandoverID // of users 1
		doubts  []string   // parts of each
	}{
		{name: "the document is up to date", ev: []Evidence{says("a", open("a", 1, 4)), says("b", open("b", 5, 2))}, owner: "a", because: "open at a under epoch 4"},
		{name: "committed, and not opened yet", ev: []Evidence{says("a"), says("b", closed("b", 1, 3, "s-0"))}, owner: "a", because: "in the document that was left"},
		{name: "the document is old: switched since", ev: []Evidence{says("a", closed("a", 1, 4, "s-7")), says("b", open("b", 1, 5))}, owner: "b", because: "open at b under epoch 5"},
		{name: "the document is old: there and back", ev: []Evidence{says("a", open("a", 1, 6)), says("b", closed("b", 1, 5, "s-8"))}, owner: "a", because: "epoch 6"},
		{name: "the document is old: raised by an abort", ev: []Evidence{says("a", open("a", 1, 5)), says("b")}, owner: "a", because: "epoch 5"},
		{name: "the document is old: failed over since", ev: []Evidence{says("a", open("a", 1, 4)), cut(says("b", open("b", 1, 5)), failed)}, owner: "b", because: "epoch 5", cut: "f-9"},
		{name: "a failover that the document knew, settled", ev: []Evidence{says("a", open("a", 1, 4)), cut(says("b", open("b", 1, 5)), failed)},
			known: []HandoverID{"f-9"}, owner: "b", because: "epoch 5"},
		{name: "a switch under way, the fence open", change: moving, ev: []Evidence{says("a", open("a", 1, 4)), says("b")}, owner: "a", because: "open at a under epoch 4"},
		{name: "a switch under way, the fence closed", change: moving, ev: []Evidence{says("a", closed("a", 1, 4, "s-1")), says("b")}, owner: "a", because: "nowhere opened since"},
		{name: "a switch under way, that had been decided", change: moving, ev: []Evidence{says("a", closed("a", 1, 4, "s-1")), says("b", open("b", 1, 5))}, owner: "b", because: "epoch 5"},
		{name: "an old word about a site counts less than its own", ev: []Evidence{says("a", open("a", 1, 4)), says("b", open("a", 1, 3))}, owner: "a", because: "open at a under epoch 4"},
		{name: "as old as its own", ev: []Evidence{says("a", closed("a", 1, 4, "s-7")), says("b", open("a", 1, 4))}, owner: "a", because: "closed at a"},
		{name: "the database of a site is an older one", ev: []Evidence{says("a", open("a", 1, 4)), says("b", open("a", 1, 6))}, owner: "a", because: "epoch 6, as b has heard"},

		{name: "a site is missing", ev: []Evidence{says("a", open("a", 1, 4))}, doubts: []string{"site b was not read"}},
		{name: "two are missing", sites: []SiteID{"a", "b", "c"}, ev: []Evidence{says("a")}, doubts: []string{"site b was not read", "site c was not read"}},
		{name: "all are given up", without: ab, doubts: []string{"no database was read"}},
		{name: "a site is given up", ev: []Evidence{says("a", open("a", 1, 4))}, without: []SiteID{"b"}, owner: "a", because: "epoch 4"},
		{name: "a site is given up that had taken the bucket, as another one has heard", ev: []Evidence{says("a", closed("a", 1, 4, "s-7"), open("b", 1, 5))}, without: []SiteID{"b"},
			owner: "b", because: "as a has heard"},
		{name: "a site is given up that may have taken the bucket", ev: []Evidence{says("a", closed("a", 1, 4, "s-7"))}, without: []SiteID{"b"}, doubts: []string{"site b, which was left out, may have opened it"}},
		{name: "a site is given up that cannot have taken the bucket", change: moving, sites: []SiteID{"a", "b", "c"}, ev: []Evidence{says("a", closed("a", 1, 4, "s-1")), says("b")}, without: []SiteID{"c"},
			owner: "a", because: "nowhere opened since"},
		{name: "a site is given up that answers", ev: []Evidence{says("a"), says("b")}, without: []SiteID{"b"}, doubts: []string{"it is not lost"}},
		{name: "two sites open under one epoch", ev: []Evidence{says("a", open("a", 1, 4)), says("b", open("b", 1, 4))}, doubts: []string{"two owners of one epoch"}},
		{name: "an owner that the spec does not have", sites: []SiteID{"b"}, ev: []Evidence{says("b")}, doubts: []string{"has no such full site"}},
		{name: "a keyspace that the document does not know", ev: []Evidence{says("a", FenceRow{Site: "a", Keyspace: "new", Epoch: 1, Open: true}), says("b")}, doubts: []string{"use a newer backup"}},
		{name: "a bucket that does not exist", ev: []Evidence{says("a", open("a", 8, 1)), says("b")}, doubts: []string{"bucket 8"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if tc.change == nil {
				tc.change = same
			}
			if tc.sites == nil {
				tc.sites = ab
			}
			r := Recovery{Sites: tc.sites, Evidence: map[SiteID]Evidence{}, Without: tc.without, Known: map[HandoverID]bool{}}
			top := Epoch(6) // of the document
			for _, e := range tc.ev {
				r.Evidence[e.Site] = e
				for _, row := range e.Rows {
					top = max(top, row.Epoch)
				}
			}
			for _, id := range tc.known {
				r.Known[id] = true
			}
			old := tc.change(placed(t))
			got, err := old.Recover(r)
			var doubt *Doubt
			if errors.As(err, &doubt) != (len(tc.doubts) > 0) {
				t.Fatalf("doubts: %v, want %q", err, tc.doubts)
			}
			for _, want := range tc.doubts {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("does not say %q: %v", want, err)
				}
			}
			if err != nil {
				return
			}
			o := got.Ownership
			if _, err := DecodeOwnership(o.Encode()); err != nil {
				t.Error(err)
			}
			at, _ := o.At("users", 1)
			if at.Owner != tc.owner || at.State != Open || at.Epoch != top+RecoveryLift {
				t.Errorf("users 1: %+v, want %s under %d", at, tc.owner, top+RecoveryLift)
			}
			if o.Generation != 2 || o.Version != old.Version+RecoveryLift || !o.Newer(old) {
				t.Errorf("ownership %d.%d after %d.%d", o.Generation, o.Version, old.Generation, old.Version)
			}
			if id := cutOf(at); id != tc.cut {
				t.Errorf("cut of %q, want %q", id, tc.cut)
			}
			if tc.cut != "" && (len(got.Failovers) != 1 || got.Failovers[0].ID != tc.cut || fmt.Sprint(got.Failovers[0].Taken) != "[{users [{1 1 4}]}]") {
				t.Errorf("failovers %+v", got.Failovers)
			}
			for _, rr := range got.Ranges {
				if rr.Keyspace == "users" && rr.First <= 1 && 1 <= rr.Last && !strings.Contains(rr.Because, tc.because) {
					t.Errorf("because %q, want %q", rr.Because, tc.because)
				}
			}
		})
	}
}

func cutOf(r Range) HandoverID {
	if r.Cut == nil {
		return ""
	}
	return r.Cut.Handover
}

// TestRecoverAfterAnyHistory walks a document through random switches and aborts as real sites would, keeps a
// backup of some moment, and recovers from it: whoever could have written last owns the bucket, and nobody else ever
// opens under an epoch that counts.
func TestRecoverAfterAnyHistory(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 400 {
		sites := []SiteID{"a", "b", "c"}
		o := NewOwnership(map[KeyspaceID]Placement{"users": {Buckets: 1, Hash: HashMD5, Ranges: []Range{{Owner: "a", Epoch: 1, State: Open}}}})
		ev := map[SiteID]Evidence{}
		row := func(s SiteID, e Epoch, open bool, id HandoverID) {
			ev[s] = Evidence{Site: s, Generation: 1, Cuts: ev[s].Cuts, Rows: []FenceRow{{Site: s, Keyspace: "users", Epoch: e, Open: open, Handover: id}}}
		}
		for _, s := range sites {
			ev[s] = Evidence{Site: s, Generation: 1}
		}
		row("a", 1, true, "open")
		backup, writer := o, SiteID("a") // writer: who holds the newest rows
		for step := range rng.IntN(8) {
			id := HandoverID(fmt.Sprint("h", step))
			at, _ := o.At("users", 0)
			to := sites[rng.IntN(3)]
			switch {
			case at.State == Moving && rng.IntN(2) == 0:
				o = mustOwn(t)(o.AbortMove("users", Spans{{0, 0}}, at.Handover))
				if rng.IntN(2) == 0 {
					row(at.Owner, at.Epoch+1, true, at.Handover)
				}
			case at.State == Moving:
				row(at.Owner, at.Epoch, false, at.Handover)
				if rng.IntN(2) == 0 {
					o = mustOwn(t)(o.CommitMove("users", Spans{{0, 0}}, at.Handover))
					if rng.IntN(2) == 0 {
						row(at.Target, at.Epoch+1, true, at.Handover)
						writer = at.Target
					}
				}
			case to == at.Owner || writer != at.Owner:
			default:
				o = mustOwn(t)(o.StartMove("users", Spans{{0, 0}}, id, to))
			}
			if rng.IntN(3) == 0 {
				backup = o
			}
		}
		got, err := backup.Recover(Recovery{Sites: sites, Evidence: ev})
		if err != nil {
			t.Fatalf("seed %d: %v\n%+v\n%+v", seed, err, backup, ev)
		}
		r, _ := got.Ownership.At("users", 0)
		left, _ := backup.At("users", 0)
		if r.Owner != writer && !(left.Owner == r.Owner && left.Epoch > ev[writer].Rows[0].Epoch) {
			t.Fatalf("seed %d: %s owns it, %s wrote last\n%+v\n%+v", seed, r.Owner, writer, backup, ev)
		}
		for _, e := range ev {
			for _, row := range e.Rows {
				if row.Epoch+RecoveryLift > r.Epoch {
					t.Fatalf("seed %d: epoch %d is not above %d", seed, r.Epoch, row.Epoch)
				}
			}
		}
	}
}

func mustOwn(t *testing.T) func(Ownership, error) Ownership {
	return func(o Ownership, err error) Ownership {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
}

// A site that joined after the backup, and owns by the databases, is a member; one that the backup says is joining, and
// owns nothing, is so still.
func TestRecoverKeepsOwnersMembers(t *testing.T) {
	t.Parallel()
	o := Ownership{Members: []Member{{Site: "a"}, {Site: "d", Joining: true}, {Site: "e", Joining: true}},
		Keyspaces: map[KeyspaceID]Placement{"users": {Buckets: 2, Ranges: []Range{{First: 0, Last: 0, Owner: "c"}, {First: 1, Last: 1, Owner: "d"}}}}}
	want := []Member{{Site: "a"}, {Site: "c"}, {Site: "d"}, {Site: "e", Joining: true}}
	if got := o.withOwners(); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	o.Members = nil // a document of before there were lists
	if got := o.withOwners(); got != nil {
		t.Errorf("%+v", got)
	}
}
