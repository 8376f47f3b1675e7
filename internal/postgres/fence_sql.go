package postgres

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

//go:embed schema.sql
var schemaSQL string

//go:embed fence.sql
var fenceSQL string

// sqlPart is one statement of an embedded file, with the comment that stands above it.
type sqlPart struct{ reason, sql string }

// sqlParts splits an embedded file, whose statements are set apart by blank lines. A block that is all comment
// speaks of the whole file.
func sqlParts(text string) []sqlPart {
	var parts []sqlPart
	for block := range strings.SplitSeq(text, "\n\n") {
		var p sqlPart
		for line := range strings.Lines(block) {
			comment, isComment := strings.CutPrefix(line, "-- ")
			switch {
			case isComment && p.sql == "":
				p.reason = strings.TrimSpace(p.reason + " " + strings.TrimSpace(comment))
			default:
				p.sql += line
			}
		}
		if p.sql = strings.TrimSpace(p.sql); p.sql != "" {
			p.sql = strings.TrimSuffix(p.sql, ";")
			parts = append(parts, p)
		}
	}
	return parts
}

// fenceDigest tells versions of the fixed functions apart.
func fenceDigest() string {
	sum := sha256.Sum256([]byte(plantedSQL(fenceSQL)))
	return hex.EncodeToString(sum[:8])
}

// fenceKeyspace is an installed keyspace: its sequences are atoll.own_<id>_<word>.
type fenceKeyspace struct {
	id      int
	name    topo.KeyspaceID
	buckets int
}

func (k fenceKeyspace) words() int { return (k.buckets + 31) / 32 }

// guard is the generated trigger function of one table and operation.
type guard struct {
	op      string // INSERT, UPDATE, DELETE
	name    string // without schema
	body    string
	trigger string
}

func (g guard) createSQL() string {
	return fmt.Sprintf("CREATE OR REPLACE FUNCTION %s() RETURNS trigger\nLANGUAGE plpgsql AS $fence$%s$fence$", g.function(), g.body)
}

func (g guard) function() string { return pgx.Identifier{"atoll", g.name}.Sanitize() }

// guardsOf generates the row guards of a fenced table.
//
// The owned path of each is one expression without any table read: ownership bit and lease come from sequences, which
// know no snapshot, so that a repeatable-read transaction sees a closed fence at once. The bypass of the agent's role
// is looked at only where the write would be refused. Sequences are named, not numbered, so that a dump restores.
//
// The server prepares every expression anew in each transaction, function by function, so few of both are what makes a
// guard fast; RETURN of a variable is no expression. See docs/fence.md for what other forms cost.
func guardsOf(t TableSpec, k fenceKeyspace, agentRole string) []guard {
	lease := plantedSQL("pg_catalog.clock_timestamp() < pg_catalog.to_timestamp(pg_catalog.pg_sequence_last_value('atoll.lease'::regclass) * 0.001::float8)")
	pass := "IF current_user = " + sqlLiteral(agentRole) + " THEN\n    RETURN NULL;\n  END IF;"
	one := func(row string) string {
		return fmt.Sprintf(`
DECLARE
  b int := %[1]s;
  nothing int;
BEGIN
  IF %[2]s AND %[3]s THEN
    RETURN nothing;
  END IF;
  %[4]s
  PERFORM atoll.refuse(%[5]s, b, (%[2]s) IS TRUE AND (%[3]s) IS NOT TRUE);
  RETURN NULL;
END `, k.bucketOf(row, t.Key), k.bit("b"), lease, pass, sqlLiteral(string(k.name)))
	}
	update := one("NEW")
	if t.Kind == topo.Keyed {
		key := pgx.Identifier{t.Key}.Sanitize()
		update = fmt.Sprintf(`
DECLARE
  b int := %[1]s;
  was int;
  nothing int;
BEGIN
  IF NEW.%[2]s = OLD.%[2]s AND %[4]s AND %[6]s THEN
    RETURN nothing;
  END IF;
  was := %[3]s;
  IF %[4]s AND %[5]s AND %[6]s THEN
    RETURN NULL;
  END IF;
  %[7]s
  PERFORM atoll.refuse(%[8]s, CASE WHEN (%[4]s) IS TRUE THEN was ELSE b END, (%[4]s AND %[5]s) IS TRUE AND (%[6]s) IS NOT TRUE);
  RETURN NULL;
END `, k.bucketOf("NEW", t.Key), key, k.bucketOf("OLD", t.Key), k.bit("b"), k.bit("was"), lease, pass, sqlLiteral(string(k.name)))
	}
	guards := []guard{
		{op: "INSERT", body: one("NEW")},
		{op: "UPDATE", body: update},
		{op: "DELETE", body: one("OLD")},
	}
	if t.AppendOnly { // the server itself would refuse these, but then the agent too could take nothing back
		refuse := fmt.Sprintf(`
BEGIN
  %s
  RAISE EXCEPTION 'table %% only takes inserts (append_only)', TG_RELID::regclass USING ERRCODE = 'object_not_in_prerequisite_state';
END `, pass)
		guards[1].body, guards[2].body = refuse, refuse
	}
	for i := range guards {
		g := &guards[i]
		op := strings.ToLower(g.op)
		g.name = guardName(op, t)
		g.trigger = "atoll_fence_" + op
		if plant.FenceRemoved {
			g.body = "\nBEGIN\n  RETURN NULL;\nEND "
		}
	}
	return guards
}

