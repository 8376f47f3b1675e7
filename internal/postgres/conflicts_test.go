package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/api"
)

// TestConflictLogIsRead: page by page, filtered, with the table's key; nothing that stands in the log hides the rest.
func TestConflictLogIsRead(t *testing.T) {
	t.Parallel()
	s, _ := newStreamSites(t, `CREATE TABLE "Order" (b int, "a ""id" int, v text, PRIMARY KEY ("a ""id", b)); CREATE TABLE nokey (id int)`)
	const insert = `INSERT INTO atoll.conflict (origin, position, source_xid, kind, table_name, keyspace, bucket, epoch, handover, local_row, remote_row, decision) VALUES `
	s.exec(insert + `('b', 9223372036854775807, 4711, 'stale_update', 'public.Order', 'users', 12, 4, 'h1', '{"v": "here", "w": null}', '{"v": "there"}', 'kept')`)
	for i := range 5 {
		s.exec(insert+`('b', $1, 1, 'insert_exists', 'public.nokey', '', NULL, NULL, '', NULL, '{"id": "1"}', 'applied')`, i)
	}
	s.exec(insert + `('Not A Site', 1, 1, 'insert_exists', 'public.nokey', '', NULL, NULL, '', NULL, '[1]', 'applied')`)
	s.exec(insert + `('b', 1, 1, 'insert_exists', 'public.nokey', '', NULL, NULL, '', NULL, '{"id": 7}', 'applied')`)
	s.exec(insert + `('b', 1, 1, 'insert_exists', 'public.nokey', '', NULL, NULL, '', jsonb_build_object('v', repeat('x', 100000)), NULL, 'applied')`)
	log, err := OpenConflictLog(s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	page := func(q api.ConflictQuery) (string, bool) {
		t.Helper()
		list, more, err := log.Conflicts(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, c := range list {
			ids = append(ids, fmt.Sprint(c.ID))
		}
		return strings.Join(ids, " "), more
	}
	for _, c := range []struct {
		q    api.ConflictQuery
		want string
		more bool
	}{
		{api.ConflictQuery{}, "9 8 7 6 5 4 3 2 1", false},
		{api.ConflictQuery{Limit: 4}, "9 8 7 6", true},
		{api.ConflictQuery{Limit: 4, Before: 6}, "5 4 3 2", true},
		{api.ConflictQuery{Limit: 4, Before: 2}, "1", false},
		{api.ConflictQuery{Table: "public.Order"}, "1", false},
		{api.ConflictQuery{Handover: "h1"}, "1", false},
		{api.ConflictQuery{Handover: "h2"}, "", false},
		{api.ConflictQuery{Table: "' OR true --"}, "", false},
	} {
		if got, more := page(c.q); got != c.want || more != c.more {
			t.Errorf("%+v: %s, more %v; want %s, %v", c.q, got, more, c.want, c.more)
		}
	}
	one, found, err := log.Conflict(ctx, 1)
	if err != nil || !found {
		t.Fatalf("%v, %v", found, err)
	}
	if one.Position != 1<<63-1 || *one.Bucket != 12 || *one.Epoch != 4 || one.Handover != "h1" || string(one.Remote) != `{"v": "there"}` || one.Decision != "kept" ||
		strings.Join(one.Key, ",") != `a "id,b` || one.Problem != "" {
		t.Errorf("%+v", one)
	}
	if two, found, err := log.Conflict(ctx, 2); err != nil || !found || two.Local != nil || two.Bucket != nil || len(two.Key) != 0 {
		t.Errorf("%+v, %v, %v", two, found, err)
	}
	if _, found, err := log.Conflict(ctx, 10); err != nil || found {
		t.Errorf("conflict 10: %v, %v", found, err)
	}
	list, _, err := log.Conflicts(ctx, api.ConflictQuery{Limit: 3})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"too many to show", "a version of a row", "a version of a row"} {
		if i == 2 {
			want = "origin: "
		}
		if c := list[i]; !strings.Contains(c.Problem, want) || c.Local != nil || c.Remote != nil {
			t.Errorf("conflict %d: %q; want %q", c.ID, c.Problem, want)
		}
	}
	if large, _, err := log.Conflict(ctx, 9); err != nil || len(large.Local) < 100_000 || large.Problem != "" {
		t.Errorf("a large one that was asked for: %d bytes, %q, %v", len(large.Local), large.Problem, err)
	}
}

// TestConflictPagesAreBounded: versions that fit one by one do not make an answer that does not.
func TestConflictPagesAreBounded(t *testing.T) {
	t.Parallel()
	s, _ := newStreamSites(t, `CREATE TABLE x (id int)`)
	s.exec(`INSERT INTO atoll.conflict (origin, position, source_xid, kind, table_name, remote_row, decision)
		SELECT 'b', i, i, 'insert_exists', 'public.x', jsonb_build_object('v', repeat('<', 60000)), 'applied' FROM generate_series(1, 30) i`)
	log, err := OpenConflictLog(s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	seen, before := 0, int64(0)
	for more := true; more; {
		var list []api.Conflict
		if list, more, err = log.Conflicts(context.Background(), api.ConflictQuery{Limit: 1000, Before: before}); err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, c := range list {
			if before != 0 && c.ID != before-1 {
				t.Fatalf("%d follows %d", c.ID, before)
			}
			seen, before, size = seen+1, c.ID, size+len(c.Remote)
		}
		if size > maxConflictPage || len(list) == 0 {
			t.Fatalf("a page of %d with %d bytes", len(list), size)
		}
	}
	if seen != 30 {
		t.Errorf("%d of 30 seen", seen)
	}
}
