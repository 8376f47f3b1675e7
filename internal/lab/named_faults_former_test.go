package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// former is a database that a site had and never has again. Its files are kept where no agent looks: with them the
// checks know to the transaction what was lost with it, and allow nothing else to be missing.
type former struct {
	site topo.SiteID
	dir  string
	died time.Time
	Evidence
	shop Shop
}

// bury ends a site's database at once and for good, and puts its files aside.
func (w *faultWorld) bury(site topo.SiteID) {
	w.t.Helper()
	s := w.d.databases[site]
	w.must(s.Kill())
	f := &former{site: site, dir: fmt.Sprintf("%s-former-%d", s.Dir, len(w.formers)), died: time.Now()}
	w.must(os.Rename(s.Dir, f.dir))
	w.formers = append(w.formers, f)
}

// exhume reads what a former database had, on a server that nobody knows.
func (w *faultWorld) exhume(ctx context.Context, f *former) (err error) {
	if f.shop.Site != "" {
		return nil
	}
	s, err := pgserver.Start(ctx, pgserver.Options{Dir: f.dir, Name: "former"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Kill()) }()
	db, err := pgx.Connect(ctx, s.CallerDSN(pgserver.Superuser, database))
	if err != nil {
		return err
	}
	defer db.Close(context.WithoutCancel(ctx))
	if f.Evidence, err = readEvidence(ctx, db, f.site, watchedTables(w.d.Spec), time.Time{}); err != nil {
		return err
	}
	f.shop, err = readShop(ctx, db, f.site)
	return err
}

// checksWithFormers also looks at what the former databases had committed. What is in nobody's database any more may be
// missing, and nothing else; that goes for registers, too (K4), and for sales (seats).
func (w *faultWorld) checksWithFormers(ctx context.Context, e *evidence) []Check {
	w.t.Helper()
	present := map[Change]int{} // in the databases that the sites have now
	for _, c := range e.Changes {
		present[timeless(c)]++
	}
	for _, f := range w.formers {
		w.must(w.exhume(ctx, f))
		e.Changes = union(e.Changes, f.Changes, timeless)
		e.Epochs = union(e.Epochs, f.Epochs, func(r EpochRow) EpochRow { r.At = time.UnixMicro(r.At.UnixMicro()); return r })
	}
	missing, known := e.Conflicts, map[topo.HandoverID]bool{}
	for _, f := range w.formers {
		loss, since, found := lossOfFormer(e.Losses, f)
		if !found {
			w.t.Logf("nobody took over from the former database of %s", f.site)
			continue
		}
		known[loss.ID] = true
		given, strays := givenUp(e.Evidence, f, loss, since, present)
		for _, c := range strays {
			w.t.Errorf("another site had it when %s took over in failover %s, and %s had not: %s", loss.Taker, loss.ID, loss.Taker, c)
		}
		if len(given) > 0 {
			if lost, told := f.died.Sub(given[0].At), w.told[loss.ID]; lost > told {
				w.t.Errorf("failover %s lost %v of the site's time, and says at most %v", loss.ID, lost, told)
			}
		}
		given = slices.DeleteFunc(given, func(c *Change) bool { return decidedElsewhere(e.Conflicts, c, loss.ID) != nil }) // its agent had read it, and it came late
		entries := f.entries(given, loss)
		missing = append(missing, entries...)
		w.t.Logf("only the former database of %s had %d row changes (%d of orders and sales) when %s took over in failover %s",
			f.site, len(given), len(entries), loss.Taker, loss.ID)
	}
	versions := slices.DeleteFunc(slices.Clone(e.Conflicts), func(r ConflictRow) bool { return known[r.Handover] && bareTable(r.Table) == registerTable })
	versions = append(versions, registerTails(e.Evidence, w.ops, known)...)
	seats, _ := CheckSeats(e.shops, missing)
	registers := append(w.believable(e.Losses), FinalReads(w.ops, e.shops, time.Now())...)
	return []Check{CheckK1(e.Evidence, w.ops, w.opts.Buckets), CheckK3(w.ops, e.shops, missing), CheckK4(registers, versions, e.Losses), CheckK6(w.ops), seats, CheckEqual(e.hashes)}
}

