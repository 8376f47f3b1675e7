package change

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Decoder reads the frames of one stream in the order in which an [Encoder] wrote them. After an error it is of no
// further use.
//
// What it allocates is bounded by the length of the frame, whatever lengths the frame's bytes claim.
type Decoder struct {
	tables    []*Table
	keyspaces []topo.KeyspaceID
}

// Tx decodes a frame of AppendTx. The values of its rows point into frame, which must not change afterwards.
func (d *Decoder) Tx(frame []byte) (Tx, error) {
	r := &frameReader{rest: frame}
	flags := d.begin(r, flagFirst|flagLast)
	tx := Tx{First: flags&flagFirst != 0, Last: flags&flagLast != 0}
	tx.Origin = topo.SiteID(r.name())
	tx.Position = Position(r.uvarint())
	tx.XID = r.uvarint()
	tx.Committed = r.time()
	for range r.count(2) {
		tx.Markers = append(tx.Markers, r.marker())
	}
	rows := r.count(2)
	if rows > 0 && r.err == nil {
		tx.Rows = make([]Row, 0, min(rows, 1024))
	}
	var arena []Value
	for i := range rows {
		if r.err != nil {
			break
		}
		tx.Rows = append(tx.Rows, d.row(r, &arena, rows-i))
	}
	if err := r.finish(); err != nil {
		return Tx{}, fmt.Errorf("change frame: %w", err)
	}
	return tx, nil
}

// Copy decodes a frame of AppendCopy. Data points into frame.
func (d *Decoder) Copy(frame []byte) (Copy, error) {
	r := &frameReader{rest: frame}
	var c Copy
	if d.begin(r, flagDone)&flagDone != 0 {
		c.Done = true
		c.Position = Position(r.uvarint())
		c.Epochs = r.epochs()
	} else {
		c.Table = d.table(r)
		c.Data = r.bytes(maxValue)
	}
	if err := r.finish(); err != nil {
		return Copy{}, fmt.Errorf("copy frame: %w", err)
	}
	return c, nil
}

// DecodeTx reads what EncodeTx wrote.
func DecodeTx(frame []byte) (Tx, error) { return new(Decoder).Tx(frame) }

func (d *Decoder) begin(r *frameReader, allowed byte) byte {
	if format := r.byte(); r.err == nil && format != Format {
		if format > Format {
			r.fail(fmt.Errorf("format %d: %w", format, ErrNewerFormat))
		} else {
			r.fail(errors.New("no format version"))
		}
	}
	flags := r.byte()
	if flags&^(allowed|flagFresh) != 0 {
		r.fail(fmt.Errorf("flags %#x", flags))
	}
	if flags&flagFresh != 0 {
		d.tables, d.keyspaces = nil, nil
	}
	return flags
}

// row decodes one of the left rows of a frame; arena is what their values are cut from.
func (d *Decoder) row(r *frameReader, arena *[]Value, left int) Row {
	head := r.byte()
	row := Row{Op: Op(head & rowOps)}
	if row.Op < Insert || row.Op > Truncate || head&^(rowOps|rowOld|rowNew|rowFenced) != 0 {
		r.fail(fmt.Errorf("row head %#x", head))
	}
	row.Table = d.table(r)
	if r.err != nil {
		return row
	}
	if head&rowFenced != 0 {
		row.Keyspace = d.keyspace(r)
		row.NewBucket, row.OldBucket = r.bucket(), r.bucket()
		row.NewEpoch, row.OldEpoch = topo.Epoch(r.uvarint()), topo.Epoch(r.uvarint())
	}
	wantOld, wantNew := head&rowOld != 0, head&rowNew != 0
	switch {
	case row.Op == Insert && (wantOld || !wantNew), row.Op == Update && !wantNew,
		row.Op == Delete && (!wantOld || wantNew), row.Op == Truncate && (wantOld || wantNew):
		r.fail(fmt.Errorf("row head %#x: op and images do not fit", head))
	}
	if wantOld {
		row.Old = r.values(len(row.Table.Columns), arena, left)
	}
	if wantNew {
		row.New = r.values(len(row.Table.Columns), arena, left)
	}
	return row
}

func (d *Decoder) keyspace(r *frameReader) topo.KeyspaceID {
	at := r.uvarint()
	switch {
	case r.err != nil:
	case at < uint64(len(d.keyspaces)):
		return d.keyspaces[at]
	case at == uint64(len(d.keyspaces)) && at < maxTables:
		ks := topo.KeyspaceID(r.name())
		if ks == "" {
			r.fail(errors.New("keyspace without a name"))
		}
		d.keyspaces = append(d.keyspaces, ks)
		return ks
	default:
		r.fail(fmt.Errorf("keyspace %d is not defined", at))
	}
	return ""
}

