package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// keysIn lists keys of buckets first to last, as the database counts them.
func (w *world) keysIn(first, last, n int) []int {
	w.t.Helper()
	c, err := pgx.Connect(w.t.Context(), w.sites["a"].admin)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	rows, err := c.Query(w.t.Context(), `SELECT i FROM generate_series(1000, 100000) i WHERE atoll.bucket_of(i::text, 64) BETWEEN $1 AND $2 LIMIT $3`, first, last, n)
	if err != nil {
		w.t.Fatal(err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil || len(keys) < n {
		w.t.Fatalf("%d keys: %v", len(keys), err)
	}
	return keys
}

func insert(key, n int) string { return fmt.Sprintf("INSERT INTO item VALUES (%d, %d)", key, n) }

// open waits until a site's fence is open for everything that it owns.
func (w *world) open(id topo.SiteID) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("site %s is open", id), func() bool {
		st, err := w.client(id).Status(w.t.Context(), true)
		return err == nil && len(st.Sites) == 1 && st.Sites[0].Lease.Live && st.Ownership != nil && st.Sites[0].Opened >= st.Ownership.Version
	})
}

// linked waits until both links stream.
func (w *world) linked() {
	w.t.Helper()
	n := len(w.spec.FullSites())
	w.eventually("all links stream", func() bool {
		st, err := w.people.Status(w.t.Context(), false)
		if err != nil || len(st.Sites) != n {
			return false
		}
		up := 0
		for _, s := range st.Sites {
			for _, l := range s.Links {
				if l.Connected && (l.Target != s.Site || l.LagMS >= 0) { // each is seen at both of its ends
					up++
				}
			}
		}
		return up == 2*n*(n-1)
	})
}

func (w *world) start2() {
	w.t.Helper()
	w.start("a")
	w.start("b")
	w.open("a")
	w.linked()
}

func (w *world) begin(to topo.SiteID, buckets string) topo.HandoverID {
	w.t.Helper()
	a, err := w.people.Switch(w.t.Context(), api.SwitchRequest{Keyspace: "users", Buckets: buckets, To: to, Why: "test"})
	if err != nil {
		w.t.Fatal(err)
	}
	return a.ID
}

func (w *world) await(c *api.Client, id topo.HandoverID, outcome string) api.Handover {
	w.t.Helper()
	h, err := c.Handover(w.t.Context(), id, time.Minute)
	if err != nil {
		w.t.Fatal(err)
	}
	if h.Outcome != outcome {
		w.t.Fatalf("outcome %q in %s, reasons %q, steps %+v; want %s", h.Outcome, h.Phase, h.Reasons, h.Steps, outcome)
	}
	return h
}

func (w *world) epoch(id topo.SiteID, bucket int) int {
	w.t.Helper()
	return w.value(id, fmt.Sprintf("SELECT coalesce(max(epoch), 0)::int FROM atoll.bucket WHERE site = '%s' AND keyspace = 'users' AND bucket = %d AND state = 'open'", id, bucket))
}

func (w *world) arrives(id topo.SiteID, key, n int) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("row %d is at %s", key, id), func() bool {
		return w.value(id, fmt.Sprintf("SELECT count(*)::int FROM item WHERE id = %d AND n = %d", key, n)) == 1
	})
}

// These tests follow one another: a replication origin belongs to the whole server, whichever deployment uses it.

func TestSwitchThereAndBack(t *testing.T) {
	w := newWorld(t)
	w.start2()
	if got := w.value("b", "SELECT count(*)::int FROM item"); got != 200 {
		t.Fatalf("%d rows of the seed are at b; want 200", got)
	}
	keys := w.keysIn(0, 24, 3)
	w.exec(w.sites["a"].app, insert(keys[0], 1))
	w.arrives("b", keys[0], 1)
	if err := w.try(w.sites["b"].app, insert(keys[1], 1)); code(err) != postgres.CodeNotOwned && code(err) != postgres.CodeLeaseRunOut {
		t.Fatalf("b takes a write that is not its: %v", err)
	}

	h := w.await(w.people, w.begin("b", "0-24"), "done")
	t.Logf("pause: %s", h.Pause)
	if err := w.try(w.sites["a"].app, insert(keys[1], 1)); code(err) != postgres.CodeNotOwned {
		t.Errorf("a takes a write of a bucket that moved: %v", err)
	}
	w.exec(w.sites["b"].app, insert(keys[1], 1), fmt.Sprintf("UPDATE item SET n = 5 WHERE id = %d", keys[0]))
	w.arrives("a", keys[1], 1)
	w.arrives("a", keys[0], 5)
	if e := w.epoch("b", 7); e != 2 {
		t.Errorf("b is open at epoch %d; want 2", e)
	}

	h = w.await(w.people, w.begin("a", "0-24"), "done")
	t.Logf("pause: %s", h.Pause)
	if err := w.try(w.sites["b"].app, insert(keys[2], 1)); code(err) != postgres.CodeNotOwned {
		t.Errorf("b takes a write of a bucket that moved back: %v", err)
	}
	w.exec(w.sites["a"].app, insert(keys[2], 1))
	w.arrives("b", keys[2], 1)
	if e := w.epoch("a", 7); e != 3 {
		t.Errorf("a is open at epoch %d; want 3", e)
	}
	w.checkStatus()
	w.checkRefusals()
}

