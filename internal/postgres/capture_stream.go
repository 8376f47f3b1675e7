package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/plant"
)

const (
	takeOverBound  = 10 * time.Second // for an earlier walsender of this slot to end
	statusEvery    = time.Second
	askEvery       = 10 * time.Millisecond
	mostAsks       = 50       // of one wait: what was committed is on disk within half a second, or is waited for in another way
	idleBytes      = 16 << 20 // an idle stream moves on at once when this much WAL passed by
	maxWALMessage  = 1<<30 + 1<<20
	slabBytes      = 64 << 10
	rowOverhead    = 128 // what a row costs in memory besides its bytes
	walsenderInUse = "55006"
)

// start begins streaming behind from. A walsender of an earlier Run that still holds the slot is ended: whoever asks
// last serves the target.
func (c *Capture) start(ctx context.Context, from change.Position, version int) (*pgconn.HijackedConn, error) {
	options := `proto_version '1', publication_names '"` + PublicationName + `"', messages 'true'`
	if version >= 160000 {
		options += `, origin 'none'`
	}
	command := fmt.Sprintf(`START_REPLICATION SLOT "%s" LOGICAL %s (%s)`, c.slot, lsn(from), options)
	deadline := time.Now().Add(takeOverBound)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := c.startOnce(ctx, command)
		if sqlState(err) != walsenderInUse || time.Now().After(deadline) {
			return conn, err
		}
		err = c.admin(ctx, func(conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL", c.slot)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("take slot %s over: %w", c.slot, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

func (c *Capture) startOnce(ctx context.Context, command string) (*pgconn.HijackedConn, error) {
	pg, err := c.walsender(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := pg.Hijack()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fail := func(err error) (*pgconn.HijackedConn, error) {
		conn.Conn.Close()
		return nil, err
	}
	conn.Frontend.SetMaxBodyLen(maxWALMessage)
	conn.Frontend.SendQuery(&pgproto3.Query{String: command})
	if err := conn.Frontend.Flush(); err != nil {
		return fail(err)
	}
	for {
		msg, err := conn.Frontend.Receive()
		if err != nil {
			return fail(err)
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyBothResponse:
			return conn, nil
		case *pgproto3.ErrorResponse:
			return fail(pgconn.ErrorResponseToPgError(msg))
		}
	}
}

// captureStream is one Run: the walsender's messages in, transactions out.
type captureStream struct {
	*Capture
	conn    net.Conn
	front   *pgproto3.Frontend
	emit    func(context.Context, change.Tx) error
	decoder *pgDecoder
	stamper *stamper
	slab    []byte

	tx      *change.Tx      // the transaction that is being received
	begins  change.Position // where its commit record does: nothing of another transaction stands between last and there
	bytes   int             // how much of it is waiting to be emitted
	foreign bool            // it did not begin here, and is dropped
	point   bool            // the target is to hear of it, also if it brings nothing
	has     *tailMessage

	tailTables tailTables

	idle   change.Position // everything up to here was emitted, or is of no concern to the target
	last   change.Position // of what was emitted last
	lastAt time.Time
}

// run reads until ctx ends or something fails. The status goroutine is joined before run returns.
func (s *captureStream) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { s.conn.SetDeadline(time.Unix(1, 0)) })
	status := make(chan struct{})
	go func() {
		defer close(status)
		if err := s.reportStatus(ctx); err != nil {
			cancel(err)
		}
	}()
	err := s.read(ctx)
	if cause := context.Cause(ctx); cause != nil {
		err = cause // the read failed because of it
	}
	cancel(err)
	<-status
	stop()
	s.conn.Close()
	return err
}

// reportStatus tells the server what is flushed: at once when that moves, and every second, so that the server neither
// gives the connection up nor keeps silent about its own position.
func (s *captureStream) reportStatus(ctx context.Context) error {
	tick := time.NewTicker(min(statusEvery, s.cfg.IdleEvery))
	defer tick.Stop()
	for {
		var ask byte
		select {
		case <-ctx.Done():
			return nil
		case <-s.confirmed:
		case <-s.asked:
			ask = 1
		case <-tick.C:
			ask = 1
		}
		flushed := uint64(s.flushed())
		msg := append(make([]byte, 0, 64), 'd', 0, 0, 0, 38, 'r')
		for range 3 { // written, flushed, applied
			msg = binary.BigEndian.AppendUint64(msg, flushed)
		}
		msg = binary.BigEndian.AppendUint64(msg, uint64(time.Now().UnixMicro()-postgresEpoch))
		msg = append(msg, ask)
		if _, err := s.conn.Write(msg); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("confirm %s: %w", lsn(change.Position(flushed)), err)
		}
	}
}

func (s *captureStream) read(ctx context.Context) error {
	for {
		msg, err := s.front.Receive()
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyData:
			err = s.copyData(ctx, msg.Data)
		case *pgproto3.ErrorResponse:
			err = pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.NoticeResponse:
			// From 18 on a publication that is gone is a warning, and its changes are skipped.
			if strings.Contains(msg.Message, "publication") {
				err = fmt.Errorf("the server warns: %s; the stream would have gaps", msg.Message)
			}
		case *pgproto3.CopyDone, *pgproto3.CommandComplete, *pgproto3.ReadyForQuery:
			err = errors.New("the server ended the stream")
		}
		if err != nil {
			return err
		}
	}
}

