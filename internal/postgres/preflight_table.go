package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// tableLook is the preflight of one table.
type tableLook struct {
	p *preflight
	t TableSpec

	oid         uint32
	kind        rune // pg_class.relkind
	persistence rune // pg_class.relpersistence
	partition   bool // of another table
	children    bool // by plain inheritance
	owner       string
	adminOwns   bool
	agentOwns   bool
	outOfReach  bool // the agent may not use the schema, and the administrator may not grant it
	primaryKey  bool
}

func (l *tableLook) add(what, do string) { l.p.add(what, do) }

func (l *tableLook) run(ctx context.Context, c *pgx.Conn) error {
	var oid *uint32
	if err := c.QueryRow(ctx, `SELECT to_regclass($1)::oid`, l.t.SQL()).Scan(&oid); err != nil {
		return err
	}
	if oid == nil {
		l.add(fmt.Sprintf("table %s does not exist", l.t), "create it (every site needs the application's schema), or correct the spec")
		return nil
	}
	l.oid = *oid
	err := c.QueryRow(ctx, `SELECT r.relkind, r.relpersistence, r.relispartition,
		r.relkind <> 'p' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = r.oid), r.relowner::regrole::text,
		pg_has_role(current_user, r.relowner, 'USAGE'), r.relowner = (SELECT oid FROM pg_roles WHERE rolname = $2),
		EXISTS (SELECT FROM pg_index WHERE indrelid = r.oid AND indisprimary),
		NOT has_schema_privilege($2, r.relnamespace, 'USAGE') AND NOT has_schema_privilege(r.relnamespace, 'USAGE WITH GRANT OPTION')
		FROM pg_class r WHERE r.oid = $1`, l.oid, l.p.d.AgentRole).
		Scan(&l.kind, &l.persistence, &l.partition, &l.children, &l.owner, &l.adminOwns, &l.agentOwns, &l.primaryKey, &l.outOfReach)
	if err != nil {
		return err
	}
	if !l.form() {
		return nil
	}
	l.ownership()
	l.identity()
	if l.t.Kind == topo.Keyed {
		return l.key(ctx, c)
	}
	return nil
}

// form refuses what cannot be fenced and published as a table.
func (l *tableLook) form() bool {
	t := l.t
	switch {
	case l.kind != 'r' && l.kind != 'p':
		l.add(fmt.Sprintf("%s is not a table", t), "name the tables behind it in the spec")
	case l.partition:
		l.add(fmt.Sprintf("table %s is a partition", t), "name the partitioned table itself in the spec; its partitions follow it")
	case l.children:
		l.add(fmt.Sprintf("table %s has children by inheritance, which are not guarded with it", t), "make it a partitioned table")
	case l.persistence != 'p':
		l.add(fmt.Sprintf("table %s is unlogged or temporary, so it has no change stream", t), fmt.Sprintf("run: ALTER TABLE %s SET LOGGED, or declare it local", t.SQL()))
	default:
		return true
	}
	return false
}

func (l *tableLook) ownership() {
	if !l.adminOwns {
		l.add(fmt.Sprintf("table %s belongs to %s; triggers and publication need its owner", l.t, l.owner),
			fmt.Sprintf("run: GRANT %s TO the administrator's role, or apply as %[1]s", l.owner))
	}
	if l.outOfReach {
		l.add(fmt.Sprintf("the agent's role may not use schema %s of table %s, and the administrator may not grant it", l.t.Schema, l.t),
			fmt.Sprintf("run, as the schema's owner: GRANT USAGE ON SCHEMA %s TO %s", pgx.Identifier{l.t.Schema}.Sanitize(), pgx.Identifier{l.p.d.AgentRole}.Sanitize()))
	}
	if l.agentOwns && l.t.Fenced() {
		// a cascade runs as the owner of the table that it writes to, and the fence lets the agent's role pass
		l.add(fmt.Sprintf("table %s belongs to the agent's own role, so cascades into it would pass the fence", l.t),
			fmt.Sprintf("give the table another owner: ALTER TABLE %s OWNER TO …", l.t.SQL()))
	}
}

