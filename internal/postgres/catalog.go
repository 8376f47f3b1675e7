package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// catalog is what a database has of all that a plan may want, as one reading found it.
type catalog struct {
	install      *catalogInstall // nil: nothing is installed
	keyspaces    map[topo.KeyspaceID]fenceKeyspace
	grantsDone   bool // atoll's own objects are granted as they should be
	serverGrants []Statement
	tables       map[string]*catalogTable // of the deployment, by "schema.table"
	bodies       map[string]string        // functions in schema atoll
	guarded      []catalogGuard
	published    []string // quoted names; nil: no publication
}

type catalogInstall struct {
	format     int
	deployment string
	site       topo.SiteID
	agentRole  string
	functions  string
}

// catalogTable is a table of the deployment as it stands.
type catalogTable struct {
	schemaUsage bool     // the agent may reach the schema
	lacking     []string // privileges that the agent lacks
	tree        []catalogRelation
	triggers    map[string]catalogTrigger
}

// catalogRelation is a table or one of its partitions.
type catalogRelation struct {
	name          string // quoted
	kind          rune   // pg_class.relkind
	identity      rune   // pg_class.relreplident
	identityIndex string // quoted name, with identity 'i'
	primaryKey    bool
	truncateGuard bool
}

// identityUndo restores the replica identity as it is.
func (r catalogRelation) identityUndo() string {
	words := map[rune]string{'d': "DEFAULT", 'n': "NOTHING", 'f': "FULL", 'i': "USING INDEX " + r.identityIndex}
	return "ALTER TABLE ONLY " + r.name + " REPLICA IDENTITY " + words[r.identity]
}

type catalogTrigger struct {
	function string
	always   bool
	args     string // as SQL literals
}

// catalogGuard is a trigger of ours, wherever it is.
type catalogGuard struct {
	sql     string // the relation, quoted
	root    string // "schema.table" of the partition tree's root
	rootSQL string // the same, quoted
	trigger string
}

func (cat *catalog) read(ctx context.Context, c *pgx.Conn, d Deployment) error {
	if err := d.check(); err != nil {
		return err
	}
	cat.keyspaces = map[topo.KeyspaceID]fenceKeyspace{}
	cat.tables = map[string]*catalogTable{}
	cat.bodies = map[string]string{}
	installed, err := isInstalled(ctx, c)
	if err != nil {
		return err
	}
	if installed {
		if err := cat.readInstalled(ctx, c, d.AgentRole); err != nil {
			return err
		}
	}
	for _, t := range d.Tables {
		if t.Published() {
			if err := cat.readTable(ctx, c, t, d.AgentRole); err != nil {
				return fmt.Errorf("table %s: %w", t, err)
			}
		}
	}
	if cat.guarded, err = readGuarded(ctx, c); err != nil {
		return err
	}
	if cat.serverGrants, err = readServerGrants(ctx, c, d.AgentRole); err != nil {
		return err
	}
	return cat.readPublication(ctx, c)
}

func isInstalled(ctx context.Context, c *pgx.Conn) (installed bool, err error) {
	err = c.QueryRow(ctx, `SELECT to_regclass('atoll.install') IS NOT NULL`).Scan(&installed)
	return installed, err
}

