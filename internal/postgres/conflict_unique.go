package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

const (
	codeUnique           = "23505"
	conflictInsertUnique = "multiple_unique_conflicts" // PostgreSQL 18's name
)

// uniqueKey is a unique index besides the one that finds rows.
type uniqueKey struct {
	columns []int
	equal   []string // operators
}

// makeRoom removes rows that stand in the way of the owner's row in another unique index, where they are in buckets
// that this site does not own. After a failover the lost site may hold such rows: it wrote them when it was cut off, and
// the owner, who has to decide about them, has given the value to another row meanwhile. Both versions are logged. A
// row of a bucket that is open here is left: then two owners gave out one value, and that is for people to solve.
func (d *decision) makeRoom(ctx context.Context) error {
	keys, err := d.w.s.uniqueKeys(ctx, d.target)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := d.makeRoomIn(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

func (d *decision) makeRoomIn(ctx context.Context, k uniqueKey) error {
	var terms []string
	var args [][]byte
	mark := func(i int) string {
		args = append(args, d.row.New[i].Bytes)
		return fmt.Sprintf("$%d", len(args))
	}
	for n, i := range k.columns {
		if d.row.New[i].Kind != change.Text { // NULL, or unchanged
			return nil
		}
		terms = append(terms, fmt.Sprintf("t.%s %s %s", d.target.columns[i].name, k.equal[n], mark(i)))
	}
	var same []string
	for _, i := range d.target.match {
		if d.row.New[i].Kind != change.Text {
			return nil
		}
		same = append(same, fmt.Sprintf("t.%s %s %s", d.target.columns[i].name, d.target.columns[i].equal, mark(i)))
	}
	where := fmt.Sprintf("%s AND NOT (%s)", strings.Join(terms, " AND "), strings.Join(same, " AND "))
	bucket := "0"
	if d.target.spec.Kind == topo.Keyed {
		bucket = "atoll.bucket_of(t." + pgx.Identifier{d.target.spec.Key}.Sanitize() + "::text, k.buckets)"
	}
	rows, _, err := d.w.s.run(ctx, fmt.Sprintf(`SELECT %s, (SELECT (coalesce(pg_sequence_last_value(atoll.word_of(k.id, x.b)), 0) >> (x.b & 31)) & 1
		FROM atoll.keyspace k, LATERAL (SELECT %s AS b) x WHERE k.name = %s) FROM %s t WHERE %s FOR UPDATE`,
		d.target.rowText(), bucket, sqlLiteral(string(d.target.spec.Keyspace)), d.target.sql, where), args...)
	if err != nil || len(rows) != 1 || string(rows[0][1]) != "0" {
		return err
	}
	if _, _, err := d.w.s.run(ctx, fmt.Sprintf("DELETE FROM %s t WHERE %s", d.target.sql, where), args...); err != nil {
		return err
	}
	return d.log(ctx, conflictInsertUnique, &localRow{text: rows[0][0]}, decisionApplied)
}

// uniqueKeys reads the unique indexes of a fenced table whose columns the source sends.
func (s *applySession) uniqueKeys(ctx context.Context, target *applyTarget) ([]uniqueKey, error) {
	if target.unique != nil || !target.spec.Fenced() || target.keyless() {
		return target.unique, nil
	}
	indexes, err := s.equalities(ctx, target.sql, "i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL")
	if err != nil {
		return nil, err
	}
	target.unique = []uniqueKey{}
	for _, parts := range indexes {
		var k uniqueKey
		for _, p := range parts {
			i := slices.IndexFunc(target.table.Columns, func(c change.Column) bool { return c.Name == p.column })
			if i < 0 {
				k.columns = nil
				break
			}
			k.columns, k.equal = append(k.columns, i), append(k.equal, p.operator)
		}
		if k.columns != nil && !slices.Equal(k.columns, target.match) {
			target.unique = append(target.unique, k)
		}
	}
	return target.unique, nil
}