func (d *Decoder) table(r *frameReader) *Table {
	at := r.uvarint()
	switch {
	case r.err != nil:
		return nil
	case at < uint64(len(d.tables)):
		return d.tables[at]
	case at != uint64(len(d.tables)) || at >= maxTables:
		r.fail(fmt.Errorf("table %d is not defined", at))
		return nil
	}
	t := &Table{ID: r.uint32(), Schema: r.name(), Name: r.name(), Identity: r.byte()}
	n := r.count(3)
	if n > maxColumns {
		r.fail(fmt.Errorf("table of %d columns", n))
	}
	for range n {
		if r.err != nil {
			return nil
		}
		c := Column{Name: r.name(), Type: r.uint32()}
		switch r.byte() {
		case 0:
		case 1:
			c.Key = true
		default:
			r.fail(errors.New("column flag"))
		}
		t.Columns = append(t.Columns, c)
	}
	if r.err != nil {
		return nil
	}
	d.tables = append(d.tables, t)
	return t
}

// frameReader takes a frame apart; the first error sticks and every later read gives zero.
type frameReader struct {
	rest []byte
	err  error
}

var errShort = errors.New("ends too early")

func (r *frameReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.rest = nil
}

func (r *frameReader) finish() error {
	if r.err == nil && len(r.rest) > 0 {
		return fmt.Errorf("%d bytes too many", len(r.rest))
	}
	return r.err
}

func (r *frameReader) byte() byte {
	if len(r.rest) == 0 {
		r.fail(errShort)
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *frameReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.fail(errShort)
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *frameReader) uint32() uint32 {
	v := r.uvarint()
	if v > 1<<32-1 {
		r.fail(fmt.Errorf("%d does not fit 32 bits", v))
		return 0
	}
	return uint32(v)
}

func (r *frameReader) bucket() topo.BucketID {
	v := r.uvarint()
	if v >= topo.MaxBuckets {
		r.fail(fmt.Errorf("bucket %d", v))
		return 0
	}
	return topo.BucketID(v)
}

// count reads how many items follow, each at least size bytes long.
func (r *frameReader) count(size int) int {
	v := r.uvarint()
	if v > uint64(len(r.rest)/size) {
		r.fail(errShort)
		return 0
	}
	return int(v)
}

func (r *frameReader) bytes(limit uint64) []byte {
	n := r.uvarint()
	if n > limit || n > uint64(len(r.rest)) {
		r.fail(errShort)
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *frameReader) name() string { return string(r.bytes(maxName)) }

func (r *frameReader) time() time.Time {
	switch r.byte() {
	case 0:
		return time.Time{}
	case 1:
	default:
		r.fail(errors.New("time flag"))
		return time.Time{}
	}
	v, n := binary.Varint(r.rest)
	if n <= 0 {
		r.fail(errShort)
		return time.Time{}
	}
	r.rest = r.rest[n:]
	return time.UnixMicro(v).UTC()
}

func (r *frameReader) values(n int, arena *[]Value, left int) []Value {
	if n > len(r.rest) { // each value takes a byte at least
		r.fail(errShort)
		return nil
	}
	if n > cap(*arena)-len(*arena) || *arena == nil {
		*arena = make([]Value, 0, max(n, min(n*left, 1024, len(r.rest))))
	}
	from := len(*arena)
	for range n {
		*arena = append(*arena, r.value())
	}
	return (*arena)[from:len(*arena):len(*arena)]
}

func (r *frameReader) value() Value {
	switch v := r.uvarint(); v {
	case valueAbsent:
		return Value{}
	case valueNull:
		return Value{Kind: Null}
	case valueUnchanged:
		return Value{Kind: Unchanged}
	default:
		n := v - valueText
		if n > maxValue || n > uint64(len(r.rest)) {
			r.fail(errShort)
			return Value{}
		}
		b := r.rest[:n:n]
		r.rest = r.rest[n:]
		return Value{Kind: Text, Bytes: b}
	}
}

func (r *frameReader) marker() Marker {
	var m Marker
	body := r.bytes(maxValue)
	if r.err != nil {
		return m
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(&m); err != nil {
		r.fail(fmt.Errorf("marker: %w", err))
	} else if m.Kind != MarkerClosed && m.Kind != MarkerOpened {
		r.fail(fmt.Errorf("marker of unknown kind %q", m.Kind))
	}
	return m
}

func (r *frameReader) epochs() Epochs {
	n := r.count(2)
	out := make(Epochs, min(n, 64))
	for range n {
		ks := topo.KeyspaceID(r.name())
		buckets := r.count(2)
		if r.err != nil {
			return nil
		}
		in := make(map[topo.BucketID]topo.Epoch, min(buckets, 1024))
		for range buckets {
			in[r.bucket()] = topo.Epoch(r.uvarint())
		}
		out[ks] = in
	}
	return out
}
