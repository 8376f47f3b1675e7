package postgres

import (
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// preflightCase changes a good deployment and says which problem must be found, alone.
type preflightCase struct {
	name     string
	ddl      string                 // run by the tables' owner
	admin    string                 // run by the superuser
	change   func(*fenceSite)       // of the deployment or the DSNs
	what, do string                 // words of the problem
	tables   []TableSpec            // instead of the usual ones
	also     func(p []Problem) bool // checks the whole list
}

var preflightCases = []preflightCase{
	{name: "a DSN that does not answer", what: "does not answer", do: "check host and port", change: func(s *fenceSite) {
		s.agentDSN = "postgres://agent@127.0.0.1:1/shop?sslmode=disable"
	}},
	{name: "a DSN that cannot be read", what: "cannot be read", do: "postgres://role", change: func(s *fenceSite) { s.adminDSN = "postgres://%" }},
	{name: "a database that is not there", what: "does not exist", do: "create it", change: func(s *fenceSite) {
		s.adminDSN = s.srv.DSN(pgserver.Superuser, "nowhere")
	}},
	{name: "a role that is not there", what: "is not let in", do: "CREATE ROLE", change: func(s *fenceSite) {
		s.agentDSN = s.srv.DSN("nobody", s.db)
	}},
	{name: "two databases", what: "different databases", do: "correct one", change: func(s *fenceSite) { s.adminDSN = s.srv.DSN(pgserver.Superuser, "postgres") },
		also: func(p []Problem) bool { return len(p) > 1 }},
	{name: "another agent role", what: `connects as role`, do: "correct one", change: func(s *fenceSite) { s.agentDSN = s.srv.DSN(pgserver.Superuser, s.db) }},
	{name: "no database privilege", admin: "REVOKE CREATE ON DATABASE {db} FROM {owner}", change: asOwner,
		what: "may not create a schema and a publication", do: `run: GRANT CREATE ON DATABASE "{db}" TO "{owner}"`, also: withOrigins},
	{name: "no replication origins", change: asOwner, what: "may not use replication origins", do: "GRANT EXECUTE ON FUNCTION pg_replication_origin_advance(text,pg_lsn)"},
	{name: "no replication", admin: "ALTER ROLE {agent} NOREPLICATION", what: "may not replicate", do: `ALTER ROLE "{agent}" REPLICATION`},
	{name: "somebody else's table", admin: "ALTER TABLE seat OWNER TO {app}", change: asOwner, what: "table public.seat belongs to", do: "run: GRANT {app}", also: withOrigins},
	{name: "a schema out of reach", admin: "CREATE SCHEMA inner_room; GRANT USAGE, CREATE ON SCHEMA inner_room TO {owner}", change: asOwner, ddl: "CREATE TABLE inner_room.desk (id bigint PRIMARY KEY)",
		tables: []TableSpec{{Schema: "inner_room", Name: "desk", Kind: topo.Shared}}, what: "may not use schema inner_room", do: `run, as the schema's owner: GRANT USAGE ON SCHEMA "inner_room" TO "{agent}"`, also: withOrigins},
	{name: "the agent's own table", admin: "ALTER TABLE seat OWNER TO {agent}", what: "cascades into it would pass the fence", do: "OWNER TO"},
	{name: "row security", ddl: "ALTER TABLE item ENABLE ROW LEVEL SECURITY", what: "row security", do: "BYPASSRLS"},
	{name: "no table", tables: []TableSpec{keyedTable("gone", "id")}, what: "table public.gone does not exist", do: "create it"},
	{name: "no primary key", ddl: "CREATE TABLE bare (id bigint NOT NULL)", tables: []TableSpec{keyedTable("bare", "id")},
		what: "table public.bare has no primary key", do: "append_only"},
	{name: "key outside the replica identity", ddl: "CREATE TABLE pair (id bigint PRIMARY KEY, customer bigint NOT NULL)", tables: []TableSpec{keyedTable("pair", "customer")},
		what: "column customer of table public.pair is outside its replica identity", do: "part of the primary key"},
	{name: "key only included in the primary key's index", ddl: "CREATE TABLE pair (id bigint, customer bigint NOT NULL, PRIMARY KEY (id) INCLUDE (customer))", tables: []TableSpec{keyedTable("pair", "customer")},
		what: "outside its replica identity", do: "part of the primary key"},
	{name: "key outside a partition's replica identity", ddl: "ALTER TABLE part_1 REPLICA IDENTITY NOTHING", what: "id of table public.part_1 is outside", do: "identity: full"},
	{name: "no key column", tables: []TableSpec{keyedTable("item", "customer")}, what: `no column "customer"`, do: "correct the key"},
	{name: "key of another form", ddl: "CREATE TABLE word (id text PRIMARY KEY)", tables: []TableSpec{keyedTable("word", "id")}, what: "of type text; keyspace users hashes keys as integer", do: "(to text)"},
	{name: "key of a form that has many spellings", ddl: "CREATE TABLE num (id numeric PRIMARY KEY)", tables: []TableSpec{keyedTable("num", "id")}, what: "of type numeric", do: "smallint or integer or bigint"},
	{name: "key that may be null", ddl: "CREATE TABLE maybe (id bigint UNIQUE)", what: "may be null", do: "SET NOT NULL",
		tables: []TableSpec{{Schema: "public", Name: "maybe", Kind: topo.Keyed, Keyspace: "users", Key: "id", IdentityFull: true}}},
	{name: "key without one spelling", admin: "CREATE COLLATION lax (provider = icu, locale = 'und-u-ks-level2', deterministic = false)", ddl: "CREATE TABLE lax (id text COLLATE lax PRIMARY KEY)",
		tables: []TableSpec{keyedTable("lax", "id")}, what: "nondeterministic collation", do: "deterministic", change: func(s *fenceSite) {
			s.d.Keyspaces = map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: 64, Hash: topo.HashMD5, Key: topo.TextKey}}
		}},
	{name: "a view", ddl: "CREATE VIEW seen AS SELECT * FROM item", tables: []TableSpec{keyedTable("seen", "id")}, what: "is not a table", do: "tables behind it"},
	{name: "a partition", tables: []TableSpec{keyedTable("part_0", "id")}, what: "is a partition", do: "partitioned table itself"},
	{name: "inheritance", ddl: "CREATE TABLE heir () INHERITS (item)", tables: []TableSpec{keyedTable("item", "id")}, what: "children by inheritance", do: "partitioned"},
	{name: "an unlogged table", ddl: "ALTER TABLE item SET UNLOGGED", tables: []TableSpec{keyedTable("item", "id")}, what: "no change stream", do: "SET LOGGED"},
	{name: "an undeclared keyspace", tables: []TableSpec{{Schema: "public", Name: "item", Kind: topo.Keyed, Keyspace: "people", Key: "id"}}, what: `keyspace "people"`, do: "declare it"},
	{name: "a foreign schema of our name", admin: "CREATE SCHEMA atoll", what: "a schema named atoll", do: "drop or rename"},
	{name: "a foreign publication of our name", admin: "CREATE PUBLICATION atoll", what: "a publication named atoll", do: "drop or rename"},
	{name: "another site's database", change: func(s *fenceSite) { s.apply(); s.d.Site = "b" }, what: "belongs to site a of deployment shop", do: "atoll remove"},
	{name: "no name for the agent's role", change: func(s *fenceSite) { s.d.AgentRole = "" }, what: "no role for the agent", do: "complete"},
}

