// Package change holds what travels between sites: transactions, rows, values and positions, and their versioned
// wire form. The main type is [Tx].
//
// It guarantees that decoding what was encoded gives the same transaction, byte for byte; it refuses a wire form of a
// newer version. It knows no database: values are in the source's text form, pinned by capture.
package change

import (
	"time"

	"github.com/atollhq/atoll/topo"
)

// Position is a place in a database's change stream: on PostgreSQL the LSN behind a commit. Positions of one origin
// are ordered; positions of different origins have nothing to do with each other.
type Position uint64

// Op is what a row change does.
type Op uint8

const (
	Insert Op = iota + 1
	Update
	Delete
	Truncate // Old and New are nil
)

// ValueKind says what a Value stands for.
type ValueKind uint8

const (
	Absent    ValueKind = iota // the source did not send it (a column outside the replica identity)
	Null                       // SQL NULL
	Text                       // Bytes is the value's text form
	Unchanged                  // a TOASTed value that this update did not change: keep what the target has
)

// Value is one column of a row.
type Value struct {
	Kind  ValueKind
	Bytes []byte
}

// Column describes one column of a table as the source sends it.
type Column struct {
	Name string
	Type uint32 // the source's type OID; for messages only, targets resolve their own
	Key  bool   // part of the replica identity
}

// Table describes a table as the source sends it. It is shared by all rows of a stream until the source's
// definition changes, and is never changed in place.
type Table struct {
	ID       uint32 // the source's relation OID; names the table on the wire
	Schema   string
	Name     string
	Identity byte // replica identity: 'd' primary key, 'i' index, 'f' full, 'n' nothing
	Columns  []Column
}

// Row is one row change. Old and New are parallel to Table.Columns; Old is nil when the source sent none.
//
// Epochs are stamped per row by capture, from the fence's own rows in the same stream (I5), for the new and the old
// key; a key change may cross buckets. Keyspace is "" for tables that are not fenced.
type Row struct {
	Op        Op
	Table     *Table
	Old, New  []Value
	Keyspace  topo.KeyspaceID
	NewBucket topo.BucketID
	OldBucket topo.BucketID
	NewEpoch  topo.Epoch
	OldEpoch  topo.Epoch
}

// Marker is the last word of an epoch (MarkerClosed) or the first (MarkerOpened) in a site's change stream. A site
// applies nothing behind one until its own progress covers Vector.
type Marker struct {
	Kind     MarkerKind       `json:"kind"`
	Site     topo.SiteID      `json:"site"`
	Handover topo.HandoverID  `json:"handover"`
	Keyspace topo.KeyspaceID  `json:"keyspace"`
	Buckets  []topo.EpochSpan `json:"buckets"`
	Vector   topo.Vector      `json:"vector"`
}

// MarkerKind tells the two words apart.
type MarkerKind string

const (
	MarkerClosed MarkerKind = "closed"
	MarkerOpened MarkerKind = "opened"
)

// Tx is a source transaction or a part of one: a large transaction travels as several Tx values with the same Origin
// and Position, the first with First set, the last with Last set; it is applied whole or not at all.
type Tx struct {
	Origin    topo.SiteID
	Position  Position // behind the commit; what a target records as its progress once all of it is applied
	XID       uint64   // the source's transaction id, for conflict logs
	Committed time.Time
	Rows      []Row
	Markers   []Marker // fence markers that this transaction wrote; also among Rows as rows of atoll's own tables
	First     bool
	Last      bool
	Keep      bool // another site may lack it: whoever applies it keeps it for that one, in the same transaction; is not sent
}

// Epochs says at which epoch a site owns its buckets at a place in its change stream: what capture stamps rows with.
// The receiver has it as of its recorded progress and sends it along when it asks for the stream.
type Epochs map[topo.KeyspaceID]map[topo.BucketID]topo.Epoch

// Progress is how far a target has applied an origin's stream, durably.
type Progress struct {
	Known    bool // false: nothing was ever applied or copied from this origin
	Position Position
	Epochs   Epochs
}

// Copy is a piece of an initial copy. Data holds whole rows of one table in the text form of PostgreSQL's COPY. The
// last piece has Done set and carries the stream position at which the copied state was taken.
type Copy struct {
	Table    *Table
	Data     []byte
	Done     bool
	Position Position
	Epochs   Epochs // with Done: the origin's epochs at Position
}
