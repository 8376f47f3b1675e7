package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// row is a version of a row, column → text form; a nil row is none.
type row map[string]*string

// versions are the two sides of a conflict. A side may lack columns: of an update that left large values as they were,
// and of a delete, not all is sent.
type versions struct {
	conflict    api.Conflict
	here, there row
	deleted     row // what was deleted there
}

func versionsOf(k api.Conflict) (versions, error) {
	v := versions{conflict: k}
	if k.Problem != "" {
		return v, errors.New(k.Problem)
	}
	here, err := api.ParseVersion(k.Local)
	if err != nil {
		return v, err
	}
	there, err := api.ParseVersion(k.Remote)
	if err != nil {
		return v, err
	}
	v.here, v.there = here, there
	if k.Gone() {
		v.there, v.deleted = nil, there
	}
	return v, nil
}

// columns of either side, the key first.
func (v versions) columns() []string {
	all := map[string]bool{}
	for _, side := range []row{v.here, v.there, v.deleted} {
		for name := range side {
			all[name] = true
		}
	}
	var names []string
	for _, name := range v.conflict.Key {
		if all[name] {
			names = append(names, name)
			delete(all, name)
		}
	}
	return append(names, slices.Sorted(maps.Keys(all))...)
}

// differing are the columns that both sides have, with different values.
func (v versions) differing() []string {
	var out []string
	for _, name := range v.columns() {
		a, inHere := v.here[name]
		b, inThere := v.there[name]
		if inHere && inThere && !sameValue(a, b) {
			out = append(out, name)
		}
	}
	return out
}

func sameValue(a, b *string) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }

const shownValue = 44

func (v versions) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	differing := v.differing()
	fmt.Fprintf(w, "\n  COLUMN\tVERSION OF %s\tVERSION OF %s\n", strings.ToUpper(string(v.conflict.Site)), strings.ToUpper(string(v.conflict.Origin)))
	if v.here == nil {
		fmt.Fprintf(w, "* \t(no row)\t\n")
	}
	if v.there == nil {
		fmt.Fprintf(w, "* \t\t(deleted)\n")
	}
	for _, name := range v.columns() {
		mark := " "
		if slices.Contains(differing, name) {
			mark = "*"
		}
		there := valueText(v.there, name)
		if v.deleted != nil {
			there = valueText(v.deleted, name)
		}
		fmt.Fprintf(w, "%s %s\t%s\t%s\n", mark, plain(name), valueText(v.here, name), there)
	}
	return w.Flush()
}

func valueText(side row, name string) string {
	value, has := side[name]
	switch {
	case side == nil:
		return ""
	case !has:
		return "(not sent)"
	case value == nil:
		return "NULL"
	}
	return shorten(plain(*value), shownValue)
}

// remedy is what an operator can do to let the other version stand after all.
func (v versions) remedy(owner topo.SiteID) string {
	k := v.conflict
	stands, other, whose := v.here, v.there, k.Origin
	if k.Decision == "applied" {
		stands, other, whose = v.there, v.here, k.Site
	}
	sql := v.takeOver(stands, other)
	if sql == "" {
		return "There is nothing to take over: the two versions do not differ in what is known of them.\n"
	}
	where := "at the database of a site that writes this table"
	switch {
	case owner != "":
		where = fmt.Sprintf("at the database of site %s, which owns the bucket now", owner)
	case k.Bucket != nil:
		where = "at the database of the site that owns the bucket now (atoll status)"
	}
	if stands == nil && k.Decision == "logged" {
		sql += "\nNot all columns of that version were sent; those left out take their defaults.\n"
	}
	return fmt.Sprintf(`To let the version of %s stand instead, %s,
as a role of the application (the fence lets it pass there, and the change travels to the other sites):

%s
If it reports 0 rows, somebody has written the row since: look at it before you decide.
`, whose, where, sql)
}

// takeOver writes other over stands, but only over what stands; "" if there is nothing to do.
func (v versions) takeOver(stands, other row) string {
	table := identifier(v.conflict.Table)
	var b strings.Builder
	switch {
	case stands == nil && other == nil:
		return ""
	case stands == nil:
		var names, values []string
		for _, name := range slices.Sorted(maps.Keys(other)) {
			names, values = append(names, quoted(name)), append(values, literal(other[name]))
		}
		fmt.Fprintf(&b, "  INSERT INTO %s (%s)\n  VALUES (%s);\n", table, strings.Join(names, ", "), strings.Join(values, ", "))
	case other == nil:
		fmt.Fprintf(&b, "  DELETE FROM %s\n  WHERE %s;\n", table, v.is(stands, slices.Sorted(maps.Keys(stands))))
	default:
		changed := v.differing()
		if len(changed) == 0 {
			return ""
		}
		var sets []string
		for _, name := range changed {
			sets = append(sets, quoted(name)+" = "+literal(other[name]))
		}
		fmt.Fprintf(&b, "  UPDATE %s\n  SET %s\n  WHERE %s;\n", table, strings.Join(sets, ", "), v.is(stands, changed))
	}
	return b.String()
}

// is compares a row with the key of a version and with the given columns of it; without a key, with all that is known.
func (v versions) is(version row, columns []string) string {
	names := slices.Clone(v.conflict.Key)
	if len(names) == 0 || slices.ContainsFunc(names, func(n string) bool { return version[n] == nil }) {
		names = slices.Sorted(maps.Keys(version))
	}
	for _, name := range columns {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var tests []string
	for _, name := range names {
		column := quoted(name)
		switch value := version[name]; {
		case value == nil:
			tests = append(tests, column+" IS NULL")
		default:
			tests = append(tests, column+" = "+literal(value))
		}
	}
	return strings.Join(tests, " AND ")
}

// identifier quotes "schema.table"; a schema whose name has a dot is not told apart.
func identifier(table string) string {
	schema, name, _ := strings.Cut(table, ".")
	return quoted(schema) + "." + quoted(name)
}

func quoted(name string) string { return plain(pgx.Identifier{name}.Sanitize()) }

// literal writes a value as SQL that can be shown on a terminal and pasted.
func literal(value *string) string {
	if value == nil {
		return "NULL"
	}
	escape := strings.ContainsRune(*value, '\\')
	var b strings.Builder
	for _, r := range *value {
		switch {
		case r == '\'':
			b.WriteString("''")
		case r == '\\':
			b.WriteString(`\\`)
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r):
			escape = true
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			b.WriteRune(r)
		}
	}
	if escape {
		return "E'" + b.String() + "'"
	}
	return "'" + b.String() + "'"
}
