package lab

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/topo"
)

// CheckTail: I5 by the databases' word. Each row change that a lost site committed and its taker did not have is in the
// conflict log, once, and none was applied as if it were ordinary. It looks at the sites when they stand still.
func CheckTail(e Evidence) Check {
	c := Check{Name: "tail", Claim: "each change that a lost site had kept to itself is decided once and logged"}
	tail, logged := tailsOf(e), decisionsOf(e.Conflicts)
	wanted := map[decided][]*Change{}
	for _, ch := range tail.inOrder() {
		k := decided{tail[ch].ID, uint64(ch.XID), ch.Table}
		wanted[k] = append(wanted[k], ch)
	}
	for _, k := range slices.SortedFunc(maps.Keys(wanted), compareDecided) {
		switch n, w := len(logged[k]), wanted[k]; {
		case n < len(w):
			c.found("%d of %d changes of table %s are not in the conflict log of failover %s, the last: %s", len(w)-n, len(w), k.table, k.handover, w[len(w)-1])
		case n > len(w):
			c.found("%d changes of table %s are in the conflict log of failover %s %d times, the last: %s", len(w), k.table, k.handover, n, w[len(w)-1])
		}
	}
	checkOrdinary(&c, e, tail)
	c.Looked = fmt.Sprintf("%d row changes of %d losses, %d entries in the conflict logs", len(tail), len(e.Losses), len(e.Conflicts))
	if len(tail) == 0 {
		c.Error = "no lost site had a tail"
	}
	return c
}

// checkOrdinary finds tails that were applied without a decision: a site's applier did more to a row than the other sites
// had done to it besides their tails.
func checkOrdinary(c *Check, e Evidence, tail tails) {
	type at struct {
		slot slot
		op   rowOp
		born topo.SiteID
	}
	taken, sites := takenDecisions(e.Conflicts), map[topo.SiteID]bool{}
	for i := range e.Changes {
		sites[e.Changes[i].Database] = true
	}
	for _, site := range slices.Sorted(maps.Keys(sites)) {
		surplus := map[at]int{}
		for i := range e.Changes {
			ch := &e.Changes[i]
			s, _ := changeSlot(ch)
			switch k := (at{s, opOf(ch), ch.Database}); {
			case ch.Applied && ch.Database == site:
				surplus[at{s, opOf(ch), ch.Origin}]++
			case ch.Applied || ch.Database == site || tail.has(ch) || ch.Decided && taken[transaction{ch.Database, ch.XID}] == site:
			default:
				surplus[k]--
			}
		}
		for _, ch := range tail.inOrder() {
			s, _ := changeSlot(ch)
			if k := (at{s, opOf(ch), ch.Database}); ch.Database != site && surplus[k] > 0 {
				surplus[k]--
				opener := "it"
				if site != tail[ch].Taker {
					opener = string(tail[ch].Taker)
				}
				c.found("%s applied as ordinary, after %s had opened bucket %s in failover %s: %s", site, opener, s, tail[ch].ID, ch)
			}
		}
	}
}

func opOf(c *Change) rowOp { return rowOp{c.Table, c.Row, c.Op} }

func compareOps(a, b rowOp) int {
	return cmp.Or(strings.Compare(a.table, b.table), strings.Compare(a.row, b.row), strings.Compare(a.op, b.op))
}

func compareDecided(a, b decided) int {
	return cmp.Or(strings.Compare(string(a.handover), string(b.handover)), cmp.Compare(a.xid, b.xid), strings.Compare(a.table, b.table))
}

// bareTable is a table's name without its schema.
func bareTable(name string) string {
	_, table, found := strings.Cut(name, ".")
	if !found {
		return name
	}
	return table
}
