package handover

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/atollhq/atoll/topo"
)

// samples is one event of every kind that the table tells apart.
func samples() map[string]Event {
	stored := stateIn(Moving).Record
	out := map[string]Event{
		"Tick": Tick{}, "Ready": Ready{Move: testMove()}, "Refused": Refused{[]Problem{{Check: "x", Text: "y"}}},
		"Claimed": Claimed{8}, "CommitStands": CommitStands{9}, "AbortStands": AbortStands{9}, "Conflict": Conflict{Claim},
		"Observed": Observed{true, stored}, "Settled": Settled{"a", ""}, "Closed": Closed{testMarker()},
		"WritersRemain": WritersRemain{"pid 1"}, "MarkerArrived": MarkerArrived{testMarker()},
		"Reached": Reached{"b", 9}, "Released": Released{"a", ""}, "Saved": Saved{},
	}
	for _, v := range []Verb{Check, Claim, Settle, Close, AwaitMarker, Commit, Abort, Open, Reopen, AwaitRelease, Save, Reread} {
		out["Failed "+string(v)] = Failed{Do: v, Site: "a", Text: "away"}
	}
	return out
}

// stateIn walks a switch to a phase; "aborting" is MOVING with an abort that is with the store.
func stateIn(p Phase) State {
	s, _ := Start(testRecord("a/1"), false, noon)
	walk := []Event{Ready{Move: testMove()}, Claimed{8}, Settled{"a", ""}, Settled{"b", ""}, Closed{testMarker()},
		MarkerArrived{testMarker()}, CommitStands{9}, Reached{"b", 9}, Released{"a", ""}, Released{"b", ""}}
	switch p {
	case Taken:
		s, _ = Finish(testFailover(), noon)
	case "aborting", Aborted:
		walk = []Event{Ready{Move: testMove()}, Claimed{8}, Settled{"a", ""}, Settled{"b", ""}, WritersRemain{"pid 1"}, AbortStands{9}}
		if p == "aborting" {
			walk = walk[:5]
		}
	}
	for _, ev := range walk {
		if s.Record.Phase == p {
			break
		}
		s, _ = Next(s, ev, noon)
	}
	return s
}

