package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// oddTables have names, identities and triggers that installing must leave as they are.
const oddTables = `
CREATE SCHEMA "Odd.schema";
CREATE TABLE "Odd.schema"."Tab ""le" ("Key" text NOT NULL, "select" int, PRIMARY KEY ("Key"));
CREATE TABLE "Odd.schema".a_very_long_name_of_a_table_that_fills_the_whole_identifier_x (id bigint PRIMARY KEY);
CREATE TABLE plain (k uuid NOT NULL, v text);
CREATE TABLE by_index (k uuid NOT NULL UNIQUE, v text);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_k_key;
CREATE TABLE by_nothing (k uuid NOT NULL, v text) PARTITION BY HASH (k);
CREATE TABLE by_nothing_0 PARTITION OF by_nothing FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE by_nothing_0 REPLICA IDENTITY NOTHING;
CREATE TABLE appended (k uuid NOT NULL, v text);
CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER zz AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION noop();
CREATE TABLE untouched (id int);
`

func oddDeployment() Deployment {
	d := fenceDeployment()
	d.Keyspaces["texts"] = topo.Keyspace{Buckets: 1024, Hash: topo.HashMD5, Key: topo.TextKey}
	d.Keyspaces["ids"] = topo.Keyspace{Buckets: 16, Hash: topo.HashMD5, Key: topo.UUIDKey}
	d.Tables = append(d.Tables,
		TableSpec{Schema: "Odd.schema", Name: `Tab "le`, Kind: topo.Keyed, Keyspace: "texts", Key: "Key"},
		TableSpec{Schema: "Odd.schema", Name: "a_very_long_name_of_a_table_that_fills_the_whole_identifier_x", Kind: topo.Keyed, Keyspace: "users", Key: "id"},
		TableSpec{Schema: "public", Name: "plain", Kind: topo.Keyed, Keyspace: "ids", Key: "k", IdentityFull: true},
		TableSpec{Schema: "public", Name: "by_index", Kind: topo.Keyed, Keyspace: "ids", Key: "k", IdentityFull: true},
		TableSpec{Schema: "public", Name: "by_nothing", Kind: topo.Keyed, Keyspace: "ids", Key: "k", IdentityFull: true},
		TableSpec{Schema: "public", Name: "appended", Kind: topo.Keyed, Keyspace: "ids", Key: "k", AppendOnly: true},
		TableSpec{Schema: "public", Name: "untouched", Kind: topo.Local},
	)
	return d
}

