package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// change has it changed who takes part, at the agent of a site. What is not refused is asked again, as people would.
func (w *world) change(at topo.SiteID, do string, site topo.SiteID) (api.MemberAnswer, error) {
	w.t.Helper()
	c := w.client(at)
	for tries := 0; ; tries++ {
		answer, err := c.ChangeMember(w.t.Context(), api.MemberRequest{Do: do, Site: site, Why: "test"})
		w.t.Logf("%s %s: %+v, %v", do, site, answer, err)
		var e *api.Error
		if err == nil || errors.As(err, &e) && e.Code == api.CodeRefused || tries == 4 {
			return answer, err
		}
	}
}

// refusedBy checks that a command was refused by a check.
func refusedBy(t *testing.T, err error, check string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeRefused || len(e.Problems) != 1 || e.Problems[0].Check != check {
		t.Errorf("got %v; want a refusal by %s", err, check)
	}
}

// nothingOf checks that a site keeps nothing of or for another one.
func (w *world) nothingOf(id, gone topo.SiteID) {
	w.t.Helper()
	for _, table := range []string{"progress WHERE origin", "relay WHERE origin", "cut WHERE origin", "bucket WHERE site", "marker WHERE site"} {
		if n := w.value(id, fmt.Sprintf("SELECT count(*)::int FROM atoll.%s = '%s'", table, gone)); n != 0 {
			w.t.Errorf("site %s has %d rows of atoll.%s %s", id, n, table, gone)
		}
	}
	if n := w.value(id, fmt.Sprintf("SELECT count(*)::int FROM pg_replication_slots WHERE slot_name LIKE 'atoll_%s_%s'", w.spec.Deployment, gone)); n != 0 {
		w.t.Errorf("site %s keeps the slot of %s", id, gone)
	}
}

