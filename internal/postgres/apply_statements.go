package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// applyTarget is a table of the source as the target has it: which columns are written how, and how a row is found.
type applyTarget struct {
	table   *change.Table
	spec    TableSpec
	sql     string // the quoted name
	columns []applyColumn
	match   []int // columns whose values find a row, in the order of the index
	whole   bool  // no such columns: a row is found by all its values, and one of equals is taken
	tree    bool  // it has partitions or children, so a ctid alone does not name a row
	site    int   // atoll's own tables: the column that names the site; else -1

	byShape map[string]*applyStatement
	foreign *[]foreignKey   // nil: not read yet
	unique  []uniqueKey     // nil: not read yet
	plain   *applyStatement // the update that sets every column and keeps the key
	scratch []byte
}

// applyColumn is one column of the source at the target.
type applyColumn struct {
	name   string // quoted
	equal  string // the equality operator of the index, qualified; "" outside of match
	always bool   // GENERATED ALWAYS AS IDENTITY: inserts must say so, updates must leave it alone
}

// applyStatement is a statement with parameters taken from a row. It is prepared when it is first used.
type applyStatement struct {
	name     string
	sql      string
	params   []applyParam
	want     int64   // how many rows it must touch; -1: any
	formats  []int16 // of its parameters, 1 for binary; nil: all are text
	prepared bool
}

type applyParam struct {
	old    bool
	column int
}

func (st *applyStatement) args(dst [][]byte, row *change.Row) [][]byte {
	for _, p := range st.params {
		v := row.New
		if p.old {
			v = row.Old
		}
		if v[p.column].Kind == change.Text {
			dst = append(dst, v[p.column].Bytes)
		} else {
			dst = append(dst, nil)
		}
	}
	return dst
}

// resolve finds a source's table in the target's catalog. It refuses tables that the spec does not name and
// definitions that cannot take the source's rows.
func (s *applySession) resolve(ctx context.Context, t *change.Table) (*applyTarget, error) {
	if found := s.targets[t]; found != nil {
		return found, nil
	}
	name := t.Schema + "." + t.Name
	target := &applyTarget{table: t, site: -1, sql: pgx.Identifier{t.Schema, t.Name}.Sanitize(), byShape: make(map[string]*applyStatement)}
	spec, known := s.cfg.tables[name]
	switch {
	case name == "atoll.bucket" || name == "atoll.marker":
		target.site = slices.IndexFunc(t.Columns, func(c change.Column) bool { return c.Name == "site" && c.Key })
		if target.site < 0 {
			return nil, fmt.Errorf("the source's %s has no key column site", name)
		}
	case !known || !spec.Published():
		return nil, fmt.Errorf("the stream brings rows of %s, which this site's spec does not name; bring the specs of both sites in line", name)
	}
	target.spec = spec
	if err := s.resolveColumns(ctx, target); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := s.resolveMatch(ctx, target); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s.targets[t] = target
	return target, nil
}

func (s *applySession) resolveColumns(ctx context.Context, target *applyTarget) error {
	rows, err := s.conn.Query(ctx, `SELECT attname::text, attgenerated::text, attidentity::text FROM pg_attribute
		WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped`, target.sql)
	if err != nil {
		return err
	}
	type column struct{ generated, identity string }
	have := make(map[string]column)
	var name string
	var c column
	_, err = pgx.ForEachRow(rows, []any{&name, &c.generated, &c.identity}, func() error { have[name] = c; return nil })
	if err != nil {
		return err
	}
	if len(have) == 0 {
		return errors.New("the table does not exist at this site")
	}
	if err := s.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = to_regclass($1))", target.sql).Scan(&target.tree); err != nil {
		return err
	}
	for _, src := range target.table.Columns {
		c, ok := have[src.Name]
		switch {
		case !ok:
			return fmt.Errorf("column %q does not exist at this site", src.Name)
		case c.generated != "":
			return fmt.Errorf("column %q is generated at this site, but not at the source", src.Name)
		}
		target.columns = append(target.columns, applyColumn{name: pgx.Identifier{src.Name}.Sanitize(), always: c.identity == "a"})
	}
	return nil
}

