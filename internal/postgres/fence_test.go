package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

func newInstalledSite(t *testing.T) *fenceSite {
	t.Helper()
	return newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment()).install()
}

// bucketOf asks the database, as its guards do.
func (s *fenceSite) bucketOf(key string) topo.BucketID {
	s.t.Helper()
	var b topo.BucketID
	c := s.connect(s.adminDSN)
	defer closeConn(c)
	if err := c.QueryRow(context.Background(), `SELECT atoll.bucket_of($1, 64)`, key).Scan(&b); err != nil {
		s.t.Fatal(err)
	}
	return b
}

func at(b topo.BucketID, e topo.Epoch) topo.EpochSpan {
	return topo.EpochSpan{First: b, Last: b, Epoch: e}
}

func TestFenceIsClosedUntilOpened(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	const write = "INSERT INTO item VALUES (1)"
	wantCode(t, s.try(write), CodeNotOwned)
	s.open("users", topo.EpochSpan{Last: 63, Epoch: 1})
	wantCode(t, s.try(write), CodeLeaseRunOut)
	s.extend(time.Minute)
	if err := s.try(write); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.try("INSERT INTO seat VALUES ('1A')"), CodeNotOwned)
	st := s.state()
	if got := st.Bits["users"].String(); got != "0-63" || st.Bits["catalog"] != nil {
		t.Errorf("bits are %q and %q, want 0-63 and none", got, st.Bits["catalog"])
	}
	if len(st.Rows["users"]) != 64 || st.Rows["users"][63] != (BucketRow{63, 1, "open", "open-1"}) {
		t.Errorf("epoch rows: %+v", st.Rows["users"])
	}
	if until := st.Lease.Sub(st.Clock); until < 50*time.Second || until > time.Minute {
		t.Errorf("the lease runs %s ahead of the database's clock", until)
	}
}

func TestRefusalTellsWhereToGo(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(7)
	b := s.bucketOf("42")
	s.close("h1", "users", at(b, 7))
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 64, Hash: topo.HashMD5,
		Ranges: []topo.Range{{First: 0, Last: 63, Owner: "b", Epoch: 8, State: topo.Open}}}})
	for range 2 { // repeated without harm
		if err := s.fence.RecordOwners(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	check := func(err error, code, owner string, epoch int) {
		t.Helper()
		e := wantCode(t, err, code)
		want := map[string]any{"keyspace": "users", "bucket": float64(b), "owner": owner, "epoch": float64(epoch)}
		var got map[string]any
		if err := json.Unmarshal([]byte(e.Detail), &got); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("detail %q (%v), want %v", e.Detail, err, want)
		}
		if !strings.Contains(e.Message, fmt.Sprintf("bucket %d of keyspace users", b)) || !strings.Contains(e.Hint, fmt.Sprintf("Atoll-Fenced: users/%d/%d", b, epoch)) {
			t.Errorf("message %q, hint %q", e.Message, e.Hint)
		}
	}
	check(s.try("INSERT INTO item VALUES (42)"), CodeNotOwned, "b", 8)
	s.open("users", at(b, 9))
	s.exec(s.adminDSN, "SELECT setval('atoll.lease', 1)")
	check(s.try("INSERT INTO item VALUES (42)"), CodeLeaseRunOut, "b", 8)
	if err := s.fence.RecordOwners(t.Context(), topo.NewOwnership(nil)); err != nil {
		t.Fatal(err)
	}
	check(s.try("INSERT INTO item VALUES (42)"), CodeLeaseRunOut, "", 0)
}

