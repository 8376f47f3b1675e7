package postgres

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

func TestTailIsDecidedOnce(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, v text, w text); ALTER TABLE t ALTER w SET STORAGE EXTERNAL", keyedTable("t", "id"))
	s.lose(
		[]string{"INSERT INTO t SELECT i, 'both', repeat('w', 4000) FROM generate_series(1, 9) i"},
		[]string{
			"UPDATE t SET v = 'tail 1' WHERE id = 1", // nobody wrote it at b
			"UPDATE t SET v = 'tail 2' WHERE id = 1", // nor in between
			"INSERT INTO t VALUES (20, 'tail', 'w')",
			"UPDATE t SET v = 'tail' WHERE id = 20", // its own insert was applied
			"DELETE FROM t WHERE id = 2",
			"INSERT INTO t VALUES (2, 'tail', 'again')",
			"UPDATE t SET v = 'tail' WHERE id = 3", // b wrote it
			"UPDATE t SET v = 'tail, again' WHERE id = 3",
			"DELETE FROM t WHERE id = 4",           // b wrote it
			"UPDATE t SET v = 'tail' WHERE id = 5", // b deleted it
			"DELETE FROM t WHERE id = 6",           // b deleted it too
			"INSERT INTO t VALUES (30, 'tail', 'w')",
			"UPDATE t SET id = 31 WHERE id = 7", // b wrote 7
		},
		[]string{
			"UPDATE t SET v = 'owner' WHERE id IN (3, 4, 7)",
			"DELETE FROM t WHERE id IN (5, 6)",
			"INSERT INTO t VALUES (30, 'owner', 'w')",
		})
	s.b.want(`stale_update 1 applied
stale_update 1 applied
stale_insert 20 applied
stale_update 20 applied
stale_delete 2 applied
stale_insert 2 applied
stale_update 3 kept
stale_update 3 kept
stale_delete 4 kept
stale_update 5 kept
stale_delete 6 kept
stale_insert 30 kept
stale_update 31 kept`, "SELECT kind || ' ' || (remote_row->>'id') || ' ' || decision FROM atoll.conflict WHERE handover = 'h1' ORDER BY id")
	s.b.want("tail 1\ntail 2", "SELECT remote_row->>'v' FROM atoll.conflict WHERE remote_row->>'id' = '1' ORDER BY id")
	s.b.want("both\ntail 1", "SELECT local_row->>'v' FROM atoll.conflict WHERE remote_row->>'id' = '1' ORDER BY id")
	s.b.want("owner\nowner", "SELECT local_row->>'v' FROM atoll.conflict WHERE remote_row->>'id' = '3' ORDER BY id")
	s.b.want("1 tail 2\n2 tail\n3 owner\n4 owner\n7 owner\n8 both\n9 both\n20 tail\n30 owner", "SELECT id || ' ' || v FROM t ORDER BY id")
	equal(s.a, s.b, "t")
	s.b.want("0", "SELECT count(*) FROM atoll.conflict WHERE handover = '' OR decided_xid IS NULL OR epoch <> 1")
	applied, kept, err := s.fb.Tail(context.Background(), tailFailover)
	if err != nil || applied != 6 || kept != 7 {
		t.Fatalf("tail: %d applied, %d kept, %v", applied, kept, err)
	}
	s.b.wantKept()
	// What follows is ordinary again.
	s.b.exec("UPDATE t SET v = 'later' WHERE id = 3")
	s.settle()
	equal(s.a, s.b, "t")
	conn := s.b.connect()
	if cuts, err := readCuts(context.Background(), conn, s.a.id); err != nil || len(cuts) != 0 {
		t.Fatalf("cuts behind the markers: %v %v", cuts, err)
	}
}

// One transaction, two buckets: each is decided as a whole, and by itself.
func TestTailUnits(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY, v int)", keyedTable("t", "id"), keyedTable("u", "id"))
	x, y, z, m := keyIn(5, 1), keyIn(5, 2), keyIn(9, 1), keyIn(33, 1)
	s.lose(
		[]string{fmt.Sprintf("INSERT INTO t VALUES (%d, 0), (%d, 0), (%d, 0); INSERT INTO u VALUES (%[1]d, 0), (%[3]d, 0)", x, y, z)},
		[]string{
			fmt.Sprintf("BEGIN; UPDATE t SET v = 1 WHERE id = %d; UPDATE t SET v = 1 WHERE id = %d; UPDATE u SET v = 1; UPDATE t SET v = 2 WHERE id = %[1]d; COMMIT", x, z),
			fmt.Sprintf("BEGIN; UPDATE t SET id = %d WHERE id = %d; UPDATE t SET v = 9 WHERE id = %d; COMMIT", m, z, y), // crosses buckets; y's is not joined
		},
		[]string{fmt.Sprintf("UPDATE t SET v = 100 WHERE id = %d", x)})
	s.b.want("kept\nkept\nkept\napplied\napplied", fmt.Sprintf("SELECT decision FROM atoll.conflict WHERE source_xid = (SELECT min(source_xid) FROM atoll.conflict) ORDER BY bucket = %d, id", 9))
	s.b.want(fmt.Sprintf("%d 100\n%d 9\n%d 1", x, y, m), fmt.Sprintf("SELECT id || ' ' || v FROM t ORDER BY id = %d, id = %d", m, y))
	s.b.want(fmt.Sprintf("%d 0\n%d 1", x, z), fmt.Sprintf("SELECT id || ' ' || v FROM u ORDER BY id = %d", z))
	equal(s.a, s.b, "t", "u")
	s.b.wantKept()
}

