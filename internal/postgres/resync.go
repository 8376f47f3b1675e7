package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// ResyncConfig says which site's database is brought to whose content.
type ResyncConfig struct {
	Apply     ApplyConfig // Site is rebuilt, from Origin's content
	Capture   *Capture    // of Site, for Origin: that stream begins anew
	Others    []*Capture  // of Site, for every other target: theirs begin anew at the same place
	Keyspaces map[topo.KeyspaceID]topo.Keyspace
	Cuts      []topo.CutRange // that end Site's epochs
	// Outside: Site is no member. If it was given up, nobody names where its epochs ended: what it holds open by its own
	// rows was taken from it.
	Outside bool
	Step    func(string) // told what it is at; may be nil
}

// ResyncTable counts what was done to one table.
type ResyncTable struct {
	Table   string
	Logged  int // row versions that only this site had
	Removed int // rows that are not the origin's, replaced ones included
	Written int // rows of the origin's that were not here, or differed
}

// ResyncReport is what a resync did.
type ResyncReport struct {
	Copied change.Position // of the origin's stream: what this database holds
	Begins change.Position // of this site's own stream, for every target
	Tables []ResyncTable
}

// Resync brings a database that is not the one its site had before (a promoted standby, a restored copy, an empty one)
// to the content of another site, by that site's initial copy. Its own stream for every site begins anew. With the
// content comes how far that site had applied every other origin, as of the same moment: those streams go on from there.
//
// Every row version that only this database has is written to its conflict log, in the transaction that removes it. Of
// keyed and home tables that are versions in buckets with a cut of this site; a version that an applier wrote is of
// another site, and older than what comes. A version that the origin received before the cut, and has written
// over since, looks as if only this database had it, and is logged too; what this database lacks cannot be told from
// what was deleted in it.
//
// The transaction sees this database as of the moment at which its stream begins, so that of what applications write
// to shared tables meanwhile, each change is either compared or sent. It satisfies what package replicate asks of a sink,
// for one copy.
type Resync struct {
	cfg     ResyncConfig
	applier *Applier
	report  ResyncReport
}

// OpenResync checks that the database answers, and that the role may do it.
func OpenResync(ctx context.Context, cfg ResyncConfig) (*Resync, error) {
	applier, err := OpenApply(ctx, cfg.Apply)
	if err != nil {
		return nil, err
	}
	if cfg.Step == nil {
		cfg.Step = func(string) {}
	}
	cfg.Apply = applier.cfg
	return &Resync{cfg: cfg, applier: applier}, nil
}

// Progress says that nothing is here: whoever asks begins with a copy.
func (r *Resync) Progress(context.Context) (change.Progress, error) { return change.Progress{}, nil }

// Run is refused: a resync takes one copy.
func (r *Resync) Run(context.Context, <-chan change.Tx, func(change.Position, []change.Marker)) error {
	return r.wrap(errors.New("a resync applies no stream"))
}

// Close has nothing to wait for.
func (r *Resync) Close() error { return nil }

// Report is what was done; valid when Copy has returned nil.
func (r *Resync) Report() ResyncReport { return r.report }

func (r *Resync) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("resync of %s from %s: %w", r.cfg.Apply.Site, r.cfg.Apply.Origin, err)
}

// Copy takes the copy, compares and brings the tables to it, in one transaction, progress included.
func (r *Resync) Copy(ctx context.Context, next func(context.Context) (change.Copy, error)) error {
	s, err := r.applier.connect(ctx)
	if err != nil {
		return r.wrap(err)
	}
	defer s.close()
	if !s.isReplica {
		return r.wrap(errors.New("the role may not set session_replication_role, so that triggers and foreign keys would fire for rows that are " +
			"put back; GRANT SET ON PARAMETER session_replication_role TO it, or run `atoll apply` as a superuser"))
	}
	r.cfg.Step("making its stream anew")
	// The others' places are made first: all begin where the snapshot is taken, which is behind them.
	for _, other := range r.cfg.Others {
		if _, err := other.Anew(ctx); err != nil {
			return r.wrap(err)
		}
	}
	slot, err := r.cfg.Capture.newSlot(ctx)
	if err != nil {
		return r.wrap(err)
	}
	defer slot.close(ctx)
	t := &resyncTx{Resync: r, copyIn: &copyIn{s: s, next: next, ctx: ctx}, begins: slot.at, stages: map[string]string{}}
	switch err := t.run(ctx, slot); sqlState(err) {
	case "":
		if err != nil {
			return r.wrap(err)
		}
	case "23505", "40001":
		return r.wrap(fmt.Errorf("%w: an application wrote to a shared table of this site meanwhile; try again", err))
	default:
		return r.wrap(err)
	}
	r.report = ResyncReport{Copied: t.now.Position, Begins: slot.at, Tables: t.done}
	return nil
}

// resyncTx is the one transaction of a resync.
type resyncTx struct {
	*Resync
	*copyIn
	begins change.Position   // this site's stream, for the origin
	stages map[string]string // by "schema.table": where the origin's rows are, quoted
	tables []*resyncTable
	done   []ResyncTable
}