// asOwner lets an ordinary role install, which cannot grant the use of replication origins.
func asOwner(s *fenceSite) { s.adminDSN = s.srv.DSN(s.owner, s.db) }

func withOrigins(p []Problem) bool {
	return len(p) == 2 && (strings.Contains(p[0].What, "replication origins") || strings.Contains(p[1].What, "replication origins"))
}

func TestPreflight(t *testing.T) {
	t.Parallel()
	for _, c := range preflightCases {
		t.Run(c.name, func(t *testing.T) {
			s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment())
			if p := Preflight(t.Context(), s.adminDSN, s.agentDSN, s.d); len(p) != 0 {
				t.Fatalf("problems before anything is wrong: %q", p)
			}
			fill := strings.NewReplacer("{db}", s.db, "{owner}", s.owner, "{app}", s.app, "{agent}", s.d.AgentRole)
			if c.admin != "" {
				s.exec(s.adminDSN, fill.Replace(c.admin))
			}
			if c.ddl != "" {
				s.exec(s.srv.DSN(s.owner, s.db), c.ddl)
			}
			if c.tables != nil {
				s.d.Tables = c.tables
			}
			if c.change != nil {
				c.change(s)
			}
			problems := Preflight(t.Context(), s.adminDSN, s.agentDSN, s.d)
			found := false
			for _, p := range problems {
				found = found || strings.Contains(p.What, fill.Replace(c.what)) && strings.Contains(p.Do, fill.Replace(c.do))
			}
			alone := len(problems) == 1
			if c.also != nil {
				alone = c.also(problems)
			}
			if !found || !alone {
				t.Errorf("want a problem with %q and %q, got %q", fill.Replace(c.what), fill.Replace(c.do), problems)
			}
		})
	}
}

// With the grants that preflight asks for, a role that is no superuser installs, and the agent works.
func TestOrdinaryRoleInstalls(t *testing.T) {
	t.Parallel()
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment())
	superuser := s.adminDSN
	before := s.schemaDump()
	asOwner(s)
	problems := Preflight(t.Context(), s.adminDSN, s.agentDSN, s.d)
	if len(problems) != 1 {
		t.Fatalf("problems %q", problems)
	}
	_, grant, _ := strings.Cut(problems[0].Do, "superuser: ")
	s.exec(superuser, grant)
	if problems := Preflight(t.Context(), s.adminDSN, s.agentDSN, s.d); len(problems) != 0 {
		t.Fatalf("problems %q", problems)
	}
	s.install()
	if plan, err := Plan(t.Context(), s.adminDSN, s.d); err != nil || len(plan) != 0 {
		t.Errorf("still to do: %+v, %v", plan, err)
	}
	s.openAll(1)
	s.close("h1", "users", topo.EpochSpan{Last: 63, Epoch: 1})
	wantCode(t, s.try("INSERT INTO item VALUES (1)"), CodeNotOwned)
	s.fence.Close()
	if err := Remove(t.Context(), s.adminDSN, testLog(t)); err != nil {
		t.Fatal(err)
	}
	s.exec(superuser, strings.Replace(strings.Replace(grant, "GRANT", "REVOKE", 1), " TO ", " FROM ", 1))
	s.adminDSN = superuser
	if after := s.schemaDump(); after != before {
		t.Errorf("the schema is not as it was:\n%s", firstDifference(before, after))
	}
}

// A host that takes connections and says nothing must not keep preflight waiting.
func TestPreflightOfASilentHost(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dsn := (&url.URL{Scheme: "postgres", User: url.User("agent"), Host: l.Addr().String(), Path: "/shop", RawQuery: "sslmode=disable"}).String()
	d := fenceDeployment()
	d.AgentRole = "agent"
	problems := Preflight(t.Context(), dsn, dsn, d)
	if len(problems) != 2 || !strings.Contains(problems[0].What, "does not answer") {
		t.Errorf("problems %q", problems)
	}
}
