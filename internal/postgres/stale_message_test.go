package postgres

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

func tailMessages() []tailMessage {
	table := &change.Table{ID: 7, Schema: "public", Name: "Ödd \"t\"", Identity: 'd', Columns: []change.Column{{Name: "id", Type: 23, Key: true}, {Name: "v", Type: 25}}}
	row := &change.Row{Op: change.Update, Table: table}
	key := []change.Value{{Kind: change.Text, Bytes: []byte("1")}, {}}
	whole := []change.Value{{Kind: change.Text, Bytes: []byte("1")}, {Kind: change.Null}}
	return []tailMessage{newTailMessage("a", tailHas, row, nil), newTailMessage("a", tailDelete, row, key), newTailMessage("a", tailInsert, row, whole)}
}

func TestTailMessageRoundTrip(t *testing.T) {
	t.Parallel()
	for _, m := range tailMessages() {
		got, err := parseTailMessage(m.encode())
		if err != nil || !reflect.DeepEqual(*got, m) {
			t.Fatalf("%v\ngot  %+v\nwant %+v", err, got, m)
		}
	}
}

// FuzzTailMessage: whatever a session writes into the stream, it is refused or gives a row that fits its table.
func FuzzTailMessage(f *testing.F) {
	for _, m := range tailMessages() {
		f.Add(m.encode())
	}
	f.Add([]byte(`{"site":"a","do":"delete","schema":"atoll","name":"bucket","columns":[{"Name":"site"}],"row":{"site":"a"}}`))
	f.Add([]byte(`{"site":"a","do":"insert","schema":"s","name":"t","columns":[{"Name":"x"},{"Name":"x"}],"row":{"x":null}} `))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseTailMessage(data)
		if err != nil {
			return
		}
		again, err := parseTailMessage(m.encode())
		if err != nil || !reflect.DeepEqual(m, again) && len(m.Columns)+len(m.Row) > 0 {
			t.Fatalf("second round: %v\n%+v\n%+v", err, m, again)
		}
		if m.Do == tailHas {
			return
		}
		row := m.change(tailTables{}.table(m))
		frame := change.EncodeTx(&change.Tx{Origin: "b", First: true, Last: true, Rows: []change.Row{row}})
		if _, err := change.DecodeTx(frame); err != nil && len(m.Name)+len(m.Schema) < 100 && !bytes.Contains(data, make([]byte, 200)) && len(data) < 200 {
			t.Fatalf("does not travel: %v", err)
		}
	})
}

// What an application writes with the prefix is not taken for a decision, unless it could be one: the stream stops.
func TestForgedTailMessages(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"no JSON":     "x",
		"fence row":   `{"site":"%s","do":"delete","id":1,"schema":"atoll","name":"bucket","identity":100,"columns":[{"Name":"site"}],"row":{"site":"x"}}`,
		"other table": `{"site":"%s","do":"delete","id":1,"schema":"public","name":"other","identity":100,"columns":[{"Name":"id"}],"row":{"id":"1"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := newStreamSites(t, "CREATE TABLE t (id int PRIMARY KEY)", keyedTable("t", "id"))
			l := newStreamLink(a, b).start()
			a.exec("SELECT pg_logical_emit_message(true, '"+tailPrefix+"', replace($1::text, '%s', $2))", content, string(b.id))
			l.fails(tailPrefix)
		})
	}
	t.Run("about another site", func(t *testing.T) {
		t.Parallel()
		a, b := newStreamSites(t, "CREATE TABLE t (id int PRIMARY KEY)", keyedTable("t", "id"))
		l := newStreamLink(a, b).start()
		a.exec("INSERT INTO t VALUES (1)")
		m := newTailMessage(topo.SiteID("elsewhere"), tailDelete, &change.Row{Table: &change.Table{Schema: "public", Name: "t", Columns: []change.Column{{Name: "id", Type: 23, Key: true}}}},
			[]change.Value{{Kind: change.Text, Bytes: []byte("1")}})
		a.exec("SELECT pg_logical_emit_message(true, '"+tailPrefix+"', $1::text)", string(m.encode()))
		a.exec("INSERT INTO t VALUES (2)")
		l.settle()
		equal(a, b, "t")
	})
}
