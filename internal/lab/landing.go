package lab

import (
	"encoding/json"
	"time"

	"github.com/atollhq/atoll/topo"
)

// MERGE: all of this file comes with the checks.

type ConflictRow struct {
	Database, Origin topo.SiteID
	Position, XID    uint64
	Kind, Table      string
	Keyspace         topo.KeyspaceID
	Bucket           topo.BucketID
	Epoch            topo.Epoch
	Handover         topo.HandoverID
	Local, Remote    json.RawMessage
	Decision         string
	At               time.Time
}

type Loss struct {
	ID                                 topo.HandoverID
	Lost, Taker                        topo.SiteID
	Cut, Killed, Opened, Back, Settled time.Time
}

type Accounting struct {
	RPOWrites                int
	RPOms                    float64
	Applied, Logged, Missing int
	Examples                 []string
}

func Account(ops []Operation, e Evidence, l Loss) Accounting { return Accounting{} }

func RTO(ops []Operation, l Loss, buckets []topo.BucketID) []time.Duration { return nil }

func CheckK4(ops []Operation, conflicts []ConflictRow, losses []Loss) Check { return Check{Name: "K4"} }
