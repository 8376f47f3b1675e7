package lab

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// witnessed is a database with atoll's schema, two tables and the lab's witness. role connects as somebody else.
func witnessed(t *testing.T) (db *pgx.Conn, role func(string) *pgx.Conn) {
	t.Helper()
	server := pgserver.Shared(t)
	name := server.Database(t)
	connect := func(user string) *pgx.Conn {
		config, err := pgx.ParseConfig(server.DSN(user, name))
		if err != nil {
			t.Fatal(err)
		}
		config.RuntimeParams["application_name"] = map[string]string{"lab_applier": "atoll apply from b"}[user]
		c, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(context.Background()) })
		return c
	}
	db = connect(pgserver.Superuser)
	schema, err := os.ReadFile("../postgres/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	execSQL(t, db, string(schema))
	execSQL(t, db, `DO $$ BEGIN CREATE ROLE lab_applier LOGIN SUPERUSER; CREATE ROLE lab_shop LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$`)
	execSQL(t, db, `CREATE TABLE orders (customer uuid, id uuid, note text, PRIMARY KEY (customer, id));
		CREATE TABLE seats (id int PRIMARY KEY, label text); GRANT ALL ON orders, seats TO lab_shop`)
	if err := installEvidence(t.Context(), db, testTables, "lab_applier"); err != nil {
		t.Fatal(err)
	}
	return db, connect
}

var testTables = []watchedTable{{"public", "orders", users, 1024, "customer"}, {"public", "seats", catalog, 1, ""}}

func execSQL(t *testing.T, db *pgx.Conn, sql string) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

const ada, bob, order1 = "6f1b1c5e-6c6b-4f0b-9d0e-3a8a0f3d8a11", "00000000-0000-0000-0000-000000000002", "00000000-0000-0000-0000-0000000000aa"

func TestEvidence_SeesWhatCommits(t *testing.T) {
	t.Parallel()
	db, as := witnessed(t)
	shop, applier := as("lab_shop"), as("lab_applier")
	before := time.Now()
	execSQL(t, shop, `INSERT INTO orders VALUES ('`+ada+`', '`+order1+`', 'x')`)
	execSQL(t, shop, `BEGIN; INSERT INTO seats VALUES (1, 'never'); ROLLBACK`)
	execSQL(t, shop, `UPDATE orders SET customer = '`+bob+`'`) // two buckets
	execSQL(t, applier, `SET session_replication_role = replica; INSERT INTO seats VALUES (3, 'decided')`)
	setOrigin(t, applier)
	execSQL(t, applier, `INSERT INTO seats VALUES (2, 'applied'); DELETE FROM seats WHERE id = 2`)
	execSQL(t, db, `INSERT INTO atoll.bucket VALUES ('a', 'users', 5, 1, 'open', ''); UPDATE atoll.bucket SET state = 'closed', handover = 'h1'`)
	e, err := readEvidence(t.Context(), db, "a", testTables, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	by := map[bool]map[bool]string{true: {false: "applied from "}, false: {false: "born", true: "decided"}}
	for _, c := range e.Changes {
		got = append(got, strings.Join([]string{c.Op, c.Table, c.Row, slot{c.Keyspace, c.Bucket}.String(), by[c.Applied][c.Decided] + string(c.Origin)}, " "))
		if c.At.Before(before.Add(-time.Second)) || c.At.After(time.Now().Add(time.Second)) || c.Database != "a" {
			t.Errorf("commit of %v at %v", c, c.At)
		}
	}
	adas, bobs := slot{users, bucketOf(ada, 1024)}.String(), slot{users, bucketOf(bob, 1024)}.String()
	wanted := []string{
		"INSERT orders " + ada + "/" + order1 + " " + adas + " born",
		"UPDATE orders " + bob + "/" + order1 + " " + adas + " born",
		"UPDATE orders " + bob + "/" + order1 + " " + bobs + " born",
		"INSERT seats 3 catalog/0 decided", "INSERT seats 2 catalog/0 applied from b", "DELETE seats 2 catalog/0 applied from b",
	}
	if strings.Join(got, "\n") != strings.Join(wanted, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wanted, "\n"))
	}
	if len(e.Epochs) != 2 || !e.Epochs[0].Open || e.Epochs[1].Open || e.Epochs[1].Handover != "h1" || e.Epochs[1].Bucket != 5 {
		t.Errorf("epoch rows %+v", e.Epochs)
	}
	if n, err := changesOf(t.Context(), db); err != nil || n != 5 {
		t.Errorf("%d changes, %v; want 5", n, err)
	}
	execSQL(t, shop, `INSERT INTO seats SELECT i, 'many' FROM generate_series(1000, 10000) i`)
	if err := sumUp(t.Context(), db); err != nil {
		t.Error(err)
	}
	if n, _, err := bornAfter(t.Context(), db, before.Add(-time.Second)); err != nil || n != 4+9001 {
		t.Errorf("%d changes behind an index that is summed up, %v; want %d", n, err, 4+9001)
	}
	execSQL(t, shop, `DELETE FROM seats WHERE id >= 1000`)
	execSQL(t, db, `DELETE FROM lab.notes_public_seats WHERE c0 >= 1000`)
	if n, oldest, err := bornAfter(t.Context(), db, before.Add(-time.Second)); err != nil || n != 4 || oldest.Before(before.Add(-time.Second)) {
		t.Errorf("%d changes, the oldest at %v, %v; want 4", n, oldest, err)
	}
	if n, _, err := bornAfter(t.Context(), db, time.Now().Add(time.Second)); err != nil || n != 0 {
		t.Errorf("%d changes from now on, %v; want none", n, err)
	}
	if err := forgetChanges(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	if e, err := readEvidence(t.Context(), db, "a", testTables, time.Time{}); err != nil || len(e.Changes) != 0 || len(e.Epochs) != 2 {
		t.Errorf("after forgetting: %d changes, %d epochs, %v", len(e.Changes), len(e.Epochs), err)
	}
}

