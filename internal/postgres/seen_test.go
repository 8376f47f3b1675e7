package postgres

import (
	"testing"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// TestPlaces: the highest epoch row says whose the bucket is; for this site's own the end of the log counts, which no
// commit before lies behind, for another's what is applied of it.
func TestPlaces(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.open("users", at(3, 1), at(4, 1))
	s.exec(s.adminDSN,
		`INSERT INTO atoll.bucket (site, keyspace, bucket, epoch, state) VALUES ('b', 'users', 4, 2, 'open'), ('b', 'users', 3, 0, 'closed'), ('c', 'users', 4, 5, 'open')`,
		`INSERT INTO atoll.progress (origin, position, split) VALUES ('b', 1000, 0), ('c', 2000, 2100)`)
	places := func(sites ...topo.SiteID) []BucketPlace {
		t.Helper()
		out := []BucketPlace{{Keyspace: "users", Bucket: 3}, {Keyspace: "users", Bucket: 4}, {Keyspace: "users", Bucket: 900}, {Keyspace: "none", Bucket: 0}}
		if err := s.fence.Places(t.Context(), out, sites); err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := places("a", "b", "c")
	if p := before[0]; p.Owner != "a" || p.Epoch != 1 || p.Position == 0 {
		t.Errorf("its own: %+v", p)
	}
	if p := before[1]; p.Owner != "c" || p.Epoch != 5 || p.Position != 2100 {
		t.Errorf("another's: %+v", p)
	}
	if p := before[3]; p.Epoch != 0 || p.Owner != "" {
		t.Errorf("unknown: %+v", p)
	}
	if p := places("a", "b")[1]; p.Owner != "b" || p.Position != 1000 {
		t.Errorf("without c: %+v", p)
	}
	s.exec(s.adminDSN, `CREATE TABLE public.other (id int)`)
	var end int64
	if err := s.connect(s.adminDSN).QueryRow(t.Context(), `SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint`).Scan(&end); err != nil {
		t.Fatal(err)
	}
	if after := places("a", "b", "c")[0]; after.Position <= before[0].Position || after.Position < change.Position(end) {
		t.Errorf("after a commit %+v, before %+v; the log ends at %d", after, before[0], end)
	}
}