// believable are all operations but the strong reads that a site answered when its database was another one already: no
// fence keeps the application from reading there, and the site's gateways ask for its lease before and after. So it can go on for as
// long as the lease had been, and no longer.
func (w *faultWorld) believable(losses []Loss) []Operation {
	w.t.Helper()
	out := slices.Clone(w.ops)
	for _, f := range w.formers {
		if _, _, found := lossOfFormer(losses, f); !found {
			continue
		}
		over, answered, last := f.died.Add(w.leases(1)), 0, f.died
		out = slices.DeleteFunc(out, func(o Operation) bool {
			at := o.Returned()
			blind := o.Op == registerRead && o.Outcome == OK && o.Site == f.site && at.After(f.died) && at.Before(over)
			if blind {
				answered++
				last = slices.MaxFunc([]time.Time{last, at}, time.Time.Compare)
			}
			return blind
		})
		w.t.Logf("%d strong reads were answered at %s when its former database was gone, the last %.1f s behind that", answered, f.site, last.Sub(f.died).Seconds())
	}
	return out
}

// timeless makes a change comparable.
func timeless(c Change) Change {
	c.At = time.UnixMicro(c.At.UnixMicro())
	return c
}

// union adds to a list what it has not, by number.
func union[T comparable](all, more []T, plain func(T) T) []T {
	have := map[T]int{}
	for _, x := range all {
		have[plain(x)]++
	}
	for _, x := range more {
		if k := plain(x); have[k] > 0 {
			have[k]--
		} else {
			all = append(all, x)
		}
	}
	return all
}

// lossOfFormer is the first failover of the site behind the end of its database, and when the one before that was: what the
// site kept to itself until then has another account.
func lossOfFormer(losses []Loss, f *former) (l Loss, since time.Time, found bool) {
	losses = slices.SortedFunc(slices.Values(losses), func(a, b Loss) int { return a.Killed.Compare(b.Killed) })
	for _, l := range losses {
		switch {
		case l.Lost != f.site:
		case l.Killed.After(f.died):
			return l, since, true
		default:
			since = l.Opened
		}
	}
	return Loss{}, since, false
}

// givenUp lists the row changes of a former database that neither the database in its place nor another site has: of what a
// site changed in a row, the others have the first ones, as in tailsOf. Strays are those that another site than the taker had.
func givenUp(e Evidence, f *former, l Loss, since time.Time, present map[Change]int) (given, strays []*Change) {
	type place struct {
		slot
		rowOp
	}
	at := func(c *Change) place { return place{slot{c.Keyspace, c.Bucket}, opOf(c)} }
	had := map[topo.SiteID]map[place]int{}
	var born []*Change
	for i := range e.Changes {
		c := &e.Changes[i]
		switch {
		case !c.At.After(since) || c.Decided:
		case c.Applied && c.Origin == f.site && c.Database != f.site && c.At.Before(l.Opened):
			if had[c.Database] == nil {
				had[c.Database] = map[place]int{}
			}
			had[c.Database][at(c)]++
		case !c.Applied && c.Database == f.site && !c.At.After(f.died):
			born = append(born, c)
		}
	}
	slices.SortStableFunc(born, func(a, b *Change) int { return a.At.Compare(b.At) })
	nth := map[place]int{}
	for _, c := range born {
		n := nth[at(c)]
		nth[at(c)]++
		elsewhere := false
		for site, of := range had {
			if n < of[at(c)] {
				elsewhere = true
				if site != l.Taker && n >= had[l.Taker][at(c)] {
					strays = append(strays, c)
				}
			}
		}
		if !elsewhere && present[timeless(*c)] == 0 {
			given = append(given, c)
		}
	}
	return given, strays
}

// entries are changes of the former database as a conflict log would have them, for the checks that look there.
func (f *former) entries(given []*Change, l Loss) (out []ConflictRow) {
	add := func(c *Change, kind string, version map[string]string) {
		remote, err := json.Marshal(version)
		if err != nil {
			panic("BUG: " + err.Error())
		}
		out = append(out, ConflictRow{Database: f.site, Origin: f.site, XID: uint64(c.XID), Kind: kind, Table: "public." + c.Table, Keyspace: c.Keyspace,
			Bucket: c.Bucket, Handover: l.ID, Remote: remote, Decision: decisionKept, At: c.At})
	}
	for _, c := range given {
		_, order, _ := strings.Cut(c.Row, "/")
		switch status := f.shop.Orders[order].Status; c.Table + " " + c.Op {
		case "orders INSERT":
			add(c, "stale_insert", map[string]string{"id": order, "status": status})
		case "orders UPDATE":
			add(c, "stale_update", map[string]string{"id": order, "status": status})
		case "seats UPDATE":
			if sold := f.shop.Sold[c.Row]; sold != "" {
				add(c, "stale_update", map[string]string{"id": c.Row, "sold_to": sold})
			}
		}
	}
	return out
}

