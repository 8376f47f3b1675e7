package postgres

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// tailPrefix is the prefix of the logical messages by which a decision about a lost site's tail tells capture what to
// say to that site beyond the rows that were written here.
const tailPrefix = "atoll tail"

// What a message says.
const (
	tailHas    = "has"    // the site has the next change of the table already, for it is the site's own
	tailDelete = "delete" // the site has a version of a row that was not taken: it must go
	tailInsert = "insert" // the site deleted a version of a row that was kept: it must come back
)

// tailMessage is one such message. The table is described as the site itself described it.
type tailMessage struct {
	Site     topo.SiteID        `json:"site"`
	Do       string             `json:"do"`
	Op       change.Op          `json:"op,omitempty"` // with has
	ID       uint32             `json:"id"`
	Schema   string             `json:"schema"`
	Name     string             `json:"name"`
	Identity byte               `json:"identity"`
	Columns  []change.Column    `json:"columns,omitempty"` // without has
	Row      map[string]*string `json:"row,omitempty"`     // by column; what is not named is not known
}

const maxTailColumns = 1664 // PostgreSQL's limit for a row

func newTailMessage(site topo.SiteID, do string, row *change.Row, image []change.Value) tailMessage {
	m := tailMessage{Site: site, Do: do, ID: row.Table.ID, Schema: row.Table.Schema, Name: row.Table.Name, Identity: row.Table.Identity}
	if do == tailHas {
		m.Op = row.Op
		return m
	}
	m.Columns, m.Row = row.Table.Columns, make(map[string]*string, len(image))
	for i, v := range image {
		switch v.Kind {
		case change.Null:
			m.Row[m.Columns[i].Name] = nil
		case change.Text:
			text := string(v.Bytes)
			m.Row[m.Columns[i].Name] = &text
		}
	}
	return m
}

func (m tailMessage) encode() []byte {
	out, err := json.Marshal(m)
	if err != nil {
		panic("BUG: a tail message does not marshal: " + err.Error())
	}
	return out
}

// parseTailMessage reads a message from the stream. Whatever may write to the database may write one.
func parseTailMessage(content []byte) (*tailMessage, error) {
	m := new(tailMessage)
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.DisallowUnknownFields()
	err := dec.Decode(m)
	if err == nil {
		if _, more := dec.Token(); more != io.EOF {
			err = errors.New("bytes behind it")
		}
	}
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return nil, fmt.Errorf("message with prefix %q: %w; does something else than Atoll write such messages?", tailPrefix, err)
	}
	return m, nil
}

func (m *tailMessage) check() error {
	switch {
	case m.Site == "" || m.Schema == "" || m.Name == "" || m.Schema == "atoll":
		return errors.New("it names no site, or no table of an application")
	case m.Do == tailHas:
		if m.Op < change.Insert || m.Op > change.Delete || len(m.Columns) > 0 || len(m.Row) > 0 {
			return errors.New("it names no operation, or more than one")
		}
		return nil
	case m.Do != tailDelete && m.Do != tailInsert:
		return fmt.Errorf("it says %q", m.Do)
	case m.Op != 0 || len(m.Columns) == 0 || len(m.Columns) > maxTailColumns || len(m.Row) == 0:
		return fmt.Errorf("%d columns with %d values", len(m.Columns), len(m.Row))
	}
	known := make(map[string]bool, len(m.Columns))
	for _, c := range m.Columns {
		if c.Name == "" || known[c.Name] {
			return fmt.Errorf("column %q is named twice, or not at all", c.Name)
		}
		known[c.Name] = true
	}
	for name := range m.Row {
		if !known[name] {
			return fmt.Errorf("a value for column %q, which the table does not have", name)
		}
	}
	if m.Do == tailInsert && len(m.Row) != len(m.Columns) {
		return errors.New("a row that lacks columns")
	}
	return nil
}

// change is the row change that the message asks for, without its stamps.
func (m *tailMessage) change(table *change.Table) change.Row {
	image := make([]change.Value, len(m.Columns))
	for i, c := range m.Columns {
		switch text, sent := m.Row[c.Name]; {
		case sent && text == nil:
			image[i] = change.Value{Kind: change.Null}
		case sent:
			image[i] = change.Value{Kind: change.Text, Bytes: []byte(*text)}
		}
	}
	if m.Do == tailDelete {
		return change.Row{Op: change.Delete, Table: table, Old: image}
	}
	return change.Row{Op: change.Insert, Table: table, New: image}
}
