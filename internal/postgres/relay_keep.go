package postgres

import (
	"context"
	"encoding/binary"
	"strconv"

	"github.com/atollhq/atoll/internal/change"
)

// An applier keeps what other sites may lack in the transaction that applies it: a transaction of its own for that would be
// as many again. What cannot be kept so, [Relay.Keep] keeps ahead.

const byteaOID = 17

func keepStatement() *applyStatement {
	return &applyStatement{name: "keep", want: -1, formats: []int16{0, 0, 1}, sql: `INSERT INTO atoll.relay (origin, position, part, body)
		SELECT $1::text, u.position, 0, u.body FROM unnest($2::text::bigint[], $3::bytea[]) u (position, body)
		ON CONFLICT (origin, position, part) DO NOTHING`}
}

// keepItems appends the statement that keeps those of txs that are to be kept, if there are any.
func (s *applySession) keepItems(items []applyItem, txs []change.Tx) []applyItem {
	var positions []byte
	var bodies [][]byte
	for i := range txs {
		if !txs[i].Keep {
			continue
		}
		separator := byte(',')
		if len(bodies) == 0 {
			separator = '{'
		}
		positions = strconv.AppendUint(append(positions, separator), uint64(txs[i].Position), 10)
		bodies = append(bodies, change.EncodeTx(&txs[i]))
	}
	if len(bodies) == 0 {
		return items
	}
	return append(items, applyItem{st: s.keep, tx: -1, args: [][]byte{[]byte(s.cfg.Origin), append(positions, '}'), byteaArray(bodies)}})
}

// byteaArray is the binary form of an array of bytea: one dimension that begins at 1, no nulls.
func byteaArray(values [][]byte) []byte {
	size := 20
	for _, v := range values {
		size += 4 + len(v)
	}
	out := make([]byte, 0, size)
	for _, n := range []int{1, 0, byteaOID, len(values), 1} {
		out = binary.BigEndian.AppendUint32(out, uint32(n))
	}
	for _, v := range values {
		out = binary.BigEndian.AppendUint32(out, uint32(len(v)))
		out = append(out, v...)
	}
	return out
}

// keepWhole keeps a transaction that is not applied as one, if it is to be kept, before any of it is.
func (s *applySession) keepWhole(ctx context.Context, tx *change.Tx) error {
	items := s.keepItems(nil, []change.Tx{*tx})
	if len(items) == 0 {
		return nil
	}
	_, err := s.pipeline(ctx, items)
	return err
}
