package lab

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// Balances are what must be equal in a bank of pgbench's: each transaction adds its delta to an account, a teller and
// a branch, and notes it in the history.
type Balances struct {
	Accounts int64 `json:"accounts"`
	Tellers  int64 `json:"tellers"`
	Branches int64 `json:"branches"`
	History  int64 `json:"history"`
}

func (b Balances) equal() bool {
	return b.Accounts == b.Tellers && b.Tellers == b.Branches && b.Branches == b.History
}

// CheckBalances: at each site, all or nothing of every transaction is there.
func CheckBalances(sites map[topo.SiteID]Balances) Check {
	c := Check{Name: "tpcb_invariants", Claim: "at every site the balances of accounts, tellers and branches and the deltas of the history have one sum",
		Looked: fmt.Sprintf("%d sites", len(sites))}
	for _, site := range slices.Sorted(maps.Keys(sites)) {
		if b := sites[site]; !b.equal() {
			c.found("at %s: accounts %d, tellers %d, branches %d, history %d", site, b.Accounts, b.Tellers, b.Branches, b.History)
		}
	}
	if len(sites) == 0 {
		c.Error = "no site was read"
	}
	return c
}

// benchNote is a row of pgbench's history, by when its transaction began (µs since 1970, by the database).
type benchNote struct {
	began  int64
	logged bool // not in the history, but in a conflict log
}

// clockSlack is how much a client's and a database's reading of the machine's clock may differ: pgbench keeps time by
// the monotonic clock and works out the calendar once.
const clockSlack = int64(2 * time.Millisecond / time.Microsecond)

// CheckNotes: every transaction that pgbench counted as done has a history row of its own. pgbench names no transaction, so
// rows are told apart by time: a transaction's row carries a moment between its begin and its end. That many rows have
// to be found for that many transactions, each within its own time; a row that no client heard of can stand in for a
// missing one only if both are of the same moment. It returns how many such rows there are.
func CheckNotes(done []benchTx, notes []benchNote) (c Check, unheard int) {
	c = Check{Name: "acknowledged_present", Claim: "every transaction that pgbench counted as done has a history row of its own moment, at the sites or in a conflict log",
		Looked: fmt.Sprintf("%d transactions, %d rows", len(done), len(notes))}
	if len(done) == 0 {
		c.Error = "no transaction was counted as done"
	}
	missing, unheard := matchNotes(done, notes)
	for _, t := range missing {
		c.found("client %d: the transaction of %s to %s", t.client, clock(time.UnixMicro(t.began)), clock(time.UnixMicro(t.end)))
	}
	return c, unheard
}

// matchNotes gives every row to the transaction that could have written it and ends first. That finds the largest
// number of pairs: whoever ends first has the fewest rows left to be written by.
func matchNotes(done []benchTx, notes []benchNote) (missing []benchTx, unheard int) {
	done, notes = slices.Clone(done), slices.Clone(notes)
	slices.SortFunc(done, func(a, b benchTx) int { return cmp.Compare(a.began, b.began) })
	slices.SortFunc(notes, func(a, b benchNote) int { return cmp.Compare(a.began, b.began) })
	var open byEnd
	next := 0
	for _, n := range notes {
		for ; next < len(done) && done[next].began-clockSlack <= n.began; next++ {
			heap.Push(&open, done[next])
		}
		for len(open) > 0 && open[0].end+clockSlack < n.began {
			missing = append(missing, heap.Pop(&open).(benchTx))
		}
		if len(open) == 0 {
			unheard++
			continue
		}
		heap.Pop(&open)
	}
	return slices.Concat(missing, open, done[next:]), unheard
}

// byEnd is a heap of transactions, the one that ends first on top.
type byEnd []benchTx

func (h byEnd) Len() int           { return len(h) }
func (h byEnd) Less(i, j int) bool { return h[i].end < h[j].end }
func (h byEnd) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byEnd) Push(x any)        { *h = append(*h, x.(benchTx)) }
func (h *byEnd) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// silentFor is the longest time between two acknowledgements in a row that touches the span from..to.
func silentFor(done []benchTx, from, to time.Time) time.Duration {
	ends := make([]int64, len(done))
	for i, t := range done {
		ends[i] = t.end
	}
	slices.Sort(ends)
	var longest int64
	for i := 1; i < len(ends); i++ {
		if ends[i] >= from.UnixMicro() && ends[i-1] <= to.UnixMicro() {
			longest = max(longest, ends[i]-ends[i-1])
		}
	}
	return time.Duration(longest) * time.Microsecond
}