// resolveMatch picks the primary key, else the index that is the replica identity, if the source sends all of it.
func (s *applySession) resolveMatch(ctx context.Context, target *applyTarget) error {
	indexes, err := s.equalities(ctx, target.sql, "i.indisprimary OR i.indisreplident")
	if err != nil {
		return err
	}
	for _, parts := range indexes {
		var match []int
		for _, p := range parts {
			i := slices.IndexFunc(target.table.Columns, func(c change.Column) bool { return c.Name == p.column && c.Key })
			if i < 0 {
				match = nil
				break
			}
			target.columns[i].equal = p.operator
			match = append(match, i)
		}
		if match != nil {
			target.match = match
			return nil
		}
	}
	switch {
	case target.spec.IdentityFull && target.table.Identity == 'f', target.spec.AppendOnly:
		target.whole = true
	default:
		return errors.New("no primary key at this site that the source's replica identity covers; add one, or declare the table append_only or identity: full")
	}
	return nil
}

// indexPart is one column of an index with its equality operator, qualified.
type indexPart struct{ column, operator string }

// equalities reads indexes of a table, primary keys first.
func (s *applySession) equalities(ctx context.Context, table, which string) ([][]indexPart, error) {
	rows, err := s.conn.Query(ctx, `SELECT i.indexrelid, a.attname::text, format('OPERATOR(%I.%s)', n.nspname, o.oprname)
		FROM pg_index i
		CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY x(attnum, opclass, ord)
		JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = x.attnum
		JOIN pg_opclass oc ON oc.oid = x.opclass
		JOIN pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3 AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
		JOIN pg_operator o ON o.oid = ao.amopopr
		JOIN pg_namespace n ON n.oid = o.oprnamespace
		WHERE i.indrelid = to_regclass($1) AND i.indisvalid AND (`+which+`)
		ORDER BY i.indisprimary DESC, i.indexrelid, x.ord`, table)
	if err != nil {
		return nil, err
	}
	var out [][]indexPart
	var index, last uint32
	var p indexPart
	_, err = pgx.ForEachRow(rows, []any{&index, &p.column, &p.operator}, func() error {
		if index != last {
			out, last = append(out, nil), index
		}
		out[len(out)-1] = append(out[len(out)-1], p)
		return nil
	})
	return out, err
}

// statement gives the statement for a row. Statements are kept per shape: operation, columns that are sent, key changed
// or not.
func (s *applySession) statement(t *applyTarget, row *change.Row) (*applyStatement, error) {
	if t.plain != nil && row.Op == change.Update && row.Old == nil && complete(row.New) {
		return t.plain, nil
	}
	if row.Op != change.Insert && (len(t.columns) == 0 || len(t.match) == 0 && !t.spec.IdentityFull && !t.takesBack(row)) {
		return nil, errors.New("an update or delete of a table that only takes inserts (append_only)")
	}
	shape := append(t.scratch[:0], byte(row.Op))
	moved := t.keyMoved(row)
	if moved {
		shape = append(shape, 'k')
	}
	for _, v := range row.New {
		switch v.Kind {
		case change.Unchanged:
			shape = append(shape, 'u')
		case change.Absent:
			shape = append(shape, 'a')
		default:
			shape = append(shape, 's')
		}
	}
	if t.keyFromOld(row) {
		shape = append(shape, 'o')
	}
	t.scratch = shape
	if st := t.byShape[string(shape)]; st != nil {
		return st, nil
	}
	var st *applyStatement
	var err error
	switch row.Op {
	case change.Insert:
		st, err = t.insert(row)
	case change.Update:
		st, err = t.update(row, moved)
	default:
		st, err = t.remove(row)
	}
	if err != nil {
		return nil, err
	}
	s.statements++
	st.name = "a" + strconv.Itoa(s.statements)
	t.byShape[string(shape)] = st
	if row.Op == change.Update && row.Old == nil && complete(row.New) {
		t.plain = st
	}
	return st, nil
}

