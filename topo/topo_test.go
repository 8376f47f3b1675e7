package topo

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func twoSites() Ownership {
	return NewOwnership(map[KeyspaceID]Placement{
		"users":   {Buckets: 1024, Hash: HashMD5, Ranges: []Range{{First: 0, Last: 1023, Owner: "a", Epoch: 1, State: Open}}},
		"catalog": {Buckets: 1, Hash: HashMD5, Ranges: []Range{{First: 0, Last: 0, Owner: "a", Epoch: 1, State: Open}}},
	})
}

func spans(t testing.TB, text string, n int) Spans {
	t.Helper()
	s, err := ParseSpans(text, n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseSpans(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"0-24,30": "0-24,30", "3,2,1": "1-3", "5-9,0-4": "0-9", "all": "0-1023", " 1 - 2 , 4": "1-2,4"} {
		if got := spans(t, text, 1024).String(); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
	for text, want := range map[string]string{"": "neither a number", "x": "neither", "9-3": "reversed; write 3-9", "1024": "beyond the last bucket 1023", "-1": "neither"} {
		if _, err := ParseSpans(text, 1024); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestOwnership_MoveThereAndBack(t *testing.T) {
	t.Parallel()
	o := twoSites()
	b := spans(t, "10-34", 1024)
	moving, err := o.StartMove("users", b, "h1", "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := moving.StartMove("users", spans(t, "34-40", 1024), "h2", "b"); err == nil || !strings.Contains(err.Error(), "already move in handover h1") {
		t.Errorf("overlapping handover: %v", err)
	}
	if _, err := moving.CommitMove("users", b, "h2"); err == nil {
		t.Error("another handover committed the move")
	}
	done, err := moving.CommitMove("users", b, "h1")
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := done.At("users", 10); r.Owner != "b" || r.Epoch != 2 || r.State != Open {
		t.Errorf("bucket 10 is %+v", r)
	}
	if r, _ := done.At("users", 9); r.Owner != "a" || r.Epoch != 1 {
		t.Errorf("bucket 9 is %+v", r)
	}
	back, err := done.StartMove("users", b, "h3", "a")
	if err != nil {
		t.Fatal(err)
	}
	aborted, err := back.AbortMove("users", b, "h3")
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := aborted.At("users", 20); r.Owner != "b" || r.Epoch != 3 {
		t.Errorf("after an abort bucket 20 is %+v; want the old owner at a higher epoch (I1)", r)
	}
	if !aborted.Newer(o) || o.Newer(aborted) {
		t.Error("versions do not grow")
	}
}

func TestDecodeOwnership_RefusesWhatIsNotWhole(t *testing.T) {
	t.Parallel()
	good := string(twoSites().Encode())
	if _, err := DecodeOwnership([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"flipped owner":  {`"owner":"a"`, `"owner":"b"`, "checksum"},
		"newer format":   {`"format":1`, `"format":2`, "newer version of atoll"},
		"unknown field":  {`"format":1`, `"format":1,"extra":1`, "unknown field"},
		"cut short":      {good[len(good)/2:], "", "unexpected end"},
		"no keyspaces":   {good[strings.Index(good, `"keyspaces"`):], `"keyspaces":{},"checksum":""}`, "empty"},
		"not a document": {good, "[]", "ownership document"},
	} {
		if _, err := DecodeOwnership([]byte(strings.Replace(good, c.old, c.new, 1))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := DecodeOwnership([]byte(strings.Replace(good, `"format":1`, `"format":7`, 1))); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("newer format: %v", err)
	}
	hole := twoSites()
	hole.Keyspaces["users"] = Placement{Buckets: 1024, Ranges: []Range{{First: 1, Last: 1023, Owner: "a", Epoch: 1, State: Open}}}
	if err := hole.sealed().Validate(); err == nil || !strings.Contains(err.Error(), "where bucket 0 is expected") {
		t.Errorf("hole: %v", err)
	}
}

// Random histories of handovers against a twin that keeps one entry per bucket.
func TestOwnership_AgreesWithADumbTwin(t *testing.T) {
	t.Parallel()
	type entry struct {
		owner  SiteID
		epoch  Epoch
		moving HandoverID
		target SiteID
	}
	rapid.Check(t, func(t *rapid.T) {
		const n = 16
		o := NewOwnership(map[KeyspaceID]Placement{"k": {Buckets: n, Hash: HashMD5,
			Ranges: []Range{{First: 0, Last: n - 1, Owner: "a", Epoch: 1, State: Open}}}})
		var twin [n]entry
		for i := range twin {
			twin[i] = entry{owner: "a", epoch: 1}
		}
		moves := map[HandoverID]Spans{}
		for step := range rapid.IntRange(1, 40).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "start") || len(moves) == 0 {
				b := SpansOf(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) BucketID { return BucketID(rapid.IntRange(0, n-1).Draw(t, "b")) }), 1, 6).Draw(t, "buckets")...)
				target := SiteID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "target"))
				id := HandoverID(fmt.Sprintf("h%d", step))
				allowed := true
				for _, x := range b.Buckets() {
					allowed = allowed && twin[x].moving == "" && twin[x].owner != target
				}
				next, err := o.StartMove("k", b, id, target)
				if (err == nil) != allowed {
					t.Fatalf("start %s of %s: %v, twin allows %v", id, b, err, allowed)
				}
				if err == nil {
					o, moves[id] = next, b
					for _, x := range b.Buckets() {
						twin[x].moving, twin[x].target = id, target
					}
				}
			} else {
				var ids []HandoverID
				for id := range moves {
					ids = append(ids, id)
				}
				id := rapid.SampledFrom(ids).Draw(t, "id")
				commit := rapid.Bool().Draw(t, "commit")
				f := o.AbortMove
				if commit {
					f = o.CommitMove
				}
				next, err := f("k", moves[id], id)
				if err != nil {
					t.Fatal(err)
				}
				o = next
				for _, x := range moves[id].Buckets() {
					e := &twin[x]
					if commit {
						e.owner = e.target
					}
					*e = entry{owner: e.owner, epoch: e.epoch + 1}
				}
				delete(moves, id)
			}
			v, err := NewView(o)
			if err != nil {
				t.Fatal(err)
			}
			for b, want := range twin {
				got, _ := v.Slot("k", BucketID(b))
				if got.Owner != want.owner || got.Epoch != want.epoch || got.Handover != want.moving || got.Target != want.target {
					t.Fatalf("bucket %d is %+v, want %+v", b, got, want)
				}
			}
			rs := o.Keyspaces["k"].Ranges
			for i := 1; i < len(rs); i++ {
				if rs[i-1].sameAs(rs[i]) {
					t.Fatalf("equal neighbours were not merged: %+v", rs)
				}
			}
		}
	})
}

func FuzzDecodeOwnership(f *testing.F) {
	f.Add(twoSites().Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := DecodeOwnership(data)
		if err != nil {
			return
		}
		if _, err := NewView(o); err != nil {
			t.Errorf("decoded but not a view: %v", err)
		}
	})
}
