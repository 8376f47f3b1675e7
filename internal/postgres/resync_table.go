package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// The kinds of stale row versions; see schema.sql.
const (
	staleInsert = "stale_insert" // the owner has no such row
	staleUpdate = "stale_update" // the owner has another version
)

// resyncTable is one table on its way to the origin's content.
type resyncTable struct {
	ResyncTable
	t      *resyncTx
	name   string // schema.table
	source *change.Table
	target *applyTarget

	identity byte // replica identity here
	emptied  bool // all of the origin's rows have to be written
}

func (r *resyncTable) resolve(ctx context.Context) (err error) {
	if r.target == nil {
		r.target, err = r.t.s.resolve(ctx, r.t.keyed(r.source))
	}
	return err
}

func (r *resyncTable) diff() string {
	return "pg_temp.atoll_diff_" + strings.TrimPrefix(r.stage(), "pg_temp.atoll_stage_")
}

// stage is where the origin's rows are.
func (r *resyncTable) stage() string { return r.t.stages[r.name] }

// compare finds the rows that are not the same at both, and logs those that only this site has.
func (r *resyncTable) compare(ctx context.Context) error {
	r.Table = r.name
	r.t.cfg.Step("comparing " + r.name)
	if err := r.resolve(ctx); err != nil {
		return err
	}
	s := r.t.s
	if r.stage() == "" { // empty at the origin
		r.t.stages[r.name] = fmt.Sprintf("pg_temp.atoll_stage_e%d", len(r.t.stages))
		sql := fmt.Sprintf("CREATE TEMP TABLE %s ON COMMIT DROP AS SELECT %s FROM %s WITH NO DATA",
			strings.TrimPrefix(r.stage(), "pg_temp."), columnList(r.source.Columns), r.target.sql)
		if err := s.command(ctx, sql); err != nil {
			return err
		}
	}
	if r.target.site >= 0 {
		rows, _, err := s.run(ctx, fmt.Sprintf("SELECT EXISTS (SELECT FROM %s WHERE site = $1)", r.stage()), []byte(s.cfg.Site))
		if err != nil {
			return err
		}
		if string(rows[0][0]) == "t" {
			return fmt.Errorf("the copy has fence rows of this site, %s", s.cfg.Site)
		}
	}
	if err := s.command(ctx, "ANALYZE "+r.stage()); err != nil {
		return err
	}
	if err := s.command(ctx, r.compareSQL()); err != nil {
		return err
	}
	if r.target.site >= 0 {
		return nil
	}
	return r.log(ctx)
}

// compareSQL joins both sides by key. Without a key equal rows are numbered, so that tables are compared as multisets.
func (r *resyncTable) compareSQL() string {
	here, there := "tableoid AS atoll_rel, ctid AS atoll_tid, xmin AS atoll_xmin, ", "ctid AS atoll_tid, "
	columns := columnList(r.source.Columns)
	var on []string
	if keyless := r.target.whole || len(r.target.match) == 0; keyless {
		here += r.text("x") + " AS atoll_text, row_number() OVER (PARTITION BY " + r.text("x") + ") AS atoll_n, "
		there += r.text("x") + " AS atoll_text, row_number() OVER (PARTITION BY " + r.text("x") + ") AS atoll_n, "
		on = []string{"t.atoll_text = s.atoll_text", "t.atoll_n = s.atoll_n"}
	}
	if len(on) == 0 {
		for _, i := range r.target.match {
			c := r.target.columns[i]
			on = append(on, fmt.Sprintf("t.%s %s s.%s", c.name, c.equal, c.name))
		}
	}
	mine := ""
	if r.target.site >= 0 {
		mine = " WHERE site <> " + sqlLiteral(string(r.t.s.cfg.Site))
	}
	return fmt.Sprintf(`CREATE TEMP TABLE %[1]s ON COMMIT DROP AS
		SELECT t.atoll_rel, t.atoll_tid, t.atoll_xmin, s.atoll_tid AS atoll_there, %[2]s AS atoll_bucket,
			CASE WHEN t.atoll_tid IS DISTINCT FROM NULL THEN %[3]s END AS atoll_mine,
			CASE WHEN s.atoll_tid IS DISTINCT FROM NULL THEN %[4]s END AS atoll_theirs
		FROM (SELECT %[5]s%[6]s FROM %[7]s x%[8]s) t
		FULL JOIN (SELECT %[9]s%[6]s FROM %[10]s x) s ON %[11]s
		WHERE t.atoll_tid IS NULL OR s.atoll_tid IS NULL OR %[12]s IS DISTINCT FROM %[13]s`,
		strings.TrimPrefix(r.diff(), "pg_temp."), r.bucket(), r.object("t"), r.object("s"),
		here, columns, r.target.sql, mine, there, r.stage(), strings.Join(on, " AND "), r.text("t"), r.text("s"))
}

// text is a row as the text forms of its values: exact for every type, in no need of an equality operator.
func (r *resyncTable) text(alias string) string {
	values := make([]string, len(r.target.columns))
	for i, c := range r.target.columns {
		values[i] = fmt.Sprintf("CASE WHEN %[1]s.%[2]s IS DISTINCT FROM NULL THEN format('%%s', %[1]s.%[2]s) END", alias, c.name)
	}
	return "ARRAY[" + strings.Join(values, ", ") + "]::text[]"
}

