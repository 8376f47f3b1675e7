package postgres

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// homeBank are the bank's tables as one bucket, so that each transaction is one unit.
var homeBank = func() []TableSpec {
	var out []TableSpec
	for _, t := range bankSpecs {
		t.Kind, t.Keyspace, t.Key = topo.Home, "catalog", ""
		out = append(out, t)
	}
	return out
}()

// bankTransactions makes n transactions at a site from several sessions, in some branches, so that sites meet.
func bankTransactions(s *streamSite, n, branches int) {
	s.t.Helper()
	var wg sync.WaitGroup
	for c := range 3 {
		conn := s.connect()
		rnd := rand.New(rand.NewPCG(uint64(c), uint64(s.id[0])))
		wg.Go(func() {
			for range n / 3 {
				aid, tid, bid, delta := rnd.IntN(2000)+1, rnd.IntN(100)+1, rnd.IntN(branches), rnd.IntN(10000)-5000
				_, err := conn.Exec(context.Background(), fmt.Sprintf("BEGIN; UPDATE accounts SET abalance = abalance + %[4]d WHERE aid = %[1]d; UPDATE tellers SET tbalance = tbalance + %[4]d WHERE tid = %[2]d; "+
					"UPDATE branches SET bbalance = bbalance + %[4]d WHERE bid = %[3]d; INSERT INTO history VALUES (%[2]d, %[3]d, %[1]d, %[4]d); COMMIT", aid, tid, bid, delta))
				if err != nil && sqlState(err) != "40P01" {
					s.t.Errorf("traffic: %v", err)
					return
				}
				if err != nil {
					_, _ = conn.Exec(context.Background(), "ROLLBACK")
				}
			}
		})
	}
	wg.Wait()
}

