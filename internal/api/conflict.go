package api

import (
	"encoding/json"
	"fmt"
	"strings"
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
	// Key are the columns of the table's primary key, in its order; only where one conflict was asked for.
	Key []string `json:"key,omitempty"`
	// Problem is why a version that is there is left out: it is too large for an answer, or not of a form that is known.
	Problem string `json:"problem,omitempty"`
}

// ConflictQuery says which conflicts are wanted; empty fields select nothing out.
type ConflictQuery struct {
	Table    string          // "schema.table"
	Handover topo.HandoverID // the failover whose tail it is of
	Before   int64           // only ids below; for the next page, the lowest id of the last one
	Limit    int             // at most; 0 is DefaultConflicts
}

// Bounds of a page of conflicts.
const (
	DefaultConflicts = 50
	MaxConflicts     = 1000
)

// ParseVersion reads one version of a row: column → text form, nil for NULL. The result is nil where there is no row.
func ParseVersion(data json.RawMessage) (map[string]*string, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var v map[string]*string
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, fmt.Errorf("a version of a row: %w", err)
	}
	return v, nil
}

// Gone tells whether the remote version is the absence of a row; Remote then is what was deleted.
func (c Conflict) Gone() bool {
	return c.Kind == "stale_delete" || strings.HasPrefix(c.Kind, "delete_")
}
