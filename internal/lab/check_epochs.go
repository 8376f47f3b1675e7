package lab

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/topo"
)

// CheckK1: epochs follow one another in real time, each with one origin. Every ordinary commit lies in a window in
// which its site held the bucket, windows of two sites never overlap, and the committing site changes only with a
// handover. Where the lab took a site away, its window ends when the taker opens, and what it committed until then is
// in order, known to the taker or not. Clients see the same: no later write is acknowledged under an older epoch. n is the
// number of buckets of the users.
func CheckK1(e Evidence, ops []Operation, n int) Check {
	c := Check{Name: "K1", Claim: "at no time do two sites commit writes of one bucket; epochs follow one another in real time"}
	rows, changes := bySlot(e.Epochs, epochSlot), bySlot(ordinary(e.Changes), changeSlot)
	commits, moves := 0, 0
	for _, s := range slots(rows, changes) {
		ws := windows(rows[s])
		moves += max(0, len(ws)-1)
		commits += len(changes[s])
		checkWindows(&c, s, ws, e.Losses)
		checkCommits(&c, s, ws, changes[s])
	}
	checkAcknowledged(&c, ops, func(o *Operation) []window { return windows(rows[slot{o.Keyspace, bucketOf(o.Key, n)}]) })
	c.Looked = fmt.Sprintf("%d committed row changes in %d buckets, %d changes of owner or epoch", commits, len(changes), moves)
	if commits == 0 || len(rows) == 0 {
		c.Error = "the databases show no commits or no epoch rows"
	}
	return c
}

func checkWindows(c *Check, s slot, ws []window, losses []Loss) {
	origin := map[topo.Epoch]topo.SiteID{}
	for i := range ws {
		w := &ws[i]
		if first, seen := origin[w.epoch]; seen && first != w.site {
			c.found("bucket %s: epoch %d was opened by %s and by %s", s, w.epoch, first, w.site)
		}
		origin[w.epoch] = w.site
		if i == 0 {
			continue
		}
		before := &ws[i-1]
		if w.epoch < before.epoch || w.epoch == before.epoch && w.site != before.site {
			c.found("bucket %s: epoch %d opened (%s) after epoch %d (%s)", s, w.epoch, w, before.epoch, before)
		}
		overlaps := before.overtaken && lossBetween(losses, before, w) == nil
		if overlaps || before.closed.IsZero() || before.closed.After(w.open) {
			c.found("bucket %s: %s opened while it was still open: %s", s, w, before)
		}
	}
}

func checkCommits(c *Check, s slot, ws []window, changes []*Change) {
	runs, sites := 0, topo.SiteID("")
	for _, ch := range changes {
		inside := slices.ContainsFunc(ws, func(w window) bool { return w.site == ch.Database && w.holds(ch.At) })
		if !inside {
			c.found("bucket %s: %s, while %s", s, ch, holder(ws, ch))
		}
		if ch.Database != sites {
			runs++
			sites = ch.Database
		}
	}
	owners, last := 0, topo.SiteID("")
	for _, w := range ws {
		if w.site != last {
			owners++
			last = w.site
		}
	}
	if runs > owners {
		c.found("bucket %s: the committing site changed %d times, its owner %d times", s, runs-1, max(0, owners-1))
	}
}