// TestTableIsWhole tries every event in every phase: a row that is not in the table is a panic that says BUG, and
// the list of those is what this test pins.
func TestTableIsWhole(t *testing.T) {
	t.Parallel()
	late := []string{"Settled", "Closed", "WritersRemain", "MarkerArrived", "Saved", "Failed settle", "Failed close", "Failed await-marker", "Failed save"}
	may := map[Phase][]string{
		Prepare:    {"Ready", "Refused", "Claimed", "Conflict", "Observed", "Failed"},
		Moving:     late,
		Fenced:     {"MarkerArrived", "Settled", "Saved", "Failed await-marker", "Failed settle", "Failed save"},
		CaughtUp:   append([]string{"CommitStands", "Conflict", "Observed", "Failed commit", "Failed reread"}, late...),
		Committed:  append([]string{"Reached", "Failed open"}, late...),
		Opened:     append([]string{"Released", "Failed await-release"}, late...),
		Done:       append([]string{"Reached", "Released", "Failed reopen", "Failed await-release"}, late...),
		"aborting": append([]string{"AbortStands", "Conflict", "Observed", "Failed abort", "Failed reread"}, late...),
	}
	may[Aborted] = may[Done]
	may[Taken] = []string{"Reached", "Saved", "Failed open", "Failed save"}
	for phase, allowed := range may {
		for name, ev := range samples() {
			want := name == "Tick" || slices.ContainsFunc(allowed, func(a string) bool {
				return a == name || a == "Failed" && strings.HasPrefix(name, "Failed")
			})
			t.Run(fmt.Sprintf("%s/%s", phase, name), func(t *testing.T) {
				t.Parallel()
				s := stateIn(phase)
				defer func() {
					p := recover()
					if got := p == nil; got != want {
						t.Fatalf("in the table: %v, want %v (%v)", got, want, p)
					}
					if p != nil && !strings.HasPrefix(p.(string), "BUG: ") {
						t.Fatalf("panic %v; want BUG: …", p)
					}
				}()
				before := string(s.Record.Encode())
				Next(s, ev, noon)
				if after := string(s.Record.Encode()); after != before {
					t.Errorf("Next changed the state that it was given:\n%s\n%s", before, after)
				}
			})
		}
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 64, Hash: topo.HashMD5, Ranges: []topo.Range{
		{First: 0, Last: 31, Owner: "a", Epoch: 3, State: topo.Open}, {First: 32, Last: 63, Owner: "b", Epoch: 4, State: topo.Open}}}})
	moving, err := o.StartMove("users", topo.Spans{{First: 8, Last: 9}}, "h0", "b")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		o       topo.Ownership
		ks      topo.KeyspaceID
		buckets string
		to      topo.SiteID
		want    string // of the problems
		from    topo.SiteID
	}{
		{"fine", o, "users", "0-7,12", "b", "", "a"},
		{"unknown keyspace", o, "seats", "0", "b", "keyspace seats does not exist", ""},
		{"beyond", o, "users", "60-70", "b", "keyspace users has buckets 0-63", ""},
		{"there already", o, "users", "40", "b", "are at b already", "b"},
		{"two owners", o, "users", "30-33", "b", "a has 30-31, b has 32-33; switch them one owner at a time, first --buckets 30-31", "a"},
		{"moving", moving, "users", "7-10", "b", "buckets 8-9 move in handover h0", "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			buckets, err := topo.ParseSpans(c.buckets, 1024)
			if err != nil {
				t.Fatal(err)
			}
			m, problems := Plan(c.o, Move{Keyspace: c.ks, Buckets: buckets, To: c.to})
			got := strings.Join(texts(problems), "; ")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("problems %q; want %q", got, c.want)
			}
			if m.From != c.from {
				t.Errorf("from %q; want %q", m.From, c.from)
			}
			if c.want == "" && covers(m.Epochs, m.Buckets) != nil {
				t.Errorf("epochs %v do not cover %v", m.Epochs, m.Buckets)
			}
		})
	}
}

func TestDecodeRecordRefuses(t *testing.T) {
	t.Parallel()
	good := string(stateIn(Moving).Record.Encode())
	if _, err := DecodeRecord([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"garbage", good, "]", "invalid character"},
		{"newer", `"format":1`, `"format":2`, "newer version of atoll"},
		{"unknown field", `"format":1`, `"format":1,"x":1`, `unknown field "x"`},
		{"no driver", `"driver":"a/1"`, `"driver":""`, "no driver"},
		{"other phase than its last step", `"phase":"MOVING","driver":"a/1","cl`, `"phase":"FENCED","driver":"a/1","cl`, "its last step is not"},

		{"buckets reversed", `"first":0,"last":24}],"from"`, `"first":9,"last":2}],"from"`, "are not a set"},
		{"epochs elsewhere", `"epochs":[{"first":0`, `"epochs":[{"first":1`, "do not cover"},
		{"epochs beyond", `"epochs":[{"first":0,"last":24`, `"epochs":[{"first":0,"last":25`, "do not cover"},
		{"no sites", `"sites":["a","b"]`, `"sites":[]`, "no sites"},
		{"bound", `"drain_ms":1000`, `"drain_ms":-1`, "a bound of -1 ms"},
		{"to itself", `"to":"b"`, `"to":"a"`, "source"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			body := strings.Replace(good, c.old, c.new, 1)
			if body == good {
				t.Fatalf("%q is not in %s", c.old, good)
			}
			if _, err := DecodeRecord([]byte(body)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, p := range []Phase{Moving, Fenced, CaughtUp, Committed, Opened, Done, Aborted} {
		f.Add(stateIn(p).Record.Encode())
	}
	f.Add(testFailover().Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeRecord(data)
		if err != nil {
			return
		}
		again, err := DecodeRecord(r.Encode())
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		s, _ := Resume(again, "x/1", noon) // whatever the store holds, taking it over must not panic
		Next(s, Tick{}, noon.Add(1e12))
	})
}