// firstAfter is how long after a moment the first transaction was acknowledged that began after it; 0: none.
func firstAfter(done []benchTx, at time.Time) time.Duration {
	var first int64
	for _, t := range done {
		if t.began > at.UnixMicro() && (first == 0 || t.end < first) {
			first = t.end
		}
	}
	if first == 0 {
		return 0
	}
	return time.UnixMicro(first).Sub(at)
}

func readBalances(ctx context.Context, db *pgx.Conn) (b Balances, err error) {
	err = db.QueryRow(ctx, `SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
		(SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)`).
		Scan(&b.Accounts, &b.Tellers, &b.Branches, &b.History)
	return b, err
}

// readNotes reads a site's history, and what its conflict log keeps of history rows that gave way. The servers of the
// lab keep UTC, which is what their timestamps without a zone are in.
func readNotes(ctx context.Context, db *pgx.Conn) ([]benchNote, error) {
	rows, err := db.Query(ctx, `SELECT (extract(epoch FROM mtime) * 1000000)::bigint, false FROM pgbench_history
		UNION ALL
		SELECT (extract(epoch FROM (remote_row ->> 'mtime')::timestamp) * 1000000)::bigint, true FROM atoll.conflict
		WHERE table_name LIKE '%pgbench_history' AND kind = 'stale_insert' AND decision = 'kept'`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (benchNote, error) {
		var n benchNote
		return n, row.Scan(&n.began, &n.logged)
	})
}

// benchGroups hashes a site's rows in groups, each row whole: half a million hashes would be compared for nothing, since
// one group that differs is enough to fail. The history has no key; equal rows are told apart by how many there are.
var benchGroups = map[string]string{
	"pgbench_accounts": `SELECT (aid / 500)::text, md5(string_agg(t::text, ',' ORDER BY aid)) FROM pgbench_accounts t GROUP BY 1`,
	"pgbench_tellers":  `SELECT tid::text, md5(t::text) FROM pgbench_tellers t`,
	"pgbench_branches": `SELECT bid::text, md5(t::text) FROM pgbench_branches t`,
	"pgbench_history":  `SELECT t::text, count(*)::text FROM pgbench_history t GROUP BY 1`,
}

func hashBench(ctx context.Context, db *pgx.Conn) (map[string]rowHashes, error) {
	out := map[string]rowHashes{}
	for table, sql := range benchGroups {
		rows := rowHashes{}
		var key, hash string
		if err := eachRow(ctx, db, sql, []any{&key, &hash}, func() error { rows[key] = hash; return nil }); err != nil {
			return nil, fmt.Errorf("lab: hashes of %s: %w", table, err)
		}
		out[table] = rows
	}
	return out, nil
}

// benchEvidence is what the databases say at the end.
type benchEvidence struct {
	balances map[topo.SiteID]Balances
	hashes   map[topo.SiteID]map[string]rowHashes
	history  []benchNote // of the first site; equal at the others, or sites_equal says so
	logged   []benchNote // of all sites
}

func (b *bench) evidence(ctx context.Context) (benchEvidence, error) {
	e := benchEvidence{balances: map[topo.SiteID]Balances{}, hashes: map[topo.SiteID]map[string]rowHashes{}}
	for i, site := range b.opts.Sites {
		err := b.d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			balances, err1 := readBalances(ctx, db)
			hashes, err2 := hashBench(ctx, db)
			notes, err3 := readNotes(ctx, db)
			e.balances[site], e.hashes[site] = balances, hashes
			for _, n := range notes {
				switch {
				case n.logged:
					e.logged = append(e.logged, n)
				case i == 0:
					e.history = append(e.history, n)
				}
			}
			return errors.Join(err1, err2, err3)
		})
		if err != nil {
			return e, err
		}
	}
	return e, nil
}