func TestTailOfTablesWithoutKeys(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, `CREATE TABLE log (n int, what text); CREATE TABLE bag (n int, what text); ALTER TABLE bag REPLICA IDENTITY FULL; CREATE TABLE t (id int PRIMARY KEY, v int)`,
		TableSpec{Schema: "public", Name: "log", Kind: topo.Home, Keyspace: "catalog", AppendOnly: true},
		TableSpec{Schema: "public", Name: "bag", Kind: topo.Home, Keyspace: "catalog", IdentityFull: true},
		TableSpec{Schema: "public", Name: "t", Kind: topo.Home, Keyspace: "catalog"})
	s.lose(
		[]string{"INSERT INTO bag VALUES (1, 'x'), (1, 'x'), (2, NULL), (3, 'z'), (4, 'q'); INSERT INTO log VALUES (0, 'both'); INSERT INTO t VALUES (1, 0)"},
		[]string{
			"INSERT INTO log VALUES (1, 'tail'), (1, 'tail')", // applied, and not there twice
			"DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE n = 1)",
			"UPDATE bag SET what = 'tail' WHERE n = 2",
			"BEGIN; UPDATE t SET v = 1; INSERT INTO log VALUES (2, 'tail'); INSERT INTO bag VALUES (9, 'tail'); DELETE FROM bag WHERE n = 3; COMMIT", // all kept: b wrote t
			"UPDATE bag SET what = 'tail' WHERE n = 4", // b deleted it
		},
		[]string{"UPDATE t SET v = 100; DELETE FROM bag WHERE n = 4; INSERT INTO bag VALUES (1, 'x')"})
	s.b.want("0 both\n1 tail\n1 tail", "SELECT n || ' ' || what FROM log ORDER BY n")
	s.b.want("1 x\n1 x\n2 tail\n3 z", "SELECT n || ' ' || what FROM bag ORDER BY n")
	s.b.want("stale_insert applied 2\nstale_delete applied 1\nstale_update applied 1\nstale_update kept 1\nstale_insert kept 2\nstale_delete kept 1\nstale_update kept 1",
		"SELECT kind || ' ' || decision || ' ' || count(*) FROM atoll.conflict WHERE handover = 'h1' GROUP BY source_xid, kind, decision ORDER BY min(id)")
	equal(s.a, s.b, "log", "bag", "t")
}

// The whole unit is kept when one of its rows collides with one of the owner's in another unique index.
func TestTailCollidesInAnotherUniqueIndex(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, mail text UNIQUE, v int)", keyedTable("t", "id"))
	k, l, other := keyIn(7, 1), keyIn(7, 2), keyIn(8, 1)
	s.lose([]string{fmt.Sprintf("INSERT INTO t VALUES (%d, 'l', 0)", l)},
		[]string{
			fmt.Sprintf("BEGIN; INSERT INTO t VALUES (%d, 'same', 1); UPDATE t SET v = 1 WHERE id = %d; COMMIT", k, l),
			fmt.Sprintf("UPDATE t SET v = 2 WHERE id = %d", k),
		},
		[]string{fmt.Sprintf("INSERT INTO t VALUES (%d, 'same', 100)", other)})
	s.b.want("stale_insert kept\nstale_update kept\nstale_update kept", "SELECT kind || ' ' || decision FROM atoll.conflict ORDER BY id")
	s.b.want(fmt.Sprintf("%d 0\n%d 100", l, other), "SELECT id || ' ' || v FROM t ORDER BY v")
	equal(s.a, s.b, "t")
	s.a.want(fmt.Sprint(k), "SELECT local_row->>'id' FROM atoll.conflict WHERE kind = 'multiple_unique_conflicts'")
}