func (t *resyncTx) run(ctx context.Context, slot *freshSlot) error {
	// Set statements at a time, not single rows: the planner is left to choose.
	for _, sql := range []string{"SET enable_seqscan = on", "SET plan_cache_mode = auto", "BEGIN ISOLATION LEVEL REPEATABLE READ",
		"SET TRANSACTION SNAPSHOT " + sqlLiteral(slot.snapshot)} {
		if err := t.s.command(ctx, sql); err != nil {
			return err
		}
	}
	slot.close(ctx) // the snapshot is ours now
	t.cfg.Step("waiting for the copy")
	if err := t.advance(); err != nil { // before this transaction writes: the source waits for open ones, perhaps of the same server
		return err
	}
	if err := t.markForeign(ctx); err != nil {
		return err
	}
	if err := t.listTables(ctx); err != nil {
		return err
	}
	for !t.now.Done {
		name := t.now.Table.Schema + "." + t.now.Table.Name
		if err := t.stage(ctx, name); err != nil {
			return fmt.Errorf("table %s: %w", name, err)
		}
	}
	if err := t.stageCuts(ctx); err != nil {
		return err
	}
	for _, name := range []string{progressTable, cutTable} {
		if t.stages[name] == "" {
			t.stages[name] = "(SELECT * FROM " + name + " WHERE false)" // nothing of it came
		}
	}
	for _, step := range []func(*resyncTable, context.Context) error{(*resyncTable).compare, (*resyncTable).remove, (*resyncTable).write} {
		for _, table := range t.tables {
			if err := step(table, ctx); err != nil {
				return fmt.Errorf("table %s: %w", table.name, err)
			}
		}
	}
	for _, table := range t.tables {
		if table.target.site < 0 {
			t.done = append(t.done, table.ResyncTable)
		}
	}
	return t.record(ctx)
}

// markForeign begins as every applying transaction does, so that nothing of it goes out again.
func (t *resyncTx) markForeign(ctx context.Context) error {
	items := t.s.beginItems(nil, 0, lastCommitted(nil))
	items = slices.DeleteFunc(items, func(it applyItem) bool { return it.st.name == "begin" || it.st.name == "progress" })
	_, err := t.s.pipeline(ctx, items)
	return err
}

// listTables lists what is published here: the origin sends no piece of a table that is empty there.
func (t *resyncTx) listTables(ctx context.Context) error {
	published, err := publishedTables(ctx, t.s.conn)
	if err != nil {
		return err
	}
	for _, p := range published {
		if len(p.Columns) > 0 {
			t.tables = append(t.tables, &resyncTable{t: t, name: p.Schema + "." + p.Name, source: &p.Table, identity: p.Identity})
		}
	}
	return nil
}

// stage streams the pieces of one table into a temporary one.
func (t *resyncTx) stage(ctx context.Context, name string) error {
	piece := t.now.Table
	at := slices.IndexFunc(t.tables, func(table *resyncTable) bool { return table.name == name })
	if name == progressTable || name == cutTable {
		return t.stageOthers(ctx, name)
	}
	if at < 0 {
		return errors.New("it is not published at this site; run atoll apply with the same spec at every site")
	}
	t.cfg.Step("copying " + name)
	stage := t.stages[name]
	if stage == "" {
		t.tables[at].source = piece
		if err := t.tables[at].resolve(ctx); err != nil {
			return err
		}
		stage = fmt.Sprintf("pg_temp.atoll_stage_%d", at)
		sql := fmt.Sprintf("CREATE TEMP TABLE atoll_stage_%d ON COMMIT DROP AS SELECT %s FROM %s WITH NO DATA", at, columnList(piece.Columns), t.tables[at].target.sql)
		if err := t.s.command(ctx, sql); sqlState(err) == "42501" {
			return fmt.Errorf("%w; GRANT TEMPORARY ON DATABASE to the agent's role", err)
		} else if err != nil {
			return err
		}
		t.stages[name] = stage
	}
	return t.copyInto(ctx, stage, piece)
}

func (t *resyncTx) copyInto(ctx context.Context, stage string, piece *change.Table) error {
	_, err := t.s.pg.CopyFrom(ctx, &tableReader{copyIn: t.copyIn, table: piece}, fmt.Sprintf("COPY %s (%s) FROM STDIN", stage, columnList(piece.Columns)))
	if t.err != nil {
		return t.err
	}
	return err
}

// The tables of a copy that are not published: see othersTables.
const (
	progressTable = "atoll.progress"
	cutTable      = "atoll.cut"
)

// stageOthers takes what the origin says of other origins.
func (t *resyncTx) stageOthers(ctx context.Context, name string) error {
	piece := t.now.Table
	if t.stages[name] == "" {
		stage := "pg_temp.atoll_stage_" + piece.Name
		sql := fmt.Sprintf("CREATE TEMP TABLE atoll_stage_%s ON COMMIT DROP AS SELECT %s FROM %s WITH NO DATA", piece.Name, columnList(piece.Columns), name)
		if err := t.s.command(ctx, sql); err != nil {
			return err
		}
		t.stages[name] = stage
	}
	return t.copyInto(ctx, t.stages[name], piece)
}