// setOrigin makes a session an applier's.
func setOrigin(t *testing.T, db *pgx.Conn) {
	t.Helper()
	execSQL(t, db, `SELECT pg_replication_origin_create('lab_' || current_database())`)
	t.Cleanup(func() {
		_, err := db.Exec(context.Background(), `SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('lab_' || current_database())`)
		if err != nil {
			t.Error(err)
		}
	})
	execSQL(t, db, `SELECT pg_replication_origin_session_setup('lab_' || current_database())`)
}

func TestEvidence_ReadsConflicts(t *testing.T) {
	t.Parallel()
	db, _ := witnessed(t)
	execSQL(t, db, `INSERT INTO atoll.conflict (origin, position, source_xid, kind, table_name, keyspace, bucket, epoch, local_row, remote_row, handover, decided_xid, decision) VALUES
		('a', 4294967296, 4000000000, 'stale_update', 'public.orders', 'users', 7, 3, '{"id": "1", "note": "here"}', '{"id": "1", "note": null}', 'h1', 9, 'kept'),
		('a', 5, 6, 'delete_missing', 'public.seats', '', NULL, NULL, NULL, '{"id": "1"}', '', NULL, 'logged')`)
	e, err := readEvidence(t.Context(), db, "b", testTables, time.Time{})
	if err != nil || len(e.Conflicts) != 2 {
		t.Fatalf("%+v, %v", e.Conflicts, err)
	}
	r := e.Conflicts[0]
	if r.Database != "b" || r.Origin != "a" || r.Position != 1<<32 || r.XID != 4_000_000_000 || r.Kind != "stale_update" || r.Table != "public.orders" ||
		r.Keyspace != users || r.Bucket != 7 || r.Epoch != 3 || r.Handover != "h1" || r.Decision != decisionKept || time.Since(r.At) > time.Minute {
		t.Errorf("%+v", r)
	}
	if column(r.Local, "note") != "here" || column(r.Remote, "note") != "" || column(r.Remote, "none") != "" || column(e.Conflicts[1].Local, "id") != "" {
		t.Errorf("versions %s and %s", r.Local, r.Remote)
	}
}

// An applier gives its transactions the commit time of their origin; what counts here is when they arrived.
func TestEvidence_TimesArrivals(t *testing.T) {
	t.Parallel()
	_, as := witnessed(t)
	applier := as("lab_applier")
	setOrigin(t, applier)
	before := time.Now()
	execSQL(t, applier, `BEGIN; SELECT pg_replication_origin_xact_setup('0/0', clock_timestamp() - interval '1 hour');
		INSERT INTO seats VALUES (2, 'applied'); INSERT INTO atoll.bucket VALUES ('b', 'users', 5, 1, 'closed', 'h1'); COMMIT`)
	var stamped time.Time
	if err := applier.QueryRow(t.Context(), `SELECT pg_xact_commit_timestamp(xmin) FROM seats`).Scan(&stamped); err != nil || before.Sub(stamped) < time.Minute {
		t.Fatalf("the commit is stamped %v, %v; this test needs the origin's time there", stamped, err)
	}
	e, err := readEvidence(t.Context(), applier, "a", testTables, time.Time{})
	if err != nil || len(e.Changes) != 1 || len(e.Epochs) != 1 {
		t.Fatalf("%+v, %v", e, err)
	}
	for what, at := range map[string]time.Time{"change": e.Changes[0].At, "epoch row": e.Epochs[0].At} {
		if at.Before(before.Add(-time.Second)) {
			t.Errorf("the %s arrived at %v, by the witness at %v", what, before, at)
		}
	}
}

