package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// Deployment is what the spec says of one site's database.
type Deployment struct {
	Deployment string
	Site       topo.SiteID
	AgentRole  string // connects as the agent: applies changes, keeps the fence
	Keyspaces  map[topo.KeyspaceID]topo.Keyspace
	Tables     []TableSpec
	Adopt      bool // the application writes here already, and no other site ever did: see Plan
}

// Statement is one step of installing. Consecutive statements of one group run in one transaction.
type Statement struct {
	Group  string `json:"group"` // a table, or what the group is about
	Reason string `json:"reason"`
	SQL    string `json:"sql"`
	Undo   string `json:"undo,omitempty"` // takes the statement back; empty where removing the atoll schema or its triggers does
}

// Plan lists, in order, what is missing in a database for its place in the deployment; nothing is executed. After
// Apply of a plan the next one is empty.
//
// A fence that no agent has opened refuses every write. With Adopt it begins open, so that an application at work does
// not notice. That is for the seed of a deployment that has never run: if another site owned any bucket, two would.
func Plan(ctx context.Context, adminDSN string, d Deployment) ([]Statement, error) {
	c, err := adminConnect(ctx, adminDSN)
	if err != nil {
		return nil, err
	}
	defer closeConn(c)
	p := planner{d: d}
	if err := p.cat.read(ctx, c, d); err != nil {
		return nil, fmt.Errorf("read what is installed: %w", err)
	}
	if err := p.fits(); err != nil {
		return nil, err
	}
	p.schema()
	keyspaces := p.keyspaces()
	p.grants()
	p.adoption(keyspaces)
	for _, t := range d.Tables {
		p.table(t, keyspaces[t.Keyspace])
	}
	p.leftovers()
	p.publication()
	return p.out, nil
}

func adminConnect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	config, err := fenceConfig(dsn)
	if err != nil {
		return nil, err
	}
	delete(config.RuntimeParams, "statement_timeout") // a lock may take its time; lock_timeout bounds each try
	return pgx.ConnectConfig(ctx, config)
}

// guardFunctions are the functions that run as whoever writes. (Trigger functions themselves need no grant.)
const guardFunctions = "atoll.bucket_of(text, int), atoll.refuse(text, int, boolean)"

type planner struct {
	d   Deployment
	cat catalog
	out []Statement
}

func (p *planner) add(s Statement) { p.out = append(p.out, s) }

// fits refuses what cannot be planned for: another deployment's database, a keyspace that would change its size.
func (p *planner) fits() error {
	for _, t := range p.d.Tables {
		if t.Kind == topo.Local {
			continue
		}
		if p.cat.tables[t.String()] == nil {
			return fmt.Errorf("table %s does not exist in the database of site %s", t, p.d.Site)
		}
		if _, ok := p.d.Keyspaces[t.Keyspace]; !ok && t.Fenced() {
			return fmt.Errorf("table %s names keyspace %q, which is not declared", t, t.Keyspace)
		}
	}
	in := p.cat.install
	switch {
	case in == nil && p.cat.published != nil:
		return fmt.Errorf("a publication named %s exists already and is not Atoll's; drop or rename it", PublicationName)
	case in == nil:
		return nil
	}
	if in.format > SchemaFormat {
		return fmt.Errorf("schema of format %d: %w", in.format, topo.ErrNewerFormat)
	}
	if in.deployment != p.d.Deployment || in.site != p.d.Site {
		return fmt.Errorf("the database belongs to site %s of deployment %s; `atoll remove` takes that out", in.site, in.deployment)
	}
	for name, k := range p.d.Keyspaces {
		if had, ok := p.cat.keyspaces[name]; ok && had.buckets != k.Buckets {
			return fmt.Errorf("keyspace %s is installed with %d buckets; their number cannot change (the spec says %d)", name, had.buckets, k.Buckets)
		}
	}
	return nil
}

func (p *planner) schema() {
	if p.cat.install == nil {
		for _, part := range sqlParts(plantedSQL(schemaSQL)) {
			p.add(Statement{Group: "schema", Reason: part.reason, SQL: part.sql})
		}
	}
	switch in := p.cat.install; {
	case in == nil:
		p.functions()
		p.add(Statement{Group: "schema", Reason: "which deployment and site this database is",
			SQL: fmt.Sprintf("INSERT INTO atoll.install (format, deployment, site, agent_role, functions) VALUES (%d, %s, %s, %s, %s)",
				SchemaFormat, sqlLiteral(p.d.Deployment), sqlLiteral(string(p.d.Site)), sqlLiteral(p.d.AgentRole), sqlLiteral(fenceDigest()))})
	case in.functions != fenceDigest():
		p.functions()
		p.add(Statement{Group: "schema", Reason: "these functions are the ones of this version",
			SQL: "UPDATE atoll.install SET functions = " + sqlLiteral(fenceDigest())})
	}
	if in := p.cat.install; in != nil && in.agentRole != p.d.AgentRole {
		p.add(Statement{Group: "schema", Reason: "the role whose writes the fence lets pass",
			SQL: "UPDATE atoll.install SET agent_role = " + sqlLiteral(p.d.AgentRole)})
	}
}

