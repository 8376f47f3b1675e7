package lab

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
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

// checkOrdinary finds tails that were applied without a decision: the taker's applier did more to a row than the lost
// site had done to it besides its tail.
func checkOrdinary(c *Check, e Evidence, tail tails) {
	type at struct {
		slot slot
		op   rowOp
	}
	surplus := map[*Loss]map[at]int{}
	for i := range e.Losses {
		l := &e.Losses[i]
		surplus[l] = map[at]int{}
		for j := range e.Changes {
			ch := &e.Changes[j]
			s, _ := changeSlot(ch)
			switch k := (at{s, opOf(ch)}); {
			case ch.Applied && ch.Database == l.Taker:
				surplus[l][k]++
			case !ch.Applied && ch.Database == l.Lost && !tail.has(ch):
				surplus[l][k]--
			}
		}
	}
	for _, ch := range tail.inOrder() {
		s, _ := changeSlot(ch)
		if k := (at{s, opOf(ch)}); surplus[tail[ch]][k] > 0 {
			surplus[tail[ch]][k]--
			c.found("%s applied as ordinary, after it had opened bucket %s in failover %s: %s", tail[ch].Taker, s, tail[ch].ID, ch)
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