func (w *world) checkStatus() {
	w.t.Helper()
	st, err := w.client("b").Status(w.t.Context(), false)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(st.Problems) > 0 || len(st.Sites) != 2 || len(st.Handovers) != 2 || st.Handovers[0].To != "a" || st.Handovers[0].Outcome != "done" {
		w.t.Errorf("status %+v", st)
	}
	ks := st.Ownership.Keyspaces[0]
	if len(ks.Owners) != 1 || ks.Owners[0].Buckets != "0-63" || ks.Owners[0].MinEpoch != 1 || ks.Owners[0].MaxEpoch != 3 {
		w.t.Errorf("owners %+v", ks.Owners)
	}
}

// checkRefusals: a switch that may not start says why, and changes nothing.
func (w *world) checkRefusals() {
	w.t.Helper()
	for _, r := range []struct {
		to, buckets, want string
	}{{"a", "3", "are at a already"}, {"c", "3", `site "c" does not exist`}} {
		_, err := w.people.Switch(w.t.Context(), api.SwitchRequest{Keyspace: "users", Buckets: r.buckets, To: topo.SiteID(r.to)})
		if err == nil || !strings.Contains(err.Error(), r.want) {
			w.t.Errorf("switch of %s to %s: %v; want %q", r.buckets, r.to, err, r.want)
		}
	}
	dry, err := w.people.Switch(w.t.Context(), api.SwitchRequest{Keyspace: "users", Buckets: "3", To: "b", DryRun: true})
	if err != nil || dry.Handover.Outcome != "ready" {
		w.t.Errorf("dry run: %+v, %v", dry, err)
	}
	w.stop("b")
	_, err = w.people.Switch(w.t.Context(), api.SwitchRequest{Keyspace: "users", Buckets: "3", To: "b", DryRun: true})
	if err == nil || !strings.Contains(err.Error(), "agent at b") {
		w.t.Errorf("dry run without b: %v", err)
	}
}

// lingering is a transaction of the application that has written and does not end.
func (w *world) lingering(key int) pgx.Tx {
	w.t.Helper()
	c, err := pgx.Connect(w.t.Context(), w.sites["a"].app)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close(context.Background()) })
	tx, err := c.Begin(w.t.Context())
	if err == nil {
		_, err = tx.Exec(w.t.Context(), insert(key, 1))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return tx
}

func TestAbortWhenWritersRemain(t *testing.T) {
	w := newWorld(t)
	w.start2()
	keys := w.keysIn(0, 24, 2)
	tx := w.lingering(keys[0])
	h := w.await(w.people, w.begin("b", "0-24"), "aborted")
	if len(h.Reasons) != 1 || !strings.Contains(h.Reasons[0], "writers remain at a") {
		t.Errorf("reasons %q", h.Reasons)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Errorf("the writer that was waited for: %v", err)
	}
	w.exec(w.sites["a"].app, insert(keys[1], 1))
	w.arrives("b", keys[0], 1)
	w.arrives("b", keys[1], 1)
	if e := w.epoch("a", 7); e != 2 {
		t.Errorf("after 1 handover, which was aborted, a is open at epoch %d; want 2: an abort raises it too", e)
	}
	// Nothing of the aborted attempt is in the way of the next.
	w.await(w.people, w.begin("b", "0-24"), "done")
	if e := w.epoch("b", 7); e != 3 {
		t.Errorf("b is open at epoch %d; want 3", e)
	}
}

// TestAgentDiesInTheMiddle kills the source's agent, which drives, while its fence waits for a writer. The other agent
// takes over and finishes with the source's next agent.
func TestAgentDiesInTheMiddle(t *testing.T) {
	w := newWorld(t)
	w.start2()
	keys := w.keysIn(0, 24, 3)
	tx := w.lingering(keys[0])
	id := w.begin("b", "0-24")
	w.eventually("the fence is closing", func() bool { return w.value("a", "SELECT count(*)::int FROM atoll.closing") > 0 })
	w.stop("a")
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.start("a")
	b := w.client("b")
	h := w.await(b, id, "done")
	if driver := h.Driver; !strings.HasPrefix(driver, "b/") && !strings.HasPrefix(driver, "a/") || h.Steps[0].Driver == driver {
		t.Errorf("driver %s; the first was %s", driver, h.Steps[0].Driver)
	}
	w.exec(w.sites["b"].app, insert(keys[1], 1))
	w.arrives("b", keys[0], 1)
	w.arrives("a", keys[1], 1)
	if err := w.try(w.sites["a"].app, insert(keys[2], 1)); code(err) != postgres.CodeNotOwned {
		t.Errorf("a takes a write of a bucket that moved: %v", err)
	}
	if e := w.epoch("b", 7); e != 2 {
		t.Errorf("b is open at epoch %d; want 2", e)
	}
}

