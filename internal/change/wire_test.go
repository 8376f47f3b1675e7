package change

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
	"pgregory.net/rapid"
)

func drawTables(t *rapid.T) []*Table {
	name := rapid.StringN(0, 20, 200)
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *Table {
		return &Table{
			ID: rapid.Uint32().Draw(t, "id"), Schema: name.Draw(t, "schema"), Name: name.Draw(t, "name"),
			Identity: rapid.SampledFrom([]byte("difn")).Draw(t, "identity"),
			Columns: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Column {
				return Column{Name: name.Draw(t, "column"), Type: rapid.Uint32().Draw(t, "type"), Key: rapid.Bool().Draw(t, "key")}
			}), 1, 5).Draw(t, "columns"),
		}
	}), 1, 3).Draw(t, "tables")
}

func drawValues(t *rapid.T, n int) []Value {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Value {
		v := Value{Kind: ValueKind(rapid.IntRange(0, 3).Draw(t, "kind"))}
		if v.Kind == Text {
			v.Bytes = append([]byte{}, rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "bytes")...)
		}
		return v
	}), n, n).Draw(t, "values")
}

func drawRow(t *rapid.T, tables []*Table) Row {
	row := Row{Op: Op(rapid.IntRange(1, 4).Draw(t, "op")), Table: rapid.SampledFrom(tables).Draw(t, "table")}
	n := len(row.Table.Columns)
	if row.Op == Insert || row.Op == Update {
		row.New = drawValues(t, n)
	}
	if row.Op == Delete || row.Op == Update && rapid.Bool().Draw(t, "old") {
		row.Old = drawValues(t, n)
	}
	if row.Keyspace = rapid.SampledFrom([]topo.KeyspaceID{"", "users", "catalog"}).Draw(t, "keyspace"); row.Keyspace != "" {
		row.NewBucket = topo.BucketID(rapid.IntRange(0, topo.MaxBuckets-1).Draw(t, "new bucket"))
		row.OldBucket = topo.BucketID(rapid.IntRange(0, topo.MaxBuckets-1).Draw(t, "old bucket"))
		row.NewEpoch, row.OldEpoch = topo.Epoch(rapid.Uint64().Draw(t, "e")), topo.Epoch(rapid.Uint64().Draw(t, "f"))
	}
	return row
}

func TestTxRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tables := drawTables(t)
		var enc Encoder
		var dec Decoder
		for range rapid.IntRange(1, 4).Draw(t, "transactions") {
			tx := Tx{
				Origin: "a", Position: Position(rapid.Uint64().Draw(t, "position")), XID: rapid.Uint64().Draw(t, "xid"),
				First: rapid.Bool().Draw(t, "first"), Last: rapid.Bool().Draw(t, "last"),
			}
			if rapid.Bool().Draw(t, "timed") {
				tx.Committed = time.UnixMicro(rapid.Int64Range(-1<<52, 1<<52).Draw(t, "at")).UTC()
			}
			if rapid.Bool().Draw(t, "marked") {
				tx.Markers = []Marker{{Kind: MarkerClosed, Site: "a", Handover: "h", Keyspace: "users",
					Buckets: []topo.EpochSpan{{First: 0, Last: 24, Epoch: 7}}, Vector: topo.Vector{"b": 12}}}
			}
			for range rapid.IntRange(0, 5).Draw(t, "rows") {
				tx.Rows = append(tx.Rows, drawRow(t, tables))
			}
			got, err := dec.Tx(enc.AppendTx(nil, &tx))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tx) {
				t.Fatalf("got  %+v\nwant %+v", got, tx)
			}
			if alone, err := DecodeTx(EncodeTx(&tx)); err != nil || !reflect.DeepEqual(alone, tx) {
				t.Fatalf("stand-alone: %v: %+v", err, alone)
			}
		}
	})
}

func TestCopyRoundTrip(t *testing.T) {
	t.Parallel()
	table := &Table{ID: 7, Schema: "public", Name: "Ödd \"name\"", Identity: 'd', Columns: []Column{{Name: "id", Type: 23, Key: true}}}
	var enc Encoder
	var dec Decoder
	for _, c := range []Copy{
		{Table: table, Data: []byte("1\n2\n")},
		{Table: table, Data: []byte{}},
		{Done: true, Position: 1 << 60, Epochs: Epochs{"users": {0: 1, 1023: 9}, "catalog": {0: 3}}},
		{Done: true, Epochs: Epochs{}},
	} {
		got, err := dec.Copy(enc.AppendCopy(nil, &c))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, c) {
			t.Fatalf("got  %+v\nwant %+v", got, c)
		}
	}
}

