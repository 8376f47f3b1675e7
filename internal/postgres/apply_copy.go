package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// Copy takes an initial copy in one transaction, progress included. next gives its pieces; the last has Done set. A
// table that brings rows must be empty here. A copy that consists of Done alone only records where to begin.
func (a *Applier) Copy(ctx context.Context, next func(context.Context) (change.Copy, error)) error {
	s, err := a.connect(ctx)
	if err != nil {
		return a.wrap(err)
	}
	defer s.close()
	if s.known {
		return a.wrap(fmt.Errorf("changes of %s up to %s are here already; a copy on top of them would undo newer ones", a.cfg.Origin, lsn(s.position)))
	}
	if err := (&copyIn{s: s, next: next}).run(ctx); err != nil {
		return a.wrap(fmt.Errorf("initial copy: %w", err))
	}
	return nil
}

// copyIn is one initial copy on its way into the database.
type copyIn struct {
	s    *applySession
	next func(context.Context) (change.Copy, error)
	ctx  context.Context
	now  change.Copy // the piece that comes next
	rest []byte      // of now, not yet read
	err  error       // of next
	own  *ownRows
}

func (c *copyIn) run(ctx context.Context) error {
	c.ctx = ctx
	// The first piece comes before the transaction begins: a source waits for transactions that are open when it makes
	// its slot, and it may be a database of the same server.
	if err := c.advance(); err != nil {
		return err
	}
	// As in every applying transaction, except that progress comes last: its position is in the last piece.
	items := c.s.beginItems(nil, 0, lastCommitted(nil))
	items = slices.DeleteFunc(items, func(it applyItem) bool { return it.st.name == "progress" })
	if _, err := c.s.pipeline(ctx, items); err != nil {
		return err
	}
	filled := make(map[string]bool)
	for !c.now.Done {
		name := c.now.Table.Schema + "." + c.now.Table.Name
		if err := c.table(filled[name]); err != nil {
			return fmt.Errorf("table %s: %w", name, err)
		}
		filled[name] = true
	}
	return c.finish()
}

func (c *copyIn) advance() error {
	c.now, c.err = c.next(c.ctx)
	if c.err == nil && !c.now.Done && c.now.Table == nil {
		c.err = errors.New("a piece without a table")
	}
	c.rest = c.now.Data
	return c.err
}

// table streams the pieces of one table into it.
func (c *copyIn) table(again bool) error {
	t := c.now.Table
	target, err := c.s.resolve(c.ctx, c.keyed(t))
	if err != nil {
		return err
	}
	c.own = nil
	if target.site >= 0 {
		c.own = &ownRows{origin: c.s.cfg.Origin, column: target.site}
	} else if !again {
		rows, _, err := c.s.run(c.ctx, "SELECT EXISTS (SELECT FROM "+target.sql+")")
		if err != nil {
			return err
		}
		if string(rows[0][0]) == "t" {
			return errors.New("the table is not empty at this site; empty it, or leave its rows to the origin")
		}
	}
	_, err = c.s.pg.CopyFrom(c.ctx, &tableReader{copyIn: c, table: t}, fmt.Sprintf("COPY %s (%s) FROM STDIN", target.sql, columnList(t.Columns)))
	if c.err != nil {
		return c.err
	}
	return err
}

// keyed gives resolve what it wants to know: a copy names no replica identity, and none is needed to insert.
func (c *copyIn) keyed(t *change.Table) *change.Table {
	k := *t
	k.Columns = slices.Clone(t.Columns)
	for i := range k.Columns {
		k.Columns[i].Key = true
	}
	k.Identity = 'f'
	return &k
}

// tableReader gives COPY the data of one table.
type tableReader struct {
	*copyIn
	table *change.Table
}

func (r *tableReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if err := r.advance(); err != nil {
			return 0, err
		}
		if r.now.Done || r.now.Table.Schema != r.table.Schema || r.now.Table.Name != r.table.Name {
			return 0, io.EOF
		}
	}
	n := copy(p, r.rest)
	if r.own != nil {
		if err := r.own.check(r.rest[:n]); err != nil {
			r.err = err
			return 0, err
		}
	}
	r.rest = r.rest[n:]
	return n, nil
}

// ownRows checks in COPY's text form that fence rows are the origin's own.
type ownRows struct {
	origin topo.SiteID
	column int
	line   []byte
}

func (o *ownRows) check(data []byte) error {
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		if end < 0 {
			o.line = append(o.line, data...)
			return nil
		}
		o.line = append(o.line, data[:end]...)
		fields := bytes.Split(o.line, []byte("\t"))
		if o.column >= len(fields) || topo.SiteID(fields[o.column]) != o.origin {
			return fmt.Errorf("fence rows of another site than %s", o.origin)
		}
		o.line, data = o.line[:0], data[end+1:]
	}
	return nil
}

// finish records the epochs and the position at which the copy was taken.
func (c *copyIn) finish() error {
	origin := []byte(c.s.cfg.Origin)
	var keyspaces, buckets, epochs []string
	for ks, in := range c.now.Epochs {
		for b, e := range in {
			keyspaces, buckets, epochs = append(keyspaces, string(ks)), append(buckets, strconv.Itoa(int(b))), append(epochs, strconv.FormatUint(uint64(e), 10))
		}
	}
	if len(buckets) > 0 { // without a copy of the rows themselves
		_, err := c.s.conn.Exec(c.ctx, `INSERT INTO atoll.bucket (site, keyspace, bucket, epoch, state)
			SELECT $1, k, b, e, 'closed' FROM unnest($2::text[], $3::text[]::int[], $4::text[]::bigint[]) u(k, b, e) ON CONFLICT DO NOTHING`,
			string(origin), keyspaces, buckets, epochs)
		if err != nil {
			return fmt.Errorf("epochs: %w", err)
		}
	}
	_, n, err := c.s.run(c.ctx, "INSERT INTO atoll.progress (origin, position) VALUES ($1::text, $2::text::bigint) ON CONFLICT DO NOTHING",
		origin, fmt.Appendf(nil, "%d", c.now.Position))
	if err != nil {
		return fmt.Errorf("progress: %w", err)
	}
	if n != 1 {
		return errors.New("another agent took a copy from this origin meanwhile")
	}
	return c.s.commit(c.ctx, c.now.Position)
}
