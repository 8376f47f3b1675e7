package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
)

// foreignKey is one constraint from or to a table.
type foreignKey struct {
	name        string
	out, in     bool   // the table refers; the table is referred to
	other       string // the other table, quoted
	from, to    []string
	fromEq, eq  []string // equality operators of the referring columns and of the referred ones
	otherTables string   // the other table as the spec names it
}

// fkChecks looks, before a decision commits, whether the rows that were applied fit what else is here. A stream is in
// itself consistent, so appliers leave foreign keys unchecked; a decision takes some of a stream's changes and leaves
// others, so it must look. It never cascades.
type fkChecks struct {
	in  []*tailRow
	out []fkLeft
}

type fkLeft struct {
	r     *tailRow
	local *localRow // as it was before the unit
}

func (f *fkChecks) entered(r *tailRow)               { f.in = append(f.in, r) }
func (f *fkChecks) left(r *tailRow, local *localRow) { f.out = append(f.out, fkLeft{r, local}) }

// check marks a unit that does not fit as kept, and returns errKeep then.
func (f *fkChecks) check(ctx context.Context, s *applySession) error {
	for _, r := range f.in {
		if r.unit.keep || r.unit.gone {
			continue
		}
		fks, err := s.foreignKeys(ctx, r.target)
		if err != nil {
			return err
		}
		for i := range fks {
			if ok, err := fks[i].refers(ctx, s, r.row); err != nil {
				return err
			} else if !ok {
				r.unit.keep, r.unit.reason = true, "what it refers to by "+fks[i].name+" is not here"
				return errKeep
			}
		}
	}
	for _, l := range f.out {
		if l.r.unit.keep || l.r.unit.gone {
			continue
		}
		if held, err := f.held(ctx, s, l.r, l.local); err != nil {
			return err
		} else if held {
			l.r.unit.keep, l.r.unit.reason = true, "rows that are here refer to it"
			return errKeep
		}
	}
	return nil
}

// refers tells whether what a new row refers to is here, and locks it.
func (k *foreignKey) refers(ctx context.Context, s *applySession, row *change.Row) (bool, error) {
	if !k.out {
		return true, nil
	}
	var args [][]byte
	var terms []string
	for i, name := range k.from {
		c := slices.IndexFunc(row.Table.Columns, func(c change.Column) bool { return c.Name == name })
		if c < 0 || row.New[c].Kind != change.Text { // NULL refers to nothing, and what did not change was right before
			return true, nil
		}
		args = append(args, row.New[c].Bytes)
		terms = append(terms, fmt.Sprintf("r.%s %s $%d", pgx.Identifier{k.to[i]}.Sanitize(), k.eq[i], i+1))
	}
	rows, _, err := s.run(ctx, "SELECT true FROM "+k.other+" r WHERE "+strings.Join(terms, " AND ")+" LIMIT 1 FOR KEY SHARE", args...)
	return len(rows) > 0, err
}

// held tells whether rows refer to a version that is not here any more, or that is about to go.
func (f *fkChecks) held(ctx context.Context, s *applySession, r *tailRow, local *localRow) (bool, error) {
	fks, err := s.foreignKeys(ctx, r.target)
	if err != nil || len(fks) == 0 {
		return false, err
	}
	var fields map[string]*string
	if err := json.Unmarshal(local.text, &fields); err != nil {
		return false, fmt.Errorf("the row that is here: %w", err)
	}
	for _, k := range fks {
		if !k.in || r.keeps(fields, k.to) {
			continue
		}
		var args [][]byte
		var there, here []string
		for i, name := range k.to {
			text := fields[name]
			if text == nil {
				break
			}
			args = append(args, []byte(*text))
			there = append(there, fmt.Sprintf("c.%s %s $%d", pgx.Identifier{k.from[i]}.Sanitize(), k.fromEq[i], i+1))
			here = append(here, fmt.Sprintf("t.%s %s $%d", pgx.Identifier{name}.Sanitize(), k.eq[i], i+1))
		}
		if len(args) < len(k.to) {
			continue
		}
		sql := fmt.Sprintf("SELECT EXISTS (SELECT FROM %s c WHERE %s)", k.other, strings.Join(there, " AND "))
		if s.isReplica { // at the end: the values may be here again
			sql += fmt.Sprintf(" AND NOT EXISTS (SELECT FROM %s t WHERE %s)", r.target.sql, strings.Join(here, " AND "))
		}
		rows, _, err := s.run(ctx, sql, args...)
		if err != nil || string(rows[0][0]) == "t" {
			return true, err
		}
	}
	return false, nil
}