func TestDictionaryStartsAgainWhenFull(t *testing.T) {
	t.Parallel()
	var enc Encoder
	var dec Decoder
	for i := range 3 * maxTables {
		tx := Tx{Rows: []Row{{Op: Truncate, Table: &Table{ID: uint32(i), Name: "t"}}}}
		got, err := dec.Tx(enc.AppendTx(nil, &tx))
		if err != nil {
			t.Fatal(err)
		}
		if got.Rows[0].Table.ID != uint32(i) {
			t.Fatalf("table %d came out as %d", i, got.Rows[0].Table.ID)
		}
		if len(dec.tables) > maxTables {
			t.Fatalf("decoder holds %d tables", len(dec.tables))
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	whole := EncodeTx(&Tx{Origin: "a", Rows: []Row{{Op: Insert, Table: &Table{Name: "t", Columns: []Column{{Name: "c"}}}, New: []Value{{Kind: Text, Bytes: []byte("x")}}}}})
	for i := range whole {
		if _, err := DecodeTx(whole[:i]); err == nil {
			t.Fatalf("%d of %d bytes were taken for a whole frame", i, len(whole))
		}
	}
	newer := bytes.Clone(whole)
	newer[0] = Format + 1
	if _, err := DecodeTx(newer); !errors.Is(err, ErrNewerFormat) {
		t.Fatalf("newer format: %v", err)
	}
	if _, err := DecodeTx(append(bytes.Clone(whole), 0)); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Fatalf("trailing byte: %v", err)
	}
	if _, err := new(Decoder).Copy(whole); err == nil {
		t.Fatal("a transaction was taken for a copy")
	}
}

// FuzzDecode: nothing that arrives makes the decoder panic or allocate far beyond what arrived, and what it accepts
// survives another round.
func FuzzDecode(f *testing.F) {
	table := &Table{ID: 1, Schema: "public", Name: "t", Identity: 'd', Columns: []Column{{Name: "id", Type: 23, Key: true}, {Name: "v", Type: 25}}}
	f.Add(EncodeTx(&Tx{Origin: "a", Position: 99, XID: 5, First: true, Last: true, Committed: time.UnixMicro(1).UTC(),
		Markers: []Marker{{Kind: MarkerOpened, Site: "a"}},
		Rows: []Row{
			{Op: Insert, Table: table, Keyspace: "users", NewBucket: 3, NewEpoch: 2, New: []Value{{Kind: Text, Bytes: []byte("1")}, {Kind: Null}}},
			{Op: Update, Table: table, Old: []Value{{Kind: Text, Bytes: []byte("1")}, {}}, New: []Value{{Kind: Text, Bytes: []byte("2")}, {Kind: Unchanged}}},
			{Op: Truncate, Table: table},
		}}))
	f.Add(new(Encoder).AppendCopy(nil, &Copy{Table: table, Data: []byte("1\tx\n")}))
	f.Add(new(Encoder).AppendCopy(nil, &Copy{Done: true, Position: 3, Epochs: Epochs{"users": {1: 2}}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if tx, err := DecodeTx(data); err == nil {
			again, err := DecodeTx(EncodeTx(&tx))
			if err != nil || !reflect.DeepEqual(tx, again) {
				t.Fatalf("second round: %v\n%+v\n%+v", err, tx, again)
			}
		}
		if c, err := new(Decoder).Copy(data); err == nil {
			if again, err := new(Decoder).Copy(new(Encoder).AppendCopy(nil, &c)); err != nil || !reflect.DeepEqual(c, again) {
				t.Fatalf("second round: %v\n%+v\n%+v", err, c, again)
			}
		}
	})
}

func BenchmarkTx(b *testing.B) {
	table := &Table{ID: 1, Schema: "public", Name: "accounts", Identity: 'd', Columns: []Column{{Name: "aid", Key: true}, {Name: "bid"}, {Name: "abalance"}, {Name: "filler"}}}
	text := func(s string) Value { return Value{Kind: Text, Bytes: []byte(s)} }
	tx := Tx{Origin: "a", First: true, Last: true, Position: Position(rand.Uint64() >> 1), Committed: time.Now(), Rows: make([]Row, 4)}
	for i := range tx.Rows {
		tx.Rows[i] = Row{Op: Update, Table: table, Keyspace: "users", NewBucket: 7, OldBucket: 7, NewEpoch: 3, OldEpoch: 3,
			New: []Value{text("123456"), text("1"), text("-3311"), text(strings.Repeat(" ", 84))}}
	}
	var enc Encoder
	var dec Decoder
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = enc.AppendTx(buf[:0], &tx)
		if _, err := dec.Tx(buf); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(buf)))
}
