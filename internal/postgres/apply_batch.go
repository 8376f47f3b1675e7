package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// applyWorker owns the connection of one Run.
type applyWorker struct {
	*Applier
	s       *applySession // nil: connect first
	applied func(change.Position, []change.Marker)
	large   *largeTx
	tail    *applySession // decides what is stale; nil: connect first
	parts   *change.Tx    // a large transaction that is collected, because some of it may be stale
	size    int           // of parts
	items   []applyItem
	args    [][]byte
	room    int // rows that the next target transaction may hold; 0: as many as the bounds allow
}

// leastRoom is how small conflicts make target transactions. Each conflict costs doing its transaction's beginning again:
// where there are many, as behind the return of a lost site, large ones would be done again and again.
const leastRoom = 64

// crowded makes room for fewer rows behind a conflict; eased for more behind a success.
func (w *applyWorker) crowded() {
	if w.room == 0 {
		w.room = w.cfg.BatchRows
	}
	w.room = max(leastRoom, w.room/8)
}

func (w *applyWorker) eased() {
	if w.room *= 2; w.room >= w.cfg.BatchRows {
		w.room = 0
	}
}

// longest is how long a target transaction should take. Its row locks are held against the site's own writers (of what
// moved here meanwhile), and all that waits behind it is late.
const longest = 300 * time.Millisecond

// paced follows what a target transaction of some rows took: where the database is slow, there is room for fewer.
func (w *applyWorker) paced(rows int, took time.Duration) {
	if took <= longest {
		w.eased()
		return
	}
	w.room = max(leastRoom, rows/2)
}

// some is the part of a group that there is room for, one transaction at least.
func (w *applyWorker) some(group []change.Tx) []change.Tx {
	rows := 0
	for i := range group {
		if rows += len(group[i].Rows); i > 0 && w.room > 0 && rows > w.room {
			return group[:i]
		}
	}
	return group
}

func rowsOf(group []change.Tx) (n int) {
	for i := range group {
		n += len(group[i].Rows)
	}
	return n
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
	if w.tail != nil {
		w.tail.close()
		w.tail = nil
	}
}