// keeps tells whether an update leaves columns as they are here.
func (r *tailRow) keeps(fields map[string]*string, columns []string) bool {
	if r.row.Op != change.Update {
		return false
	}
	for _, name := range columns {
		c := slices.IndexFunc(r.row.Table.Columns, func(c change.Column) bool { return c.Name == name })
		if c < 0 || r.row.New[c].Kind != change.Text && r.row.New[c].Kind != change.Null {
			continue
		}
		if text := fields[name]; text == nil != (r.row.New[c].Kind == change.Null) || text != nil && *text != string(r.row.New[c].Bytes) {
			return false
		}
	}
	return true
}

// foreignKeys reads a table's constraints to and from other tables of the deployment.
func (s *applySession) foreignKeys(ctx context.Context, target *applyTarget) ([]foreignKey, error) {
	if target.foreign != nil {
		return *target.foreign, nil
	}
	names := func(table, key string) string {
		return "ARRAY(SELECT a.attname::text FROM unnest(" + key + ") WITH ORDINALITY k(n, o) JOIN pg_attribute a ON a.attrelid = " + table + " AND a.attnum = k.n ORDER BY k.o)"
	}
	operators := func(ops string) string {
		return "ARRAY(SELECT format('OPERATOR(%I.%s)', n.nspname, p.oprname) FROM unnest(" + ops + ") WITH ORDINALITY k(n, o) JOIN pg_operator p ON p.oid = k.n JOIN pg_namespace n ON n.oid = p.oprnamespace ORDER BY k.o)"
	}
	rows, err := s.conn.Query(ctx, `SELECT c.conname::text, c.conrelid = to_regclass($1), c.confrelid = to_regclass($1),
			CASE WHEN c.conrelid = to_regclass($1) THEN c.confrelid ELSE c.conrelid END::regclass::text,
			(SELECT n.nspname || '.' || r.relname FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
				WHERE r.oid = CASE WHEN c.conrelid = to_regclass($1) THEN c.confrelid ELSE c.conrelid END),
			`+names("c.conrelid", "c.conkey")+", "+names("c.confrelid", "c.confkey")+", "+operators("c.conffeqop")+", "+operators("c.conppeqop")+`
		FROM pg_constraint c WHERE c.contype = 'f' AND c.conparentid = 0 AND to_regclass($1) IN (c.conrelid, c.confrelid) ORDER BY c.oid`, target.sql)
	if err != nil {
		return nil, err
	}
	fks := []foreignKey{}
	var k foreignKey
	_, err = pgx.ForEachRow(rows, []any{&k.name, &k.out, &k.in, &k.other, &k.otherTables, &k.from, &k.to, &k.fromEq, &k.eq}, func() error {
		if len(k.from) != len(k.to) || len(k.from) != len(k.eq) || len(k.from) != len(k.fromEq) || len(k.from) == 0 {
			return errors.New("BUG: a foreign key whose columns do not match")
		}
		if spec := s.cfg.tables[k.otherTables]; spec.Published() { // others are not the agent's to read
			one := k
			one.from, one.to, one.fromEq, one.eq = slices.Clone(k.from), slices.Clone(k.to), slices.Clone(k.fromEq), slices.Clone(k.eq)
			fks = append(fks, one)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("foreign keys of %s: %w", target.sql, err)
	}
	target.foreign = &fks
	return fks, nil
}