// Every way to write a row, for a bucket that is closed while all others are open.
func TestEveryWayToWriteIsRefused(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	shut := s.bucketOf("7")
	other := 0 // a key of an open bucket
	for i := 100; other == 0; i++ {
		if s.bucketOf(fmt.Sprint(i)) != shut {
			other = i
		}
	}
	if err := s.try("INSERT INTO item VALUES (7)", "INSERT INTO part VALUES (7)", "INSERT INTO parent VALUES (7), ("+fmt.Sprint(other)+")",
		fmt.Sprintf("INSERT INTO item VALUES (%d)", other), fmt.Sprintf("INSERT INTO part VALUES (%d)", other),
		fmt.Sprintf("INSERT INTO child VALUES (7, %d), (%d, 7)", other, other), "INSERT INTO seat VALUES ('1A')"); err != nil {
		t.Fatal(err)
	}
	s.close("h1", "users", at(shut, 1))
	s.close("h1", "catalog", at(0, 1))
	for name, sql := range map[string]string{
		"insert":                        "INSERT INTO parent VALUES (7) ON CONFLICT (id) DO UPDATE SET v = 1",
		"update":                        "UPDATE item SET n = 1 WHERE id = 7",
		"delete":                        "DELETE FROM item WHERE id = 7",
		"key out of a closed bucket":    "UPDATE item SET id = 123456 WHERE id = 7",
		"on conflict update":            "INSERT INTO item VALUES (7) ON CONFLICT (id) DO UPDATE SET n = 9",
		"merge update":                  "MERGE INTO item USING (VALUES (7::bigint)) v (id) ON item.id = v.id WHEN MATCHED THEN UPDATE SET n = 7",
		"merge delete":                  "MERGE INTO item USING (VALUES (7::bigint)) v (id) ON item.id = v.id WHEN MATCHED THEN DELETE",
		"data-modifying with":           "WITH w AS (UPDATE item SET n = 5 WHERE id = 7 RETURNING 1) SELECT count(*) FROM w",
		"partition by root":             "UPDATE part SET n = 1 WHERE id = 7",
		"partition by leaf 0":           "UPDATE part_0 SET n = 1 WHERE id = 7; UPDATE part_1 SET n = 1 WHERE id = 7",
		"key out of, across partitions": "UPDATE part SET id = id + g FROM generate_series(1, 1) g WHERE id = 7",
		"cascaded delete":               fmt.Sprintf("DELETE FROM parent WHERE id = %d", other),
		"home table":                    "UPDATE seat SET sold = true WHERE id = '1A'",
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, s.try(sql), CodeNotOwned) })
	}
	t.Run("key into a closed bucket", func(t *testing.T) {
		s := newInstalledSite(t)
		s.openAll(1)
		if err := s.try(fmt.Sprintf("INSERT INTO item VALUES (%d)", other), fmt.Sprintf("INSERT INTO part VALUES (%d)", other)); err != nil {
			t.Fatal(err)
		}
		s.close("h1", "users", at(shut, 1))
		wantCode(t, s.try(fmt.Sprintf("UPDATE item SET id = 7 WHERE id = %d", other)), CodeNotOwned)
		wantCode(t, s.try(fmt.Sprintf("UPDATE part SET id = 7 WHERE id = %d", other)), CodeNotOwned)
	})
	t.Run("copy", func(t *testing.T) {
		c := s.connect(s.appDSN)
		_, err := c.CopyFrom(t.Context(), pgx.Identifier{"child"}, []string{"id"}, pgx.CopyFromRows([][]any{{s.keyIn(shut)}}))
		wantCode(t, err, CodeNotOwned)
	})
	t.Run("truncate", func(t *testing.T) {
		for _, table := range []string{"item", "part", "part_0", "seat", "parent CASCADE"} {
			wantCode(t, s.try("TRUNCATE "+table), CodeTruncateFenced)
		}
	})
	t.Run("a savepoint that is rolled back leaves the rest", func(t *testing.T) {
		c := s.connect(s.appDSN)
		for _, step := range []struct{ sql, code string }{
			{"BEGIN", ""}, {fmt.Sprintf("UPDATE item SET n = 5 WHERE id = %d", other), ""}, {"SAVEPOINT s", ""},
			{"UPDATE item SET n = 5 WHERE id = 7", CodeNotOwned}, {"ROLLBACK TO SAVEPOINT s", ""}, {"COMMIT", ""},
		} {
			_, err := c.Exec(t.Context(), step.sql)
			if step.code != "" {
				wantCode(t, err, step.code)
			} else if err != nil {
				t.Fatalf("%s: %v", step.sql, err)
			}
		}
	})
	t.Run("a conflict that writes nothing passes", func(t *testing.T) {
		if err := s.try("INSERT INTO item VALUES (7) ON CONFLICT DO NOTHING"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("replica role", func(t *testing.T) {
		s.exec(s.adminDSN, "GRANT SET ON PARAMETER session_replication_role TO "+s.app)
		wantCode(t, s.try("SET session_replication_role = replica", "UPDATE item SET n = 1 WHERE id = 7"), CodeNotOwned)
	})
}

func TestNullKeyIsRefused(t *testing.T) {
	t.Parallel()
	d := fenceDeployment()
	d.Tables = []TableSpec{{Schema: "public", Name: "maybe", Kind: topo.Keyed, Keyspace: "users", Key: "id", IdentityFull: true}}
	s := newFenceSite(t, pgserver.Shared(t), "CREATE TABLE maybe (id bigint, n int)", d).install()
	s.openAll(1)
	wantCode(t, s.try("INSERT INTO maybe VALUES (NULL)"), "23502")
	wantCode(t, s.try("INSERT INTO maybe VALUES (1)", "UPDATE maybe SET id = NULL"), "23502")
}

// keyIn is a key above a million that lies in a bucket.
func (s *fenceSite) keyIn(b topo.BucketID) int64 {
	s.t.Helper()
	c := s.connect(s.adminDSN)
	defer closeConn(c)
	var key int64
	if err := c.QueryRow(context.Background(), `SELECT min(i) FROM generate_series(1000001, 1010000) i WHERE atoll.bucket_of(i::text, 64) = $1`, b).Scan(&key); err != nil {
		s.t.Fatal(err)
	}
	return key
}

// What compares every bucket with every other would take minutes here.
func TestManyBuckets(t *testing.T) {
	t.Parallel()
	const many = 8192
	d := fenceDeployment()
	d.Keyspaces = map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: many, Hash: topo.HashMD5, Key: topo.IntegerKey}}
	d.Tables = d.Tables[:1]
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, d).install()
	s.openAll(1)
	if err := s.try("INSERT INTO item SELECT g FROM generate_series(1, 1000) g"); err != nil {
		t.Fatal(err)
	}
	s.close("h1", "users", topo.EpochSpan{First: 1, Last: many - 2, Epoch: 1})
	if got := s.state().Bits["users"].String(); got != "0,8191" {
		t.Errorf("bits %s", got)
	}
	wantCode(t, s.try("UPDATE item SET n = 1 WHERE id = 500"), CodeNotOwned)
	if err := s.fence.Restrict(t.Context(), map[topo.KeyspaceID]topo.Spans{"users": {{First: many - 1, Last: many - 1}}}); err != nil {
		t.Fatal(err)
	}
	if got := s.state().Bits["users"].String(); got != "8191" {
		t.Errorf("bits %s", got)
	}
}

