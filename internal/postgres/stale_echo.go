package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// keyless: rows are told apart by all their values, if at all.
func (t *applyTarget) keyless() bool { return t.whole || len(t.match) == 0 }

// keyText names a row of a table, for maps.
func (t *applyTarget) keyText(image []change.Value) (string, error) {
	var b strings.Builder
	b.WriteString(t.sql)
	for _, i := range t.match {
		if image[i].Kind != change.Text {
			return "", fmt.Errorf("the source did not send key column %s", t.columns[i].name)
		}
		fmt.Fprintf(&b, " %d:%s", len(image[i].Bytes), image[i].Bytes)
	}
	return b.String(), nil
}

// wholeText names a row of a keyless table by all its values.
func (t *applyTarget) wholeText(image []change.Value) (string, error) {
	if !complete(image) {
		return "", errors.New("the source did not send the whole row; its replica identity must be FULL")
	}
	var b strings.Builder
	b.WriteString(t.sql)
	for _, v := range image {
		if v.Kind == change.Null {
			b.WriteString(" -")
		} else {
			fmt.Fprintf(&b, " %d:%s", len(v.Bytes), v.Bytes)
		}
	}
	return b.String(), nil
}

// probeWhole looks at a row of a keyless table: as many equal ones as the unit takes away must be as the lost site left
// them. What is only put in meets nothing.
func (d *tailDecision) probeWhole(ctx context.Context, r *tailRow, known map[string]int) (why string, err error) {
	if r.row.New != nil {
		text, err := r.target.wholeText(r.row.New)
		if err != nil {
			return "", d.main.stop(d.t.tx, r.row, err)
		}
		known[text]--
		d.fks.entered(r)
	}
	if r.row.Old == nil {
		return "", nil
	}
	text, err := r.target.wholeText(r.row.Old)
	if err != nil {
		return "", d.main.stop(d.t.tx, r.row, err)
	}
	if known[text]++; known[text] <= 0 {
		return "", nil
	}
	n, err := d.untouched(ctx, r)
	if err == nil && n < known[text] {
		why = "the row was deleted or written here"
	}
	return why, err
}

// untouched counts the rows here that equal the old version of a keyless row and that nobody wrote here since the cut.
func (d *tailDecision) untouched(ctx context.Context, r *tailRow) (int, error) {
	var st applyStatement
	origin := "NULL"
	if d.w.s.commitTime {
		origin = "(SELECT o.roname FROM pg_replication_origin o WHERE o.roident = (pg_xact_commit_timestamp_origin(w.xmin)).roident)"
	}
	rows, _, err := d.w.s.run(ctx, fmt.Sprintf("SELECT w.xmin::text, %s FROM %s w WHERE %s FOR UPDATE", origin, r.target.sql, r.target.equalTerms(&st)),
		st.args(nil, r.row)...)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, row := range rows {
		local := &localRow{site: topo.SiteID(strings.TrimPrefix(string(row[1]), OriginName("")))}
		if _, err := fmt.Sscan(string(row[0]), &local.xid); err != nil {
			return 0, fmt.Errorf("xmin %q: %w", row[0], err)
		}
		state, err := d.writer(ctx, r, r.row.OldBucket, local)
		if err != nil {
			return 0, err
		}
		if state == writerNone {
			n++
		}
	}
	return n, nil
}

// echoKey is a key that a kept unit touched.
type echoKey struct {
	r      *tailRow
	image  []change.Value
	bucket topo.BucketID
	made   bool // the unit brought the key about, rather than finding it
	there  bool // the lost site has it when the unit is done
}