func (cat *catalog) readInstalled(ctx context.Context, c *pgx.Conn, role string) error {
	in := &catalogInstall{}
	err := c.QueryRow(ctx, `SELECT format, deployment, site, agent_role::text, functions FROM atoll.install`).
		Scan(&in.format, &in.deployment, &in.site, &in.agentRole, &in.functions)
	if err != nil {
		return err
	}
	cat.install = in
	rows, err := c.Query(ctx, `SELECT id, name, buckets FROM atoll.keyspace`)
	if err != nil {
		return err
	}
	var k fenceKeyspace
	if _, err = pgx.ForEachRow(rows, []any{&k.id, &k.name, &k.buckets}, func() error {
		cat.keyspaces[k.name] = k
		return nil
	}); err != nil {
		return err
	}
	if rows, err = c.Query(ctx, `SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'atoll'::regnamespace`); err != nil {
		return err
	}
	var name, body string
	if _, err = pgx.ForEachRow(rows, []any{&name, &body}, func() error {
		cat.bodies[name] = body
		return nil
	}); err != nil {
		return err
	}
	// done: nobody has more than he should, the agent and PUBLIC have what they need
	return c.QueryRow(ctx, `
		SELECT NOT EXISTS (
			SELECT FROM pg_class c, aclexplode(c.relacl) a
			WHERE c.relnamespace = 'atoll'::regnamespace AND c.relkind IN ('r', 'S')
			AND a.grantee NOT IN (c.relowner, coalesce((SELECT oid FROM pg_roles WHERE rolname = $1), 0))
			AND NOT (a.grantee = 0 AND a.privilege_type = 'SELECT' AND (c.relkind = 'S' OR c.relname IN ('install', 'owner'))))
		AND NOT EXISTS (
			SELECT FROM pg_class c WHERE c.relnamespace = 'atoll'::regnamespace AND c.relkind = 'S'
			AND NOT (has_sequence_privilege($1, c.oid, 'SELECT') AND has_sequence_privilege($1, c.oid, 'UPDATE')
			         AND EXISTS (SELECT FROM aclexplode(c.relacl) a WHERE a.grantee = 0 AND a.privilege_type = 'SELECT')))
		AND NOT EXISTS (
			SELECT FROM pg_class c WHERE c.relnamespace = 'atoll'::regnamespace AND c.relkind = 'r'
			AND NOT (has_table_privilege($1, c.oid, 'SELECT') AND has_table_privilege($1, c.oid, 'INSERT')
			         AND has_table_privilege($1, c.oid, 'UPDATE') AND has_table_privilege($1, c.oid, 'DELETE')))
		AND NOT EXISTS (
			SELECT FROM pg_proc p WHERE p.pronamespace = 'atoll'::regnamespace AND p.prorettype <> 'trigger'::regtype
			AND NOT (has_function_privilege($1, p.oid, 'EXECUTE')
			         AND (p.proname NOT IN ('bucket_of', 'refuse') OR p.proacl IS NULL
			              OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0))))`, role).Scan(&cat.grantsDone)
}

func (cat *catalog) readTable(ctx context.Context, c *pgx.Conn, t TableSpec, role string) error {
	var oid *uint32
	if err := c.QueryRow(ctx, `SELECT to_regclass($1)::oid`, t.SQL()).Scan(&oid); err != nil || oid == nil {
		return err // a table that is not there is the caller's business
	}
	have := &catalogTable{triggers: map[string]catalogTrigger{}}
	cat.tables[t.String()] = have
	wanted := []string{"SELECT", "INSERT", "UPDATE", "DELETE"}
	if t.Kind == topo.Shared {
		wanted = append(wanted, "TRUNCATE")
	}
	err := c.QueryRow(ctx, `SELECT has_schema_privilege($1, $2, 'USAGE'),
		array(SELECT p FROM unnest($4::text[]) p WHERE NOT has_table_privilege($1, $3::oid, p))`,
		role, t.Schema, *oid, wanted).Scan(&have.schemaUsage, &have.lacking)
	if err != nil {
		return err
	}
	rows, err := c.Query(ctx, `
		WITH RECURSIVE tree AS (
			SELECT $1::oid AS oid UNION ALL
			SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid JOIN pg_class p ON p.oid = tree.oid WHERE p.relkind = 'p')
		SELECT format('%I.%I', n.nspname, r.relname), r.relkind, r.relreplident,
		       coalesce((SELECT quote_ident(x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
		                 WHERE i.indrelid = r.oid AND i.indisreplident), ''),
		       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = r.oid AND i.indisprimary),
		       EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = r.oid AND g.tgenabled = 'A' AND g.tgfoid = to_regproc('atoll.refuse_truncate'))
		FROM tree JOIN pg_class r ON r.oid = tree.oid JOIN pg_namespace n ON n.oid = r.relnamespace ORDER BY 1`, *oid)
	if err != nil {
		return err
	}
	var r catalogRelation
	if _, err := pgx.ForEachRow(rows, []any{&r.name, &r.kind, &r.identity, &r.identityIndex, &r.primaryKey, &r.truncateGuard}, func() error {
		have.tree = append(have.tree, r)
		return nil
	}); err != nil {
		return err
	}
	rows, err = c.Query(ctx, `SELECT g.tgname::text, p.proname::text, g.tgenabled = 'A', encode(g.tgargs, 'escape')
		FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid
		WHERE g.tgrelid = $1 AND p.pronamespace = to_regnamespace('atoll')`, *oid)
	if err != nil {
		return err
	}
	var name, args string
	var tr catalogTrigger
	_, err = pgx.ForEachRow(rows, []any{&name, &tr.function, &tr.always, &args}, func() error {
		words := strings.Split(strings.TrimSuffix(args, `\000`), `\000`)
		for i, w := range words {
			words[i] = sqlLiteral(w)
		}
		tr.args = strings.Join(words, ", ")
		have.triggers[name] = tr
		return nil
	})
	return err
}