// A row is not taken whose parent the owner deleted, nor is a parent deleted to which the owner's rows refer.
func TestTailRespectsForeignKeys(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE)", keyedTable("parent", "id"), keyedTable("child", "id"))
	s.lose([]string{"INSERT INTO parent SELECT generate_series(1, 4); INSERT INTO child VALUES (41, 4)"},
		[]string{
			"INSERT INTO child VALUES (11, 1)", // b deleted parent 1
			"DELETE FROM parent WHERE id = 2",  // b made a child of it
			"INSERT INTO child VALUES (31, 3)", // fits
			"DELETE FROM parent WHERE id = 4",  // with its child
			"BEGIN; INSERT INTO parent VALUES (5); INSERT INTO child VALUES (51, 5); COMMIT",
		},
		[]string{"DELETE FROM parent WHERE id = 1", "INSERT INTO child VALUES (21, 2)"})
	s.b.want("11 kept\n2 kept\n31 applied\n4 applied\n41 applied\n5 applied\n51 applied", "SELECT (remote_row->>'id') || ' ' || decision FROM atoll.conflict WHERE handover = 'h1' ORDER BY id")
	s.b.want("2\n3\n5", "SELECT id FROM parent ORDER BY id")
	s.b.want("21\n31\n51", "SELECT id FROM child ORDER BY id")
	equal(s.a, s.b, "parent", "child")
}

// Ordinary rows of a tail's transaction are applied as ever, exactly once.
func TestTailMixedWithSharedTables(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE s (id int PRIMARY KEY, v int)", keyedTable("t", "id"),
		TableSpec{Schema: "public", Name: "s", Kind: topo.Shared})
	s.lose([]string{"INSERT INTO t VALUES (1, 0); INSERT INTO s VALUES (1, 0)"},
		[]string{"BEGIN; UPDATE s SET v = 1; UPDATE t SET v = 1; INSERT INTO s VALUES (2, 2); COMMIT", "INSERT INTO s VALUES (3, 3)"},
		[]string{"UPDATE t SET v = 100"})
	s.b.want("1 1\n2 2\n3 3", "SELECT id || ' ' || v FROM s ORDER BY id")
	s.wantTail([]string{"s", "t"}, `stale_update | public.t | {"v": "100", "id": "1"} | {"v": "1", "id": "1"} | kept`)
}