// stageCuts says which failover ended each of this site's buckets.
func (t *resyncTx) stageCuts(ctx context.Context) error {
	if err := t.s.command(ctx, "CREATE TEMP TABLE atoll_cuts (keyspace text, bucket int, epoch bigint, handover text) ON COMMIT DROP"); err != nil {
		return err
	}
	for _, c := range t.cfg.Cuts {
		_, _, err := t.s.run(ctx, "INSERT INTO pg_temp.atoll_cuts SELECT $1, b, $4::text::bigint, $5 FROM generate_series($2::text::int, $3::text::int) b",
			[]byte(c.Keyspace), fmt.Appendf(nil, "%d", c.Range.First), fmt.Appendf(nil, "%d", c.Range.Last),
			fmt.Appendf(nil, "%d", c.Cut.Epoch), []byte(c.Cut.Handover))
		if err != nil {
			return err
		}
	}
	if !t.cfg.Outside {
		return nil
	}
	_, _, err := t.s.run(ctx, `INSERT INTO pg_temp.atoll_cuts SELECT b.keyspace, b.bucket, b.epoch, '' FROM atoll.bucket b WHERE b.site = $1::text AND b.state = 'open'
		AND NOT EXISTS (SELECT FROM pg_temp.atoll_cuts c WHERE c.keyspace = b.keyspace AND c.bucket = b.bucket)`, []byte(t.cfg.Apply.Site))
	return err
}

// record notes what this database holds of the origin now, and commits. This site's closing markers of the failovers
// are taken away: its new stream has to bring them (Fence.Remark).
func (t *resyncTx) record(ctx context.Context) error {
	handovers := map[topo.HandoverID]bool{}
	for _, c := range t.cfg.Cuts {
		handovers[c.Cut.Handover] = true
	}
	for _, id := range slices.Sorted(maps.Keys(handovers)) {
		_, _, err := t.s.run(ctx, "DELETE FROM atoll.marker WHERE site = $1 AND kind = 'closed' AND handover = $2", []byte(t.cfg.Apply.Site), []byte(id))
		if err != nil {
			return fmt.Errorf("markers: %w", err)
		}
	}
	_, _, err := t.s.run(ctx, `INSERT INTO atoll.progress (origin, position) VALUES ($1::text, $2::text::bigint)
		ON CONFLICT (origin) DO UPDATE SET position = excluded.position, committed_at = NULL, applied_at = clock_timestamp(), halted = '', split = 0, relay_from = NULL`,
		[]byte(t.cfg.Apply.Origin), fmt.Appendf(nil, "%d", t.now.Position))
	if err != nil {
		return fmt.Errorf("progress: %w", err)
	}
	if err := t.recordOthers(ctx); err != nil {
		return err
	}
	return t.s.commit(ctx, t.now.Position)
}

// recordOthers notes where every third origin's stream goes on, and where its epochs ended: the rows that are here now
// are as of there. What this database kept of any origin for others is void: it may have a gap before that place. A halt
// stays, a failover may be under way.
func (t *resyncTx) recordOthers(ctx context.Context) error {
	site, origin := []byte(t.cfg.Apply.Site), []byte(t.cfg.Apply.Origin)
	for _, step := range []struct {
		what, sql string
		args      [][]byte
	}{
		{"what is kept for others", "DELETE FROM atoll.relay", nil},
		{"origins that site " + string(t.cfg.Apply.Origin) + " knows nothing of", `DELETE FROM atoll.progress p WHERE p.origin <> $1::text AND p.halted = ''
			AND NOT EXISTS (SELECT FROM ` + t.stages[progressTable] + ` s WHERE s.origin = p.origin)`, [][]byte{origin}},
		{"progress of other origins", `INSERT INTO atoll.progress (origin, position, committed_at, split)
			SELECT s.origin, s.position, s.committed_at, s.split FROM ` + t.stages[progressTable] + ` s WHERE s.origin NOT IN ($1::text, $2::text)
			ON CONFLICT (origin) DO UPDATE SET position = excluded.position, committed_at = excluded.committed_at, applied_at = clock_timestamp(),
				split = excluded.split, relay_from = NULL, cuts = progress.cuts + 1`, [][]byte{site, origin}},
		{"cuts of other origins", `INSERT INTO atoll.cut (origin, keyspace, bucket, epoch, position, handover, before, mine)
			SELECT s.origin, s.keyspace, s.bucket, s.epoch, s.position, s.handover, pg_snapshot_xmin(pg_current_snapshot())::text::bigint, false
			FROM ` + t.stages[cutTable] + ` s WHERE s.origin NOT IN ($1::text, $2::text) ON CONFLICT DO NOTHING`, [][]byte{site, origin}},
	} {
		if _, _, err := t.s.run(ctx, step.sql, step.args...); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}