// checkAcknowledged compares the writes of each key: one that began after another was acknowledged is not acknowledged
// by another site under a lower epoch. A gateway names the epoch that it knew when it sent the write. Within one site that may
// be one that an aborted handover has raised since; and a site that the bucket has come back to meanwhile, as its own database
// shows, commits under the later one, which checkCommits looks at.
func checkAcknowledged(c *Check, ops []Operation, of func(*Operation) []window) {
	byKey := map[string][]*Operation{}
	for i := range ops {
		if o := &ops[i]; o.Write && o.Outcome == OK && o.Epoch > 0 && o.Key != "" {
			k := string(o.Keyspace) + "/" + o.Key
			byKey[k] = append(byKey[k], o)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(byKey)) {
		began := byKey[k]
		ended := slices.Clone(began)
		slices.SortStableFunc(began, func(a, b *Operation) int { return cmp.Compare(a.InvokedUS, b.InvokedUS) })
		slices.SortStableFunc(ended, func(a, b *Operation) int { return cmp.Compare(a.ReturnedUS, b.ReturnedUS) })
		highest := map[topo.SiteID]*Operation{} // of those that had ended, by site
		for _, o := range began {
			for ; len(ended) > 0 && ended[0].ReturnedUS < o.InvokedUS; ended = ended[1:] {
				if h := highest[ended[0].Site]; h == nil || h.Epoch < ended[0].Epoch {
					highest[ended[0].Site] = ended[0]
				}
			}
			for _, site := range slices.Sorted(maps.Keys(highest)) {
				if h := highest[site]; site != o.Site && h.Epoch > o.Epoch && !cameBack(of(o), o, h.Epoch) {
					c.found("%s was acknowledged by %s under epoch %d after %s had acknowledged %s under epoch %d", o, o.Site, o.Epoch, site, h, h.Epoch)
				}
			}
		}
	}
}

// cameBack tells whether the bucket of a write was open again at the site that acknowledged it, under a later epoch than
// another, before it did so.
func cameBack(ws []window, o *Operation, than topo.Epoch) bool {
	return slices.ContainsFunc(ws, func(w window) bool {
		return w.site == o.Site && w.epoch > than && w.open.Before(o.Returned()) && (w.closed.IsZero() || w.closed.After(o.Invoked()))
	})
}

// holder says for a message who held a bucket at the time of a commit.
func holder(ws []window, ch *Change) string {
	var before *window
	for i := range ws {
		if ws[i].holds(ch.At) {
			return "the bucket was open for " + ws[i].String()
		}
		if ws[i].open.Before(ch.At) {
			before = &ws[i]
		}
	}
	if before == nil {
		return "no site had opened the bucket yet"
	}
	return "it was closed everywhere; last open for " + before.String()
}

// CheckK2: I3 for planned switches: before the new owner's first commit at an epoch, the old owner's closing word and
// every row change that it or an owner before it had committed were applied there, over whichever link they came; also
// what was decided of a lost site's tail. A failover
// is no such switch: what the taker did not have then is the lost site's tail, and no later switch has to bring it.
func CheckK2(e Evidence) Check {
	c := Check{Name: "K2", Claim: "the new owner commits its first write after it applied everything of the owners before"}
	rows := bySlot(e.Epochs, epochSlot)
	tail := tailsOf(e)
	born := bySlot(deleteFunc(e.Changes, func(c *Change) bool { return c.Applied || tail.has(c) }), changeSlot)
	applied := bySlot(deleteFunc(e.Changes, func(c *Change) bool { return !c.Applied }), changeSlot)
	taken := takenDecisions(e.Conflicts)
	handovers, compared := 0, 0
	for _, s := range slots(rows, born) {
		ws := windows(rows[s])
		for i := 1; i < len(ws); i++ {
			if ws[i].site == ws[i-1].site || lossBetween(e.Losses, &ws[i-1], &ws[i]) != nil {
				continue
			}
			handovers++
			checkMarkerArrived(&c, s, rows[s], &ws[i-1], &ws[i])
			compared += checkApplied(&c, s, &ws[i], toBring(born[s], taken, ws[i].site), applied[s], tail.rowsOf(ws[i].site))
		}
	}
	c.Looked = fmt.Sprintf("%d bucket handovers, %d row changes before them", handovers, compared)
	if handovers == 0 {
		c.Error = "the databases show no handover"
	}
	return c
}

func checkMarkerArrived(c *Check, s slot, rows []*EpochRow, from, to *window) {
	for _, r := range rows {
		if r.Database == to.site && r.Site == from.site && !r.Open && r.Epoch == from.epoch {
			if r.At.After(to.open) {
				c.found("bucket %s: %s opened epoch %d at %s, %s before the end of %s's epoch %d was applied there",
					s, to.site, to.epoch, clock(to.open), r.At.Sub(to.open), from.site, from.epoch)
			}
			return
		}
	}
	c.found("bucket %s: %s opened epoch %d, but the end of %s's epoch %d never arrived there", s, to.site, to.epoch, from.site, from.epoch)
}

type rowOp struct{ table, row, op string }

// checkApplied compares by count per origin, row and operation: the applier does to a row what its origin did, in order.
// But of a row that the new owner had written itself when it was lost (own), an INSERT may have come as an UPDATE: a
// purchase that is sent again with its idempotency key is made again, under the same keys.
func checkApplied(c *Check, s slot, to *window, born, applied []*Change, own map[rowOp]bool) int {
	op := func(ch *Change) rowOp {
		k := opOf(ch)
		if k.op != "DELETE" && own[rowOp{table: k.table, row: k.row}] {
			k.op = "INSERT or UPDATE"
		}
		return k
	}
	first := to.open
	for _, ch := range born {
		if ch.Database == to.site && !ch.At.Before(to.open) {
			first = ch.At
			break
		}
	}
	type from struct {
		born topo.SiteID
		op   rowOp
	}
	missing, last := map[from]int{}, map[from]*Change{}
	n := 0
	for _, ch := range born {
		if ch.Database != to.site && ch.At.Before(to.open) {
			k := from{ch.Database, op(ch)}
			missing[k]++
			last[k] = ch
			n++
		}
	}
	for _, ch := range applied {
		if ch.Database == to.site && ch.At.Before(first) {
			missing[from{ch.Origin, op(ch)}]--
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(missing), func(a, b from) int {
		return cmp.Or(strings.Compare(string(a.born), string(b.born)), compareOps(a.op, b.op))
	}) {
		if missing[k] > 0 {
			c.found("bucket %s: %s committed at epoch %d at %s without having applied %s", s, to.site, to.epoch, clock(first), last[k])
		}
	}
	return n
}

// transaction names one of a database's transactions.
type transaction struct {
	database topo.SiteID
	xid      uint32
}

// takenDecisions lists the transactions that applied a stale change, with the site whose change it was: that site has
// it already, so nobody brings it there.
func takenDecisions(conflicts []ConflictRow) map[transaction]topo.SiteID {
	out := map[transaction]topo.SiteID{}
	for _, r := range conflicts {
		if r.Decision == decisionApplied && r.DecidedXID != 0 {
			out[transaction{r.Database, r.DecidedXID}] = r.Origin
		}
	}
	return out
}

// toBring leaves out what a site had before anybody else.
func toBring(born []*Change, taken map[transaction]topo.SiteID, to topo.SiteID) []*Change {
	var out []*Change
	for _, ch := range born {
		if !ch.Decided || taken[transaction{ch.Database, ch.XID}] != to {
			out = append(out, ch)
		}
	}
	return out
}

// ordinary lists what applications committed.
func ordinary(all []Change) []Change {
	return deleteFunc(all, func(c *Change) bool { return c.Applied || c.Decided })
}

func deleteFunc(all []Change, drop func(*Change) bool) []Change {
	var out []Change
	for i := range all {
		if !drop(&all[i]) {
			out = append(out, all[i])
		}
	}
	return out
}

func slots[A, B any](a map[slot]A, b map[slot]B) []slot {
	all := map[slot]bool{}
	for s := range a {
		all[s] = true
	}
	for s := range b {
		all[s] = true
	}
	return slices.SortedFunc(maps.Keys(all), func(x, y slot) int {
		if n := strings.Compare(string(x.keyspace), string(y.keyspace)); n != 0 {
			return n
		}
		return int(x.bucket) - int(y.bucket)
	})
}