// echo makes the lost site's rows of a kept unit equal to the ones here. A row that is here is written again, with all
// its values, so that it travels whatever its size; what is not here is said with a message.
func (d *tailDecision) echo(ctx context.Context, u *tailUnit) error {
	var order []string
	keys := map[string]*echoKey{}
	touch := func(r *tailRow, image []change.Value, bucket topo.BucketID, made, there bool) error {
		text, err := r.target.keyText(image)
		if err != nil {
			return d.main.stop(d.t.tx, r.row, err)
		}
		k := keys[text]
		if k == nil {
			k = &echoKey{r: r, image: image, bucket: bucket, made: made}
			keys[text], order = k, append(order, text)
		}
		k.there = there
		return nil
	}
	for _, r := range u.rows {
		if r.target.keyless() {
			continue
		}
		made := r.made()
		if image := r.lost(); image != nil {
			if err := touch(r, image, r.row.OldBucket, false, made == nil && r.row.Op == change.Update); err != nil {
				return err
			}
		}
		if made != nil {
			if err := touch(r, made, r.row.NewBucket, true, true); err != nil {
				return err
			}
		}
	}
	for _, text := range order {
		if err := d.echoKey(ctx, keys[text]); err != nil {
			return err
		}
	}
	return d.echoWhole(ctx, u)
}

func (d *tailDecision) echoKey(ctx context.Context, k *echoKey) error {
	local, err := d.at(ctx, k.r, k.image)
	if err != nil {
		return err
	}
	if local == nil {
		// A key that the unit found was there at both sites, or in an earlier part of the tail: whatever took it away
		// here has travelled, or will.
		if !k.made || !k.there {
			return nil
		}
		image := make([]change.Value, len(k.image))
		for _, i := range k.r.target.match {
			image[i] = k.image[i]
		}
		return d.w.s.say(ctx, newTailMessage(d.t.tx.Origin, tailDelete, k.r.row, image))
	}
	if state, err := d.writer(ctx, k.r, k.bucket, local); err != nil || state == writerEcho {
		return err
	}
	var fields map[string]*string
	if err := json.Unmarshal(local.text, &fields); err != nil {
		return fmt.Errorf("the row that is here: %w", err)
	}
	again := change.Row{Op: change.Update, Table: k.r.row.Table, New: make([]change.Value, len(k.image))}
	for i, c := range k.r.row.Table.Columns {
		again.New[i] = change.Value{Kind: change.Null}
		if text := fields[c.Name]; text != nil {
			again.New[i] = change.Value{Kind: change.Text, Bytes: []byte(*text)}
		}
	}
	one := &decision{w: d.w, tx: d.t.tx, row: &again, target: k.r.target}
	return one.mustWrite(ctx, &again)
}

// echoWhole undoes at the lost site what a kept unit did to keyless tables: what it put in goes, and what it took away
// comes back, as far as it is still here as it was.
func (d *tailDecision) echoWhole(ctx context.Context, u *tailUnit) error {
	type net struct {
		r     *tailRow
		image []change.Value
		n     int
	}
	var order []string
	nets := map[string]*net{}
	count := func(r *tailRow, image []change.Value, by int) error {
		if image == nil {
			return nil
		}
		text, err := r.target.wholeText(image)
		if err != nil {
			return d.main.stop(d.t.tx, r.row, err)
		}
		if nets[text] == nil {
			nets[text], order = &net{r: r, image: image}, append(order, text)
		}
		nets[text].n += by
		return nil
	}
	for _, r := range u.rows {
		if !r.target.keyless() {
			continue
		}
		if err := errors.Join(count(r, r.row.Old, -1), count(r, r.row.New, 1)); err != nil {
			return err
		}
	}
	for _, text := range order {
		n := nets[text]
		do, times := tailDelete, n.n
		if n.n < 0 {
			gone := *n.r
			gone.row = &change.Row{Op: change.Delete, Table: n.r.row.Table, Old: n.image, Keyspace: n.r.row.Keyspace, OldBucket: n.r.row.OldBucket}
			here, err := d.untouched(ctx, &gone)
			if err != nil {
				return err
			}
			do, times = tailInsert, min(-n.n, here)
		}
		for range times {
			if err := d.w.s.say(ctx, newTailMessage(d.t.tx.Origin, do, n.r.row, n.image)); err != nil {
				return err
			}
		}
	}
	return nil
}
