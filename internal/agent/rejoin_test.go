package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// loss is a failover from site a to site b. While it is prepared, b applies nothing of a: what a commits then is its tail.
type loss struct {
	w     *world
	id    topo.HandoverID // of the failover, once b has taken over
	store *store.Client
	lock  *pgx.Conn // holds b's progress row of a
}

// halt keeps b from applying what a commits from now on, as a lost path would, until take.
func (w *world) halt() *loss {
	w.t.Helper()
	l := &loss{w: w}
	var err error
	if l.store, err = store.Open(w.t.Context(), StoreConfig(w.spec, "b", w.identity("b"), slog.New(slog.DiscardHandler))); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(l.store.Close)
	if l.lock, err = pgx.Connect(w.t.Context(), w.sites["b"].admin); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.lock.Close(context.Background()) })
	for _, sql := range []string{"BEGIN", "SELECT FROM atoll.progress WHERE origin = 'a' FOR UPDATE"} {
		if _, err := l.lock.Exec(w.t.Context(), sql); err != nil {
			w.t.Fatal(err)
		}
	}
	return l
}

// take lets b's agent start anew without what it had received and not applied, and waits until it has taken over.
func (l *loss) take() {
	l.w.t.Helper()
	ctx := l.w.t.Context()
	l.w.stop("b")
	for _, sql := range []string{"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'atoll apply from a' AND datname = current_database()", "ROLLBACK"} {
		if _, err := l.lock.Exec(ctx, sql); err != nil {
			l.w.t.Fatal(err)
		}
	}
	l.w.start("b")
	l.w.eventually("b has taken over", func() bool {
		o, _, err := l.store.Ownership(ctx)
		if err == nil {
			l.id = o.Unsettled("a")
		}
		return l.id != ""
	})
	l.w.eventually("b is open for what it took", func() bool {
		st, err := l.w.client("b").Status(ctx, true)
		return err == nil && st.Ownership != nil && len(st.Ownership.Keyspaces[0].Owners) == 1 && st.Sites[0].Opened >= st.Ownership.Version
	})
}

// settled waits until no cut is left, and returns what the record says.
func (l *loss) settled() handover.Return {
	l.w.t.Helper()
	l.w.eventually("the failover is settled", func() bool {
		o, _, err := l.store.Ownership(l.w.t.Context())
		return err == nil && len(o.Cuts()) == 0
	})
	body, _, err := l.store.Handover(l.w.t.Context(), l.id)
	if err != nil {
		l.w.t.Fatal(err)
	}
	rec, err := handover.DecodeRecord(body)
	if err != nil || rec.Failover.Return == nil {
		l.w.t.Fatalf("record %s: %v", body, err)
	}
	return *rec.Failover.Return
}

// rows are a table's rows, or what a query finds, as text.
func (w *world) rows(id topo.SiteID, sql string) string {
	w.t.Helper()
	c, err := pgx.Connect(w.t.Context(), w.sites[id].admin)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	rows, err := c.Query(w.t.Context(), sql)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return strings.Join(out, "\n")
}

func (w *world) sameItems() {
	w.t.Helper()
	const all = "SELECT id || '/' || n FROM item ORDER BY id"
	var a, b string
	defer func() {
		if w.t.Failed() {
			w.t.Logf("a has\n%.4000s\nb has\n%.4000s", a, b)
		}
	}()
	w.eventually("both sites are equal", func() bool {
		a, b = w.rows("a", all), w.rows("b", all)
		return a == b
	})
}

// backHome moves buckets to a again, and writes there.
func (w *world) backHome(buckets string, key int) {
	w.t.Helper()
	w.linked()
	w.await(w.people, w.begin("a", buckets), "done")
	w.exec(w.sites["a"].app, insert(key, 1))
	w.arrives("b", key, 1)
}

func TestReturnSettlesTheTail(t *testing.T) {
	w := newWorld(t)
	w.spec.Policies.Failover.Mode = spec.FailoverAutomatic
	w.start2()
	keys := w.keysIn(0, 63, 5)
	w.exec(w.sites["a"].app, insert(keys[0], 1), insert(keys[1], 1))
	w.arrives("b", keys[1], 1)

	l := w.halt()
	w.exec(w.sites["a"].app, insert(keys[2], 2), fmt.Sprintf("UPDATE item SET n = 2 WHERE id IN (%d)", keys[0]), fmt.Sprintf("UPDATE item SET n = 3 WHERE id = %d", keys[1]))
	prepared := fmt.Sprintf("BEGIN; %s; PREPARE TRANSACTION 'left %d'", insert(keys[3], 3), keys[3])
	w.exec(w.sites["a"].app, prepared)
	w.stop("a")
	l.take()
	w.exec(w.sites["b"].app, fmt.Sprintf("UPDATE item SET n = 9 WHERE id = %d", keys[1]))

	w.start("a")
	w.eventually("the status names the prepared transaction", func() bool {
		st, err := w.client("a").Status(t.Context(), true)
		return err == nil && strings.Contains(strings.Join(st.Problems, "\n"), fmt.Sprintf("ROLLBACK PREPARED 'left %d'", keys[3])) &&
			strings.Contains(strings.Join(st.Problems, "\n"), "returning from failover "+string(l.id))
	})
	w.exec(w.sites["a"].app, fmt.Sprintf("COMMIT PREPARED 'left %d'", keys[3])) // so it is part of the tail
	got := l.settled()
	if got.Applied != 3 || got.Kept != 1 {
		t.Errorf("of the tail %d were applied and %d kept; want 3 and 1", got.Applied, got.Kept)
	}
	w.sameItems()
	w.arrives("a", keys[0], 2)
	w.arrives("a", keys[1], 9)
	w.arrives("a", keys[3], 3)
	if n := w.value("b", fmt.Sprintf("SELECT count(*)::int FROM atoll.conflict WHERE handover = '%s' AND decision = 'kept' AND remote_row->>'n' = '3'", l.id)); n != 1 {
		t.Errorf("the version that lost is logged %d times", n)
	}
	w.eventually("nobody is returning any more", func() bool {
		st, err := w.client("b").Status(t.Context(), false)
		return err == nil && len(st.Sites[0].Returning)+len(st.Sites[1].Returning) == 0
	})
	w.backHome("0-63", keys[4])
}

