package topo

import (
	"slices"
	"strings"
	"testing"
)

func TestMembers(t *testing.T) {
	t.Parallel()
	o := NewOwnership(map[KeyspaceID]Placement{"users": {Buckets: 4, Hash: "md5", Ranges: []Range{
		{First: 0, Last: 1, Owner: "a", Epoch: 1, State: Open}, {First: 2, Last: 3, Owner: "b", Epoch: 1, State: Open}}}})
	if !o.Full("x") || !o.Takes("x") || !slices.Equal(o.TakingPart([]SiteID{"a", "b"}, false), []SiteID{"a", "b"}) {
		t.Error("without a list every site takes part")
	}
	if _, err := o.Join("d"); err == nil {
		t.Error("somebody joins nobody")
	}
	o = o.WithMembers([]SiteID{"c", "a", "b"})
	step := func(next Ownership, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if next.Version != o.Version+1 {
			t.Errorf("version %d behind %d", next.Version, o.Version)
		}
		if o, err = DecodeOwnership(next.Encode()); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(words string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %q", err, words)
		}
	}
	refuse := func(words string) func(Ownership, error) {
		return func(_ Ownership, err error) { t.Helper(); refused(words, err) }
	}
	refuse("site x is no member")(o.Leave("x", true))
	refuse("owns buckets 0-1")(o.Leave("a", true))
	refuse("member already")(o.Join("a"))
	step(o.Join("d"))
	if o.Full("d") || !o.Takes("d") || slices.Contains(o.TakingPart(nil, false), "d") || !slices.Contains(o.TakingPart(nil, true), "d") {
		t.Errorf("while it is joining: %+v", o.Members)
	}
	refuse("site d is no member that may own")(o.StartMove("users", Spans{{0, 0}}, "h", "d"))
	_, _, err := o.TakeOver("a", "d", "f1", 9)
	refused("site d is no member that may own", err)
	step(o.Join("d"))
	taken, _, err := o.TakeOver("a", "d", "f1", 9)
	step(taken, err)
	taken, _, err = o.TakeOver("d", "c", "f2", 9)
	step(taken, err)
	refuse("tail is not settled")(o.Leave("a", false))
	step(o.Leave("a", true))
	if cuts := o.Cuts(); len(cuts) != 1 || cuts[0].Cut.From != "d" || o.Takes("a") {
		t.Errorf("cuts %+v, members %+v", cuts, o.Members)
	}
	step(o.Leave("d", true))
	if len(o.Cuts()) != 0 {
		t.Errorf("cuts %+v", o.Cuts())
	}
	one := NewOwnership(map[KeyspaceID]Placement{"users": {Buckets: 1, Ranges: []Range{{Owner: "z", Epoch: 1, State: Open}}}}).WithMembers([]SiteID{"a"})
	refuse("the last one")(one.Leave("a", true))
	for name, members := range map[string][]Member{"twice": {{Site: "a"}, {Site: "a"}}, "all joining": {{Site: "a", Joining: true}}, "no name": {{}}} {
		bad := o
		bad.Members = members
		if bad.sealed().Validate() == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