// decidedElsewhere is what another site decided about a change of a lost site's tail; nil: it never heard of it.
func decidedElsewhere(conflicts []ConflictRow, c *Change, l topo.HandoverID) *ConflictRow {
	i := slices.IndexFunc(conflicts, func(r ConflictRow) bool {
		return r.Handover == l && r.Origin == c.Database && r.Database != c.Database && r.XID == uint64(c.XID) && bareTable(r.Table) == c.Table &&
			(c.Table != registerTable || column(r.Remote, "id") == c.Row)
	})
	if i < 0 {
		return nil
	}
	return &conflicts[i]
}

// registerTails are the versions of registers that a lost site had alone, as conflict logs would have them: a rebuild logs a
// row as it was in the end, K4 wants each version. The client of a version is found by its time.
func registerTails(e Evidence, ops []Operation, of map[topo.HandoverID]bool) (out []ConflictRow) {
	writes := map[string][]*Operation{}
	for i := range ops {
		if o := &ops[i]; o.Op == registerWrite && o.Outcome != Fail {
			writes[o.Key] = append(writes[o.Key], o)
		}
	}
	tail := tailsOf(e)
	for _, c := range tail.inOrder() {
		if !of[tail[c].ID] || c.Table != registerTable || c.Op != "UPDATE" {
			continue
		}
		o := writerOf(c, writes[c.Row])
		if o == nil {
			continue // no register's
		}
		remote, err := json.Marshal(map[string]string{"id": c.Row, registerColumn: o.Value})
		if err != nil {
			panic("BUG: " + err.Error())
		}
		r := ConflictRow{Database: c.Database, Origin: c.Database, XID: uint64(c.XID), Kind: "stale_update", Table: "public." + c.Table,
			Keyspace: c.Keyspace, Bucket: c.Bucket, Handover: tail[c].ID, Remote: remote, Decision: decisionKept, At: c.At}
		if was := decidedElsewhere(e.Conflicts, c, tail[c].ID); was != nil {
			r = *was
		}
		r.Position = uint64(len(out))
		out = append(out, r)
	}
	return out
}

// writerOf finds the write behind a change of a register: one that was answered fits in time, else the last before that was not.
func writerOf(c *Change, writes []*Operation) (best *Operation) {
	for _, o := range writes {
		switch {
		case c.At.Before(o.Invoked()):
		case o.Outcome == OK && !c.At.After(o.Returned()):
			return o
		case o.Outcome == Unknown && (best == nil || o.Invoked().After(best.Invoked())):
			best = o
		}
	}
	return best
}

// Of four changes of a row one is at both others, one at one of them that is no taker, one in the database that the site
// has now, and one nowhere any more.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	at := func(s int) time.Time { return time.UnixMicro(int64(s) * 1e6) }
	change := func(db topo.SiteID, origin topo.SiteID, s int) Change {
		return Change{Database: db, Applied: origin != "", Origin: origin, XID: uint32(s), Table: "orders", Op: "UPDATE", Row: "1/2", Keyspace: users, At: at(s)}
	}
	e := Evidence{Changes: []Change{change("a", "", 1), // kept to itself by an earlier loss
		change("a", "", 11), change("a", "", 12), change("a", "", 13), change("a", "", 14),
		change("b", "a", 11), change("c", "a", 11), change("c", "a", 12), change("b", "a", 40)}}
	f := &former{site: "a", died: at(20)}
	losses := []Loss{{ID: "second", Lost: "a", Taker: "b", Killed: at(22), Opened: at(23)}, {ID: "first", Lost: "a", Taker: "b", Killed: at(2), Opened: at(3)}}
	l, since, found := lossOfFormer(losses, f)
	if !found || l.ID != "second" || !since.Equal(at(3)) {
		t.Fatalf("loss %+v since %v, %v", l, since, found)
	}
	given, strays := givenUp(e, f, l, since, map[Change]int{timeless(change("a", "", 13)): 1})
	if len(given) != 1 || given[0].XID != 14 || len(strays) != 1 || strays[0].XID != 12 {
		t.Errorf("given up %v, strays %v", given, strays)
	}
	f.shop.Orders = map[string]Order{"2": {ID: "2", Status: "cancelled"}}
	if out := outvotedIn(f.entries(given, l)); !out.cancels["2"] || len(out.orders) != 0 {
		t.Errorf("entries %+v", out)
	}
}