func TestSnapshotsDoNotHideAFlip(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	if err := s.try("INSERT INTO item VALUES (7)"); err != nil {
		t.Fatal(err)
	}
	for _, level := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		b, epoch := s.bucketOf("7"), topo.Epoch(1)
		for _, r := range s.state().Rows["users"] {
			if r.Bucket == b {
				epoch = r.Epoch
			}
		}
		c := s.connect(s.appDSN)
		for _, sql := range []string{"BEGIN ISOLATION LEVEL " + level, "SELECT count(*) FROM item"} {
			if _, err := c.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		s.close(topo.HandoverID("h"+level), "users", at(b, epoch))
		_, err := c.Exec(t.Context(), "UPDATE item SET n = 1 WHERE id = 7")
		wantCode(t, err, CodeNotOwned)
		closeConn(c)
		s.open("users", at(b, epoch+1))
	}
}

func TestOnlyTheAgentPassesAndSets(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t) // nothing is open
	for _, sql := range []string{
		"SELECT nextval('atoll.own_1_0')", "SELECT setval('atoll.own_1_0', 4294967295)", "SELECT setval('atoll.lease', 99999999999999)",
		"SELECT nextval('atoll.lease')", "INSERT INTO atoll.bucket VALUES ('a', 'users', 1, 1, 'open')", "UPDATE atoll.keyspace SET restricts = 0",
		"SELECT atoll.set_bits(1::smallint, 0, 4294967295, 0)", "SELECT atoll.restrict('{}')", "UPDATE atoll.install SET agent_role = current_user",
	} {
		wantCode(t, s.try(sql), "42501")
	}
	c := s.connect(s.agentDSN)
	for _, sql := range []string{
		"INSERT INTO item VALUES (7)", "UPDATE item SET n = 2", "UPDATE item SET id = 8", "INSERT INTO part VALUES (7)",
		"DELETE FROM part", "INSERT INTO seat VALUES ('1A')", "DELETE FROM item",
	} {
		if _, err := c.Exec(t.Context(), sql); err != nil {
			t.Errorf("agent: %s: %v", sql, err)
		}
	}
}

