package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

// tailName begins the application_name of a session that decides. It is not an applier's: what it writes is the
// site's own, so that closing a bucket waits it out like any writer.
const tailName = "atoll tail of "

// decisionKinds are the kinds of stale changes in the conflict log.
var decisionKinds = map[change.Op]string{change.Insert: "stale_insert", change.Update: "stale_update", change.Delete: "stale_delete"}

// waitingError: stale changes cannot be decided at this moment.
type waitingError struct{ why string }

func (e *waitingError) Error() string {
	return "changes that a lost site committed beyond the cut wait to be decided: " + e.why
}

// Passing tells that the reason goes away by itself, soon.
func (e *waitingError) Passing() bool { return true }

// decide deals with a transaction some of whose rows are stale (I5). Its ordinary rows go first, as an applier's; then
// this site, as the owner, decides the rest in a transaction of its own, with which progress moves on.
func (w *applyWorker) decide(ctx context.Context, tx *change.Tx) error {
	t, err := w.s.cuts.takeApart(tx)
	if err != nil {
		return w.stop(tx, nil, err)
	}
	if err := w.s.keepWhole(ctx, tx); err != nil {
		return w.stop(tx, nil, err)
	}
	if plant.TailUnsettled {
		rest := *tx
		rest.Rows, rest.Keep = t.ordinary, false
		return w.rowByRow(ctx, &rest)
	}
	if len(t.ordinary) > 0 && w.s.split != tx.Position {
		if err := w.ordinaryRows(ctx, t); err != nil {
			return err
		}
	}
	for wait := newBackoff(); ; {
		err := w.decideTail(ctx, t)
		var waiting *waitingError
		if !errors.As(err, &waiting) || !wait.next(ctx) {
			return w.stop(tx, nil, err)
		}
	}
}

// ordinaryRows applies what is not stale. That it did is recorded apart from progress, so that a crash before the
// decision does not apply it twice.
func (w *applyWorker) ordinaryRows(ctx context.Context, t *tail) error {
	ordinary := *t.tx
	ordinary.Rows = t.ordinary
	return w.rows(ctx, &ordinary, func() error {
		_, n, err := w.s.run(ctx, `UPDATE atoll.progress SET split = $2::text::bigint WHERE origin = $1::text AND position = $3::text::bigint
			AND halted = '' AND cuts = $4::text::int`, []byte(w.cfg.Origin), fmt.Appendf(nil, "%d", t.tx.Position),
			fmt.Appendf(nil, "%d", w.s.position), fmt.Appendf(nil, "%d", w.s.cutCount))
		if err == nil && n != 1 {
			return w.progressMoved(ctx)
		}
		return err
	}, func() {
		w.s.split = t.tx.Position
	})
}

// decideTail decides in one transaction. A unit that turns out not to go through is kept; then all begins again.
func (w *applyWorker) decideTail(ctx context.Context, t *tail) error {
	if w.tail == nil {
		s, err := dialApply(ctx, &w.cfg, tailName)
		if err != nil {
			return err
		}
		w.tail = s
	}
	for _, u := range t.units {
		u.gone, u.keep, u.reason = false, false, ""
	}
	for {
		d := &tailDecision{w: &applyWorker{Applier: w.Applier, s: w.tail}, main: w, t: t}
		err := d.run(ctx)
		if err == nil {
			w.s.position = t.tx.Position
			return nil
		}
		if ctx.Err() != nil || transient(err) {
			return err
		}
		if err := w.tail.command(ctx, "ROLLBACK"); err != nil {
			return err
		}
		if errors.Is(err, errProgressMoved) {
			return w.progressMoved(ctx)
		}
		if !errors.Is(err, errKeep) {
			return err
		}
	}
}

var (
	// errKeep: a unit cannot be applied; its keep is set.
	errKeep = errors.New("the unit is kept")
	// errProgressMoved: the progress row is not as this worker knows it.
	errProgressMoved = errors.New("progress moved")
)

// tailDecision is one attempt at the transaction that decides.
type tailDecision struct {
	w    *applyWorker // with the deciding session
	main *applyWorker
	t    *tail
	xid  uint64
	memo map[string]string // decisions that were looked up
	fks  fkChecks
}

func (d *tailDecision) run(ctx context.Context) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	if err := d.standing(ctx); err != nil {
		return err
	}
	for _, u := range d.t.units {
		if !u.gone && !u.keep {
			if err := d.probe(ctx, u); err != nil {
				return err
			}
		}
	}
	for _, r := range d.t.rows {
		if r.unit.gone {
			continue
		}
		if err := d.row(ctx, r); err != nil {
			return err
		}
	}
	for _, u := range d.t.units {
		if u.keep && !u.gone {
			if err := d.echo(ctx, u); err != nil {
				return err
			}
		}
	}
	if err := d.fks.check(ctx, d.w.s); err != nil {
		return err
	}
	if _, _, err := d.w.s.run(ctx, "SET CONSTRAINTS ALL IMMEDIATE"); err != nil {
		return d.keepAll(err)
	}
	if err := d.standing(ctx); err != nil { // once more, as late as can be
		return err
	}
	return d.w.s.commit(ctx, d.t.tx.Position)
}