// The lab's buckets are the database's: the rule is written twice, independently.
func TestBucketOf(t *testing.T) {
	t.Parallel()
	server := pgserver.Shared(t)
	db, err := pgx.Connect(t.Context(), server.DSN(pgserver.Superuser, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	for _, key := range []string{ada, bob, order1, "42", ""} {
		var bucket topo.BucketID
		err := db.QueryRow(t.Context(), `SELECT (('x' || left(md5($1), 8))::bit(32)::int8 & 1023)::int4`, key).Scan(&bucket)
		if err != nil || bucket != bucketOf(key, 1024) {
			t.Errorf("%q: bucket %d by the database, %d by the lab, %v", key, bucket, bucketOf(key, 1024), err)
		}
	}
	if bucketOf("anything", 1) != 0 {
		t.Error("a keyspace of one bucket has no bucket 0")
	}
}

func TestHashRows(t *testing.T) {
	t.Parallel()
	db, _ := witnessed(t)
	execSQL(t, db, `ALTER TABLE seats ADD at timestamptz DEFAULT '2026-01-01 00:00Z'; INSERT INTO seats VALUES (1, 'x'), (2, NULL)`)
	first, err := hashRows(t.Context(), db, "public.seats")
	if err != nil || len(first) != 2 || first["1"] == first["2"] {
		t.Fatalf("%v, %v", first, err)
	}
	execSQL(t, db, `SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'`)
	again, err := hashRows(t.Context(), db, "public.seats")
	if err != nil || first["1"] != again["1"] {
		t.Errorf("a session's settings change the hash: %v, %v", again, err)
	}
	execSQL(t, db, `UPDATE seats SET label = 'y' WHERE id = 1`)
	if changed, err := hashRows(t.Context(), db, "public.seats"); err != nil || changed["1"] == first["1"] || changed["2"] != first["2"] {
		t.Errorf("after an update: %v, %v", changed, err)
	}
	if _, err := hashRows(t.Context(), db, "public.nothing"); err == nil {
		t.Error("a table that does not exist has rows")
	}
}

func TestReadShop(t *testing.T) {
	t.Parallel()
	server := pgserver.Shared(t)
	db, err := pgx.Connect(t.Context(), server.DSN(pgserver.Superuser, server.Database(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	execSQL(t, db, `CREATE TABLE customers (id uuid PRIMARY KEY, orders_count int NOT NULL DEFAULT 0, address text NOT NULL DEFAULT '', wishes text[] NOT NULL DEFAULT '{}');
		CREATE TABLE orders (customer_id uuid, id uuid, number int, seat_id uuid, status text, PRIMARY KEY (customer_id, id));
		CREATE TABLE payments (customer_id uuid, id uuid, order_id uuid);
		CREATE TABLE outbox (id uuid, done_at timestamptz);
		CREATE TABLE seats (id uuid PRIMARY KEY, sold_to uuid);
		INSERT INTO customers VALUES ('`+ada+`', 1, 'Pier 7', '{}'), ('`+bob+`', 0, '', '{}'), ('`+order1+`', 0, '', '{jazz,rock}');
		INSERT INTO orders VALUES ('`+ada+`', '`+order1+`', 1, '`+bob+`', 'confirmed');
		INSERT INTO payments VALUES ('`+ada+`', gen_random_uuid(), '`+order1+`');
		INSERT INTO seats VALUES ('`+bob+`', '`+order1+`'), ('`+ada+`', NULL);
		INSERT INTO outbox VALUES (gen_random_uuid(), NULL), (gen_random_uuid(), now())`)
	s, err := readShop(t.Context(), db, "a")
	if err != nil {
		t.Fatal(err)
	}
	if o := s.Orders[order1]; o != (Order{order1, ada, 1, bob, "confirmed", 1}) || s.Counts[ada] != 1 || len(s.Sold) != 1 || s.Sold[bob] != order1 || len(s.Registers) != 1 || s.Registers[ada] != "Pier 7" ||
		len(s.Lists) != 1 || !slices.Equal(s.Lists[order1], []string{"jazz", "rock"}) {
		t.Errorf("%+v", s)
	}
	if n, err := openJobs(t.Context(), db); err != nil || n != 1 {
		t.Errorf("%d open jobs, %v", n, err)
	}
	in, err := customersIn(t.Context(), db, topo.SpansOf(bucketOf(ada, 256), bucketOf(bob, 256), bucketOf(order1, 256)), 256, 5)
	if err != nil || len(in) != 1 || in[0] != bob { // ada is a register, the other one a list
		t.Errorf("customers %v, %v", in, err)
	}
}
