package postgres

import (
	"encoding/binary"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/change"
)

// pgWire builds pgoutput messages by hand, as the manual describes them.
type pgWire []byte

func (w pgWire) u8(v byte) pgWire    { return append(w, v) }
func (w pgWire) u16(v int) pgWire    { return binary.BigEndian.AppendUint16(w, uint16(v)) }
func (w pgWire) u32(v uint32) pgWire { return binary.BigEndian.AppendUint32(w, v) }
func (w pgWire) u64(v uint64) pgWire { return binary.BigEndian.AppendUint64(w, v) }
func (w pgWire) str(s string) pgWire { return append(append(w, s...), 0) }

// tuple takes "=text", "n" or "u" per column.
func (w pgWire) tuple(values ...string) pgWire {
	w = w.u16(len(values))
	for _, v := range values {
		if text, ok := strings.CutPrefix(v, "="); ok {
			w = append(w.u8('t').u32(uint32(len(text))), text...)
		} else {
			w = w.u8(v[0])
		}
	}
	return w
}

var relationMessage = pgWire("R").u32(7).str("public").str("t").u8('d').u16(2).
	u8(1).str("id").u32(23).u32(0xffffffff).u8(0).str("v").u32(25).u32(0xffffffff)

func image(values ...string) []change.Value {
	var out []change.Value
	for _, v := range values {
		switch text, ok := strings.CutPrefix(v, "="); {
		case ok:
			out = append(out, change.Value{Kind: change.Text, Bytes: []byte(text)})
		case v == "n":
			out = append(out, change.Value{Kind: change.Null})
		case v == "u":
			out = append(out, change.Value{Kind: change.Unchanged})
		default:
			out = append(out, change.Value{})
		}
	}
	return out
}

func TestPgoutputRows(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		message  pgWire
		op       change.Op
		old, new []change.Value
	}{
		"insert":                          {pgWire("I").u32(7).u8('N').tuple("=1", "n"), change.Insert, nil, image("=1", "n")},
		"insert of an empty text":         {pgWire("I").u32(7).u8('N').tuple("=1", "="), change.Insert, nil, image("=1", "=")},
		"update":                          {pgWire("U").u32(7).u8('N').tuple("=1", "=x"), change.Update, nil, image("=1", "=x")},
		"update, toasted value untouched": {pgWire("U").u32(7).u8('N').tuple("=1", "u"), change.Update, nil, image("=1", "u")},
		"key update, toasted value untouched": {pgWire("U").u32(7).u8('K').tuple("=1", "n").u8('N').tuple("=2", "u"), change.Update,
			image("=1", "absent"), image("=2", "u")},
		"update with a whole old row": {pgWire("U").u32(7).u8('O').tuple("=1", "=long").u8('N').tuple("=2", "u"), change.Update,
			image("=1", "=long"), image("=2", "=long")},
		"delete by key": {pgWire("D").u32(7).u8('K').tuple("=1", "n"), change.Delete, image("=1", "absent"), nil},
		"delete, whole": {pgWire("D").u32(7).u8('O').tuple("=1", "n"), change.Delete, image("=1", "n"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := newPgDecoder()
			var m pgMessage
			if err := d.decode(relationMessage, &m); err != nil {
				t.Fatal(err)
			}
			if err := d.decode(c.message, &m); err != nil {
				t.Fatal(err)
			}
			if m.row.Op != c.op || !reflect.DeepEqual(m.row.Old, c.old) || !reflect.DeepEqual(m.row.New, c.new) {
				t.Fatalf("got op %d\nold %v\nnew %v", m.row.Op, m.row.Old, m.row.New)
			}
		})
	}
}

func TestPgoutputTransaction(t *testing.T) {
	t.Parallel()
	d := newPgDecoder()
	var m pgMessage
	if err := d.decode(pgWire("B").u64(0x1_0000_0010).u64(1_000_001).u32(99), &m); err != nil {
		t.Fatal(err)
	}
	if want := time.Date(2000, 1, 1, 0, 0, 1, 1000, time.UTC); m.commit != 0x1_0000_0010 || m.xid != 99 || !m.committed.Equal(want) {
		t.Fatalf("begin: %+v", m)
	}
	if err := d.decode(pgWire("C").u8(0).u64(5).u64(9).u64(0), &m); err != nil || m.end != 9 {
		t.Fatalf("commit: %v %+v", err, m)
	}
	if err := d.decode(append(pgWire("M").u8(1).u64(3).str("atoll").u32(1), 'a'), &m); err != nil || !m.transactional || m.prefix != "atoll" || string(m.content) != "a" {
		t.Fatalf("message: %v %+v", err, m)
	}
}

func TestPgoutputKeepsEqualDefinitions(t *testing.T) {
	t.Parallel()
	d := newPgDecoder()
	var m pgMessage
	for range 2 {
		if err := d.decode(relationMessage, &m); err != nil {
			t.Fatal(err)
		}
	}
	first := d.tables[7]
	if err := d.decode(relationMessage, &m); err != nil || d.tables[7] != first {
		t.Fatal("an equal definition replaced the table")
	}
	if err := d.decode(pgWire("R").u32(7).str("public").str("t").u8('d').u16(1).u8(1).str("id").u32(23).u32(0), &m); err != nil || d.tables[7] == first {
		t.Fatal("a new definition did not replace the table")
	}
}

// FuzzPgoutput: no bytes make the decoder panic, and rows always have a value per column.
func FuzzPgoutput(f *testing.F) {
	for _, m := range []pgWire{
		pgWire("B").u64(16).u64(1).u32(9), pgWire("C").u8(0).u64(5).u64(9).u64(0), pgWire("O").u64(1).str("atoll_b"), relationMessage,
		pgWire("Y").u32(1).str("public").str("mood"), pgWire("I").u32(7).u8('N').tuple("=1", "n"),
		pgWire("U").u32(7).u8('K').tuple("=1", "n").u8('N').tuple("=2", "u"), pgWire("D").u32(7).u8('O').tuple("=1", "n"),
		pgWire("T").u32(1).u8(0).u32(7), append(pgWire("M").u8(1).u64(3).str("atoll").u32(1), 'a'),
	} {
		f.Add([]byte(m))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := newPgDecoder()
		var m pgMessage
		if err := d.decode(relationMessage, &m); err != nil {
			t.Fatal(err)
		}
		if err := d.decode(data, &m); err != nil {
			return
		}
		switch m.kind {
		case 'I', 'U', 'D':
			for _, image := range [][]change.Value{m.row.Old, m.row.New} {
				if image != nil && len(image) != len(m.row.Table.Columns) {
					t.Fatalf("%d values from %s", len(image), hex.EncodeToString(data))
				}
			}
			if err := newRowChecker().check(&m.row); err != nil {
				t.Log(err)
			}
		}
	})
}

// newRowChecker stamps rows as capture does, so that the fuzzer reaches that code too.
func newRowChecker() *rowChecker {
	return &rowChecker{newStamper(&CaptureConfig{Site: "a", Tables: []TableSpec{{Schema: "public", Name: "t", Kind: "keyed", Keyspace: "users", Key: "id"}},
		Keyspaces: usersKeyspace}, nil)}
}

type rowChecker struct{ *stamper }

func (c *rowChecker) check(row *change.Row) error {
	_, err := c.stamp(row)
	return err
}