// TestHalt: an apply transaction under way is waited for, no later one gets through, and the cut is what is durable.
func TestHalt(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, v int)", keyedTable("t", "id"))
	ctx := context.Background()
	if _, err := s.fb.Halt(ctx, "nobody", tailFailover); !errors.Is(err, ErrNoProgress) {
		t.Fatalf("halt of a site without progress: %v", err)
	}
	s.a.exec("INSERT INTO t VALUES (1, 0), (2, 0)")
	s.settle()
	// An application at b holds a row, so that the apply transaction hangs.
	blocker := s.b.connect()
	if _, err := blocker.Exec(ctx, "BEGIN; SELECT * FROM t WHERE id = 1 FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	s.a.exec("UPDATE t SET v = 1 WHERE id = 1")
	busy := "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'atoll apply from " + string(s.a.id) + "' AND wait_event_type = 'Lock'"
	comesAbout(t, func() bool { return s.b.text(busy) == "1" })
	short, cancel := context.WithTimeout(ctx, 3*haltPatience)
	if _, err := s.fb.Halt(short, s.a.id, tailFailover); err == nil {
		t.Fatal("after 2 transactions of the lost site: halted under the second, which is being applied")
	}
	cancel()
	type halted struct {
		at  uint64
		err error
	}
	done := make(chan halted, 1)
	go func() {
		at, err := s.fb.Halt(ctx, s.a.id, tailFailover)
		done <- halted{uint64(at), err}
	}()
	comesAbout(t, func() bool {
		return s.b.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == "2"
	})
	if _, err := blocker.Exec(ctx, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	h := <-done
	if h.err != nil {
		t.Fatal(h.err)
	}
	s.b.want("1", "SELECT v FROM t WHERE id = 1")
	s.b.want(fmt.Sprint(h.at), "SELECT position FROM atoll.progress WHERE origin = $1", string(s.a.id))
	// Nothing more gets through.
	s.a.exec("UPDATE t SET v = 2 WHERE id = 1")
	comesAbout(t, func() bool { return errors.Is(s.ab.failure(), ErrHalted) })
	s.b.want("1", "SELECT v FROM t WHERE id = 1")
	if again, err := s.fb.Halt(ctx, s.a.id, tailFailover); err != nil || uint64(again) != h.at {
		t.Fatalf("again: %d, %v", again, err)
	}
	var other *HaltedError
	if _, err := s.fb.Halt(ctx, s.a.id, "h2"); !errors.As(err, &other) || other.Handover != tailFailover {
		t.Fatalf("halt for another failover: %v", err)
	}
	if halts, err := s.fb.Halts(ctx); err != nil || len(halts) != 1 || halts[s.a.id] != tailFailover {
		t.Fatalf("halts: %v %v", halts, err)
	}
	// Given up: as if nothing had been. For another failover nothing is given up.
	for _, id := range []topo.HandoverID{"h2", tailFailover, tailFailover} {
		if err := s.fb.Unhalt(ctx, s.a.id, id); err != nil {
			t.Fatal(err)
		}
	}
	s.settle()
	s.b.want("2", "SELECT v FROM t WHERE id = 1")
	s.b.want("0", "SELECT count(*) FROM atoll.conflict")
	// Taken: recorded once, and a late halt holds nothing up any more.
	s.takeOver()
	if err := s.fb.RecordCuts(ctx, s.cuts()); err != nil {
		t.Fatal(err)
	}
	s.b.want("1", "SELECT cuts FROM atoll.progress WHERE origin = $1 AND halted = ''", string(s.a.id))
	if again, err := s.fb.Halt(ctx, s.a.id, tailFailover); err != nil || again != s.cut {
		t.Fatalf("a late halt: %d, %v", again, err)
	}
	if halts, err := s.fb.Halts(ctx); err != nil || len(halts) != 0 {
		t.Fatalf("halts: %v %v", halts, err)
	}
	s.a.exec("UPDATE t SET v = 3 WHERE id = 1") // beyond the cut; the link that runs finds out
	s.settle()
	s.b.want("stale_update applied", "SELECT kind || ' ' || decision FROM atoll.conflict")
	s.cut--
	tooLow := s.cuts()
	for i := range tooLow {
		c := tooLow[i].Cut
		c.Epoch, c.Handover = 2, "h3"
		tooLow[i].Cut = c
	}
	if err := s.fb.RecordCuts(ctx, tooLow); err == nil {
		t.Fatal("a cut below what is applied was taken")
	}
}

// Where another site took the bucket, a lost site's tail is passed over here: that site decides it. When this one takes
// the bucket in turn, what still comes is for it to decide.
func TestTailOfAnotherOwnersBucketIsPassedOver(t *testing.T) {
	t.Parallel()
	s := newTailSites(t, "CREATE TABLE t (id int PRIMARY KEY, v int)", keyedTable("t", "id"))
	ctx := context.Background()
	s.a.exec("INSERT INTO t VALUES (1, 0), (2, 0)")
	s.settle()
	at, err := s.fb.Halt(ctx, s.a.id, tailFailover)
	if err != nil {
		t.Fatal(err)
	}
	s.cut = at
	elsewhere := s.cuts()
	for i := range elsewhere {
		elsewhere[i].Range.Owner = "c"
	}
	for range 2 { // again, as with every renewal
		if err := s.fb.RecordCuts(ctx, elsewhere); err != nil {
			t.Fatal(err)
		}
	}
	if halts, err := s.fb.Halts(ctx); err != nil || len(halts) != 0 {
		t.Fatalf("halts: %v %v", halts, err)
	}
	s.a.exec("UPDATE t SET v = 1 WHERE id = 1")
	s.a.exec("DELETE FROM t WHERE id = 2")
	s.settle()
	s.b.want("1 0\n2 0", "SELECT id || ' ' || v FROM t ORDER BY id")
	s.b.want("0", "SELECT count(*) FROM atoll.conflict")

	for i := range elsewhere { // c is lost, too: b takes the buckets at the next epoch
		elsewhere[i].Range.Owner, elsewhere[i].Range.Epoch = s.b.id, 3
	}
	if err := s.fb.RecordCuts(ctx, elsewhere); err != nil {
		t.Fatal(err)
	}
	s.open(s.fb, 3)
	s.a.exec("UPDATE t SET v = 2 WHERE id = 1")
	s.settle()
	s.b.want("stale_update applied", "SELECT kind || ' ' || decision FROM atoll.conflict")
	s.b.want("1 2\n2 0", "SELECT id || ' ' || v FROM t ORDER BY id")
}

// A site that was lost twice has two ends of its epochs; one does not stand in for the other.
func TestTailBehindTwoCuts(t *testing.T) {
	t.Parallel()
	cuts := cutSet{"users": {3: {{epoch: 5, position: 100, handover: "h1"}, {epoch: 7, position: 300, handover: "h2"}}}}
	for _, c := range []struct {
		epoch topo.Epoch
		at    change.Position
		want  topo.HandoverID
	}{{5, 100, ""}, {5, 101, "h1"}, {5, 301, "h1"}, {7, 200, ""}, {7, 301, "h2"}, {8, 400, ""}} {
		got, ok := cuts.of("users", 3, c.epoch, c.at)
		if ok != (c.want != "") || got.handover != c.want {
			t.Errorf("epoch %d at %d: %+v, %v; want %q", c.epoch, c.at, got, ok, c.want)
		}
	}
}
