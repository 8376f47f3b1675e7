package postgres

import (
	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// TableSpec is what the spec declares of one table.
type TableSpec struct {
	Schema       string
	Name         string
	Kind         topo.TableKind
	Keyspace     topo.KeyspaceID // keyed and home tables
	Key          string          // keyed tables: the column whose value decides the bucket
	AppendOnly   bool            // has no primary key and only takes inserts
	IdentityFull bool            // has no primary key; whole rows identify
}

// Fenced tells whether the fence guards the table's writes.
func (t TableSpec) Fenced() bool { return t.Kind == topo.Keyed || t.Kind == topo.Home }

// Published tells whether the table's changes travel to other sites.
func (t TableSpec) Published() bool { return t.Fenced() || t.Kind == topo.Shared }

// SQL is the table's name as SQL text, quoted.
func (t TableSpec) SQL() string { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

func (t TableSpec) String() string { return t.Schema + "." + t.Name }