// object is a row as the conflict log keeps it.
func (r *resyncTable) object(alias string) string {
	names := make([]string, len(r.source.Columns))
	for i, c := range r.source.Columns {
		names[i] = sqlLiteral(c.Name)
	}
	return "jsonb_object(ARRAY[" + strings.Join(names, ", ") + "]::text[], " + r.text(alias) + ")"
}

// bucket is SQL for the bucket of this site's version of a row.
func (r *resyncTable) bucket() string {
	switch spec := r.target.spec; spec.Kind {
	case topo.Keyed:
		for i, c := range r.source.Columns {
			if c.Name == spec.Key {
				return fmt.Sprintf("atoll.bucket_of(t.%s::text, %d)", r.target.columns[i].name, r.t.cfg.Keyspaces[spec.Keyspace].Buckets)
			}
		}
	case topo.Home:
		return "0"
	}
	return "NULL::int"
}

// log writes down what only this site has. Of a fenced table that can only be where this site's epochs were cut: what
// it owned before was applied elsewhere before it was owned there.
func (r *resyncTable) log(ctx context.Context) error {
	s, spec := r.t.s, r.target.spec
	if spec.Fenced() && r.t.cfg.Keyspaces[spec.Keyspace].Buckets == 0 {
		return fmt.Errorf("keyspace %s is not in the spec", spec.Keyspace)
	}
	join := "LEFT JOIN pg_temp.atoll_cuts c ON false"
	if spec.Fenced() {
		join = "JOIN pg_temp.atoll_cuts c ON c.keyspace = $4::text AND c.bucket = d.atoll_bucket"
	}
	foreign := ""
	if s.commitTime && s.hasOrigin {
		foreign = ` AND ((SELECT o.roname FROM pg_replication_origin o
			WHERE o.roident = (pg_xact_commit_timestamp_origin(d.atoll_xmin)).roident) = ANY ($5::text::text[])) IS NOT TRUE`
	} else {
		foreign = " AND $5::text IS DISTINCT FROM NULL"
	}
	failover := ""
	if cuts := r.t.cfg.Cuts; len(cuts) > 0 {
		failover = string(cuts[0].Cut.Handover)
	}
	_, n, err := s.run(ctx, `INSERT INTO atoll.conflict (origin, position, source_xid, kind, table_name, keyspace, bucket, epoch,
			local_row, remote_row, handover, decided_xid, decision)
		SELECT $1::text, $2::text::bigint, d.atoll_xmin::text::bigint, CASE WHEN d.atoll_theirs IS NULL THEN '`+staleInsert+`' ELSE '`+staleUpdate+`' END,
			$3::text, $4::text, d.atoll_bucket, c.epoch, d.atoll_theirs, d.atoll_mine, coalesce(c.handover, $6::text), pg_current_xact_id()::text::bigint, '`+decisionKept+`'
		FROM `+r.diff()+` d `+join+` WHERE d.atoll_mine IS NOT NULL`+foreign,
		[]byte(s.cfg.Site), []byte(strconv.FormatUint(uint64(r.t.begins), 10)), []byte(r.name), []byte(spec.Keyspace),
		[]byte("{"+strings.Join(r.t.appliers(), ",")+"}"), []byte(failover))
	if err != nil {
		return fmt.Errorf("log what only this site has: %w", err)
	}
	r.Logged = int(n)
	return nil
}

// remove takes away what is not the origin's. Rows that differ are removed and written anew: no order of updates
// suits every unique key. PostgreSQL deletes nothing from a published table without a replica identity; such a table
// is emptied.
func (r *resyncTable) remove(ctx context.Context) error {
	s := r.t.s
	if len(r.target.match) > 0 || r.identity == 'f' {
		_, n, err := s.run(ctx, fmt.Sprintf("DELETE FROM %s x USING %s d WHERE x.ctid = d.atoll_tid AND x.tableoid = d.atoll_rel", r.target.sql, r.diff()))
		r.Removed = int(n)
		return err
	}
	rows, _, err := s.run(ctx, "SELECT count(atoll_tid) FROM "+r.diff())
	if err != nil {
		return err
	}
	if r.Removed, err = strconv.Atoi(string(rows[0][0])); err != nil || r.Removed == 0 {
		return err
	}
	r.emptied = true
	if err := s.command(ctx, "TRUNCATE "+r.target.sql); sqlState(err) == "42501" {
		return fmt.Errorf("%w; run atoll apply, which sets a replica identity, or grant TRUNCATE on it to the agent's role", err)
	} else if err != nil {
		return err
	}
	return nil
}

// write puts the origin's rows in their place.
func (r *resyncTable) write(ctx context.Context) error {
	overriding, which := "", fmt.Sprintf(" WHERE s.ctid IN (SELECT atoll_there FROM %s WHERE atoll_there IS NOT NULL)", r.diff())
	for _, c := range r.target.columns {
		if c.always {
			overriding = " OVERRIDING SYSTEM VALUE"
		}
	}
	if r.emptied {
		which = ""
	}
	columns := columnList(r.source.Columns)
	_, n, err := r.t.s.run(ctx, fmt.Sprintf("INSERT INTO %s (%s)%s SELECT %s FROM %s s%s", r.target.sql, columns, overriding, columns, r.stage(), which))
	r.Written = int(n)
	return err
}

// appliers are the names under which other sites' changes were applied here.
func (t *resyncTx) appliers() []string {
	names := []string{OriginName(t.cfg.Apply.Origin)}
	for _, other := range t.cfg.Others {
		names = append(names, OriginName(other.cfg.Target))
	}
	return names
}