// Default privileges of the installing role would hand the fence's sequences to the application.
func TestDefaultPrivilegesDoNotOpenTheFence(t *testing.T) {
	t.Parallel()
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment())
	s.exec(s.adminDSN, "ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO "+s.app, "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC",
		"ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC") // a usual hardening, which must not break the guards
	s.install()
	if plan, err := Plan(t.Context(), s.adminDSN, s.d); err != nil || len(plan) != 0 {
		t.Errorf("still to do: %+v, %v", plan, err)
	}
	wantCode(t, s.try("SELECT setval('atoll.own_1_0', 1)"), "42501")
	wantCode(t, s.try("DELETE FROM atoll.bucket"), "42501")
	wantCode(t, s.try("INSERT INTO item VALUES (1)"), CodeNotOwned)
	s.openAll(1)
	if err := s.try("INSERT INTO item VALUES (1)"); err != nil {
		t.Error(err)
	}
}

func TestLease(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	ctx := t.Context()
	lease := func() time.Time { return s.state().Lease }
	first := lease()
	if err := s.fence.ExtendLease(ctx, time.Now().Add(30*time.Second), time.Second); err != nil {
		t.Fatal(err)
	}
	// an earlier deadline is taken only where the later moment lies beyond what it can have meant
	if got := lease(); !got.Before(first) {
		t.Errorf("a moment that only a clock set back can explain was kept: %s", got)
	}
	kept := lease()
	s.exec(s.agentDSN, fmt.Sprintf("SELECT atoll.extend_lease(%d, 29000)", kept.Add(-3*time.Second).UnixMilli()))
	if got := lease(); !got.Equal(kept) {
		t.Errorf("a late statement moved the lease from %s to %s", kept, got)
	}
	if err := s.fence.ExtendLease(ctx, time.Now().Add(time.Second), 2*time.Second); err == nil {
		t.Error("a deadline that has passed was written")
	}

	// the clock steps forward: the moment lies in the past, nothing is accepted until the next extension
	s.exec(s.adminDSN, fmt.Sprintf("SELECT setval('atoll.lease', %d)", time.Now().Add(-time.Hour).UnixMilli()))
	wantCode(t, s.try("INSERT INTO item VALUES (1)"), CodeLeaseRunOut)
	s.extend(20 * time.Second)
	if err := s.try("INSERT INTO item VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	// the clock was ahead while the lease was written and is set back: the next extension takes the excess back
	s.exec(s.adminDSN, fmt.Sprintf("SELECT setval('atoll.lease', %d)", time.Now().Add(time.Hour).UnixMilli()))
	s.extend(20 * time.Second)
	if st := s.state(); st.Lease.Sub(st.Clock) > 21*time.Second {
		t.Errorf("the lease still runs for %s", st.Lease.Sub(st.Clock))
	}
}

func TestLeaseThatRunsOutBeforeCommit(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(3)
	for _, table := range []string{"item", "part"} {
		c := s.connect(s.appDSN)
		for _, sql := range []string{"BEGIN", "INSERT INTO " + table + " VALUES (42)"} {
			if _, err := c.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		s.exec(s.adminDSN, "SELECT setval('atoll.lease', 1)")
		_, err := c.Exec(t.Context(), "COMMIT")
		e := wantCode(t, err, CodeLeaseRunOut)
		if want := fmt.Sprintf(`"bucket" : %d,`, s.bucketOf("42")); !strings.Contains(e.Detail, want) {
			t.Errorf("detail %q, want %s", e.Detail, want)
		}
		s.extend(time.Minute)
	}
}

// The lease ends while a transaction is open: neither its next write nor its commit may rest on when it began.
func TestLeaseEndsWithinATransaction(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(3)
	lasts := []string{"COMMIT", "INSERT INTO part VALUES (42)"}
	for n := range 10 {
		c := s.connect(s.appDSN)
		s.exec(s.adminDSN, "SELECT setval('atoll.lease', (date_part('epoch', clock_timestamp()) * 1000)::bigint + 600000)")
		for _, sql := range []string{"BEGIN", fmt.Sprintf("INSERT INTO item VALUES (%d)", n)} {
			if _, err := c.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		s.exec(s.adminDSN, "SELECT setval('atoll.lease', (date_part('epoch', clock_timestamp()) * 1000)::bigint)", "SELECT pg_sleep(0.005)")
		last := lasts[n%len(lasts)]
		_, err := c.Exec(t.Context(), last)
		if sqlState(err) != CodeLeaseRunOut {
			t.Fatalf("transaction %d: %s, 5 ms after the lease ended within it: %v, want SQLSTATE %s", n+1, last, err, CodeLeaseRunOut)
		}
		closeConn(c)
	}
}

func TestHeartbeatIdentityAndWrongDoors(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	ctx := t.Context()
	for range 2 {
		if _, err := s.fence.Heartbeat(ctx, 0); err != nil {
			t.Fatal(err)
		}
	}
	id, err := s.fence.Identity(ctx)
	if err != nil || len(id.System) < 10 || id.Timeline != 1 {
		t.Errorf("identity %v, %v", id, err)
	}
	for want, open := range map[string]func() (*Fence, error){
		"prepared for site a":    func() (*Fence, error) { return OpenFence(ctx, s.agentDSN, "b") },
		"lets only":              func() (*Fence, error) { return OpenFence(ctx, s.adminDSN, "a") },
		"run `atoll apply`":      func() (*Fence, error) { return OpenFence(ctx, s.srv.DSN(pgserver.Superuser, "postgres"), "a") },
		"the DSN cannot be read": func() (*Fence, error) { return OpenFence(ctx, "postgres://%", "a") },
	} {
		f, err := open()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if f != nil {
			f.Close()
		}
	}
	s.exec(s.adminDSN, "UPDATE atoll.install SET format = 99")
	if _, err := OpenFence(ctx, s.agentDSN, "a"); !errors.Is(err, topo.ErrNewerFormat) {
		t.Errorf("a newer schema: %v", err)
	}
}

// What needs a server of its own: it runs with another wal_level, and crashes.
func TestServerApart(t *testing.T) {
	t.Parallel()
	dir, err := pgserver.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	srv, err := pgserver.Start(t.Context(), pgserver.Options{Dir: dir + "/pg", Name: "apart", Settings: map[string]string{"wal_level": "replica"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Kill(); err != nil {
			t.Error(err)
		}
	})
	s := newFenceSite(t, srv, fenceTables, fenceDeployment())
	problems := Preflight(t.Context(), s.adminDSN, s.agentDSN, s.d)
	if len(problems) != 1 || !strings.Contains(problems[0].What, "wal_level is replica") || !strings.Contains(problems[0].Do, "ALTER SYSTEM SET wal_level = 'logical'") {
		t.Errorf("problems %q, want wal_level", problems)
	}

	// a crash of the database loses the lease, and with it every permission to write
	s.install()
	s.openAll(1)
	if err := s.try("INSERT INTO item VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	if err := srv.Immediate(); err != nil {
		t.Fatal(err)
	}
	if err := srv.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.try("INSERT INTO item VALUES (2)"), CodeLeaseRunOut)
	st := s.state() // over a connection that the crash has broken
	if !st.Lease.IsZero() || st.Bits["users"].String() != "0-63" {
		t.Errorf("lease %s, bits %s", st.Lease, st.Bits["users"])
	}
	s.extend(time.Minute)
	if err := s.try("INSERT INTO item VALUES (2)"); err != nil {
		t.Fatal(err)
	}
}

func mustExec(t *testing.T, c *pgx.Conn, sql string) {
	t.Helper()
	if _, err := c.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