func (p *planner) functions() {
	for _, part := range sqlParts(plantedSQL(fenceSQL)) {
		p.add(Statement{Group: "schema", Reason: part.reason, SQL: part.sql})
	}
}

// keyspaces plans control rows and sequences, and returns all keyspaces with their ids.
func (p *planner) keyspaces() map[topo.KeyspaceID]fenceKeyspace {
	all := maps.Clone(p.cat.keyspaces)
	next := 1
	for _, k := range all {
		next = max(next, k.id+1)
	}
	for _, name := range slices.Sorted(maps.Keys(p.d.Keyspaces)) {
		if _, ok := all[name]; ok {
			continue
		}
		k := fenceKeyspace{id: next, name: name, buckets: p.d.Keyspaces[name].Buckets}
		next++
		all[name] = k
		group := "keyspace " + string(name)
		p.add(Statement{Group: group, Reason: "the control row of keyspace " + string(name),
			SQL: fmt.Sprintf("INSERT INTO atoll.keyspace (id, name, buckets, hash) VALUES (%d, %s, %d, %s)",
				k.id, sqlLiteral(string(name)), k.buckets, sqlLiteral(topo.HashMD5))})
		p.add(Statement{Group: group, Reason: "its ownership bits, 32 buckets to a sequence; never set means not owned",
			SQL: fmt.Sprintf("DO $$ BEGIN\n  FOR w IN 0 .. %d LOOP\n    EXECUTE format('CREATE SEQUENCE atoll.own_%d_%%s AS bigint MINVALUE 0 START 0', w);\n  END LOOP;\nEND $$",
				k.words()-1, k.id)})
	}
	return all
}

// grants plans what the agent and the applications may do with atoll's own objects, and what the agent needs of the
// server.
func (p *planner) grants() {
	role := pgx.Identifier{p.d.AgentRole}.Sanitize()
	if len(p.out) > 0 || !p.cat.grantsDone {
		const group = "grants"
		add := func(reason, sql string) { p.add(Statement{Group: group, Reason: reason, SQL: sql}) }
		add("nobody but the agent changes the fence, whatever default privileges say", `DO $$ DECLARE r record; BEGIN
  FOR r IN SELECT DISTINCT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, c.oid::regclass AS name,
             CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(g.rolname) END AS who
           FROM pg_class c, aclexplode(c.relacl) a LEFT JOIN pg_roles g ON g.oid = a.grantee
           WHERE c.relnamespace = 'atoll'::regnamespace AND c.relkind IN ('r', 'S') AND a.grantee <> c.relowner LOOP
    EXECUTE format('REVOKE ALL ON %s %s FROM %s', r.kind, r.name, r.who);
  END LOOP;
END $$`)
		add("the guards run as whoever writes, and look at the sequences by name", "GRANT USAGE ON SCHEMA atoll TO PUBLIC")
		add("reading only: USAGE would allow nextval", "GRANT SELECT ON ALL SEQUENCES IN SCHEMA atoll TO PUBLIC")
		add("for the message of a refused write", "GRANT SELECT ON atoll.install, atoll.owner TO PUBLIC")
		add("the guards call these, whatever default privileges say", "GRANT EXECUTE ON FUNCTION "+guardFunctions+" TO PUBLIC")
		add("the agent calls all", "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA atoll TO "+role)
		add("the agent keeps the fence and applies changes", "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA atoll TO "+role)
		add("the agent sets ownership bits and the lease", "GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA atoll TO "+role)
	}
	for _, g := range p.cat.serverGrants {
		p.add(g)
	}
}

// table plans one table's replica identity, grants and guards.
func (p *planner) table(t TableSpec, k fenceKeyspace) {
	if !t.Published() {
		return
	}
	have := p.cat.tables[t.String()]
	role := pgx.Identifier{p.d.AgentRole}.Sanitize()
	add := func(reason, sql, undo string) {
		p.add(Statement{Group: t.String(), Reason: reason, SQL: sql, Undo: undo})
	}
	if !have.schemaUsage {
		schema := pgx.Identifier{t.Schema}.Sanitize()
		add("the agent reaches the table", "GRANT USAGE ON SCHEMA "+schema+" TO "+role, "REVOKE USAGE ON SCHEMA "+schema+" FROM "+role)
	}
	if len(have.lacking) > 0 {
		list := strings.Join(have.lacking, ", ")
		add("the agent copies the table and applies changes to it",
			fmt.Sprintf("GRANT %s ON %s TO %s", list, t.SQL(), role), fmt.Sprintf("REVOKE %s ON %s FROM %s", list, t.SQL(), role))
	}
	before := len(p.out)
	if t.IdentityFull {
		for _, r := range have.tree {
			if r.identity != 'f' && r.kind != 'f' {
				add("without a primary key, whole rows identify", "ALTER TABLE ONLY "+r.name+" REPLICA IDENTITY FULL", r.identityUndo())
			}
		}
	}
	if t.AppendOnly && t.Fenced() {
		for _, r := range have.tree {
			if r.identity == 'd' && !r.primaryKey && r.kind != 'f' {
				add("an owner can take single rows back after a failover", "ALTER TABLE ONLY "+r.name+" REPLICA IDENTITY FULL", r.identityUndo())
			}
		}
	}
	if t.Fenced() {
		p.guards(t, k, have)
	}
	if len(p.out) > before && len(have.tree) > 1 {
		p.out = slices.Insert(p.out, before, lockTree(t.String(), t.SQL()))
	}
}

