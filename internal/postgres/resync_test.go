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

const resyncTables = `
CREATE TABLE item (id bigint PRIMARY KEY, n int, w text, CHECK (n < 1000));
CREATE TABLE seat (id text PRIMARY KEY, place int NOT NULL UNIQUE, half int GENERATED ALWAYS AS (place / 2) STORED);
CREATE TABLE "Odd t.able" ("the t.key" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "s.v" double precision[]);
CREATE TABLE part (id bigint PRIMARY KEY, v text) PARTITION BY HASH (id);
CREATE TABLE part_0 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE part_1 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE child (id bigint PRIMARY KEY, item bigint REFERENCES item ON DELETE CASCADE);
CREATE TABLE visit (who text, at int);
CREATE TABLE pair (a int, b text);
ALTER TABLE pair REPLICA IDENTITY FULL;
CREATE TABLE note (id int PRIMARY KEY, body text);
CREATE TABLE emptied (id int PRIMARY KEY);`

func resyncSpecs() []TableSpec {
	keyed := func(name, key string) TableSpec {
		return TableSpec{Schema: "public", Name: name, Kind: topo.Keyed, Keyspace: "users", Key: key}
	}
	visit, pair := keyed("visit", "who"), keyed("pair", "a")
	visit.AppendOnly, pair.IdentityFull = true, true
	return []TableSpec{keyed("item", "id"), {Schema: "public", Name: "seat", Kind: topo.Home, Keyspace: "catalog"}, keyed("Odd t.able", "the t.key"),
		keyed("part", "id"), keyed("child", "id"), visit, pair, {Schema: "public", Name: "note", Kind: topo.Shared}, keyed("emptied", "id")}
}

