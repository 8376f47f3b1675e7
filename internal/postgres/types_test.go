package postgres

import (
	"fmt"
	"strings"
	"testing"

	"github.com/atollhq/atoll/topo"
)

// zoo lists types and literals of values at their edges.
var zoo = []struct {
	typ    string
	values []string
}{
	{"smallint", []string{"-32768", "32767"}},
	{"integer", []string{"-2147483648", "0"}},
	{"bigint", []string{"-9223372036854775808", "9223372036854775807"}},
	{"numeric", []string{"NaN", "Infinity", "-Infinity", "0.000", "-1.50", "123456789012345678901234567890.000000000000000000001"}},
	{"numeric(10,2)", []string{"NaN", "-99999999.99"}},
	{"real", []string{"NaN", "-Infinity", "1e-45", "3.4028235e38", "-0", "0.1"}},
	{"double precision", []string{"NaN", "Infinity", "5e-324", "1.7976931348623157e308", "0.30000000000000004"}},
	{"money", []string{"-92233720368547758.08", "1234.56"}},
	{"text", []string{"", " x ", "tab\tnewline\nbackslash\\quote'\"", `\N`, "ü€😀", "NULL"}},
	{"varchar(10)", []string{"", "abc  "}},
	{"char(5)", []string{"", "ab"}},
	{`"char"`, []string{"x", ""}},
	{"name", []string{"some name"}},
	{"bytea", []string{`\x`, `\x00ff5c27`, `\xdeadbeef`}},
	{"boolean", []string{"t", "f"}},
	{"date", []string{"-infinity", "infinity", "4713-01-01 BC", "5874897-12-31", "2024-02-29"}},
	{"time", []string{"00:00:00", "24:00:00", "23:59:59.999999"}},
	{"timetz", []string{"12:00:00.000001+15:59:59", "24:00:00-15:59"}},
	{"timestamp", []string{"-infinity", "infinity", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59.999999"}},
	{"timestamptz", []string{"-infinity", "infinity", "4713-11-24 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00", "2024-06-01 12:00:00.000001+05:30"}},
	{"interval", []string{"1 year -2 mons +3 days -04:05:06.000007", "-178000000 years", "0"}},
	{"uuid", []string{"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"}},
	{"json", []string{`{"b":1, "a": [1,2,  null], "a": "\u00e9"}`, `null`, `"x"`}},
	{"jsonb", []string{`{"b":1,"a":[1,2,null,1e400]}`, `null`, `{}`}},
	{"jsonpath", []string{`$.a[*] ? (@ > 1)`}},
	{"xml", []string{`<a b="c">d</a>`, `text <b/> text`}},
	{"integer[]", []string{"{}", "{1,NULL,-3}", "[-1:0][2:3]={{1,2},{3,4}}"}},
	{"text[]", []string{`{"",NULL,"NULL","a,b","c\"d\\e"}`}},
	{"timestamptz[]", []string{`{"2024-01-01 00:00:00+00",infinity}`}},
	{"int4range", []string{"empty", "[1,5)", "(,)", "[,3)"}},
	{"numrange", []string{"(1.5,2.50]", "empty"}},
	{"tstzrange", []string{`["2024-01-01 00:00:00+00",)`}},
	{"int8multirange", []string{"{}", "{[1,3),[5,9)}"}},
	{"datemultirange", []string{"{[2024-01-01,2024-02-01),[2024-03-01,)}"}},
	{"mood", []string{"sad", "so so", "it''s"}},
	{"mood[]", []string{`{sad,"so so"}`}},
	{"positive", []string{"1", "2147483647"}},
	{"label", []string{"ok"}},
	{"pair", []string{`(1,"a b")`, `(,)`, `(2,"x,""y"" (z)")`}},
	{"pair[]", []string{`{"(1,a)","(,)"}`}},
	{"tsvector", []string{"'a':1A,3 'b''c':2B", ""}},
	{"tsquery", []string{"'a' & !'b' <-> 'c':*A"}},
	{"point", []string{"(1.5,-0)", "(NaN,Infinity)"}},
	{"line", []string{"{1,-1,0.1}"}},
	{"lseg", []string{"[(0,0),(1,1)]"}},
	{"box", []string{"(2,2),(0.1,0)"}},
	{"path", []string{"((0,0),(1,1))", "[(0,0),(1,1)]"}},
	{"polygon", []string{"((0,0),(1,0),(1,1))"}},
	{"circle", []string{"<(1,2),3.3>"}},
	{"inet", []string{"10.0.0.1", "10.0.0.1/8", "::1", "2001:db8::/32"}},
	{"cidr", []string{"10.0.0.0/8", "2001:db8::/32"}},
	{"macaddr", []string{"08:00:2b:01:02:03"}},
	{"macaddr8", []string{"08:00:2b:01:02:03:04:05"}},
	{"bit(3)", []string{"101"}},
	{"bit varying(8)", []string{"", "10101"}},
	{"pg_lsn", []string{"FFFFFFFF/FFFFFFFF"}},
	{"xid8", []string{"18446744073709551615"}},
	{"regclass", []string{"public.zoo", "pg_class"}},
	{"regtype", []string{"public.mood", "integer"}},
	{"hstore", []string{`"a"=>"1", "b"=>NULL, "c d"=>"e\"f"`, ""}},
	{"citext", []string{"MiXeD", "mixed"}},
}

// TestTypesRoundTrip carries every type through the initial copy, through inserts and updates found by key, and
// through updates and deletes found by the whole row.
func TestTypesRoundTrip(t *testing.T) {
	t.Parallel()
	var columns, setup []string
	for i, z := range zoo {
		columns = append(columns, fmt.Sprintf("c%d %s", i, z.typ))
		for _, v := range z.values {
			if z.typ != "mood" {
				v = strings.ReplaceAll(v, "'", "''")
			}
			for _, table := range []string{"zoo", "zoo_full"} {
				setup = append(setup, fmt.Sprintf("INSERT INTO %s (c%d) VALUES ('%s')", table, i, v))
			}
		}
	}
	ddl := `CREATE EXTENSION hstore; CREATE EXTENSION citext;
		CREATE TYPE mood AS ENUM ('sad', 'so so', 'it''s'); CREATE TYPE pair AS (n int, t text);
		CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE DOMAIN label AS text CHECK (length(VALUE) < 9);
		CREATE TABLE zoo (id bigserial PRIMARY KEY, n int NOT NULL DEFAULT 0, ` + strings.Join(columns, ", ") + `);
		CREATE TABLE zoo_full (n int NOT NULL DEFAULT 0, ` + strings.Join(columns, ", ") + `);
		ALTER TABLE zoo_full REPLICA IDENTITY FULL;`
	full := TableSpec{Schema: "public", Name: "zoo_full", Kind: topo.Home, Keyspace: "catalog", IdentityFull: true}
	a, b := newStreamSites(t, ddl, keyedTable("zoo", "id"), full)
	a.exec(strings.Join(setup, ";"))
	l := newStreamLink(a, b)
	l.copy = true
	l.start()
	l.settle()
	equal(a, b, "zoo", "zoo_full")
	rows := a.text("SELECT count(*) FROM zoo_full")

	a.exec(strings.Join(setup, ";"))
	l.settle()
	equal(a, b, "zoo", "zoo_full")

	for i := range zoo { // every value travels from a row to its neighbour
		a.exec(fmt.Sprintf("UPDATE zoo SET c%[1]d = (SELECT c%[1]d FROM zoo z WHERE c%[1]d IS NOT NULL ORDER BY id DESC LIMIT 1), n = n + 1 WHERE id %% 7 = %[2]d", i, i%7))
	}
	a.exec("UPDATE zoo_full SET n = n + 1")
	l.settle()
	equal(a, b, "zoo", "zoo_full")

	a.exec("DELETE FROM zoo_full WHERE ctid IN (SELECT ctid FROM zoo_full ORDER BY ctid LIMIT $1::int)", rows)
	a.exec("DELETE FROM zoo WHERE id % 2 = 0")
	l.settle()
	equal(a, b, "zoo", "zoo_full")
	b.want("0", "SELECT count(*) FROM atoll.conflict")
}

func TestKeysOfEveryType(t *testing.T) {
	t.Parallel()
	types := []string{"smallint", "bigint", "numeric", "text", "varchar(10)", "char(5)", "bytea", "boolean", "date", "timestamptz", "uuid", "mood", "positive", "integer[]", "int4range", "inet", "citext"}
	ddl := []string{`CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'so so'); CREATE DOMAIN positive AS int CHECK (VALUE > 0)`}
	var specs []TableSpec
	for i, typ := range types {
		ddl = append(ddl, fmt.Sprintf("CREATE TABLE k%d (k %s PRIMARY KEY, v int)", i, typ))
		specs = append(specs, keyedTable(fmt.Sprintf("k%d", i), "k"))
	}
	a, b := newStreamSites(t, strings.Join(ddl, ";"), specs...)
	l := newStreamLink(a, b).start()
	l.settle()
	var names []string
	for i, typ := range types {
		v1, v2 := "1", "2"
		switch typ {
		case "boolean":
			v1, v2 = "t", "f"
		case "date", "timestamptz":
			v1, v2 = "2024-01-01", "infinity"
		case "uuid":
			v1, v2 = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
		case "mood":
			v1, v2 = "sad", "so so"
		case "bytea":
			v1, v2 = `\x01`, `\x02`
		case "integer[]":
			v1, v2 = "{1}", "{2}"
		case "int4range":
			v1, v2 = "[1,2)", "[2,3)"
		case "inet":
			v1, v2 = "10.0.0.1", "10.0.0.1/8"
		case "citext":
			v1, v2 = "A", "b"
		}
		table := fmt.Sprintf("k%d", i)
		names = append(names, table)
		a.exec(fmt.Sprintf("INSERT INTO %[1]s VALUES ('%[2]s', 1); UPDATE %[1]s SET v = 2 WHERE k = '%[2]s'; UPDATE %[1]s SET k = '%[3]s'; INSERT INTO %[1]s VALUES ('%[2]s', 3); DELETE FROM %[1]s WHERE k = '%[3]s'", table, v1, v2))
	}
	l.settle()
	equal(a, b, names...)
	for _, name := range names {
		b.want("1", "SELECT count(*) FROM "+name)
	}
	b.want("0", "SELECT count(*) FROM atoll.conflict")
}
