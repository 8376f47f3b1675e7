package lab

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// rowHashes is a table as one site has it: a hash of every row, by primary key.
type rowHashes map[string]string

// replicatedTables lists what must be equal at all full sites.
func replicatedTables(s *spec.Spec) []string {
	var out []string
	for name, t := range s.Tables {
		if t.Kind != topo.Local {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// hashRows reads every row's hash. The text form is pinned, so that equal rows have equal hashes in every database.
func hashRows(ctx context.Context, db *pgx.Conn, table string) (rowHashes, error) {
	schema, name, _ := strings.Cut(table, ".")
	ident := pgx.Identifier{schema, name}.Sanitize()
	columns, err := primaryKey(ctx, db, ident)
	if err != nil {
		return nil, err
	}
	for i, c := range columns {
		columns[i] = pgx.Identifier{c}.Sanitize() + "::text"
	}
	out := rowHashes{}
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL intervalstyle = 'postgres';
			SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 3`)
		if err != nil {
			return err
		}
		var key, hash string
		return eachRow(ctx, tx, fmt.Sprintf("SELECT concat_ws('/', %s), md5(t::text) FROM %s t", strings.Join(columns, ", "), ident),
			[]any{&key, &hash}, func() error { out[key] = hash; return nil })
	})
	if err != nil {
		return nil, fmt.Errorf("lab: hashes of %s: %w", table, err)
	}
	return out, nil
}

// hashSite reads the hashes of all replicated tables.
func hashSite(ctx context.Context, db *pgx.Conn, tables []string) (map[string]rowHashes, error) {
	out := map[string]rowHashes{}
	for _, t := range tables {
		rows, err := hashRows(ctx, db, t)
		if err != nil {
			return nil, err
		}
		out[t] = rows
	}
	return out, nil
}

// CheckEqual compares the sites row by row with the first one.
func CheckEqual(sites map[topo.SiteID]map[string]rowHashes) Check {
	c := Check{Name: "sites_equal", Claim: "every replicated row is the same at every site"}
	names := slices.Sorted(maps.Keys(sites))
	if len(names) < 2 {
		c.Error = "fewer than two sites to compare"
		return c
	}
	first, rows := sites[names[0]], 0
	for _, table := range slices.Sorted(maps.Keys(first)) {
		rows += len(first[table])
		for _, other := range names[1:] {
			compareRows(&c, table, names[0], first[table], other, sites[other][table])
		}
	}
	c.Looked = fmt.Sprintf("%d rows of %d tables at %d sites", rows, len(first), len(names))
	return c
}

func compareRows(c *Check, table string, a topo.SiteID, rowsA rowHashes, b topo.SiteID, rowsB rowHashes) {
	keys := maps.Clone(rowsA)
	maps.Copy(keys, rowsB)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		hashA, inA := rowsA[key]
		hashB, inB := rowsB[key]
		switch {
		case !inA:
			c.found("%s %s is at %s and not at %s", table, key, b, a)
		case !inB:
			c.found("%s %s is at %s and not at %s", table, key, a, b)
		case hashA != hashB:
			c.found("%s %s differs between %s and %s", table, key, a, b)
		}
	}
}
