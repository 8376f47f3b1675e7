package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

const conflictRows = "SELECT concat_ws(' | ', kind, table_name, keyspace, (bucket IS NOT NULL)::text, local_row::text, remote_row::text, decision) FROM atoll.conflict ORDER BY id"

func TestOwnerWinsAndConflictsAreLogged(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, `CREATE TABLE t (id int PRIMARY KEY, v text, w text); ALTER TABLE t ALTER w SET STORAGE EXTERNAL`, keyedTable("t", "id"))
	l := newStreamLink(a, b).start()
	a.exec("INSERT INTO t SELECT i, 'a', repeat('w', 5000) FROM generate_series(1, 50) i")
	l.settle()
	l.stop()
	b.exec("INSERT INTO t VALUES (60, 'local', NULL); DELETE FROM t WHERE id IN (3, 4, 5, 6)")
	b.exec("UPDATE t SET v = 'local' WHERE id = 7") // an update meets it without a word: the owner wins
	for i := range 20 {                             // the conflicts stand among ordinary transactions of one batch
		a.exec("UPDATE t SET v = 'early' WHERE id = $1", 20+i)
	}
	a.exec("INSERT INTO t VALUES (60, 'remote', NULL)")
	a.exec("UPDATE t SET v = 'b' WHERE id = 3")                                                            // incomplete: w is unchanged
	a.exec("UPDATE t SET v = 'b', w = 'whole' WHERE id = 4")                                               // complete
	a.exec("DELETE FROM t WHERE id = 5")                                                                   // gone already
	a.exec("BEGIN; UPDATE t SET id = 61, w = 'x' WHERE id = 6; UPDATE t SET v = 'b' WHERE id = 7; COMMIT") // key change
	for i := range 20 {
		a.exec("UPDATE t SET w = 'late' WHERE id = $1", 20+i)
	}
	l = newStreamLink(a, b).start()
	l.settle()
	b.want(strings.Join([]string{
		`insert_exists | public.t | users | true | {"v": "local", "w": null, "id": "60"} | {"v": "remote", "w": null, "id": "60"} | applied`,
		`update_missing | public.t | users | true | {"v": "b", "id": "3"} | logged`,
		`update_missing | public.t | users | true | {"v": "b", "w": "whole", "id": "4"} | applied`,
		`delete_missing | public.t | users | true | {"id": "5"} | logged`,
		`update_missing | public.t | users | true | {"v": "a", "w": "x", "id": "61"} | applied`,
	}, "\n"), conflictRows)
	a.exec("DELETE FROM t WHERE id = 3") // all that differs
	l.settle()
	equal(a, b, "t")
	b.wantKept()
}

func TestLaterWriteWinsOnSharedTables(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, "CREATE TABLE s (id int PRIMARY KEY, v text, at timestamptz)", TableSpec{Schema: "public", Name: "s", Kind: topo.Shared})
	ab, ba := newStreamLink(a, b).start(), newStreamLink(b, a).start()
	a.exec("INSERT INTO s SELECT i, 'a' FROM generate_series(1, 6) i")
	ab.settle()
	ab.stop()
	ba.stop()
	a.exec("UPDATE s SET v = 'a earlier' WHERE id = 1")
	b.exec("UPDATE s SET v = 'b later' WHERE id = 1")
	b.exec("UPDATE s SET v = 'b earlier' WHERE id = 2")
	a.exec("UPDATE s SET v = 'a later' WHERE id = 2")
	a.exec("INSERT INTO s VALUES (10, 'a earlier')")
	b.exec("INSERT INTO s VALUES (10, 'b later')")
	b.exec("INSERT INTO s VALUES (11, 'b earlier')")
	a.exec("INSERT INTO s VALUES (11, 'a later')")
	a.exec("DELETE FROM s WHERE id = 3")
	b.exec("UPDATE s SET v = 'b later than the delete' WHERE id = 3")
	b.exec("UPDATE s SET v = 'b earlier than the delete' WHERE id = 4")
	a.exec("BEGIN; INSERT INTO s VALUES (12, 'one'); UPDATE s SET v = 'two' WHERE id = 12; UPDATE s SET v = 'three' WHERE id = 12; COMMIT")
	ab, ba = newStreamLink(a, b).start(), newStreamLink(b, a).start()
	ab.settle()
	ba.settle()
	ab.settle()
	a.exec("UPDATE s SET v = v || '!' WHERE id > 9")
	ab.settle()
	equal(a, b, "s")
	a.wantKept()
	b.wantKept()
	a.want("1 b later\n2 a later\n3 b later than the delete\n4 b earlier than the delete\n5 a\n6 a\n10 b later!\n11 a later!\n12 three!", "SELECT id || ' ' || v FROM s ORDER BY id")
	for _, s := range []*streamSite{a, b} {
		if s.text("SELECT count(*) FROM atoll.conflict WHERE local_row IS NOT NULL AND remote_row IS NOT NULL") == "0" {
			t.Fatalf("%s logged nothing", s.id)
		}
	}
}