func (w *world) openStore() *store.Client {
	w.t.Helper()
	s, err := store.Open(w.t.Context(), StoreConfig(w.spec, "a", w.identity("a"), slog.New(slog.DiscardHandler)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.Close)
	return s
}

// outside checks that a site that is no member is told so, and accepts nothing.
func (w *world) outside(id topo.SiteID, key int) {
	w.t.Helper()
	w.eventually("its agent says that it is no member", func() bool {
		st, err := w.client(id).Status(w.t.Context(), true)
		return err == nil && st.Sites[0].Keeper != nil && st.Sites[0].Keeper.Rebuild
	})
	if err := w.try(w.sites[id].app, insert(key, 1)); err == nil || !strings.HasPrefix(code(err), "AT") {
		w.t.Errorf("it accepts a write: %v", err)
	}
}

// A site is removed while others are written to, and taken in again as a new one while they are.
func TestSiteRemovedAndAdded(t *testing.T) {
	w := newWorldOf(t, pgserver.Shared(t), "c")
	w.start3()
	records := w.openStore()
	ofA, ofB, ofC := w.keysIn(31, 63, 40), w.keysIn(0, 20, 40), w.keysIn(21, 30, 4)
	w.await(w.people, w.begin("c", "21-30"), "done")
	w.exec(w.sites["c"].app, insert(ofC[0], 5))
	_, err := w.change("a", api.MemberRemove, "c")
	refusedBy(t, err, "owns-nothing")
	w.await(w.people, w.begin("a", "21-30"), "done")

	ws := &writers{w: w, stop: make(chan struct{}), want: map[int]int{}}
	w.write(ws, "a", ofA)
	w.write(ws, "b", ofB)
	w.eventually("writes are under way", func() bool { return ws.count() > 100 })
	_, err = w.change("a", api.MemberForget, "c")
	refusedBy(t, err, "lease") // it lives
	answer, err := w.change("b", api.MemberRemove, "c")
	if err != nil || !strings.Contains(answer.Left, "stop it") {
		t.Fatalf("%+v, %v", answer, err)
	}
	w.nothingOf("a", "c")
	w.nothingOf("b", "c")
	w.arrives("a", ofC[0], 5)
	w.outside("c", ofC[1])
	if err := w.refusedSwitch("c"); !strings.Contains(err, "no member") {
		t.Errorf("a switch to it: %s", err)
	}
	w.stop("c")
	if answer, err = w.change("b", api.MemberRemove, "c"); err != nil || answer.Left != "" {
		t.Errorf("again: %+v, %v", answer, err)
	}
	if _, _, err := records.Lease(t.Context(), "c"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("its lease: %v", err)
	}
	w.await(w.people, w.begin("b", "21-22"), "done") // the two go on among themselves

	w.start("c")
	w.outside("c", ofC[1])
	before := ws.count()
	if _, err = w.change("c", api.MemberAdd, "c"); err != nil {
		t.Fatal(err)
	}
	if ws.count() == before {
		t.Error("nothing was written while it was added")
	}
	o, _, err := records.Ownership(t.Context())
	if err != nil || !o.Full("c") {
		t.Errorf("members %+v, %v", o.Members, err)
	}
	if answer, err = w.change("c", api.MemberAdd, "c"); err != nil || len(answer.Steps) != 1 {
		t.Errorf("again: %+v, %v", answer, err)
	}
	ws.end("a", "b", "c")
	w.linked()
	w.await(w.people, w.begin("c", "23-30"), "done")
	keys := w.keysIn(23, 30, 4)
	w.exec(w.sites["c"].app, insert(keys[3], 7))
	w.arrives("a", keys[3], 7)
	w.arrives("b", keys[3], 7)
	w.same("a", "b", "c")
}

// refusedSwitch tries to move a bucket to a site, and says why not.
func (w *world) refusedSwitch(to topo.SiteID) string {
	w.t.Helper()
	a, err := w.people.Switch(w.t.Context(), api.SwitchRequest{Keyspace: "users", Buckets: "40", To: to, Why: "test"})
	if err != nil {
		return fmt.Sprintf("%+v", err)
	}
	h, err := w.people.Handover(w.t.Context(), a.ID, 0)
	return fmt.Sprintf("%+v %v", h, err)
}

// A site that was lost and never comes back: its loss is accepted, the others are equal, and nothing is kept for it.
func TestSiteGoneForGood(t *testing.T) {
	w := newWorldOf(t, pgserver.Shared(t), "c")
	w.spec.Policies.Failover.Mode = spec.FailoverAutomatic
	w.start3()
	records := w.openStore()
	w.await(w.people, w.begin("c", "21-30"), "done")
	ofC, ofA := w.keysIn(21, 30, 5), w.keysIn(31, 63, 3)
	w.exec(w.sites["c"].app, insert(ofC[0], 5), insert(ofC[1], 5))
	w.arrives("a", ofC[1], 5)
	w.arrives("b", ofC[1], 5)
	w.stop("c")
	tail := w.try(w.sites["c"].app, insert(ofC[3], 9)) == nil // while its lease lasts: nobody ever has it
	_, err := w.change("a", api.MemberForget, "c")
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeRefused { // it owns, or its failover is not over
		t.Errorf("before it is taken over: %v", err)
	}
	w.eventually("another site has taken over", func() bool {
		o, _, err := records.Ownership(t.Context())
		return err == nil && o.Unsettled("c") != ""
	})
	if _, err := w.change("a", api.MemberRemove, "c"); err == nil {
		t.Error("a lost site is removed in good order")
	}
	dry, err := w.client("a").ChangeMember(t.Context(), api.MemberRequest{Do: api.MemberForget, Site: "c", DryRun: true})
	if err != nil || dry.Handover == "" {
		t.Fatalf("dry run: %+v, %v", dry, err)
	}
	answer, err := w.change("a", api.MemberForget, "c")
	if err != nil || answer.Left != "" {
		t.Fatalf("%+v, %v", answer, err)
	}
	o, _, err := records.Ownership(t.Context())
	if err != nil || len(o.Cuts()) != 0 || o.Takes("c") {
		t.Errorf("cuts %+v, members %+v, %v", o.Cuts(), o.Members, err)
	}
	w.nothingOf("a", "c")
	w.nothingOf("b", "c")
	w.same("a", "b")
	st, err := w.client("a").Status(t.Context(), true)
	if err != nil || len(st.Sites[0].Links) == 0 || slices.ContainsFunc(st.Sites[0].Links, func(l api.LinkStatus) bool { return l.Origin == "c" || l.Target == "c" }) {
		t.Errorf("its links: %+v, %v", st.Sites, err)
	}

	w.start("c") // it comes back all the same
	w.outside("c", ofC[2])
	w.exec(w.sites["a"].app, insert(ofA[0], 1))
	w.arrives("b", ofA[0], 1)
	if n := w.value("c", fmt.Sprintf("SELECT count(*)::int FROM item WHERE id = %d", ofA[0])); n != 0 {
		t.Error("something is applied at a site that is no member")
	}
	w.await(w.people, w.begin("b", "40-41"), "done")
	w.same("a", "b")

	// As a new site it is taken in again; what only it had is in its conflict log.
	if _, err := w.change("c", api.MemberAdd, "c"); err != nil {
		t.Fatal(err)
	}
	w.same("a", "b", "c")
	logged := w.value("c", fmt.Sprintf("SELECT count(*)::int FROM atoll.conflict WHERE kind = 'stale_insert' AND decision = 'kept' AND remote_row->>'id' = '%d' AND remote_row->>'n' = '9'", ofC[3]))
	if t.Logf("it had a tail: %v", tail); tail != (logged == 1) {
		t.Errorf("what only it had is logged %d times", logged)
	}
}
