package agent

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// siteClient is how a gateway of a site asks its agent.
func (w *world) siteClient(site topo.SiteID) *api.Client {
	w.t.Helper()
	c := api.NewClient(w.spec.Sites[site].Agent.API, w.identity(site).ClientTLS(site), nil)
	w.t.Cleanup(c.Close)
	return c
}

func (w *world) seen(site topo.SiteID, b topo.BucketID) api.Seen {
	w.t.Helper()
	got, err := w.siteClient(site).Seen(w.t.Context(), api.SeenRequest{Buckets: []api.Seen{{Keyspace: "users", Bucket: b}}})
	if err != nil || len(got.Buckets) != 1 {
		w.t.Fatalf("%+v, %v", got, err)
	}
	return got.Buckets[0]
}

func (w *world) has(site topo.SiteID, seen api.Seen, bound time.Duration) bool {
	w.t.Helper()
	return w.awaits(site, seen, bound).Here
}

func (w *world) awaits(site topo.SiteID, seen api.Seen, bound time.Duration) api.AwaitAnswer {
	w.t.Helper()
	got, err := w.siteClient(site).Await(w.t.Context(), api.AwaitRequest{Seen: seen, BoundMS: bound.Milliseconds()})
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

// Where a site's database stands covers what was committed before the question, and another site that has come so far has
// the row; behind a switch, the later epoch covers the earlier one.
func TestReadersSeeWhatTheyWrote(t *testing.T) {
	w := newWorld(t)
	w.start2()
	keys := w.keysIn(7, 7, 2)
	for n := range 20 {
		w.exec(w.sites["a"].app, insert(keys[0], n)+" ON CONFLICT (id) DO UPDATE SET n = excluded.n")
		at := w.seen("a", 7)
		if at.Epoch != 1 || at.Site != "a" {
			t.Fatalf("a stands at %+v", at)
		}
		if !w.has("b", at, 20*time.Second) {
			t.Fatalf("b does not come to %+v", at)
		}
		if got := w.value("b", "SELECT n FROM item WHERE id = "+strconv.Itoa(keys[0])); got != n {
			t.Fatalf("b has come to %+v and shows %d, not %d", at, got, n)
		}
	}
	// What is written besides, and is nothing to b, takes nobody longer.
	for n := range 5 {
		w.exec(w.sites["a"].admin, fmt.Sprintf("SELECT pg_logical_emit_message(true, 'besides', '%d')", n))
		if at := w.seen("a", 7); !w.has("b", at, 5*time.Second) {
			t.Fatalf("b does not come to %+v, where nothing is to come", at)
		}
	}
	before := w.seen("b", 7)
	if before.Epoch != 1 || before.Site != "a" || before.Position == 0 {
		t.Errorf("b stands at %+v", before)
	}
	ahead := before
	ahead.Position += 1 << 40
	if w.has("b", ahead, 50*time.Millisecond) {
		t.Error("b has what nobody wrote")
	}

	w.await(w.people, w.begin("b", "0-24"), "done")
	after := w.seen("b", 7)
	if after.Epoch != 2 || after.Site != "b" {
		t.Errorf("behind the switch b stands at %+v", after)
	}
	if got := w.awaits("b", ahead, time.Millisecond); !got.Here || got.Epoch != 2 {
		t.Errorf("an earlier epoch is not covered by the later one: %+v", got)
	}
	w.exec(w.sites["b"].app, insert(keys[1], 1))
	if at := w.seen("b", 7); !w.has("a", at, 20*time.Second) || w.value("a", "SELECT count(*)::int FROM item WHERE id = "+strconv.Itoa(keys[1])) != 1 {
		t.Errorf("a does not show what was written before %+v", at)
	}

	// Another site's gateways have an agent of their own to ask, operators none.
	other := api.NewClient(w.spec.Sites["a"].Agent.API, w.identity("b").ClientTLS("a"), nil)
	t.Cleanup(other.Close)
	for name, c := range map[string]*api.Client{"another site": other, "an operator": w.people} {
		if _, err := c.Seen(t.Context(), api.SeenRequest{}); err == nil {
			t.Errorf("%s is answered", name)
		}
	}
}

// How old a copy is at most is known within a second or so, and grows while nothing comes.
func TestCopiesHaveAnAge(t *testing.T) {
	w := newWorld(t)
	w.spec.Routes = append(w.spec.Routes, &spec.Route{Name: "aged", Match: spec.Match{Path: "/"}, Upstream: "app", Keyspace: "users", Reads: topo.NearestReads, MaxStaleness: 5 * time.Second})
	w.start2()
	gateway := w.siteClient("b")
	age := func() (time.Duration, bool) {
		t.Helper()
		state, err := gateway.Ack(t.Context(), api.ViewAck{Gateway: "b/g1"})
		if err != nil {
			t.Fatal(err)
		}
		ms, known := state.StaleMS["a"]
		return time.Duration(ms) * time.Millisecond, known
	}
	w.eventually("the age of b's copy is known, and small", func() bool {
		got, known := age()
		return known && got < 2*time.Second
	})
	w.stop("a")
	w.eventually("it grows while a is away", func() bool {
		got, known := age()
		return known && got > 3*time.Second
	})
}