// begin opens the transaction. Progress comes first, as with an applier; then the locks of a writer, so that whoever
// closes a bucket after this waits, and whoever closed it before is seen.
func (d *tailDecision) begin(ctx context.Context) error {
	s := d.w.s
	if err := s.command(ctx, "BEGIN ISOLATION LEVEL READ COMMITTED"); err != nil {
		return err
	}
	tx := d.t.tx
	var at []byte
	if !tx.Committed.IsZero() {
		at = tx.Committed.UTC().AppendFormat(nil, "2006-01-02 15:04:05.999999Z07:00")
	}
	_, n, err := s.run(ctx, `UPDATE atoll.progress SET position = $2::text::bigint, committed_at = coalesce($3::text::timestamptz, committed_at), applied_at = clock_timestamp()
		WHERE origin = $1::text AND position = $4::text::bigint AND position < $2::text::bigint AND halted = '' AND cuts = $5::text::int`,
		[]byte(tx.Origin), fmt.Appendf(nil, "%d", tx.Position), at, fmt.Appendf(nil, "%d", d.main.s.position), fmt.Appendf(nil, "%d", d.main.s.cutCount))
	switch {
	case err != nil:
		return err
	case n != 1:
		return errProgressMoved
	}
	var names []string
	for _, r := range d.t.rows {
		if r.target, err = d.w.target(ctx, r.row); err != nil {
			return d.main.stop(tx, r.row, err)
		}
		if !slices.Contains(names, r.target.sql) {
			names = append(names, r.target.sql)
		}
	}
	slices.Sort(names)
	if err := s.command(ctx, "LOCK TABLE "+strings.Join(names, ", ")+" IN ROW EXCLUSIVE MODE"); err != nil {
		return err
	}
	rows, _, err := s.run(ctx, "SELECT pg_current_xact_id()::text")
	if err != nil {
		return err
	}
	d.xid, err = strconv.ParseUint(string(rows[0][0]), 10, 64)
	return err
}

// standing finds out which units are this site's to decide. If one is, but not at this moment, all wait.
func (d *tailDecision) standing(ctx context.Context) error {
	for _, u := range d.t.units {
		gone := 0
		for _, p := range u.places {
			rows, _, err := d.w.s.run(ctx, "SELECT atoll.tail_standing($1::text, $2::text, $3::text::int)",
				[]byte(d.t.tx.Origin), []byte(p.keyspace), fmt.Appendf(nil, "%d", p.bucket))
			if err != nil {
				return err
			}
			switch string(rows[0][0]) {
			case "gone":
				gone++
			case "wait":
				return &waitingError{fmt.Sprintf("bucket %d of keyspace %s is not open here at this moment", p.bucket, p.keyspace)}
			}
		}
		switch {
		case gone == len(u.places):
			u.gone = true
			d.w.log.Info("stale changes are left to the bucket's present owner", "position", lsn(d.t.tx.Position), "rows", len(u.rows), "bucket", u.places[0].bucket)
		case gone > 0:
			return fmt.Errorf("a change of keys crosses buckets %v of which another site owns some: no site can decide it alone", u.places)
		}
	}
	return nil
}

// keepAll keeps what would have been applied, when it cannot be told which unit is to blame.
func (d *tailDecision) keepAll(err error) error {
	any := false
	for _, u := range d.t.units {
		if !u.keep && !u.gone {
			u.keep, u.reason, any = true, err.Error(), true
		}
	}
	if !any || transient(err) {
		return err
	}
	return errKeep
}

// probe finds out whether every row of a unit is as the lost site left it: nobody wrote it here since. Rows that exist
// are locked, so that it stays so.
func (d *tailDecision) probe(ctx context.Context, u *tailUnit) error {
	known := map[string]int{}
	for _, r := range u.rows {
		why, err := d.probeRow(ctx, r, known)
		if err != nil {
			return err
		}
		if why != "" {
			u.keep, u.reason = true, why
			return nil
		}
	}
	return nil
}

func (d *tailDecision) probeRow(ctx context.Context, r *tailRow, known map[string]int) (why string, err error) {
	if r.target.keyless() {
		return d.probeWhole(ctx, r, known)
	}
	if image := r.lost(); image != nil {
		key, err := r.target.keyText(image)
		if err != nil {
			return "", d.main.stop(d.t.tx, r.row, err)
		}
		if known[key] == 0 {
			local, err := d.at(ctx, r, image)
			if err != nil {
				return "", err
			}
			if local == nil {
				return "the row was deleted here", nil
			}
			state, err := d.writer(ctx, r, r.row.OldBucket, local)
			if err != nil || state != writerNone {
				return "the row was written here", err
			}
			if !d.w.s.isReplica { // a cascade would go further than what was decided
				if held, err := d.fks.held(ctx, d.w.s, r, local); err != nil || held {
					return "other rows refer to the row", err
				}
			}
			d.fks.left(r, local)
		}
		known[key] = 1
	}
	if image := r.made(); image != nil {
		key, err := r.target.keyText(image)
		if err != nil {
			return "", d.main.stop(d.t.tx, r.row, err)
		}
		if known[key] == 0 {
			if local, err := d.at(ctx, r, image); err != nil || local != nil {
				return "the key exists here", err
			}
		}
		known[key] = 1
	}
	if r.row.New != nil {
		d.fks.entered(r)
	}
	return "", nil
}