// takesBack: after a failover the owner takes single rows of an append-only table back, by all their values.
func (t *applyTarget) takesBack(row *change.Row) bool {
	return row.Op == change.Delete && complete(row.Old)
}

// complete tells whether an image has all values.
func complete(image []change.Value) bool {
	for i := range image {
		if kind := image[i].Kind; kind != change.Text && kind != change.Null {
			return false
		}
	}
	return true
}

// keyFromOld tells whether the row is found by its old image.
func (t *applyTarget) keyFromOld(row *change.Row) bool {
	if row.Old == nil {
		return false
	}
	return t.whole || !slices.ContainsFunc(t.match, func(i int) bool { return row.Old[i].Kind != change.Text })
}

func (t *applyTarget) keyMoved(row *change.Row) bool {
	if row.Op != change.Update || t.whole || !t.keyFromOld(row) {
		return false
	}
	return slices.ContainsFunc(t.match, func(i int) bool {
		return row.New[i].Kind == change.Text && !bytes.Equal(row.New[i].Bytes, row.Old[i].Bytes)
	})
}

func (t *applyTarget) insert(row *change.Row) (*applyStatement, error) {
	st := &applyStatement{want: 1}
	var names, marks []string
	overriding := ""
	for i, c := range t.columns {
		if kind := row.New[i].Kind; kind != change.Text && kind != change.Null {
			return nil, fmt.Errorf("an insert without a value for column %s", c.name)
		}
		if c.always {
			overriding = " OVERRIDING SYSTEM VALUE"
		}
		st.params = append(st.params, applyParam{column: i})
		names, marks = append(names, c.name), append(marks, "$"+strconv.Itoa(len(st.params)))
	}
	st.sql = fmt.Sprintf("INSERT INTO %s (%s)%s VALUES (%s)", t.sql, strings.Join(names, ", "), overriding, strings.Join(marks, ", "))
	if len(names) == 0 {
		st.sql = "INSERT INTO " + t.sql + " DEFAULT VALUES"
	}
	return st, nil
}

func (t *applyTarget) update(row *change.Row, moved bool) (*applyStatement, error) {
	st := &applyStatement{want: 1}
	var set, also []string
	for i, c := range t.columns {
		isKey := slices.Contains(t.match, i)
		if kind := row.New[i].Kind; kind == change.Unchanged || kind == change.Absent || isKey && !moved {
			continue
		}
		st.params = append(st.params, applyParam{column: i})
		mark := "$" + strconv.Itoa(len(st.params))
		if c.always && !isKey {
			// Cannot be set. It never differs unless the source set it to DEFAULT, which then misses the row.
			also = append(also, fmt.Sprintf(" AND %s IS NOT DISTINCT FROM %s", c.name, mark))
			continue
		}
		set = append(set, c.name+" = "+mark)
	}
	if len(set) == 0 { // only the key, or only values that stay: still, the row must be there
		column := 0
		if len(t.match) > 0 {
			column = t.match[0]
		}
		set = append(set, t.columns[column].name+" = "+t.columns[column].name)
	}
	where, err := t.where(st, row)
	if err != nil {
		return nil, err
	}
	st.sql = fmt.Sprintf("UPDATE %s t SET %s WHERE %s%s", t.sql, strings.Join(set, ", "), where, strings.Join(also, ""))
	return st, nil
}

func (t *applyTarget) remove(row *change.Row) (*applyStatement, error) {
	st := &applyStatement{want: 1}
	where, err := t.where(st, row)
	if err != nil {
		return nil, err
	}
	st.sql = fmt.Sprintf("DELETE FROM %s t WHERE %s", t.sql, where)
	return st, nil
}