// catalogDump stands in for pg_dump where there is none.
func (s *fenceSite) catalogDump() string {
	s.t.Helper()
	c := s.connect(s.adminDSN)
	defer closeConn(c)
	var out string
	err := c.QueryRow(context.Background(), `SELECT string_agg(l, E'\n' ORDER BY l COLLATE "C") FROM (
		SELECT format('relation %s %s %s %s %s', oid::regclass, relkind, relreplident, relacl, relowner::regrole) FROM pg_class WHERE relnamespace = 'public'::regnamespace
		UNION ALL SELECT format('trigger %s %s', pg_get_triggerdef(oid), tgenabled) FROM pg_trigger WHERE NOT tgisinternal
		UNION ALL SELECT format('function %s %s', oid::regprocedure, proacl) FROM pg_proc WHERE pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
		UNION ALL SELECT format('schema %s %s', nspname, nspacl) FROM pg_namespace WHERE nspname NOT LIKE 'pg_t%'
		UNION ALL SELECT format('publication %s', pubname) FROM pg_publication
		UNION ALL SELECT format('constraint %s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint
		UNION ALL SELECT format('default acl %s %s %s', defaclrole::regrole, defaclobjtype, defaclacl) FROM pg_default_acl) AS d (l)`).Scan(&out)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// schemaDump is everything that pg_dump says of a database but its rows, and what the roles may do beyond it.
func (s *fenceSite) schemaDump() string {
	s.t.Helper()
	bin, err := pgserver.Find()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(bin.Path("pg_dump"), "--schema-only", "-d", s.adminDSN)
	out, err := cmd.Output()
	switch {
	case errors.Is(err, os.ErrNotExist): // packages of servers alone, as the matrix of versions has
		out = []byte(s.catalogDump())
	case err != nil:
		s.t.Fatalf("pg_dump: %v", err)
	}
	lines := slices.DeleteFunc(strings.Split(string(out), "\n"), func(l string) bool {
		return strings.HasPrefix(l, `\restrict`) || strings.HasPrefix(l, `\unrestrict`) // a random key
	})
	c := s.connect(s.adminDSN)
	defer closeConn(c)
	var roles string
	err = c.QueryRow(context.Background(), `SELECT format('members %s, parameters %s, origins %s, slots %s',
		(SELECT coalesce(string_agg(roleid::regrole || '>' || member::regrole, ',' ORDER BY 1), '') FROM pg_auth_members WHERE member::regrole::text LIKE current_database() || '%'),
		(SELECT count(*) FROM pg_parameter_acl, aclexplode(paracl) a JOIN pg_roles r ON r.oid = a.grantee WHERE r.rolname LIKE current_database() || '%'),
		(SELECT coalesce(string_agg(roname, ','), '') FROM pg_replication_origin WHERE roname LIKE 'atoll_far%'),
		(SELECT count(*) FROM pg_replication_slots WHERE database = current_database()))`).Scan(&roles)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Join(lines, "\n") + roles
}

// On a database with data and traffic: apply, run, remove, and everything is as it was.
func TestApplyAndRemoveUnderTraffic(t *testing.T) {
	t.Parallel()
	s := newFenceSite(t, pgserver.Shared(t), fenceTables+oddTables, oddDeployment())
	ownerDSN := s.srv.DSN(s.owner, s.db)
	s.exec(ownerDSN, `GRANT ALL ON ALL TABLES IN SCHEMA "Odd.schema" TO `+s.app, `GRANT USAGE ON SCHEMA "Odd.schema" TO `+s.app,
		"GRANT SELECT ON item TO "+s.d.AgentRole, // had before, keeps afterwards
		"INSERT INTO plain SELECT gen_random_uuid(), g FROM generate_series(1, 1000) g", "INSERT INTO item SELECT g FROM generate_series(1, 100) g",
		"INSERT INTO part SELECT g FROM generate_series(1, 100) g")
	fingerprint := func() (out string) {
		c := s.connect(s.adminDSN)
		defer closeConn(c)
		if err := c.QueryRow(context.Background(), `SELECT md5(string_agg(p::text, ',' ORDER BY k)) || (SELECT count(*) FROM item) FROM plain p`).Scan(&out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	before, data := s.schemaDump(), fingerprint()

	traffic := startTraffic(s)
	traffic.awaitProgress(t)
	s.install()
	ctx := t.Context()
	if plan, err := Plan(ctx, s.adminDSN, s.d); err != nil || len(plan) != 0 {
		t.Errorf("after apply there is still to do: %+v, %v", plan, err)
	}
	if s.schemaDump() == before {
		t.Error("apply left no trace in the dump, so the comparison shows nothing")
	}
	wantCode(t, s.try(`INSERT INTO "Odd.schema"."Tab ""le" VALUES ('x')`), CodeNotOwned)
	s.openAll(1)
	if err := s.try(`INSERT INTO "Odd.schema"."Tab ""le" VALUES ('x')`, `DELETE FROM "Odd.schema"."Tab ""le"`); err != nil {
		t.Error(err)
	}
	traffic.awaitProgress(t)

	s.exec(s.agentDSN, "SELECT pg_create_logical_replication_slot('atoll_shop_"+s.db[:3]+"_x', 'pgoutput')", "SELECT pg_replication_origin_create('atoll_far_"+s.db+"')",
		"INSERT INTO atoll.progress (origin, position) VALUES ('far_"+s.db+"', 1)")
	s.fence.Close()
	if err := Remove(ctx, s.adminDSN, testLog(t)); err != nil {
		t.Fatal(err)
	}
	if err := Remove(ctx, s.adminDSN, testLog(t)); err != nil {
		t.Errorf("removed twice: %v", err)
	}
	traffic.awaitProgress(t)
	added := traffic.stop(t)
	if after := s.schemaDump(); after != before {
		t.Errorf("the schema is not as it was:\n%s", firstDifference(before, after))
	}
	if got := fingerprint(); got != data {
		t.Errorf("data %s, was %s", got, data)
	}
	var n int64
	if err := s.connect(s.adminDSN).QueryRow(ctx, "SELECT sum(n) FROM (SELECT n FROM item UNION ALL SELECT n FROM part) x").Scan(&n); err != nil || n != added {
		t.Errorf("the traffic was told that %d writes succeeded; %d are there (%v)", added, n, err)
	}
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("- %s\n+ %s", x[i], y[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(x), len(y))
}

// installTraffic writes to tables while they are worked on, some of it in transactions that hold their locks for long.
type installTraffic struct {
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	added   atomic.Int64
	refused atomic.Int64
	errs    chan error
}

func startTraffic(s *fenceSite) *installTraffic {
	ctx, cancel := context.WithCancel(context.Background())
	tr := &installTraffic{cancel: cancel, errs: make(chan error, 16)}
	for i := range 4 {
		c := s.connect(s.appDSN)
		tr.wg.Go(func() {
			for n := i; ctx.Err() == nil; n += 4 {
				hold := 0.0
				if n%100 == 0 {
					hold = 0.7
				}
				if err := tr.transaction(c, 1+n%100, hold); err != nil {
					tr.errs <- err
					return
				}
			}
		})
	}
	return tr
}

func (tr *installTraffic) transaction(c *pgx.Conn, id int, hold float64) error {
	err := pgx.BeginFunc(context.Background(), c, func(tx pgx.Tx) error {
		for _, sql := range []string{"UPDATE item SET n = n + 1 WHERE id = $1", "UPDATE part SET n = n + 1 WHERE id = $1"} {
			if _, err := tx.Exec(context.Background(), sql, id); err != nil {
				return err
			}
		}
		_, err := tx.Exec(context.Background(), "SELECT pg_sleep($1)", hold+0.002)
		return err
	})
	switch sqlState(err) {
	case CodeNotOwned, CodeLeaseRunOut: // between apply and the first opening
		tr.refused.Add(1)
		return nil
	}
	if err == nil {
		tr.added.Add(2)
	}
	return err
}

// awaitProgress waits until more transactions have come through.
func (tr *installTraffic) awaitProgress(t *testing.T) {
	t.Helper()
	from := tr.added.Load()
	waitUntil(t, "the traffic flows", func() bool { return tr.added.Load() > from+100 })
}

func (tr *installTraffic) stop(t *testing.T) int64 {
	t.Helper()
	tr.cancel()
	tr.wg.Wait()
	close(tr.errs)
	for err := range tr.errs {
		t.Errorf("traffic: %v", err)
	}
	return tr.added.Load()
}

func TestPlanFollowsTheSpec(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	ctx := t.Context()
	groups := func(d Deployment) string {
		t.Helper()
		plan, err := Plan(ctx, s.adminDSN, d)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, st := range plan {
			if st.Reason == "" {
				t.Errorf("no reason: %s", st.SQL)
			}
			if len(names) == 0 || names[len(names)-1] != st.Group {
				names = append(names, st.Group)
			}
		}
		return strings.Join(names, " ")
	}
	d := s.d
	d.Tables = slices.Clone(d.Tables)
	d.Tables[0].Kind = topo.Local // item
	d.Tables[5].Kind = topo.Home  // note
	d.Tables[5].Keyspace = "catalog"
	if got := groups(d); got != "public.note public.item publication" {
		t.Errorf("plan for %s", got)
	}
	s.d = d
	s.apply()
	if got := groups(d); got != "" {
		t.Errorf("after apply there is still to do for %s", got)
	}
	if err := s.try("INSERT INTO item VALUES (1)"); err != nil {
		t.Errorf("a table that is local now: %v", err)
	}
	wantCode(t, s.try("INSERT INTO note VALUES (gen_random_uuid())"), CodeNotOwned)

	s.exec(s.adminDSN, "ALTER TABLE part DISABLE TRIGGER atoll_fence_update", "DROP TRIGGER atoll_fence_commit ON parent", "UPDATE atoll.install SET functions = 'older'",
		"CREATE OR REPLACE FUNCTION atoll.insert_public_seat() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
		"REVOKE SELECT ON atoll.lease FROM PUBLIC")
	if got := groups(d); got != "schema grants public.part public.parent public.seat" {
		t.Errorf("plan after changes by hand: %s", got)
	}
	s.apply()
	if got := groups(d); got != "" {
		t.Errorf("after apply there is still to do for %s", got)
	}

	other := d
	other.AgentRole = s.owner
	if got := groups(other); !strings.HasPrefix(got, "schema grants") {
		t.Errorf("plan for another agent role: %s", got)
	}
	for want, change := range map[string]func(*Deployment){
		"belongs to site a of deployment shop": func(d *Deployment) { d.Site = "b" },
		"their number cannot change": func(d *Deployment) {
			d.Keyspaces = map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: 128}, "catalog": d.Keyspaces["catalog"]}
		},
		"does not exist":              func(d *Deployment) { d.Tables = []TableSpec{{Schema: "public", Name: "gone", Kind: topo.Shared}} },
		"names no role for the agent": func(d *Deployment) { d.AgentRole = "" },
	} {
		bad := d
		change(&bad)
		if _, err := Plan(ctx, s.adminDSN, bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	s.exec(s.adminDSN, "UPDATE atoll.install SET format = 99")
	if _, err := Plan(ctx, s.adminDSN, d); !errors.Is(err, topo.ErrNewerFormat) {
		t.Errorf("a newer schema: %v", err)
	}
}

func TestRemoveRefusesWhileAnAgentRuns(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	slot := SlotName("shop", topo.SiteID(s.db[:3])) // a name that no other test's database uses
	s.exec(s.agentDSN, "SELECT pg_create_logical_replication_slot('"+slot+"', 'pgoutput')")
	config, err := pgx.ParseConfig(s.agentDSN)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["replication"] = "database"
	walsender, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(walsender)
	wire := walsender.PgConn().Frontend()
	wire.SendQuery(&pgproto3.Query{String: fmt.Sprintf(`START_REPLICATION SLOT %s LOGICAL 0/0 (proto_version '1', publication_names 'atoll')`, slot)})
	if err := wire.Flush(); err != nil {
		t.Fatal(err)
	}
	for began := false; !began; {
		msg, err := walsender.PgConn().ReceiveMessage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, began = msg.(*pgproto3.CopyBothResponse)
	}
	if err := Remove(t.Context(), s.adminDSN, testLog(t)); err == nil || !strings.Contains(err.Error(), "stop the site's agent first") {
		t.Errorf("got %v", err)
	}
	wantCode(t, s.try("INSERT INTO item VALUES (1)"), CodeNotOwned) // still guarded
}

func TestBusyTableIsTriedAgain(t *testing.T) {
	t.Parallel()
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment())
	c := s.connect(s.appDSN)
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "UPDATE item SET n = 1 WHERE id = 1")
	plan, err := Plan(t.Context(), s.adminDSN, s.d)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Apply(context.Background(), s.adminDSN, plan, testLog(t)) }()
	// apply gives its lock request up and tries again: each of its tries is another lock request
	w, other := s.connect(s.adminDSN), s.connect(s.appDSN)
	seen := map[string]bool{}
	waitUntil(t, "apply has tried three times", func() bool {
		var start *string
		err := w.QueryRow(context.Background(), `SELECT max(waitstart)::text FROM pg_locks WHERE NOT granted AND relation = 'item'::regclass AND mode = 'ShareRowExclusiveLock'`).Scan(&start)
		if err == nil && start != nil {
			seen[*start] = true
		}
		return len(seen) >= 3
	})
	if _, err := other.Exec(t.Context(), "SET lock_timeout = '3s'; UPDATE item SET n = 2"); err != nil {
		t.Errorf("apply kept others out: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("apply ended (%v) while the table was busy", err)
	default:
	}
	mustExec(t, c, "COMMIT")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if plan, err := Plan(t.Context(), s.adminDSN, s.d); err != nil || len(plan) != 0 {
		t.Errorf("still to do: %+v, %v", plan, err)
	}
}

func TestGuardNamesAreDistinct(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", 31)
	seen := map[string]TableSpec{}
	for _, table := range []TableSpec{{Schema: "a_b", Name: "c"}, {Schema: "a", Name: "b_c"}, {Schema: "s", Name: long}, {Schema: "s", Name: long + "x"}, {Schema: "", Name: "x"}} {
		name := guardName("insert", table)
		if other, ok := seen[name]; ok || len(name) > 63 {
			t.Errorf("guard name %q of %s (also of %s, %d bytes)", name, table, other, len(name))
		}
		seen[name] = table
	}
}

func TestSQLLiteral(t *testing.T) {
	t.Parallel()
	c := newFenceSite(t, pgserver.Shared(t), "", fenceDeployment()).connect(pgserver.Shared(t).DSN(pgserver.Superuser, "postgres"))
	for _, want := range []string{"", "plain", "it's", `back\slash`, `both \' of '' them`, "é\n$1"} {
		var got string
		if err := c.QueryRow(context.Background(), "SELECT "+sqlLiteral(want)+"::text").Scan(&got); err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

func TestSQLFilesSplit(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"schema.sql": schemaSQL, "fence.sql": fenceSQL} {
		for _, part := range sqlParts(text) {
			if !strings.HasPrefix(part.sql, "CREATE ") && !strings.HasPrefix(part.sql, "DROP FUNCTION IF EXISTS atoll.") { // of a form that is gone
				t.Errorf("%s: a statement begins %.60q", name, part.sql)
			}
			if part.reason == "" && part.sql != "CREATE SCHEMA atoll" {
				t.Errorf("%s: %.60q has no comment above it", name, part.sql)
			}
		}
	}
}