// TestTailExactlyOnceOverCrashes: both sites write the same accounts, and while the tail is decided, backends of every
// kind are ended. Sums hold, because units are atomic; every change of the tail is in the log once.
func TestTailExactlyOnceOverCrashes(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, bankTables, homeBank...)
	s.a.exec(bankRows)
	bankTransactions(s.a, 60, 10)
	s.settle()
	s.unlink()
	bankTransactions(s.a, 150, 10)
	tail := 4 * (atoiText(s.a, "SELECT count(*) FROM history") - atoiText(s.b, "SELECT count(*) FROM history"))
	s.takeOver()
	bankTransactions(s.b, 3, 1)
	s.closeA()
	s.link()
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d, %d changes in the tail", seed, tail)
	admin := s.b.connect()
	var kills sync.WaitGroup
	kills.Go(func() {
		for killed := 0; killed < 15; {
			pause := time.NewTimer(time.Duration(30+rnd.IntN(200)) * time.Millisecond)
			select {
			case <-t.Context().Done():
				return
			case <-pause.C:
			}
			var n int
			err := admin.QueryRow(context.Background(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1`,
				[]string{tailName + string(s.a.id), applyName + string(s.a.id), "atoll capture for " + string(s.a.id), applyName + string(s.b.id)}[rnd.IntN(4)]).Scan(&n)
			if err != nil {
				t.Error(err)
				return
			}
			killed += n
		}
	})
	bankTransactions(s.b, 30, 1) // the owner goes on writing
	kills.Wait()
	s.settle()
	equal(s.a, s.b, "accounts", "tellers", "branches", "history")
	s.b.want("true", `SELECT (SELECT sum(abalance) FROM accounts) = (SELECT sum(tbalance) FROM tellers) AND (SELECT sum(tbalance) FROM tellers) = (SELECT sum(bbalance) FROM branches)
		AND (SELECT sum(bbalance) FROM branches) = (SELECT sum(delta) FROM history)`)
	s.b.want(fmt.Sprint(tail), "SELECT count(*) FROM atoll.conflict WHERE handover = 'h1'")
	s.b.want("0", "SELECT count(*) FROM (SELECT FROM atoll.conflict WHERE handover = 'h1' GROUP BY source_xid HAVING count(*) <> 4 OR count(DISTINCT decision) <> 1) x")
	applied, kept, err := s.fb.Tail(context.Background(), tailFailover)
	if err != nil || applied == 0 || kept == 0 {
		t.Fatalf("%d applied, %d kept, %v: the test tests too little", applied, kept, err)
	}
	t.Logf("%d applied, %d kept", applied, kept)
	s.b.wantKept()
}

func atoiText(s *streamSite, sql string) (n int) {
	s.t.Helper()
	if _, err := fmt.Sscan(s.text(sql), &n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// TestTailWaitsForTheOwner: while the fence is closed nothing is decided, and nothing is dropped. The ordinary rows of
// the transaction come in meanwhile, once, whatever restarts.
func TestTailWaitsForTheOwner(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE s (n int)", TableSpec{Schema: "public", Name: "t", Kind: topo.Home, Keyspace: "catalog"},
		TableSpec{Schema: "public", Name: "s", Kind: topo.Shared, AppendOnly: true})
	s.a.exec("INSERT INTO t VALUES (1, 0)")
	s.settle()
	s.unlink()
	s.a.exec("BEGIN; INSERT INTO s VALUES (1); UPDATE t SET v = 1; INSERT INTO s VALUES (2); COMMIT")
	s.takeOver()
	if err := s.fb.Restrict(context.Background(), nil); err != nil { // as after a lapse of the lease
		t.Fatal(err)
	}
	s.link()
	for range 2 {
		comesAbout(t, func() bool { return s.b.text("SELECT count(*) FROM s") == "2" })
		s.unlink()
		s.b.want("0", "SELECT v FROM t")
		s.b.want("0", "SELECT count(*) FROM atoll.conflict")
		s.link()
	}
	s.open(s.fb, 2)
	s.settle()
	s.b.want("1", "SELECT v FROM t")
	s.b.want("1\n2", "SELECT n FROM s ORDER BY n")
	s.b.want("stale_update applied", "SELECT kind || ' ' || decision FROM atoll.conflict")
	s.closeA()
	s.settle()
	equal(s.a, s.b, "t", "s")
}

// TestTailWentOn: a bucket that this site has handed on is not its to decide.
func TestTailWentOn(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, v int)", keyedTable("t", "id"))
	s.a.exec("INSERT INTO t VALUES (1, 0)")
	s.settle()
	s.unlink()
	s.a.exec("UPDATE t SET v = 1")
	s.takeOver()
	for ks, spans := range s.spans(2) {
		if _, err := s.fb.CloseBuckets(context.Background(), CloseOrder{Handover: "h2", Keyspace: ks, Buckets: spans, Bound: 5 * time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	s.link()
	s.settle()
	s.b.want("0", "SELECT v FROM t")
	s.b.want("0", "SELECT count(*) FROM atoll.conflict")
}

// TestTailOfLargeTransactions: the parts of a large transaction are decided as one, within a bound.
func TestTailOfLargeTransactions(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, v text)", TableSpec{Schema: "public", Name: "t", Kind: topo.Home, Keyspace: "catalog"})
	s.lose([]string{"INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 1000) i"},
		[]string{"UPDATE t SET v = repeat('y', 300) WHERE id <= 900", "UPDATE t SET v = repeat('z', 300) WHERE id > 100"},
		[]string{"UPDATE t SET v = 'owner' WHERE id = 1000"})
	s.b.want("900 applied\n900 kept", "SELECT count(*) || ' ' || decision FROM atoll.conflict GROUP BY decision ORDER BY decision")
	s.b.want("1 own\n900 yyy\n99 xxx", "SELECT count(*) || ' ' || left(v, 3) FROM t GROUP BY left(v, 3) ORDER BY left(v, 3) = 'xxx', count(*)")
	equal(s.a, s.b, "t")
}

func TestTailTooLarge(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, v text)", keyedTable("t", "id"))
	s.unlink()
	s.a.exec("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 1000) i")
	s.takeOver()
	l := newStreamLink(s.a, s.b)
	l.sink.cfg.tailBytes = 100 << 10
	l.start()
	l.fails("decided as one", "beyond the cut")
	s.b.want("0", "SELECT count(*) FROM t")
}

// TestTailWithoutCommitTimes: where nobody knows who wrote a row, it counts as written here.
func TestTailWithoutCommitTimes(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, v int)", keyedTable("t", "id"))
	ctx := context.Background()
	s.a.exec("INSERT INTO t VALUES (1, 0)")
	s.settle()
	// What other tests have open in the server must be younger than row 1's coming here, too.
	waitUntil(t, "everything older than row 1 has ended", func() bool {
		return s.b.text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint > xmin::text::bigint FROM t") == "true"
	})
	// A transaction that is older than what comes from a now, and outlasts the takeover: of no later one is it known
	// that it ended before.
	old := s.b.connect()
	if _, err := old.Exec(ctx, "BEGIN; CREATE TABLE something (n int)"); err != nil {
		t.Fatal(err)
	}
	s.a.exec("INSERT INTO t VALUES (2, 0), (3, 0)")
	s.settle()
	s.unlink()
	s.takeOver()
	table := &change.Table{ID: 1, Schema: "public", Name: "t", Identity: 'd', Columns: []change.Column{{Name: "id", Type: 23, Key: true}, {Name: "v", Type: 23}}}
	at := s.a.position()
	for n, want := range []struct {
		key   int
		times bool
		log   string
	}{{1, false, "applied"}, {2, false, "kept"}, {3, true, "applied"}} {
		session, err := connectApply(ctx, &s.ab.sink.cfg)
		if err != nil {
			t.Fatal(err)
		}
		w := &applyWorker{Applier: s.ab.sink, s: session, applied: func(change.Position, []change.Marker) {}}
		if w.tail, err = dialApply(ctx, &s.ab.sink.cfg, tailName); err != nil {
			t.Fatal(err)
		}
		w.tail.commitTime = want.times
		b := bucketOf(23, fmt.Append(nil, want.key), 64)
		err = w.apply(ctx, []change.Tx{{Origin: s.a.id, Position: at + change.Position(n) + 1, XID: uint64(n) + 1, First: true, Last: true, Rows: []change.Row{{
			Op: change.Update, Table: table, Keyspace: "users", NewBucket: b, OldBucket: b, NewEpoch: 1, OldEpoch: 1,
			New: []change.Value{{Kind: change.Text, Bytes: fmt.Append(nil, want.key)}, {Kind: change.Text, Bytes: []byte("7")}}}}}})
		w.reset()
		if err != nil {
			t.Fatal(err)
		}
		s.b.want(want.log, "SELECT decision FROM atoll.conflict ORDER BY id DESC LIMIT 1")
	}
	if err := old.Close(ctx); err != nil {
		t.Fatal(err)
	}
	s.b.want("7\n0\n7", "SELECT v FROM t ORDER BY id")
}