// where finds the row: by key, or by the text form of all its values, which is exact for every type, has no need of
// an equality operator and is NULL-safe.
func (t *applyTarget) where(st *applyStatement, row *change.Row) (string, error) {
	fromOld := t.keyFromOld(row)
	image := row.New
	if fromOld {
		image = row.Old
	}
	var terms []string
	if !t.whole {
		for _, i := range t.match {
			if image == nil || image[i].Kind != change.Text {
				return "", fmt.Errorf("the source did not send key column %s", t.columns[i].name)
			}
			st.params = append(st.params, applyParam{old: fromOld, column: i})
			terms = append(terms, fmt.Sprintf("t.%s %s $%d", t.columns[i].name, t.columns[i].equal, len(st.params)))
		}
		return strings.Join(terms, " AND "), nil
	}
	if !fromOld {
		return "", errors.New("the source did not send the old row; its replica identity must be FULL")
	}
	equal := t.equalTerms(st)
	here, there := "t.ctid", "w.ctid"
	if t.tree {
		here, there = "(t.tableoid, t.ctid)", "w.tableoid, w.ctid"
	}
	return fmt.Sprintf("%s = (SELECT %s FROM %s w WHERE %s LIMIT 1 FOR UPDATE)", here, there, t.sql, equal), nil
}

// equalTerms compares all values of a row w with the old image.
func (t *applyTarget) equalTerms(st *applyStatement) string {
	var terms []string
	for i, c := range t.columns {
		st.params = append(st.params, applyParam{old: true, column: i})
		terms = append(terms, fmt.Sprintf("CASE WHEN $%[2]d::text IS NULL THEN w.%[1]s IS NOT DISTINCT FROM NULL ELSE w.%[1]s IS DISTINCT FROM NULL AND format('%%s', w.%[1]s) = $%[2]d::text END",
			c.name, len(st.params)))
	}
	return strings.Join(terms, " AND ")
}

// rowText is SQL for the whole row as a JSON object of the values' text forms, as the source's rows are logged.
func (t *applyTarget) rowText() string {
	names, values := make([]string, len(t.columns)), make([]string, len(t.columns))
	for i, c := range t.columns {
		names[i] = "'" + strings.ReplaceAll(t.table.Columns[i].Name, "'", "''") + "'"
		values[i] = fmt.Sprintf("CASE WHEN t.%[1]s IS DISTINCT FROM NULL THEN format('%%s', t.%[1]s) END", c.name)
	}
	return fmt.Sprintf("jsonb_object(ARRAY[%s]::text[], ARRAY[%s]::text[])", strings.Join(names, ", "), strings.Join(values, ", "))
}

// key describes which row a change is about, for messages.
func (t *applyTarget) key(row *change.Row) string {
	image := row.New
	if row.Old != nil && (image == nil || t.keyFromOld(row)) {
		image = row.Old
	}
	columns := t.match
	if len(columns) == 0 {
		for i := range t.columns {
			columns = append(columns, i)
		}
	}
	var parts []string
	for _, i := range columns {
		if image == nil || len(parts) == 8 {
			break
		}
		text := "?"
		switch image[i].Kind {
		case change.Null:
			text = "NULL"
		case change.Text:
			text = string(image[i].Bytes[:min(len(image[i].Bytes), 80)])
		}
		parts = append(parts, t.table.Columns[i].Name+"="+text)
	}
	return strings.Join(parts, ", ")
}

// refuseOwnFence: a site's fence rows are written by its own keeper alone. A stream that brings them anyway comes from a
// copy of this site, or from a site that writes another's rows; either way it must not be applied.
func (t *applyTarget) refuseOwnFence(row *change.Row, origin topo.SiteID) error {
	if t.site < 0 {
		return nil
	}
	if row.Op == change.Truncate {
		return errors.New("a truncate of fence rows")
	}
	for _, image := range [][]change.Value{row.Old, row.New} {
		if image != nil && topo.SiteID(image[t.site].Bytes) != origin {
			return fmt.Errorf("fence rows of site %q in the stream of site %s", image[t.site].Bytes, origin)
		}
	}
	return nil
}