// apply applies a group that applyQueue.take cut off. What may succeed when tried again is tried again here, on a new
// connection if need be; the progress row says whether a commit with an unknown outcome took place.
func (w *applyWorker) apply(ctx context.Context, group []change.Tx) error {
	if len(group) == 1 && !(group[0].First && group[0].Last) {
		whole, err := w.part(ctx, &group[0])
		if err != nil || whole == nil {
			return err
		}
		group = []change.Tx{*whole}
	}
	for wait := newBackoff(); ; {
		err := w.attempt(ctx, &group)
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errCutsChanged) {
			if err = w.s.loadProgress(ctx); err == nil {
				continue
			}
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
		n, err := w.applySome(ctx, w.some(*group))
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
	if len(w.s.cuts) > 0 { // stale transactions go one by one, those before them in batches
		if i := slices.IndexFunc(group, func(tx change.Tx) bool { return w.s.cuts.inTail(&tx) }); i == 0 {
			if err := w.decide(ctx, &group[0]); err != nil {
				return 0, err
			}
			return 1, w.done(ctx, &group[0])
		} else if i > 0 {
			group = group[:i]
		}
	}
	for !w.cfg.hasShared(&group[0]) {
		began := time.Now()
		blame, err := w.together(ctx, group)
		if err == nil {
			w.paced(rowsOf(group), time.Since(began))
			return len(group), w.done(ctx, &group[len(group)-1])
		}
		if transient(err) || settled(err) || ctx.Err() != nil {
			return 0, err
		}
		w.crowded()
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
	return 1, w.done(ctx, &group[0])
}

// done reports what is durable up to the end of tx. Behind a marker some cuts may have had their say.
func (w *applyWorker) done(ctx context.Context, tx *change.Tx) error {
	w.applied(tx.Position, tx.Markers)
	if len(tx.Markers) == 0 || len(w.s.cuts) == 0 {
		return nil
	}
	return w.s.loadProgress(ctx)
}

// settled errors are final, or somebody further up knows what to do about them.
func settled(err error) bool {
	var stop *StopError
	var passing interface{ Passing() bool }
	return errors.As(err, &stop) || errors.As(err, &passing) || errors.Is(err, errCutsChanged)
}

// together applies whole transactions in one target transaction. blame is the index of the one that failed, -1 if
// that is unknown.
func (w *applyWorker) together(ctx context.Context, group []change.Tx) (blame int, err error) {
	last := &group[len(group)-1]
	w.items = w.s.beginItems(w.items[:0], last.Position, lastCommitted(group), group...)
	w.args = w.args[:0]
	for i := range group {
		if err := w.addRows(ctx, i, group[i].Rows); err != nil {
			return i, err
		}
	}
	if at, err := w.s.pipeline(ctx, w.items); err != nil {
		if at >= 0 {
			return w.items[at].tx, w.beginError(ctx, at, err)
		}
		return -1, err
	}
	return -1, w.s.commit(ctx, last.Position)
}

// beginError explains a failure of the statements that open a transaction; others stay as they are.
func (w *applyWorker) beginError(ctx context.Context, at int, err error) error {
	if !errors.Is(err, errRowMissing) || w.items[at].st.name != "progress" {
		return err
	}
	return w.progressMoved(ctx)
}

// errCutsChanged: a failover recorded where epochs of the origin end. What is applied next must be looked at anew.
var errCutsChanged = errors.New("the origin's cuts changed")

// progressMoved says why the progress row is not as this worker knows it. The open transaction is given up.
func (w *applyWorker) progressMoved(ctx context.Context) error {
	if err := w.s.command(ctx, "ROLLBACK"); err != nil {
		return err
	}
	rows, _, err := w.s.run(ctx, "SELECT position, halted, cuts FROM atoll.progress WHERE origin = $1::text", []byte(w.cfg.Origin))
	switch {
	case err != nil:
		return err
	case len(rows) == 1 && len(rows[0][1]) > 0:
		return &HaltedError{w.cfg.Origin, topo.HandoverID(rows[0][1])}
	case len(rows) == 1 && string(rows[0][2]) != strconv.Itoa(w.s.cutCount) && string(rows[0][0]) == strconv.FormatUint(uint64(w.s.position), 10):
		return errCutsChanged
	}
	return &StopError{Origin: w.cfg.Origin, Position: w.s.position, Err: errors.New("progress moved meanwhile: another agent applies this origin's changes here")}
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
	return w.rows(ctx, tx, nil, func() { w.s.position, w.s.known = tx.Position, true })
}

// rows is rowByRow with another way to write progress, if record is given. done notes the commit.
func (w *applyWorker) rows(ctx context.Context, tx *change.Tx, record func() error, done func()) error {
	for yield := false; ; yield = true {
		err := w.rowsOnce(ctx, tx, yield, record)
		if err == nil {
			if err = w.s.end(ctx); err == nil {
				done()
				return nil
			}
			return w.stop(tx, nil, err)
		}
		if yield || sqlState(err) != codeUnique {
			return err
		}
		if err := w.s.command(ctx, "ROLLBACK"); err != nil {
			return err
		}
	}
}

func (w *applyWorker) rowsOnce(ctx context.Context, tx *change.Tx, yield bool, record func() error) error {
	if record != nil { // of a transaction that was taken apart, and kept before
		w.items = w.s.beginItems(w.items[:0], tx.Position, tx.Committed)
		w.items = slices.DeleteFunc(w.items, func(it applyItem) bool { return it.st.name == "progress" })
	} else {
		w.items = w.s.beginItems(w.items[:0], tx.Position, tx.Committed, *tx)
	}
	if at, err := w.s.pipeline(ctx, w.items); err != nil {
		if at >= 0 {
			err = w.beginError(ctx, at, err)
		}
		return w.stop(tx, nil, err)
	}
	if record != nil {
		if err := record(); err != nil {
			return w.stop(tx, nil, err)
		}
	}
	return w.decideRows(ctx, tx, yield)
}

// stop gives an error its place, unless trying again may help.
func (w *applyWorker) stop(tx *change.Tx, row *change.Row, err error) error {
	if err == nil || transient(err) || settled(err) || errors.Is(err, context.Canceled) {
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

// part takes one part of a large transaction. While stale changes may come, the parts are collected: what belongs to a
// bucket is decided as one. It returns the whole when it is complete.
func (w *applyWorker) part(ctx context.Context, tx *change.Tx) (*change.Tx, error) {
	for w.parts == nil {
		if err := w.connected(ctx); err != nil {
			return nil, err
		}
		if tx.First && w.s.cuts.reach(tx.Position) {
			whole := *tx
			whole.Rows, whole.Markers, whole.Last = nil, nil, true
			w.parts, w.size = &whole, 0
			break
		}
		err := w.applyPart(ctx, tx)
		if !errors.Is(err, errCutsChanged) { // only its first part finds that out
			return nil, err
		}
		if err := w.s.loadProgress(ctx); err != nil {
			return nil, err
		}
	}
	if w.parts.Position != tx.Position {
		return nil, w.stop(tx, nil, errors.New("a part of a transaction without its beginning"))
	}
	if w.size += sizeOf(tx); w.size > w.cfg.tailBytes {
		return nil, w.stop(tx, nil, fmt.Errorf("a transaction of the lost site, committed beyond the cut, is larger than the %d MiB that are decided as one; "+
			"undo it there, or take the origin's copy anew", w.cfg.tailBytes>>20))
	}
	w.parts.Rows, w.parts.Markers = append(w.parts.Rows, tx.Rows...), append(w.parts.Markers, tx.Markers...)
	if !tx.Last {
		return nil, nil
	}
	whole := w.parts
	w.parts = nil
	return whole, nil
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
					err = w.beginError(ctx, at, err)
				}
				w.large = nil
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
		if err := w.decideRows(ctx, tx, true); err != nil {
			return err
		}
	}
	return w.s.command(ctx, "RELEASE SAVEPOINT part")
}
