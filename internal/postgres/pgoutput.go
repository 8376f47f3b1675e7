package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/change"
)

// postgresEpoch is the zero of PostgreSQL's timestamps, in microseconds since 1970.
const postgresEpoch = 946684800_000_000

// pgMessage is one message of the pgoutput plugin, protocol version 1 ("Logical Replication Message Formats" in
// PostgreSQL's manual). Which fields are set depends on kind.
type pgMessage struct {
	kind byte // 'B' begin, 'C' commit, 'O' origin, 'R' relation, 'Y' type, 'I' 'U' 'D' row, 'T' truncate, 'M' message

	commit    uint64    // B: where the commit record begins
	end       uint64    // C: behind the commit record
	committed time.Time // B
	xid       uint32    // B

	row       change.Row      // I U D; Op, Table, Old, New
	truncated []*change.Table // T

	transactional bool   // M
	prefix        string // M
	content       []byte // M
}

// pgDecoder takes pgoutput's messages apart and remembers the tables that the server described. The values of the
// rows that it returns point into the message's bytes.
type pgDecoder struct {
	tables map[uint32]*change.Table
	arena  []change.Value
}

func newPgDecoder() *pgDecoder { return &pgDecoder{tables: make(map[uint32]*change.Table)} }

// decode reads one message into m.
func (d *pgDecoder) decode(data []byte, m *pgMessage) error {
	r := &pgReader{rest: data}
	*m = pgMessage{kind: r.byte()}
	switch m.kind {
	case 'B':
		m.commit = r.uint64()
		m.committed = time.UnixMicro(int64(r.uint64()) + postgresEpoch).UTC()
		m.xid = r.uint32()
	case 'C':
		r.byte() // flags, unused
		r.uint64()
		m.end = r.uint64()
		r.uint64()
	case 'O':
		r.uint64()
		r.string()
	case 'R':
		d.relation(r)
	case 'Y':
		r.uint32()
		r.string()
		r.string()
	case 'I', 'U', 'D':
		d.row(r, m)
	case 'T':
		d.truncate(r, m)
	case 'M':
		m.transactional = r.byte()&1 != 0
		r.uint64()
		m.prefix = r.string()
		m.content = r.bytes(int(r.uint32()))
	default:
		r.fail(errors.New("unknown kind"))
	}
	if r.err == nil && len(r.rest) > 0 {
		r.err = fmt.Errorf("%d bytes too many", len(r.rest))
	}
	if r.err != nil {
		return fmt.Errorf("pgoutput message %q: %w", m.kind, r.err)
	}
	return nil
}

func (d *pgDecoder) relation(r *pgReader) {
	t := &change.Table{ID: r.uint32(), Schema: r.string(), Name: r.string(), Identity: r.byte()}
	if t.Schema == "" {
		t.Schema = "pg_catalog" // the manual: empty stands for pg_catalog
	}
	n := int(r.uint16())
	for range n {
		if r.err != nil {
			return
		}
		c := change.Column{Key: r.byte()&1 != 0, Name: r.string(), Type: r.uint32()}
		r.uint32() // type modifier
		t.Columns = append(t.Columns, c)
	}
	if r.err != nil {
		return
	}
	// The server describes a table again after any invalidation; equal definitions keep their identity.
	if old := d.tables[t.ID]; old == nil || old.Schema != t.Schema || old.Name != t.Name || old.Identity != t.Identity ||
		!slices.Equal(old.Columns, t.Columns) {
		d.tables[t.ID] = t
	}
}

func (d *pgDecoder) table(r *pgReader) *change.Table {
	id := r.uint32()
	t := d.tables[id]
	if t == nil {
		r.fail(fmt.Errorf("table %d was never described", id))
	}
	return t
}

func (d *pgDecoder) row(r *pgReader, m *pgMessage) {
	t := d.table(r)
	if r.err != nil {
		return
	}
	m.row.Table = t
	tag := r.byte()
	if m.kind != 'I' && (tag == 'K' || tag == 'O') {
		m.row.Old = d.tuple(r, t)
		if tag == 'K' {
			for i := range m.row.Old { // the server fills columns outside the key with NULL
				if !t.Columns[i].Key {
					m.row.Old[i] = change.Value{}
				}
			}
		}
		if m.kind == 'U' {
			full := tag == 'O'
			if tag = r.byte(); tag == 'N' {
				m.row.New = d.tuple(r, t)
				if full {
					fillUnchanged(m.row.New, m.row.Old)
				}
			}
		}
	} else if m.kind != 'D' && tag == 'N' {
		m.row.New = d.tuple(r, t)
	}
	switch m.kind {
	case 'I':
		m.row.Op = change.Insert
	case 'U':
		m.row.Op = change.Update
	case 'D':
		m.row.Op = change.Delete
	}
	if (m.row.New == nil) != (m.kind == 'D') || m.row.Old == nil && m.kind == 'D' {
		r.fail(fmt.Errorf("row image %q", tag))
	}
}

// fillUnchanged completes a new image from a whole old one: what the update did not touch is what it was.
func fillUnchanged(image, old []change.Value) {
	for i := range image {
		if i < len(old) && image[i].Kind == change.Unchanged && old[i].Kind == change.Text {
			image[i] = old[i]
		}
	}
}

func (d *pgDecoder) tuple(r *pgReader, t *change.Table) []change.Value {
	n := int(r.uint16())
	if r.err == nil && n != len(t.Columns) {
		r.fail(fmt.Errorf("%d values for the %d columns of %s.%s", n, len(t.Columns), t.Schema, t.Name))
	}
	if r.err != nil {
		return nil
	}
	if n > cap(d.arena)-len(d.arena) || d.arena == nil {
		d.arena = make([]change.Value, 0, max(n, 512))
	}
	from := len(d.arena)
	for range n {
		var v change.Value
		switch tag := r.byte(); tag {
		case 'n':
			v.Kind = change.Null
		case 'u':
			v.Kind = change.Unchanged
		case 't':
			v = change.Value{Kind: change.Text, Bytes: r.bytes(int(r.uint32()))}
		default:
			r.fail(fmt.Errorf("value of kind %q", tag))
		}
		d.arena = append(d.arena, v)
	}
	return d.arena[from:len(d.arena):len(d.arena)]
}

func (d *pgDecoder) truncate(r *pgReader, m *pgMessage) {
	n := int(r.uint32())
	r.byte() // CASCADE and RESTART IDENTITY: the server lists the tables that CASCADE reached; sequences stay local
	if n > len(r.rest)/4 {
		r.fail(errShortMessage)
	}
	for range n {
		if r.err != nil {
			return
		}
		m.truncated = append(m.truncated, d.table(r))
	}
}

// pgReader takes a message apart; the first error sticks and every later read gives zero.
type pgReader struct {
	rest []byte
	err  error
}

var errShortMessage = errors.New("ends too early")

func (r *pgReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.rest = nil
}

func (r *pgReader) bytes(n int) []byte {
	if n < 0 || n > len(r.rest) {
		r.fail(errShortMessage)
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *pgReader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *pgReader) uint16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *pgReader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *pgReader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *pgReader) string() string {
	for i, b := range r.rest {
		if b == 0 {
			s := string(r.rest[:i])
			r.rest = r.rest[i+1:]
			return s
		}
	}
	r.fail(errShortMessage)
	return ""
}