// lockTree comes before any change to a partitioned table. Statements that lock a partition first would wait for
// writers that came through the root, while those wait for the partition.
func lockTree(group, table string) Statement {
	return Statement{Group: group, Reason: "in the order in which writers lock: first the table, then its partitions", SQL: lockTreeSQL(table)}
}

func lockTreeSQL(table string) string { return "LOCK TABLE " + table + " IN ACCESS EXCLUSIVE MODE" }

func (p *planner) guards(t TableSpec, k fenceKeyspace, have *catalogTable) {
	add := func(reason string, sql ...string) {
		for _, s := range sql {
			p.add(Statement{Group: t.String(), Reason: reason, SQL: s})
		}
	}
	for _, g := range guardsOf(t, k, p.d.AgentRole) {
		if p.cat.bodies[g.name] != g.body {
			add("refuses an "+g.op+" of a bucket that is not owned, or without a lease", g.createSQL())
		}
		switch tr, ok := have.triggers[g.trigger]; {
		case !ok:
			add("guards every row, also in partitions", rowTriggerSQL(t, g)...)
		case tr.function != g.name || !tr.always:
			add("was changed by hand: installed again", append([]string{dropTriggerSQL(t.SQL(), g.trigger)}, rowTriggerSQL(t, g)...)...)
		}
	}
	switch tr, ok := have.triggers[commitTrigger]; {
	case !ok:
		add("looks at the lease once more at commit", commitTriggerSQL(t, k)...)
	case tr.args != commitArgs(t, k) || !tr.always:
		add("was changed by hand: installed again", append([]string{dropTriggerSQL(t.SQL(), commitTrigger)}, commitTriggerSQL(t, k)...)...)
	}
	for _, r := range have.tree {
		if r.kind != 'f' && !r.truncateGuard {
			add("TRUNCATE knows no bucket; partitions need a guard each", truncateTriggerSQL(r.name, t.Keyspace)...)
		}
	}
}

// leftovers takes the guards off tables that are not fenced any more.
func (p *planner) leftovers() {
	fenced := map[string]bool{}
	for _, t := range p.d.Tables {
		if t.Fenced() {
			fenced[t.String()] = true
		}
	}
	root := ""
	for _, g := range p.cat.guarded {
		if !fenced[g.root] {
			if g.root != root {
				root = g.root
				p.add(lockTree(g.root, g.rootSQL))
			}
			p.add(Statement{Group: g.root, Reason: "the table is not fenced any more", SQL: dropTriggerSQL(g.sql, g.trigger)})
		}
	}
}

func dropTriggerSQL(table, trigger string) string {
	return "DROP TRIGGER IF EXISTS " + pgx.Identifier{trigger}.Sanitize() + " ON " + table
}

func (p *planner) publication() {
	want := []string{`"atoll"."bucket"`, `"atoll"."marker"`}
	for _, t := range p.d.Tables {
		if t.Published() {
			want = append(want, t.SQL())
		}
	}
	if p.cat.published == nil {
		p.add(Statement{Group: "publication", Reason: "what other sites receive: these tables and the fence's own words",
			SQL: "CREATE PUBLICATION " + PublicationName + " FOR TABLE " + strings.Join(want, ", ") + " WITH (publish_via_partition_root = true)"})
		return
	}
	var missing, extra []string
	for _, name := range want {
		if !slices.Contains(p.cat.published, name) {
			missing = append(missing, name)
		}
	}
	for _, name := range p.cat.published {
		if !slices.Contains(want, name) {
			extra = append(extra, name)
		}
	}
	if len(missing) > 0 {
		p.add(Statement{Group: "publication", Reason: "newly published tables",
			SQL: "ALTER PUBLICATION " + PublicationName + " ADD TABLE " + strings.Join(missing, ", ")})
	}
	if len(extra) > 0 {
		p.add(Statement{Group: "publication", Reason: "tables that are not published any more",
			SQL: "ALTER PUBLICATION " + PublicationName + " DROP TABLE " + strings.Join(extra, ", ")})
	}
}

// check refuses a deployment that its caller put together wrongly.
func (d Deployment) check() error {
	switch {
	case d.Deployment == "" || d.Site == "":
		return errors.New("the deployment or the site has no name")
	case d.AgentRole == "":
		return errors.New("the deployment names no role for the agent")
	}
	return nil
}