// readGuarded lists our triggers, each at the relation where it can be dropped.
func readGuarded(ctx context.Context, c *pgx.Conn) ([]catalogGuard, error) {
	rows, err := c.Query(ctx, `
		SELECT format('%I.%I', n.nspname, r.relname), rn.nspname || '.' || rr.relname, format('%I.%I', rn.nspname, rr.relname), g.tgname
		FROM pg_trigger g
		JOIN pg_proc p ON p.oid = g.tgfoid AND p.pronamespace = to_regnamespace('atoll')
		JOIN pg_class r ON r.oid = g.tgrelid JOIN pg_namespace n ON n.oid = r.relnamespace
		JOIN pg_class rr ON rr.oid = coalesce(pg_partition_root(r.oid), r.oid) JOIN pg_namespace rn ON rn.oid = rr.relnamespace
		WHERE g.tgparentid = 0 ORDER BY 2, 1, 4`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (g catalogGuard, err error) {
		return g, row.Scan(&g.sql, &g.root, &g.rootSQL, &g.trigger)
	})
}

func (cat *catalog) readPublication(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, `SELECT coalesce(n.nspname, ''), coalesce(r.relname, '') FROM pg_publication p
		LEFT JOIN (pg_publication_rel x JOIN pg_class r ON r.oid = x.prrelid JOIN pg_namespace n ON n.oid = r.relnamespace) ON x.prpubid = p.oid
		WHERE p.pubname = $1 ORDER BY 1, 2`, PublicationName)
	if err != nil {
		return err
	}
	var schema, name string
	_, err = pgx.ForEachRow(rows, []any{&schema, &name}, func() error {
		if cat.published == nil {
			cat.published = []string{}
		}
		if name != "" {
			cat.published = append(cat.published, pgx.Identifier{schema, name}.Sanitize())
		}
		return nil
	})
	return err
}

// readServerGrants plans what the agent needs beyond tables, where this role may grant it: replication origins, and
// where possible replica role (so that the applications' triggers do not fire twice) and the ending of blockers.
func readServerGrants(ctx context.Context, c *pgx.Conn, role string) ([]Statement, error) {
	var superuser bool
	if err := c.QueryRow(ctx, `SELECT rolsuper FROM pg_roles WHERE rolname = current_user`).Scan(&superuser); err != nil || !superuser {
		return nil, err
	}
	lacking, err := originGrantsLacking(ctx, c, role)
	if err != nil {
		return nil, err
	}
	to := pgx.Identifier{role}.Sanitize()
	var out []Statement
	if len(lacking) > 0 {
		what := "EXECUTE ON FUNCTION " + strings.Join(lacking, ", ")
		out = append(out, Statement{Group: "server", Reason: "the agent marks what it applies with its origin",
			SQL: "GRANT " + what + " TO " + to, Undo: "REVOKE " + what + " FROM " + to})
	}
	var replicaRole bool
	if err := c.QueryRow(ctx, `SELECT has_parameter_privilege($1, 'session_replication_role', 'SET')`, role).Scan(&replicaRole); err != nil {
		return nil, err
	}
	if !replicaRole {
		out = append(out, Statement{Group: "server", Reason: "the applications' triggers need not fire again for applied changes",
			SQL:  "GRANT SET ON PARAMETER session_replication_role TO " + to,
			Undo: "REVOKE SET ON PARAMETER session_replication_role FROM " + to})
	}
	for _, member := range []struct{ of, reason string }{
		{"pg_signal_backend", "the agent may end writers that a switch waits for, if told so"},
		{"pg_read_all_stats", "the agent can name the writers that a switch waits for"},
	} {
		var is bool
		if err := c.QueryRow(ctx, `SELECT pg_has_role($1, $2, 'USAGE')`, role, member.of).Scan(&is); err != nil {
			return nil, err
		}
		if !is {
			out = append(out, Statement{Group: "server", Reason: member.reason,
				SQL: "GRANT " + member.of + " TO " + to, Undo: "REVOKE " + member.of + " FROM " + to})
		}
	}
	return out, nil
}

// originGrantsLacking lists the functions for replication origins that a role may not execute.
func originGrantsLacking(ctx context.Context, c *pgx.Conn, role string) ([]string, error) {
	rows, err := c.Query(ctx, `SELECT p.oid::regprocedure::text FROM pg_proc p
		WHERE p.pronamespace = 'pg_catalog'::regnamespace AND starts_with(p.proname, 'pg_replication_origin_')
		AND NOT has_function_privilege($1, p.oid, 'EXECUTE') ORDER BY 1`, role)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
