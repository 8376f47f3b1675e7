package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/atollhq/atoll/internal/change"
)

// tailTables keeps the tables that messages describe, so that equal definitions stay one.
type tailTables map[string]*change.Table

func (t tailTables) table(m *tailMessage) *change.Table {
	name := m.Schema + "." + m.Name
	if old := t[name]; old != nil && old.ID == m.ID && old.Identity == m.Identity && slices.Equal(old.Columns, m.Columns) {
		return old
	}
	t[name] = &change.Table{ID: m.ID, Schema: m.Schema, Name: m.Name, Identity: m.Identity, Columns: m.Columns}
	return t[name]
}

// tailWord hears what a decision of this site about a lost site's tail has to say to the target. To any other target
// the decision's rows say it all.
func (s *captureStream) tailWord(ctx context.Context, content []byte) error {
	if s.foreign {
		return nil // another site's stream brought it about; what it decided is not this site's word
	}
	m, err := parseTailMessage(content)
	if err != nil {
		return fmt.Errorf("transaction %d: %w", s.tx.XID, err)
	}
	s.has = nil
	if m.Site != s.cfg.Target {
		return nil
	}
	if m.Do == tailHas {
		s.has = m
		return nil
	}
	if spec, known := s.stamper.tables[m.Schema+"."+m.Name]; !known || !spec.Fenced() {
		return fmt.Errorf("transaction %d: a message with prefix %q about table %s.%s, which is not fenced", s.tx.XID, tailPrefix, m.Schema, m.Name)
	}
	row := m.change(s.tailTables.table(m))
	return s.row(ctx, row, len(content))
}

// hasIt tells whether the target has a row change already: a message right before it says so.
func (s *captureStream) hasIt(row *change.Row) bool {
	m := s.has
	s.has = nil
	return m != nil && m.Op == row.Op && m.Schema == row.Table.Schema && m.Name == row.Table.Name
}

var errNoMessage = errors.New("the message was not written")

// say writes a message into the open transaction.
func (s *applySession) say(ctx context.Context, m tailMessage) error {
	rows, _, err := s.run(ctx, "SELECT pg_logical_emit_message(true, '"+tailPrefix+"', $1::text)", m.encode())
	if err == nil && len(rows) != 1 {
		err = errNoMessage
	}
	return err
}