// resync brings s to the content of owner.
func (s *streamSite) resync(owner *streamSite, cuts []topo.CutRange) (ResyncReport, error) {
	s.t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	pieces, ended := make(chan change.Copy), make(chan struct{})
	go func() {
		defer close(ended)
		err := owner.capture(s.id).Copy(ctx, true, func(ctx context.Context, c change.Copy) error {
			select {
			case pieces <- c:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil {
			cancel(err)
		}
	}()
	r, err := OpenResync(ctx, ResyncConfig{Apply: s.apply(owner.id).cfg, Capture: s.capture(owner.id), Keyspaces: usersKeyspace, Cuts: cuts})
	if err != nil {
		s.t.Fatal(err)
	}
	err = r.Copy(ctx, func(ctx context.Context) (change.Copy, error) {
		select {
		case c := <-pieces:
			return c, nil
		case <-ctx.Done():
			return change.Copy{}, context.Cause(ctx)
		}
	})
	cancel(err)
	<-ended
	return r.Report(), err
}

// cutAll ends every epoch of a site.
func cutAll(from topo.SiteID, id topo.HandoverID) []topo.CutRange {
	var out []topo.CutRange
	for ks, k := range usersKeyspace {
		out = append(out, topo.CutRange{Keyspace: ks, Range: topo.Range{Last: topo.BucketID(k.Buckets - 1), Owner: "x", Epoch: 8, State: topo.Open},
			Cut: topo.Cut{From: from, Epoch: 7, Position: 1, Handover: id}})
	}
	return out
}

func (s *streamSite) contents() string {
	s.t.Helper()
	var out []string
	for _, spec := range s.tables {
		out = append(out, fmt.Sprintf("%s: %s", spec, s.text("SELECT string_agg(x::text, ' ' ORDER BY x::text) FROM "+spec.SQL()+" x")))
	}
	return strings.Join(out, "\n")
}

func TestResync(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, resyncTables, resyncSpecs()...)
	for _, s := range []*streamSite{a, b} {
		s.exec(fenceSQL)
	}
	long := strings.Repeat("0123456789", 2000)
	b.exec("INSERT INTO item SELECT i, i, 'same' FROM generate_series(1, 300) i")
	b.exec(`INSERT INTO "Odd t.able" ("s.v") SELECT ARRAY[g / 3.0, NULL, 'NaN'] FROM generate_series(1, 20) g`)
	b.exec("INSERT INTO part SELECT g, 'p' FROM generate_series(1, 40) g")
	b.exec("INSERT INTO seat VALUES ('x', 1), ('y', 2), ('z', 3)")
	b.exec("INSERT INTO child SELECT g, g FROM generate_series(1, 10) g")
	b.exec("INSERT INTO visit VALUES ('ann', 1), ('ann', 1), ('bob', 2); INSERT INTO pair VALUES (1, NULL), (1, NULL), (2, 'b')")
	b.exec("INSERT INTO note VALUES (1, 'b')")
	b.exec("INSERT INTO atoll.bucket VALUES ($1, 'users', 3, 9, 'open')", string(b.id))
	b.exec("INSERT INTO atoll.marker VALUES ($1, 'old', 'opened', 'users', '[]', '{}')", string(b.id))
	l := newStreamLink(b, a)
	l.copy = true
	l.start()
	b.exec("INSERT INTO item VALUES (500, 1, 'came from b and is behind')")
	comesAbout(t, func() bool { return a.text("SELECT count(*) FROM item WHERE id = 500") == "1" })
	l.stop()

	// What b does after a has lost contact, and what a alone has done.
	b.exec("UPDATE item SET w = 'newer' WHERE id IN (500, 7); DELETE FROM item WHERE id = 9")
	b.exec("INSERT INTO item VALUES (600, 6, $1)", long)
	b.exec("UPDATE seat SET place = -place; UPDATE seat SET place = 3 WHERE id = 'x'; UPDATE seat SET place = 2 WHERE id = 'y'; UPDATE seat SET place = 1 WHERE id = 'z'")
	b.exec("INSERT INTO visit VALUES ('eve', 5)")
	a.exec("UPDATE item SET w = 'only a' WHERE id IN (11, 12); INSERT INTO item VALUES (700, 0, 'only a'), (701, NULL, NULL)")
	a.exec(`UPDATE "Odd t.able" SET "s.v" = '{1}' WHERE "the t.key" = 3; INSERT INTO part VALUES (99, 'only a'); UPDATE part SET v = 'a' WHERE id = 2`)
	a.exec("INSERT INTO child VALUES (90, 700); INSERT INTO emptied VALUES (1), (2)")
	a.exec("INSERT INTO visit VALUES ('ann', 1), ('ann', 7); DELETE FROM pair WHERE a = 2; INSERT INTO pair VALUES (1, NULL)")
	a.exec("INSERT INTO seat VALUES ('w', 9); INSERT INTO note VALUES (2, 'only a')")
	a.exec("INSERT INTO atoll.marker VALUES ($1, 'f1', 'closed', 'users', '[]', '{}'), ($1, 's0', 'closed', 'users', '[]', '{}')", string(a.id))
	b.exec("UPDATE atoll.bucket SET epoch = 10 WHERE bucket = 3")
	b.exec("INSERT INTO atoll.bucket VALUES ($1, 'users', 4, 2, 'open')", string(b.id))

	report, err := a.resync(b, cutAll(a.id, "f1"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.contents(), b.contents(); got != want {
		t.Fatalf("a has\n%s\nb has\n%s", got, want)
	}
	a.want("3/10 4/2", "SELECT string_agg(bucket || '/' || epoch, ' ' ORDER BY bucket) FROM atoll.bucket WHERE site = $1", string(b.id))
	a.want("s0", "SELECT handover FROM atoll.marker WHERE site = $1", string(a.id)) // f1's has to come anew
	a.want(fmt.Sprint(uint64(report.Copied)), "SELECT position FROM atoll.progress WHERE origin = $1", string(b.id))
	rows := func(table, what string) string {
		return a.text("SELECT "+what+" FROM atoll.conflict WHERE table_name = $1 ORDER BY 1", table)
	}
	for table, want := range map[string]string{
		// 7, 9 and 500 are b's own older versions
		"public.item":       "11 stale_update only a/same\n12 stale_update only a/same\n700 stale_insert only a/<null>\n701 stale_insert <null>/<null>",
		"public.Odd t.able": "3 stale_update", "public.part": "2 stale_update\n99 stale_insert", "public.child": "90 stale_insert",
		"public.emptied": "1 stale_insert\n2 stale_insert", "public.visit": "ann/1 stale_insert\nann/7 stale_insert",
		"public.pair": "1 stale_insert", "public.seat": "w stale_insert", "public.note": "2 stale_insert",
	} {
		what := map[string]string{"public.Odd t.able": `remote_row->>'the t.key' || ' ' || kind`, "public.visit": `remote_row->>'who' || '/' || (remote_row->>'at') || ' ' || kind`,
			"public.pair": `remote_row->>'a' || ' ' || kind`, "public.item": `remote_row->>'id' || ' ' || kind || ' ' || coalesce(remote_row->>'w', '<null>') || '/' || coalesce(local_row->>'w', '<null>')`}[table]
		if what == "" {
			what = `remote_row->>'id' || ' ' || kind`
		}
		if got := rows(table, what); got != want {
			t.Errorf("%s: logged\n%s\nwant\n%s", table, got, want)
		}
	}
	a.want("true", "SELECT bool_and(origin = $1 AND decision = 'kept' AND decided_xid IS NOT NULL AND handover = 'f1' AND (keyspace = '') = (bucket IS NULL) AND (keyspace = '' OR epoch = 7)) FROM atoll.conflict", string(a.id))
	total := 0
	for _, table := range report.Tables {
		total += table.Logged
	}
	if total != 15 || len(report.Tables) != len(a.tables) {
		t.Errorf("report %+v", report)
	}

	// The streams go on from here in both directions: nothing of the resync goes out again, what follows does.
	back := newStreamLink(a, b)
	if err := (&Fence{site: b.id, conns: b.fenceConns()}).BeginAnew(t.Context(), Anew{Origin: a.id, Position: report.Begins, Handovers: []topo.HandoverID{"f1"}}); err != nil {
		t.Fatal(err)
	}
	back.start()
	forth := newStreamLink(b, a)
	forth.start()
	a.exec("INSERT INTO item VALUES (800, 0, 'from a')")
	b.exec("INSERT INTO item VALUES (801, 0, 'from b')")
	comesAbout(t, func() bool {
		return a.text("SELECT count(*) FROM item WHERE id >= 800") == "2" && b.text("SELECT count(*) FROM item WHERE id >= 800") == "2"
	})
	b.want("0", "SELECT count(*) FROM atoll.conflict")
	back.stop()
	forth.stop()
	// Once more: nothing is left to do.
	if report, err = a.resync(b, cutAll(a.id, "f1")); err != nil {
		t.Fatal(err)
	}
	for _, table := range report.Tables {
		if table.Logged+table.Removed+table.Written != 0 {
			t.Errorf("a second resync did %+v", table)
		}
	}
}

func (s *streamSite) fenceConns() *fenceConns {
	conns, err := newFenceConns(s.agent)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(conns.close)
	return conns
}

// A copy that breaks off leaves the database as it was, and can begin again.
func TestResyncThatBreaksOff(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, "CREATE TABLE item (id bigint PRIMARY KEY, n int)", TableSpec{Schema: "public", Name: "item", Kind: topo.Keyed, Keyspace: "users", Key: "id"})
	a.exec(fenceSQL)
	a.exec("INSERT INTO item VALUES (1, 1), (2, 2)")
	b.exec("INSERT INTO item VALUES (2, 3)")
	r, err := OpenResync(t.Context(), ResyncConfig{Apply: a.apply(b.id).cfg, Capture: a.capture(b.id), Keyspaces: usersKeyspace, Cuts: cutAll(a.id, "f1")})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the link broke")
	pieces := []change.Copy{{Table: &change.Table{Schema: "public", Name: "item", Identity: 'd', Columns: []change.Column{{Name: "id"}, {Name: "n"}}}, Data: []byte("2\t3\n")}}
	err = r.Copy(t.Context(), func(context.Context) (change.Copy, error) {
		if len(pieces) == 0 {
			return change.Copy{}, broken
		}
		p := pieces[0]
		pieces = pieces[1:]
		return p, nil
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	a.want("1/1 2/2", "SELECT string_agg(id || '/' || n, ' ' ORDER BY id) FROM item")
	a.want("0", "SELECT count(*) FROM atoll.conflict")
	if _, err := a.resync(b, cutAll(a.id, "f1")); err != nil {
		t.Fatal(err)
	}
	a.want("2/3", "SELECT string_agg(id || '/' || n, ' ') FROM item")
	a.want("stale_insert 1\nstale_update 2", "SELECT kind || ' ' || (remote_row->>'id') FROM atoll.conflict ORDER BY id")
}