// TestSourceStaysDead: the source's agent dies before its fence is closed and does not come back in time; the other
// agent aborts, and the source opens again when its agent is back.
func TestSourceStaysDead(t *testing.T) {
	w := newWorld(t)
	w.start2()
	keys := w.keysIn(0, 24, 2)
	tx := w.lingering(keys[0])
	id := w.begin("b", "0-24")
	w.eventually("the fence is closing", func() bool { return w.value("a", "SELECT count(*)::int FROM atoll.closing") > 0 })
	w.stop("a")
	w.await(w.client("b"), id, "aborted")
	if err := tx.Rollback(t.Context()); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		t.Fatal(err)
	}
	w.start("a")
	w.open("a")
	w.exec(w.sites["a"].app, insert(keys[1], 1))
	w.arrives("b", keys[1], 1)
	if e := w.epoch("a", 7); e != 2 {
		t.Errorf("a is open at epoch %d; want 2", e)
	}
}

// TestDatabaseComesBack crashes b's database under its agent, which stays, says so, and goes on when it is back.
func TestDatabaseComesBack(t *testing.T) {
	w := newWorld(t)
	w.start2()
	keys := w.keysIn(0, 24, 2)
	w.await(w.people, w.begin("b", "0-24"), "done")
	if err := second.Immediate(); err != nil {
		t.Fatal(err)
	}
	b := w.client("b")
	w.eventually("b says that its database is away and its lease has run out", func() bool {
		st, err := b.Status(t.Context(), true)
		return err == nil && st.Sites[0].Database.Error != "" && !st.Sites[0].Lease.Live
	})
	w.exec(w.sites["a"].app, fmt.Sprintf("UPDATE item SET n = 9 WHERE id = %d", w.keyOutside()))
	if err := second.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.open("b")
	w.exec(w.sites["b"].app, insert(keys[0], 1))
	w.arrives("a", keys[0], 1)
	w.arrives("b", w.keyOutside(), 9)
	w.linked()
	w.await(w.people, w.begin("a", "0-24"), "done")
	w.exec(w.sites["a"].app, insert(keys[1], 1))
	w.arrives("b", keys[1], 1)
}

// keyOutside is a row of the seed whose bucket is none of 0-24.
func (w *world) keyOutside() int {
	return w.value("a", "SELECT min(id)::int FROM item WHERE id <= 200 AND atoll.bucket_of(id::text, 64) > 24")
}

// TestGatewayHoldsAndReleases plays a gateway at each site: a switch waits for what they have in flight, and the new
// owner's learns that its fence is open.
func TestGatewayHoldsAndReleases(t *testing.T) {
	w := newWorld(t)
	w.start2()
	gateways := map[topo.SiteID]*gateway{"a": w.gateway("a"), "b": w.gateway("b")}
	for id, g := range gateways {
		w.eventually("the gateway of "+string(id)+" has a view", func() bool { return g.version() == 1 })
	}
	gateways["a"].inFlight.Store(1)
	id := w.begin("b", "0-24")
	began := time.Now()
	w.eventually("both see the buckets move", func() bool { return gateways["a"].version() >= 2 && gateways["b"].version() >= 2 })
	gateways["a"].inFlight.Store(0)
	gateways["a"].ack(2)
	h := w.await(w.people, id, "done")
	t.Logf("%v, pause: %s", time.Since(began), h.Pause)
	w.eventually("the gateway of b knows that the fence is open", func() bool { return gateways["b"].opened.Load() >= h.Decided })
	for _, s := range h.Steps {
		if s.Phase != "MOVING" {
			continue
		}
		for _, site := range []string{"a", "b"} {
			if f := s.Facts["settled "+site]; !strings.HasPrefix(f, "1 gateways in ") || strings.Contains(f, "not settled") {
				t.Errorf("settled %s: %q", site, f)
			}
		}
	}
	if lease := gateways["b"].ack(h.Decided); lease.RemainingMS <= 0 || lease.RemainingMS > 3000 {
		t.Errorf("lease of b: %d ms", lease.RemainingMS)
	} else if lease.Generation != 1 || lease.Version < h.Decided {
		t.Errorf("the lease of b rests on %d.%d, and %d opened its buckets", lease.Generation, lease.Version, h.Decided)
	}
}

func TestRunRefuses(t *testing.T) {
	w := newWorld(t)
	w.start("a")
	for _, c := range []struct {
		name string
		conf Config
		want string
	}{
		{"a port in use", Config{Spec: w.spec, Site: "a", DSN: w.sites["a"].agent, Identity: w.identity("a")}, "is an agent running already"},
		{"no such site", Config{Spec: w.spec, Site: "x", Identity: w.identity("a")}, "no such site"},
		{"another site's certificate", Config{Spec: w.spec, Site: "b", Identity: w.identity("a")}, "the certificate is of site a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := Run(t.Context(), c.conf); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
}
