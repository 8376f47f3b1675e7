package change

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Format is the version of the wire form that this build writes and the highest it reads. It is the first byte of
// every encoded Tx and Copy.
const Format = 1

const (
	maxTables  = 4096      // definitions in one dictionary; the encoder starts a new one when it is full
	maxColumns = 1664      // PostgreSQL's limit for a row
	maxName    = 256       // bytes of a schema, table, column or site name
	maxValue   = 1<<30 - 1 // bytes of one value, PostgreSQL's limit

	flagFirst = 1 << 0
	flagLast  = 1 << 1
	flagFresh = 1 << 2 // the dictionaries start again with this frame
	flagDone  = 1 << 3

	rowOld    = 1 << 3
	rowNew    = 1 << 4
	rowFenced = 1 << 5
	rowOps    = 7

	valueAbsent    = 0
	valueNull      = 1
	valueUnchanged = 2
	valueText      = 3 // and the length is added
)

// Encoder writes the frames of one stream. A table's definition travels once per stream, with the first row that
// needs it, so frames must be decoded in the order in which they were encoded, by one [Decoder].
type Encoder struct {
	tables    map[*Table]uint64
	keyspaces map[topo.KeyspaceID]uint64
}

// AppendTx appends the wire form of tx to dst.
func (e *Encoder) AppendTx(dst []byte, tx *Tx) []byte {
	var flags byte
	if tx.First {
		flags |= flagFirst
	}
	if tx.Last {
		flags |= flagLast
	}
	dst = e.begin(dst, flags)
	dst = appendString(dst, string(tx.Origin))
	dst = binary.AppendUvarint(dst, uint64(tx.Position))
	dst = binary.AppendUvarint(dst, tx.XID)
	dst = appendTime(dst, tx.Committed)
	dst = binary.AppendUvarint(dst, uint64(len(tx.Markers)))
	for _, m := range tx.Markers {
		body, err := json.Marshal(m)
		if err != nil {
			panic("BUG: marker does not marshal: " + err.Error())
		}
		dst = appendString(dst, string(body))
	}
	dst = binary.AppendUvarint(dst, uint64(len(tx.Rows)))
	for i := range tx.Rows {
		dst = e.appendRow(dst, &tx.Rows[i])
	}
	return dst
}

// AppendCopy appends the wire form of c to dst.
func (e *Encoder) AppendCopy(dst []byte, c *Copy) []byte {
	if c.Done {
		dst = e.begin(dst, flagDone)
		dst = binary.AppendUvarint(dst, uint64(c.Position))
		return appendEpochs(dst, c.Epochs)
	}
	dst = e.begin(dst, 0)
	dst = e.appendTable(dst, c.Table)
	return appendBytes(dst, c.Data)
}

// EncodeTx is the wire form of a Tx that stands alone, outside of any stream.
func EncodeTx(tx *Tx) []byte { return new(Encoder).AppendTx(nil, tx) }

func (e *Encoder) begin(dst []byte, flags byte) []byte {
	if e.tables == nil || len(e.tables) >= maxTables/2 {
		e.tables, e.keyspaces = make(map[*Table]uint64), make(map[topo.KeyspaceID]uint64)
		flags |= flagFresh
	}
	return append(dst, Format, flags)
}

func (e *Encoder) appendRow(dst []byte, r *Row) []byte {
	head := byte(r.Op)
	if r.Old != nil {
		head |= rowOld
	}
	if r.New != nil {
		head |= rowNew
	}
	if r.Keyspace != "" {
		head |= rowFenced
	}
	dst = append(dst, head)
	dst = e.appendTable(dst, r.Table)
	if r.Keyspace != "" {
		at, known := e.keyspaces[r.Keyspace]
		if !known {
			at = uint64(len(e.keyspaces))
			e.keyspaces[r.Keyspace] = at
		}
		dst = binary.AppendUvarint(dst, at)
		if !known {
			dst = appendString(dst, string(r.Keyspace))
		}
		dst = binary.AppendUvarint(dst, uint64(r.NewBucket))
		dst = binary.AppendUvarint(dst, uint64(r.OldBucket))
		dst = binary.AppendUvarint(dst, uint64(r.NewEpoch))
		dst = binary.AppendUvarint(dst, uint64(r.OldEpoch))
	}
	for _, values := range [][]Value{r.Old, r.New} {
		if values == nil {
			continue
		}
		if len(values) != len(r.Table.Columns) {
			panic(fmt.Sprintf("BUG: row of %d values for %d columns of %s.%s", len(values), len(r.Table.Columns), r.Table.Schema, r.Table.Name))
		}
		for _, v := range values {
			dst = appendValue(dst, v)
		}
	}
	return dst
}

func appendValue(dst []byte, v Value) []byte {
	switch v.Kind {
	case Null:
		return append(dst, valueNull)
	case Unchanged:
		return append(dst, valueUnchanged)
	case Text:
		dst = binary.AppendUvarint(dst, valueText+uint64(len(v.Bytes)))
		return append(dst, v.Bytes...)
	default:
		return append(dst, valueAbsent)
	}
}

func (e *Encoder) appendTable(dst []byte, t *Table) []byte {
	at, known := e.tables[t]
	if known {
		return binary.AppendUvarint(dst, at)
	}
	at = uint64(len(e.tables))
	e.tables[t] = at
	dst = binary.AppendUvarint(dst, at)
	dst = binary.AppendUvarint(dst, uint64(t.ID))
	dst = appendString(dst, t.Schema)
	dst = appendString(dst, t.Name)
	dst = append(dst, t.Identity)
	dst = binary.AppendUvarint(dst, uint64(len(t.Columns)))
	for _, c := range t.Columns {
		dst = appendString(dst, c.Name)
		dst = binary.AppendUvarint(dst, uint64(c.Type))
		if c.Key {
			dst = append(dst, 1)
		} else {
			dst = append(dst, 0)
		}
	}
	return dst
}

func appendEpochs(dst []byte, epochs Epochs) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(epochs)))
	for _, ks := range slices.Sorted(maps.Keys(epochs)) {
		dst = appendString(dst, string(ks))
		dst = binary.AppendUvarint(dst, uint64(len(epochs[ks])))
		for _, b := range slices.Sorted(maps.Keys(epochs[ks])) {
			dst = binary.AppendUvarint(dst, uint64(b))
			dst = binary.AppendUvarint(dst, uint64(epochs[ks][b]))
		}
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendBytes(dst, b []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

// appendTime writes microseconds since 1970, the precision of a commit time; the zero time is kept apart.
func appendTime(dst []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(dst, 0)
	}
	return binary.AppendVarint(append(dst, 1), t.UnixMicro())
}

// ErrNewerFormat is returned for a frame that a newer Atoll wrote.
var ErrNewerFormat = errors.New("change stream of a newer version of atoll; upgrade this site")