func (k fenceKeyspace) bucketOf(row, key string) string {
	if key == "" {
		return "0"
	}
	return fmt.Sprintf("atoll.bucket_of(%s.%s::text, %d)", row, pgx.Identifier{key}.Sanitize(), k.buckets)
}

// bit is the expression for the ownership bit of the bucket in variable b. NULL (never set) is not true.
func (k fenceKeyspace) bit(b string) string {
	if k.words() == 1 {
		return fmt.Sprintf("(pg_catalog.pg_sequence_last_value('atoll.own_%d_0'::regclass) >> %s) & 1 = 1", k.id, b)
	}
	words := make([]string, k.words())
	for w := range words {
		words[w] = fmt.Sprintf("'atoll.own_%d_%d'::regclass", k.id, w)
	}
	return fmt.Sprintf("(pg_catalog.pg_sequence_last_value((ARRAY[%s])[1 + (%s >> 5)]) >> (%s & 31)) & 1 = 1", strings.Join(words, ", "), b, b)
}

// guardName names a table's guard function, within the server's limit of 63 bytes.
func guardName(op string, t TableSpec) string {
	name := op + "_" + t.Schema + "_" + t.Name
	if len(name) <= 63 && !strings.ContainsAny(t.Schema, "_") {
		return name
	}
	// cut, or ambiguous (a_b.c and a.b_c): told apart by a digest
	sum := sha256.Sum256([]byte(op + "\x00" + t.Schema + "\x00" + t.Name))
	return strings.ToValidUTF8(name[:min(len(name), 54)], "") + "_" + hex.EncodeToString(sum[:4])
}

// rowTriggerSQL attaches a guard. After the row: a conflict that writes nothing is not refused, and no lock record is
// written ahead of an update. Always: a session in replica role is fenced too.
func rowTriggerSQL(t TableSpec, g guard) []string {
	return []string{
		fmt.Sprintf("CREATE TRIGGER %s AFTER %s ON %s FOR EACH ROW EXECUTE FUNCTION %s()", g.trigger, g.op, t.SQL(), g.function()),
		fmt.Sprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s", t.SQL(), g.trigger),
	}
}

const (
	commitTrigger   = "atoll_fence_commit"
	truncateTrigger = "atoll_fence_truncate"
)

// commitTriggerSQL attaches the deferred look at the lease.
func commitTriggerSQL(t TableSpec, k fenceKeyspace) []string {
	return []string{
		fmt.Sprintf("CREATE CONSTRAINT TRIGGER %s AFTER INSERT OR UPDATE OR DELETE ON %s DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION atoll.check_commit(%s)",
			commitTrigger, t.SQL(), commitArgs(t, k)),
		fmt.Sprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s", t.SQL(), commitTrigger),
	}
}

func commitArgs(t TableSpec, k fenceKeyspace) string {
	return sqlLiteral(string(k.name)) + ", " + sqlLiteral(t.Key) + ", " + sqlLiteral(strconv.Itoa(k.buckets))
}

// truncateTriggerSQL guards one relation: statement triggers are not cloned to partitions.
func truncateTriggerSQL(relation string, ks topo.KeyspaceID) []string {
	return []string{
		fmt.Sprintf("CREATE TRIGGER %s BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION atoll.refuse_truncate(%s)",
			truncateTrigger, relation, sqlLiteral(string(ks))),
		fmt.Sprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s", relation, truncateTrigger),
	}
}