func TestRebuildOfPromotedStandby(t *testing.T) {
	ctx := t.Context()
	dir, err := pgserver.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	primary, err := pgserver.Start(ctx, pgserver.Options{Dir: dir + "/primary", Name: "primary"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = primary.Kill() })
	var standby *pgserver.Server
	t.Cleanup(func() { // behind the end of the world
		if standby != nil {
			_ = standby.Kill()
		}
	})
	w := newWorldOn(t, primary)
	standby, err = primary.Standby(ctx, pgserver.Options{Dir: dir + "/standby", Name: "standby"})
	if err != nil {
		t.Fatal(err)
	}
	w.spec.Policies.Failover.Mode = spec.FailoverAutomatic
	w.start2()
	ofB, keys := w.keysIn(0, 24, 3), w.keysIn(25, 63, 6)
	w.await(w.people, w.begin("b", "0-24"), "done")
	w.exec(w.sites["a"].app, insert(keys[0], 1), insert(keys[1], 1))
	w.exec(w.sites["b"].app, insert(ofB[0], 1), insert(ofB[1], 1))
	w.arrives("a", ofB[1], 1)
	w.arrives("b", keys[1], 1)

	l := w.halt()
	w.exec(w.sites["a"].app, insert(keys[2], 2), fmt.Sprintf("UPDATE item SET n = 2 WHERE id = %d", keys[0]))
	if err := primary.CaughtUp(ctx, standby); err != nil {
		t.Fatal(err)
	}
	if err := standby.Stop(); err != nil { // it lags from here on
		t.Fatal(err)
	}
	w.exec(w.sites["a"].app, insert(keys[3], 3)) // neither b nor the standby ever has it
	w.exec(w.sites["b"].app, fmt.Sprintf("UPDATE item SET n = 7 WHERE id = %d", ofB[0]), fmt.Sprintf("DELETE FROM item WHERE id = %d", ofB[1]))
	w.arrives("a", ofB[0], 7)
	w.stop("a")
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	l.take()
	w.exec(w.sites["b"].app, insert(keys[4], 4), fmt.Sprintf("UPDATE item SET n = 5 WHERE id = %d", keys[1]))

	if err := standby.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	a := w.sites["a"]
	was, is := fmt.Sprintf(":%d/", primary.Port), fmt.Sprintf(":%d/", standby.Port)
	a.server, a.admin, a.app, a.agent = standby, strings.Replace(a.admin, was, is, 1), strings.Replace(a.app, was, is, 1), strings.Replace(a.agent, was, is, 1)
	w.start("a")
	w.eventually("the site's agent finds another database", func() bool {
		st, err := w.client("a").Status(ctx, true)
		return err == nil && st.Sites[0].Keeper != nil && st.Sites[0].Keeper.Rebuild && !st.Sites[0].Standby
	})
	if _, err := w.client("b").Rebuild(ctx, api.RebuildRequest{Site: "b"}); err == nil || !strings.Contains(err.Error(), "owns-nothing") {
		t.Errorf("rebuild of the owner: %v", err)
	}
	dry, err := w.people.Rebuild(ctx, api.RebuildRequest{Site: "a", DryRun: true})
	if err != nil || dry.From != "b" || len(dry.Handovers) != 1 {
		t.Fatalf("dry run: %+v, %v", dry, err)
	}
	if n := w.value("a", fmt.Sprintf("SELECT count(*)::int FROM item WHERE id = %d", keys[4])); n != 0 {
		t.Error("something of b was applied before the rebuild")
	}
	answer, err := w.people.Rebuild(ctx, api.RebuildRequest{Site: "a", Why: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("rebuilt: %+v", answer)
	l.settled()
	w.sameItems()
	// Every row version that only the standby had; and one that b had, and has written over since: they look the same.
	want := fmt.Sprintf("stale_insert %d=2 kept\nstale_update %d=2 kept\nstale_update %d=1 kept", keys[2], keys[0], keys[1])
	if got := w.rows("a", `SELECT kind || ' ' || (remote_row->>'id') || '=' || (remote_row->>'n') || ' ' || decision FROM atoll.conflict WHERE handover = '`+string(l.id)+`' ORDER BY 1`); got != want || answer.Logged != 3 {
		t.Errorf("logged\n%s\nwant\n%s", got, want)
	}
	if n := w.value("b", "SELECT count(*)::int FROM atoll.conflict"); n != 0 {
		t.Errorf("%d conflicts at b", n)
	}
	w.eventually("the record says no more that the database is to be rebuilt", func() bool {
		lease, _, err := l.store.Lease(ctx, "a")
		return err == nil && !lease.Rebuild
	})
	if _, err := w.people.Rebuild(ctx, api.RebuildRequest{Site: "a"}); err == nil || !strings.Contains(err.Error(), "ordinary way") {
		t.Errorf("rebuild of a site that is well: %v", err)
	}
	w.backHome("25-63", keys[5])
}