// feedSink runs a sink over transactions made by hand.
func feedSink(sink *Applier, txs ...change.Tx) error {
	in := make(chan change.Tx, len(txs))
	for _, tx := range txs {
		in <- tx
	}
	close(in)
	return sink.Run(context.Background(), in, func(change.Position, []change.Marker) {})
}

func bucketRow(site topo.SiteID) change.Row {
	table := &change.Table{ID: 9, Schema: "atoll", Name: "bucket", Identity: 'd'}
	for i, name := range []string{"site", "keyspace", "bucket", "epoch", "state", "handover", "changed_at"} {
		table.Columns = append(table.Columns, change.Column{Name: name, Key: i < 3})
	}
	return change.Row{Op: change.Insert, Table: table, New: image("="+string(site), "=users", "=0", "=1", "=open", "=", "=2024-01-01")}
}

// TestApplyStops: what cannot be applied stops with its reason and place, and nothing of its transaction stays.
func TestApplyStops(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, `CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE);
		CREATE FUNCTION at_the_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.u = 1001 THEN RAISE 'not so' USING ERRCODE = '23514'; END IF; RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER at_the_end AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_the_end(); ALTER TABLE t ENABLE ALWAYS TRIGGER at_the_end; CREATE TABLE nokey (id int); CREATE TABLE other (id int PRIMARY KEY)`,
		keyedTable("t", "id"), TableSpec{Schema: "public", Name: "nokey", Kind: topo.Home, Keyspace: "catalog", AppendOnly: true})
	sink := b.apply(a.id)
	ctx := context.Background()
	if err := sink.Copy(ctx, initialPlace(100, nil)); err != nil {
		t.Fatal(err)
	}
	table := func(name string, columns ...string) *change.Table {
		tab := &change.Table{ID: 1, Schema: "public", Name: name, Identity: 'd'}
		for i, c := range columns {
			tab.Columns = append(tab.Columns, change.Column{Name: c, Type: 23, Key: i == 0})
		}
		return tab
	}
	good := func(at change.Position, id string) change.Tx {
		return change.Tx{Origin: a.id, Position: at, XID: uint64(at), First: true, Last: true, Rows: []change.Row{{Op: change.Insert, Table: table("t", "id", "u"), New: image("="+id, "="+id)}}}
	}
	at := change.Position(1000)
	for name, c := range map[string]struct {
		row  change.Row
		want []string
	}{
		"own fence rows":      {bucketRow(b.id), []string{"atoll.bucket", "fence rows of site"}},
		"third site's rows":   {bucketRow("c"), []string{"fence rows of site"}},
		"unknown table":       {change.Row{Op: change.Insert, Table: table("other", "id"), New: image("=1")}, []string{"public.other", "spec does not name"}},
		"missing table":       {change.Row{Op: change.Insert, Table: table("nothere", "id"), New: image("=1")}, []string{"public.nothere"}},
		"missing column":      {change.Row{Op: change.Insert, Table: table("t", "id", "z"), New: image("=1", "=1")}, []string{"public.t", `column "z" does not exist`}},
		"bad value":           {change.Row{Op: change.Insert, Table: table("t", "id", "u"), New: image("=xyz", "=1")}, []string{"public.t (id=xyz)", "22P02"}},
		"update without key":  {change.Row{Op: change.Update, Table: table("nokey", "id"), New: image("=1")}, []string{"public.nokey", "append_only"}},
		"second unique key":   {change.Row{Op: change.Insert, Table: table("t", "id", "u"), New: image("=7", "=1000")}, []string{"23505"}},
		"refused at commit":   {change.Row{Op: change.Insert, Table: table("t", "id", "u"), New: image("=7", "=1001")}, []string{"not so", "23514"}},
		"truncate of markers": {change.Row{Op: change.Truncate, Table: bucketRow(a.id).Table}, []string{"truncate of fence rows"}},
	} {
		at += 1000
		seed := good(at, fmt.Sprint(uint64(at)))
		if name == "second unique key" {
			seed.Rows[0].New[1] = change.Value{Kind: change.Text, Bytes: []byte("1000")}
		}
		bad := change.Tx{Origin: a.id, Position: at + 1, XID: 77, First: true, Last: true, Rows: []change.Row{{Op: change.Insert, Table: table("t", "id", "u"), New: image("=-1", "=-1")}, c.row}}
		err := feedSink(sink, seed, good(at+2, fmt.Sprint(uint64(at)+1))) // ordinary ones pass
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		bad.Position, at = at+4, at+4
		err = feedSink(sink, good(at-1, fmt.Sprint(uint64(at))), bad, good(at+1, fmt.Sprint(uint64(at)+1)))
		var stop *StopError
		if !errors.As(err, &stop) || stop.Position != at {
			t.Fatalf("%s: want it to stop at %d; got: %v", name, at, err)
		}
		for _, text := range append(c.want, "transaction 77") {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: want %q in: %v", name, text, err)
			}
		}
		b.want("0", "SELECT count(*) FROM t WHERE id = -1")
		b.want(fmt.Sprint(uint64(at-1)), "SELECT position FROM atoll.progress") // everything before it is in
	}
	if err := feedSink(sink, good(5, "5")); err != nil {
		t.Fatal(err) // from before the recorded progress: applied already
	}
	b.want("0", "SELECT count(*) FROM t WHERE id = 5")
	if _, err := OpenApply(ctx, ApplyConfig{DSN: b.dsn, Site: b.id, Origin: b.id}); err == nil {
		t.Error("a site applies its own changes")
	}
}

