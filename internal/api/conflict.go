package api

import (
	"encoding/json"
	"time"

	"github.com/atollhq/atoll/topo"
)

// ConflictList is the newest conflicts of one site's database.
type ConflictList struct {
	Site      topo.SiteID `json:"site"`
	Conflicts []Conflict  `json:"conflicts"`
	More      bool        `json:"more,omitempty"` // older ones were left off
}

// Conflict is one entry of a site's conflict log: two versions of a row, and what was done.
type Conflict struct {
	Site     topo.SiteID     `json:"site"` // whose log
	ID       int64           `json:"id"`
	At       time.Time       `json:"at"`
	Kind     string          `json:"kind"` // PostgreSQL 18's names, or stale_insert, stale_update, stale_delete
	Table    string          `json:"table"`
	Keyspace topo.KeyspaceID `json:"keyspace,omitempty"`
	Bucket   *int64          `json:"bucket,omitempty"`
	Epoch    *uint64         `json:"epoch,omitempty"`    // under which the remote version was written
	Handover topo.HandoverID `json:"handover,omitempty"` // the failover whose tail it is of
	Origin   topo.SiteID     `json:"origin"`             // of the remote version
	Position uint64          `json:"position"`           // of its transaction in the origin's stream
	XID      uint64          `json:"source_xid"`
	Local    json.RawMessage `json:"local,omitempty"` // column → text form; null: no row
	Remote   json.RawMessage `json:"remote,omitempty"`
	Decision string          `json:"decision"` // applied: the remote version stands; kept: the local one; logged: nothing could be written
}
