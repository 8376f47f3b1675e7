package route

import (
	"testing"

	"github.com/atollhq/atoll/topo"
)

func ownership(t testing.TB) topo.Ownership {
	return topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{
		"users":   {Buckets: 1024, Hash: "md5", Ranges: []topo.Range{{First: 0, Last: 511, Owner: "a", Epoch: 1, State: topo.Open}, {First: 512, Last: 1023, Owner: "b", Epoch: 1, State: topo.Open}}},
		"orders":  {Buckets: 16, Hash: "md5", Ranges: []topo.Range{{First: 0, Last: 15, Owner: "a", Epoch: 1, State: topo.Open}}},
		"catalog": {Buckets: 1, Hash: "md5", Ranges: []topo.Range{{First: 0, Last: 0, Owner: "a", Epoch: 1, State: topo.Open}}},
	})
}

func view(t testing.TB, o topo.Ownership) *topo.View {
	v, err := topo.NewView(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func must(t testing.TB) func(topo.Ownership, error) topo.Ownership {
	return func(o topo.Ownership, err error) topo.Ownership {
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
}

// One switch of bucket 83 from a to b and an aborted one, as each site's gateway sees them.
func TestDecideThroughASwitch(t *testing.T) {
	t.Parallel()
	table := mustCompile(t, testRoutes)
	write, _ := table.Match(&Request{Method: "PUT", Path: "/users/user-1"})
	read, _ := table.Match(&Request{Method: "GET", Path: "/users/user-1"})
	strong, _ := table.Match(&Request{Method: "GET", Path: "/users/me", RawQuery: "user=user-1"})
	plain, _ := table.Match(&Request{Method: "POST", Path: "/"})
	ok := must(t)
	b83 := topo.SpansOf(83)

	settled := ownership(t)
	moving := ok(settled.StartMove("users", b83, "h1", "b"))
	committed := ok(moving.CommitMove("users", b83, "h1"))
	back := ok(committed.StartMove("users", b83, "h2", "a"))
	aborted := ok(back.AbortMove("users", b83, "h2"))

	a, b := First("a", view(t, settled), false), First("b", view(t, settled), false)
	expect := func(step string, s *Site, target Target, opened uint64, want Verdict, reason Reason) {
		t.Helper()
		d := s.Decide(target, opened)
		if d.Verdict != want || d.Reason != reason {
			t.Errorf("%s: %s %s, want %s %s", step, d.Verdict, d.Reason, want, reason)
		}
	}
	expect("settled, a", a, write, 0, Local, None)
	expect("settled, b", b, write, 0, Forward, None)

	a, b = a.Next(view(t, moving)), b.Next(view(t, moving))
	expect("moving, a, write", a, write, 1, Hold, MovingBucket)
	expect("moving, b, write", b, write, 1, Hold, MovingBucket)
	expect("moving, a, read", a, read, 1, Local, None)
	expect("moving, b, read", b, read, 1, Forward, None)
	expect("moving, a, held read", a, strong, 1, Hold, MovingBucket)
	expect("moving, no key", a, plain, 1, Local, None)

	a, b = a.Next(view(t, committed)), b.Next(view(t, committed))
	expect("committed, a", a, write, 2, Forward, None)
	expect("committed, b, fence closed", b, write, 2, Hold, PendingOpen)
	expect("committed, b, fence closed, read", b, read, 2, Local, None)
	expect("committed, b, fence open", b, write, 3, Local, None)

	b = b.Next(view(t, back))
	expect("moving back, b", b, write, 3, Hold, MovingBucket)
	b = b.Next(view(t, aborted))
	expect("aborted, b, fence closed", b, write, 4, Hold, PendingOpen)
	expect("aborted, b, fence open", b, write, 5, Local, None)
	if d := b.Decide(write, 5); d.Slot.Epoch != 3 || d.Site != "b" {
		t.Errorf("decision %+v", d)
	}
}

func TestFirstViewOfASite(t *testing.T) {
	t.Parallel()
	table := mustCompile(t, testRoutes)
	write, _ := table.Match(&Request{Method: "PUT", Path: "/users/user-1"})
	v := view(t, ownership(t))
	if d := First("a", v, true).Decide(write, 0); d.Verdict != Hold || d.Reason != PendingOpen {
		t.Errorf("gated: %+v", d)
	}
	if d := First("a", v, false).Decide(write, 0); d.Verdict != Local {
		t.Errorf("not gated: %+v", d)
	}
}

func TestDecideRefusesOtherBuckets(t *testing.T) {
	t.Parallel()
	table := mustCompile(t, testRoutes)
	write, _ := table.Match(&Request{Method: "PUT", Path: "/users/user-1"})
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{
		"users": {Buckets: 128, Hash: "md5", Ranges: []topo.Range{{First: 0, Last: 127, Owner: "a", Epoch: 1, State: topo.Open}}},
	})
	if d := First("a", view(t, o), false).Decide(write, 0); d.Verdict != Refuse || d.Reason != UnknownKeyspace {
		t.Errorf("%+v", d)
	}
}

func TestMatchAndDecideDoNotAllocate(t *testing.T) {
	table := mustCompile(t, testRoutes)
	site := First("a", view(t, ownership(t)), false)
	for name, req := range benchRequests {
		if n := testing.AllocsPerRun(200, func() {
			target, reason := table.Match(&req)
			if reason != None {
				t.Fatal(reason)
			}
			site.Decide(target, 0)
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

var benchRequests = map[string]Request{
	"header": {Method: "POST", Host: "example.org", Path: "/users/orders", Header: hdr("X-User", "user-1")},
	"cookie": {Method: "GET", Host: "example.org", Path: "/users", Header: hdr("Cookie", "session=0123456789; user=user-1")},
	"path":   {Method: "GET", Host: "example.org", Path: "/users/0191f2a0-6d3c-7b1e-9d11-5a7c0e4f2b3a/orders"},
	"query":  {Method: "GET", Host: "example.org", Path: "/users", RawQuery: "a=b&user=user-1"},
	"home":   {Method: "POST", Host: "example.org", Path: "/seats/4711/reserve"},
}

func BenchmarkDecide(b *testing.B) {
	table := mustCompile(b, testRoutes)
	site := First("a", view(b, ownership(b)), false)
	req := benchRequests["header"]
	target, _ := table.Match(&req)
	b.ReportAllocs()
	for b.Loop() {
		site.Decide(target, 0)
	}
}

func BenchmarkMatchAndDecide(b *testing.B) {
	table := mustCompile(b, testRoutes)
	site := First("a", view(b, ownership(b)), false)
	for name, req := range benchRequests {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				target, _ := table.Match(&req)
				site.Decide(target, 0)
			}
		})
	}
}

// A site that was lost and is back answers no read from its copy before its tail is decided: the copy may show what does not
// stand.
func TestDecideNothingFromAnUndecidedCopy(t *testing.T) {
	t.Parallel()
	table := mustCompile(t, testRoutes)
	target, reason := table.Match(&Request{Method: "GET", Path: "/near", Header: hdr("X-User", "user-1")})
	if reason != None || !target.Nearest {
		t.Fatalf("%+v, %s", target, reason)
	}
	first := ownership(nil)
	taken, _, err := first.TakeOver("a", "b", "f", 100)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := taken.TakeOver("b", "c", "g", 200) // the taker is lost, too
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    topo.Ownership
		here topo.SiteID
		want Verdict
	}{
		{"a third site", taken, "c", Local},
		{"the lost one", taken, "a", Forward},
		{"the lost one behind another loss", again, "a", Forward},
		{"the other lost one", again, "b", Forward},
		{"before any loss", first, "c", Local},
	} {
		if d := First(c.here, view(t, c.o), false).Decide(target, 0); d.Verdict != c.want {
			t.Errorf("%s: %s, want %s", c.name, d.Verdict, c.want)
		}
	}
}
