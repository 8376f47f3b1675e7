package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/change"
)

// applyWorker owns the connection of one Run.
type applyWorker struct {
	*Applier
	s       *applySession // nil: connect first
	applied func(change.Position, []change.Marker)
	large   *largeTx
	items   []applyItem
	args    [][]byte
}

// largeTx is the state between the parts of a transaction that travels in parts.
type largeTx struct {
	position change.Position
	skip     bool // was applied before
	markers  []change.Marker
}

func (w *applyWorker) reset() {
	if w.s != nil {
		w.s.close()
		w.s = nil
	}
}

// apply applies a group that applyQueue.take cut off. What may succeed when tried again is tried again here, on a new
// connection if need be; the progress row says whether a commit with an unknown outcome took place.
func (w *applyWorker) apply(ctx context.Context, group []change.Tx) error {
	if len(group) == 1 && !(group[0].First && group[0].Last) {
		return w.applyPart(ctx, &group[0])
	}
	for wait := newBackoff(); ; {
		err := w.attempt(ctx, &group)
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil || !transient(err) {
			return err
		}
		w.log.Warn("apply failed, trying again", "err", err)
		w.reset()
		if !wait.next(ctx) {
			return fmt.Errorf("gave up after several attempts: %w", err)
		}
	}
}

// attempt applies the group once and shortens it by what became durable.
func (w *applyWorker) attempt(ctx context.Context, group *[]change.Tx) error {
	if err := w.connected(ctx); err != nil {
		return err
	}
	for len(*group) > 0 && w.s.known && (*group)[0].Position <= w.s.position {
		w.applied((*group)[0].Position, (*group)[0].Markers) // an earlier connection did it
		*group = (*group)[1:]
	}
	for len(*group) > 0 {
		n, err := w.applySome(ctx, *group)
		*group = (*group)[n:]
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *applyWorker) connected(ctx context.Context) error {
	if w.s != nil {
		return nil
	}
	s, err := w.connect(ctx)
	w.s = s
	return err
}

// applySome applies the group in one target transaction. When a change does not go through as it is, it bisects: what
// stands before the transaction to blame is applied, and that one alone, row by row, with conflicts decided. n says
// how many transactions became durable.
func (w *applyWorker) applySome(ctx context.Context, group []change.Tx) (n int, err error) {
	for !w.cfg.hasShared(&group[0]) {
		blame, err := w.together(ctx, group)
		if err == nil {
			last := &group[len(group)-1]
			w.applied(last.Position, last.Markers)
			return len(group), nil
		}
		var stop *StopError
		if transient(err) || errors.As(err, &stop) || ctx.Err() != nil {
			return 0, err
		}
		if err := w.s.command(ctx, "ROLLBACK"); err != nil {
			return 0, err
		}
		if len(group) == 1 || blame == 0 {
			break
		}
		if blame < 0 { // found at the commit: any of them
			blame = len(group) / 2
		}
		group = group[:blame]
	}
	if err := w.rowByRow(ctx, &group[0]); err != nil {
		return 0, err
	}
	w.applied(group[0].Position, group[0].Markers)
	return 1, nil
}

// together applies whole transactions in one target transaction. blame is the index of the one that failed, -1 if
// that is unknown.
func (w *applyWorker) together(ctx context.Context, group []change.Tx) (blame int, err error) {
	last := &group[len(group)-1]
	w.items = w.s.beginItems(w.items[:0], last.Position, lastCommitted(group))
	w.args = w.args[:0]
	for i := range group {
		if err := w.addRows(ctx, i, group[i].Rows); err != nil {
			return i, err
		}
	}
	if at, err := w.s.pipeline(ctx, w.items); err != nil {
		if at >= 0 {
			return w.items[at].tx, w.beginError(at, err)
		}
		return -1, err
	}
	return -1, w.s.commit(ctx, last.Position)
}

// beginError explains a failure of the statements that open a transaction; others stay as they are.
func (w *applyWorker) beginError(at int, err error) error {
	if errors.Is(err, errRowMissing) && w.items[at].st.name == "progress" {
		return &StopError{Origin: w.cfg.Origin, Position: w.s.position, Err: errors.New("progress moved meanwhile: another agent applies this origin's changes here")}
	}
	return err
}

func lastCommitted(group []change.Tx) time.Time {
	for i := range slices.Backward(group) {
		if !group[i].Committed.IsZero() {
			return group[i].Committed
		}
	}
	return time.Time{}
}

// addRows appends the statements of rows to the items to send.
func (w *applyWorker) addRows(ctx context.Context, tx int, rows []change.Row) error {
	for i := 0; i < len(rows); i++ {
		row := &rows[i]
		target, err := w.target(ctx, row)
		if err != nil {
			return err
		}
		if row.Op == change.Truncate {
			n, st, err := w.truncate(ctx, rows[i:])
			if err != nil {
				return err
			}
			w.items = append(w.items, applyItem{st: st, tx: tx})
			i += n - 1
			continue
		}
		st, err := w.s.statement(target, row)
		if err != nil {
			return err
		}
		from := len(w.args)
		w.args = st.args(w.args, row)
		w.items = append(w.items, applyItem{st: st, args: w.args[from:len(w.args):len(w.args)], tx: tx})
	}
	return nil
}

// target resolves a row's table and refuses fence rows that are not the origin's own.
func (w *applyWorker) target(ctx context.Context, row *change.Row) (*applyTarget, error) {
	target, err := w.s.resolve(ctx, row.Table)
	if err != nil {
		return nil, err
	}
	return target, target.refuseOwnFence(row, w.cfg.Origin)
}

// truncate joins neighbouring truncates: tables that foreign keys tie together must be named in one statement.
func (w *applyWorker) truncate(ctx context.Context, rows []change.Row) (int, *applyStatement, error) {
	var names []string
	for i := range rows {
		if rows[i].Op != change.Truncate {
			break
		}
		target, err := w.target(ctx, &rows[i])
		if err != nil {
			return 0, nil, err
		}
		names = append(names, target.sql)
	}
	w.s.statements++
	return len(names), &applyStatement{name: fmt.Sprintf("a%d", w.s.statements), sql: "TRUNCATE " + strings.Join(names, ", "), want: -1}, nil
}

// rowByRow applies one transaction alone, deciding conflicts as they come. Whatever cannot be decided stops with the
// row that is to blame.
func (w *applyWorker) rowByRow(ctx context.Context, tx *change.Tx) error {
	w.items = w.s.beginItems(w.items[:0], tx.Position, tx.Committed)
	if at, err := w.s.pipeline(ctx, w.items); err != nil {
		if at >= 0 {
			err = w.beginError(at, err)
		}
		return w.stop(tx, nil, err)
	}
	if err := w.decideRows(ctx, tx); err != nil {
		return err
	}
	if err := w.s.commit(ctx, tx.Position); err != nil {
		return w.stop(tx, nil, err)
	}
	return nil
}

// stop gives an error its place, unless trying again may help.
func (w *applyWorker) stop(tx *change.Tx, row *change.Row, err error) error {
	var known *StopError
	if transient(err) || errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	e := &StopError{Origin: w.cfg.Origin, Position: tx.Position, XID: tx.XID, Err: err}
	if row != nil {
		e.Table = row.Table.Schema + "." + row.Table.Name
		if target := w.s.targets[row.Table]; target != nil {
			e.Key = target.key(row)
		}
	}
	return e
}

// applyPart applies one part of a large transaction. The target transaction stays open between parts; each part is a
// savepoint, so that a part with a conflict can be gone through row by row. What fails for good or for a moment ends
// the Run: earlier parts are gone from memory, so the stream must start again behind the recorded progress.
func (w *applyWorker) applyPart(ctx context.Context, tx *change.Tx) error {
	if err := w.connected(ctx); err != nil {
		return err
	}
	if tx.First {
		w.large = &largeTx{position: tx.Position, skip: w.s.known && tx.Position <= w.s.position}
		if !w.large.skip {
			w.items = w.s.beginItems(w.items[:0], tx.Position, tx.Committed)
			if at, err := w.s.pipeline(ctx, w.items); err != nil {
				if at >= 0 {
					err = w.beginError(at, err)
				}
				return w.stop(tx, nil, err)
			}
		}
	}
	if w.large == nil || w.large.position != tx.Position {
		return w.stop(tx, nil, errors.New("a part of a transaction without its beginning"))
	}
	w.large.markers = append(w.large.markers, tx.Markers...)
	if !w.large.skip {
		if err := w.partRows(ctx, tx); err != nil {
			return err
		}
	}
	if !tx.Last {
		return nil
	}
	if !w.large.skip {
		if err := w.s.commit(ctx, tx.Position); err != nil {
			return w.stop(tx, nil, err)
		}
	}
	w.applied(tx.Position, w.large.markers)
	w.large = nil
	return nil
}

func (w *applyWorker) partRows(ctx context.Context, tx *change.Tx) error {
	if err := w.s.command(ctx, "SAVEPOINT part"); err != nil {
		return err
	}
	var err error
	if w.cfg.hasShared(tx) {
		err = errRowMissing
	} else {
		w.items, w.args = w.items[:0], w.args[:0]
		if err = w.addRows(ctx, 0, tx.Rows); err == nil {
			_, err = w.s.pipeline(ctx, w.items)
		}
	}
	if err != nil {
		if transient(err) || ctx.Err() != nil {
			return err
		}
		if err := w.s.command(ctx, "ROLLBACK TO SAVEPOINT part"); err != nil {
			return err
		}
		if err := w.decideRows(ctx, tx); err != nil {
			return err
		}
	}
	return w.s.command(ctx, "RELEASE SAVEPOINT part")
}