func (l *tableLook) identity() {
	if !l.primaryKey && !l.t.AppendOnly && !l.t.IdentityFull {
		l.add(fmt.Sprintf("table %s has no primary key, so its rows cannot be told apart at another site", l.t),
			fmt.Sprintf("add one: ALTER TABLE %s ADD PRIMARY KEY (…); or declare the table append_only if it only takes inserts, or identity: full (slow)", l.t.SQL()))
	}
}

// key looks at the column that decides a row's bucket.
func (l *tableLook) key(ctx context.Context, c *pgx.Conn) error {
	t := l.t
	var typ string
	var notNull, deterministic bool
	err := c.QueryRow(ctx, `
		WITH RECURSIVE base AS (
			SELECT a.atttypid AS oid, a.attnotnull, a.attcollation FROM pg_attribute a
			WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped
			UNION ALL
			SELECT y.typbasetype, base.attnotnull OR y.typnotnull, base.attcollation FROM pg_type y JOIN base ON y.oid = base.oid WHERE y.typtype = 'd')
		SELECT format_type(base.oid, NULL), base.attnotnull,
		       coalesce((SELECT collisdeterministic FROM pg_collation WHERE oid = base.attcollation), true)
		FROM base JOIN pg_type y ON y.oid = base.oid WHERE y.typtype <> 'd'`, l.oid, t.Key).Scan(&typ, &notNull, &deterministic)
	if err == pgx.ErrNoRows {
		l.add(fmt.Sprintf("table %s has no column %q", t, t.Key), "correct the key in the spec")
		return nil
	}
	if err != nil {
		return err
	}
	ks, ok := l.p.d.Keyspaces[t.Keyspace]
	if !ok {
		l.add(fmt.Sprintf("table %s names keyspace %q, which is not declared", t, t.Keyspace), "declare it, or correct the table")
		return nil
	}
	if want := keyTypes[ks.Key]; !slices.Contains(want, typ) {
		l.add(fmt.Sprintf("column %s of table %s is of type %s; keyspace %s hashes keys as %s", t.Key, t, typ, t.Keyspace, ks.Key),
			fmt.Sprintf("a key of that form is a column of type %s: change the column, or the keyspace's key%s", strings.Join(want, " or "), keyFormFor(typ)))
	}
	if !deterministic {
		l.add(fmt.Sprintf("column %s of table %s has a nondeterministic collation: equal keys could fall into different buckets", t.Key, t), "give it a deterministic collation")
	}
	if !notNull {
		l.add(fmt.Sprintf("column %s of table %s may be null; every row of a keyed table needs its key", t.Key, t),
			fmt.Sprintf("run: ALTER TABLE %s ALTER COLUMN %s SET NOT NULL", t.SQL(), pgx.Identifier{t.Key}.Sanitize()))
	}
	return l.keyInIdentity(ctx, c)
}

func keyFormFor(typ string) string {
	for form, types := range keyTypes {
		if slices.Contains(types, typ) {
			return fmt.Sprintf(" (to %s)", form)
		}
	}
	return ""
}

// keyInIdentity makes sure that an update's or delete's old row carries the key: else its bucket is not known in the
// change stream. Partitions have replica identities of their own.
func (l *tableLook) keyInIdentity(ctx context.Context, c *pgx.Conn) error {
	if l.t.IdentityFull || l.t.AppendOnly && !l.primaryKey {
		return nil
	}
	rows, err := c.Query(ctx, `
		SELECT n.nspname || '.' || r.relname FROM (SELECT relid FROM pg_partition_tree($1) UNION SELECT $1) x
		JOIN pg_class r ON r.oid = x.relid JOIN pg_namespace n ON n.oid = r.relnamespace
		WHERE r.relreplident <> 'f' AND (r.relreplident <> 'd' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = r.oid AND i.indisprimary))
		AND NOT EXISTS (
			SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY((i.indkey::int2[])[0:i.indnkeyatts - 1])
			WHERE i.indrelid = r.oid AND a.attname = $2
			AND CASE r.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
		ORDER BY 1`, l.oid, l.t.Key)
	if err != nil {
		return err
	}
	outside, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range outside {
		l.add(fmt.Sprintf("column %s of table %s is outside its replica identity, so a change of an existing row would not tell its bucket", l.t.Key, name),
			"make the column part of the primary key, or declare the table identity: full")
	}
	return err
}