// lost is the image by which a row is found that is updated or deleted; nil for an insert.
func (r *tailRow) lost() []change.Value {
	switch {
	case r.row.Op == change.Insert:
		return nil
	case r.target.keyFromOld(r.row):
		return r.row.Old
	}
	return r.row.New
}

// made is the image of a key that the change brings about; nil if it brings none.
func (r *tailRow) made() []change.Value {
	if r.row.Op == change.Insert || r.target.keyMoved(r.row) {
		return r.row.New
	}
	return nil
}

// at reads and locks the row that is here under an image's key.
func (d *tailDecision) at(ctx context.Context, r *tailRow, image []change.Value) (*localRow, error) {
	one := &decision{w: d.w, tx: d.t.tx, target: r.target}
	return one.local(ctx, &change.Row{Op: change.Insert, Table: r.row.Table, New: image})
}

// Who wrote a row last.
const (
	writerNone = ""     // nobody here since the cut: the lost site, or a decision that took its change
	writerEcho = "kept" // a decision about this tail, which wrote the row again as it was
	writerHere = "here" // somebody at this site
)

// writer tells who wrote a row of a bucket last.
func (d *tailDecision) writer(ctx context.Context, r *tailRow, bucket topo.BucketID, local *localRow) (string, error) {
	cut := r.cut
	for _, c := range d.main.s.cuts[r.row.Keyspace][bucket] { // its own of the same failover, if there is one
		if c.handover == r.cut.handover {
			cut = c
		}
	}
	full := fullXID(d.xid, local.xid)
	if local.xid < 3 || full < cut.before || d.w.s.commitTime && local.site == d.t.tx.Origin {
		return writerNone, nil
	}
	key := fmt.Sprintf("%d %s %d", full, r.row.Keyspace, bucket)
	if state, known := d.memo[key]; known {
		return state, nil
	}
	rows, _, err := d.w.s.run(ctx, `SELECT min(decision) FROM atoll.conflict WHERE decided_xid = $1::text::bigint AND origin = $2::text AND handover <> ''
		AND keyspace = $3::text AND bucket = $4::text::int`, fmt.Appendf(nil, "%d", full), []byte(d.t.tx.Origin),
		[]byte(r.row.Keyspace), fmt.Appendf(nil, "%d", bucket))
	if err != nil {
		return "", err
	}
	state := writerHere
	switch string(rows[0][0]) {
	case decisionApplied:
		state = writerNone
	case decisionKept:
		state = writerEcho
	}
	if d.memo == nil {
		d.memo = map[string]string{}
	}
	d.memo[key] = state
	return state, nil
}

// fullXID is the transaction with these 32 bits that is nearest to one that is known whole. It may be a later one: a row
// can be written by a transaction that began behind the deciding one and committed before it looked.
func fullXID(near uint64, bits uint32) uint64 {
	return near + uint64(int64(int32(bits-uint32(near))))
}

// row carries one row's decision out and writes it down with both versions.
func (d *tailDecision) row(ctx context.Context, r *tailRow) error {
	one := &decision{w: d.w, tx: d.t.tx, row: r.row, target: r.target}
	image := r.lost()
	if image == nil {
		image = r.row.New
	}
	local, err := one.local(ctx, &change.Row{Op: change.Insert, Table: r.row.Table, New: image})
	if err != nil {
		return err
	}
	if r.unit.keep {
		if plant.DroppedConflict {
			return nil
		}
		return d.logRow(ctx, one, r, local, decisionKept)
	}
	if err := d.w.s.say(ctx, newTailMessage(d.t.tx.Origin, tailHas, r.row, nil)); err != nil {
		return err
	}
	if err := one.mustWrite(ctx, r.row); err != nil {
		if transient(err) || ctx.Err() != nil || sqlState(err) == "" && !errors.Is(err, errRowMissing) {
			return err
		}
		r.unit.keep, r.unit.reason = true, err.Error()
		return errKeep
	}
	return d.logRow(ctx, one, r, local, decisionApplied)
}

func (d *tailDecision) logRow(ctx context.Context, one *decision, r *tailRow, local *localRow, outcome string) error {
	one.handover, one.decided, one.reason = r.cut.handover, d.xid, r.unit.reason
	return one.log(ctx, decisionKinds[r.row.Op], local, outcome)
}