func (s *captureStream) copyData(ctx context.Context, data []byte) error {
	if len(data) == 0 {
		return errors.New("empty message in the stream")
	}
	switch data[0] {
	case 'k':
		if len(data) < 18 {
			return errShortMessage
		}
		if s.tx == nil {
			s.idle = max(s.idle, change.Position(binary.BigEndian.Uint64(data[1:])))
		}
		return s.moveOn(ctx)
	case 'w':
		if len(data) < 25 {
			return errShortMessage
		}
		if data = data[25:]; s.tx != nil && s.foreign && len(data) > 0 && isRow(data[0]) {
			return nil // of a dropped transaction; before 16 the server sends it all the same
		}
		return s.logical(ctx, s.keep(data))
	}
	return fmt.Errorf("message of unknown kind %q in the stream", data[0])
}

func isRow(kind byte) bool { return kind == 'I' || kind == 'U' || kind == 'D' }

// keep copies a message out of the read buffer, because rows point into it.
func (s *captureStream) keep(data []byte) []byte {
	if len(data) == 0 || !isRow(data[0]) {
		return data
	}
	if len(data) > cap(s.slab)-len(s.slab) {
		s.slab = make([]byte, 0, max(slabBytes, len(data)))
	}
	from := len(s.slab)
	s.slab = append(s.slab, data...)
	return s.slab[from:len(s.slab):len(s.slab)]
}

// moveOn emits an empty transaction when somebody waits for that, or nothing of the target's interest happened for a while, so that its position,
// and with it the slot, does not stay behind. The slot is only ever confirmed up to what the target has recorded, so
// a target that comes back is never told that it asks for the past.
func (s *captureStream) moveOn(ctx context.Context) error {
	if s.tx != nil {
		return nil
	}
	awaited := s.awaited(s.idle)
	if s.idle <= s.last || s.idle-s.last < idleBytes && time.Since(s.lastAt) < s.cfg.IdleEvery && !awaited {
		return nil
	}
	return s.send(ctx, change.Tx{Origin: s.cfg.Site, Position: s.idle, First: true, Last: true})
}

// send emits a transaction or a part. In front of a marker it says first that everything before it was sent. A target
// waits at a marker until it has what the marker's vector asks for of other origins, and a vector may ask for a position
// that only an empty transaction to its writer had: two targets' streams differ in these. Two markers of two origins
// would wait for one another for ever.
func (s *captureStream) send(ctx context.Context, tx change.Tx) error {
	if tx.First && (len(tx.Markers) > 0 || !tx.Last) && s.begins > s.last && !plant.MarkerUnannounced {
		s.emitted(s.begins)
		s.last = s.begins
		if err := s.emit(ctx, change.Tx{Origin: s.cfg.Site, Position: s.begins, First: true, Last: true}); err != nil {
			return err
		}
	}
	s.emitted(tx.Position)
	s.last, s.lastAt = tx.Position, time.Now()
	return s.emit(ctx, tx)
}

func (s *captureStream) logical(ctx context.Context, data []byte) error {
	var m pgMessage
	if err := s.decoder.decode(data, &m); err != nil {
		return err
	}
	switch m.kind {
	case 'R', 'Y':
		return nil
	case 'M':
		if !m.transactional {
			return nil
		}
	case 'B':
		// A transaction in parts has one position for all of them, known at its beginning: inside its commit record.
		s.begins = change.Position(m.commit)
		s.tx = &change.Tx{Origin: s.cfg.Site, Position: s.begins + 1, XID: uint64(m.xid), Committed: m.committed, First: true}
		s.bytes, s.foreign, s.has, s.point = 0, false, nil, false
		return nil
	}
	if s.tx == nil {
		return fmt.Errorf("pgoutput message %q outside of a transaction", m.kind)
	}
	switch m.kind {
	case 'O':
		return s.drop()
	case 'M':
		switch m.prefix {
		case markPrefix:
			return s.drop()
		case tailPrefix:
			return s.tailWord(ctx, m.content)
		case pointPrefix:
			s.point = true
		}
	case 'C':
		return s.commit(ctx, change.Position(m.end))
	case 'T':
		for _, t := range m.truncated {
			if err := s.row(ctx, change.Row{Op: change.Truncate, Table: t}, 0); err != nil {
				return err
			}
		}
	default:
		return s.row(ctx, m.row, len(data))
	}
	return nil
}

// drop marks the transaction as one that another site's changes made.
func (s *captureStream) drop() error {
	if !s.tx.First || len(s.tx.Rows) > 0 {
		return fmt.Errorf("transaction %d carries the mark of an applied one behind its first change; does something else write messages with prefix %q?", s.tx.XID, markPrefix)
	}
	s.foreign = true
	return nil
}

func (s *captureStream) row(ctx context.Context, row change.Row, size int) error {
	if s.foreign || s.has != nil && s.hasIt(&row) {
		return nil
	}
	marker, err := s.stamper.stamp(&row)
	if err != nil {
		return err
	}
	if s.bytes > s.cfg.PartBytes {
		if err := s.send(ctx, *s.tx); err != nil {
			return err
		}
		next := *s.tx
		next.First, next.Rows, next.Markers = false, nil, nil
		s.tx, s.bytes = &next, 0
	}
	s.tx.Rows = append(s.tx.Rows, row)
	if marker != nil {
		s.tx.Markers = append(s.tx.Markers, *marker)
	}
	s.bytes += size + rowOverhead
	return nil
}

func (s *captureStream) commit(ctx context.Context, end change.Position) error {
	tx := s.tx
	s.tx = nil
	s.idle = max(s.idle, end)
	if s.foreign || tx.First && len(tx.Rows) == 0 && !s.point {
		return s.moveOn(ctx)
	}
	if tx.First {
		tx.Position = end
	}
	tx.Last = true
	return s.send(ctx, *tx)
}