func TestCopyRefusals(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, "CREATE TABLE t (id int PRIMARY KEY)", keyedTable("t", "id"))
	a.exec("INSERT INTO t VALUES (1)")
	b.exec("INSERT INTO t VALUES (2)")
	l := newStreamLink(a, b)
	l.copy = true
	ctx := context.Background()
	if err := l.place(ctx); err == nil || !strings.Contains(err.Error(), "public.t: the table is not empty") {
		t.Fatalf("copy into a table with rows: %v", err)
	}
	b.want("2", "SELECT id FROM t")
	b.exec("DELETE FROM t")
	bucket := bucketRow(b.id).Table
	piece := 0
	err := l.sink.Copy(ctx, func(context.Context) (change.Copy, error) {
		piece++
		return change.Copy{Table: bucket, Data: []byte(string(b.id) + "\tusers\t0\t1\topen\t\t2024-01-01\n"), Done: piece > 1}, nil
	})
	if err == nil || !strings.Contains(err.Error(), "fence rows of another site") {
		t.Fatalf("own fence rows: %v", err)
	}
	broken := errors.New("the link broke")
	err = l.sink.Copy(ctx, func(context.Context) (change.Copy, error) {
		if piece++; piece > 4 {
			return change.Copy{}, broken
		}
		return change.Copy{Table: &change.Table{Schema: "public", Name: "t", Columns: []change.Column{{Name: "id"}}}, Data: fmt.Appendf(nil, "%d\n", piece)}, nil
	})
	if !errors.Is(err, broken) {
		t.Fatalf("a copy that breaks off: %v", err)
	}
	b.want("0", "SELECT count(*) FROM t")
	if err := l.place(ctx); err != nil {
		t.Fatal(err)
	}
	equal(a, b, "t")
	if err := l.sink.Copy(ctx, initialPlace(1, nil)); err == nil || !strings.Contains(err.Error(), "already") {
		t.Fatalf("second copy: %v", err)
	}
}

func TestCaptureRefusals(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, "CREATE TABLE t (id int PRIMARY KEY)", keyedTable("t", "id"))
	ctx := context.Background()
	source := a.capture(b.id)
	emit := func(context.Context, change.Tx) error { return nil }
	if err := source.Run(ctx, 5, nil, emit); !errors.Is(err, ErrRebuild) {
		t.Errorf("no slot: %v", err)
	}
	if err := source.Create(ctx); err != nil {
		t.Fatal(err)
	}
	if err := source.Create(ctx); err != nil {
		t.Errorf("creating it again: %v", err)
	}
	if err := source.Run(ctx, 5, nil, emit); !errors.Is(err, ErrRebuild) || !strings.Contains(err.Error(), "rebuilt") {
		t.Errorf("behind the slot: %v", err)
	}
	at, _, err := source.Confirmed(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a.exec("ALTER PUBLICATION atoll DROP TABLE t")
	if err := source.Run(ctx, at, nil, emit); err == nil || !strings.Contains(err.Error(), "lacks public.t") {
		t.Errorf("table not published: %v", err)
	}
	a.exec("DROP PUBLICATION atoll")
	if err := source.Run(ctx, at, nil, emit); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("no publication: %v", err)
	}
	if _, err := OpenCapture(ctx, CaptureConfig{DSN: a.dsn, Site: a.id, Target: "b", Deployment: strings.Repeat("d", 60)}); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("slot name: %v", err)
	}
}

// TestPublicationLostMeanwhile: the stream ends with an error, also when the publication goes while it runs.
func TestPublicationLostMeanwhile(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, "CREATE TABLE t (id int PRIMARY KEY)", keyedTable("t", "id"))
	l := newStreamLink(a, b).start()
	l.settle()
	a.exec("DROP PUBLICATION atoll")
	a.exec("INSERT INTO t VALUES (1)")
	l.fails("publication")
}
