package lab

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Accounting says what became of the acknowledged writes that a lost site had kept to itself: RPOWrites = Applied +
// Logged + Missing.
type Accounting struct {
	RPOWrites int      `json:"rpo_writes"` // acknowledged, and not at the taker when it opened
	RPOms     float64  `json:"rpo_ms"`     // from the oldest of them to the kill
	Applied   int      `json:"applied_after_return"`
	Logged    int      `json:"in_conflict_log"` // not applied, wholly or in part; every version is in the log
	Missing   int      `json:"acknowledged_missing_after_return"`
	Examples  []string `json:"missing,omitempty"`
}

// Account follows each acknowledged write of a lost site's tail. What the site committed comes from its own database,
// so it is known only after that has come back; before, or if it never does, there is nothing to count here. A write
// counts as missing when one of its row changes is not in the conflict log: it was lost, or slipped in undecided.
func Account(ops []Operation, e Evidence, l Loss) Accounting {
	if !slices.ContainsFunc(e.Losses, func(known Loss) bool { return known.ID == l.ID }) {
		e.Losses = append(slices.Clone(e.Losses), l)
	}
	transactions := tailsOf(e).transactions(l.ID)
	logged := decisionsOf(e.Conflicts)
	clients := clientsOf(ops, e.Conflicts, l)
	var a Accounting
	var oldest time.Time
	for _, xid := range slices.Sorted(maps.Keys(transactions)) {
		tx := transactions[xid]
		o := clients.whose(tx)
		if o == nil {
			continue // the shop's own work, or of unknown outcome
		}
		clients.found[o] = true
		a.RPOWrites++
		if at := tx[0].At; oldest.IsZero() || at.Before(oldest) {
			oldest = at
		}
		switch what := becameOf(tx, l, logged); what {
		case decisionApplied:
			a.Applied++
		case decisionKept:
			a.Logged++
		default:
			a.Missing++
			if len(a.Examples) < maxExamples {
				a.Examples = append(a.Examples, fmt.Sprintf("%s; %s", o, what))
			}
		}
	}
	if !oldest.IsZero() {
		a.RPOms = max(0, round(l.Killed.Sub(oldest).Seconds()*1000, 1))
	}
	return a
}

// becameOf is applied, kept, or what is missing.
func becameOf(tx []*Change, l Loss, logged decisions) string {
	byTable := map[string]int{}
	for _, c := range tx {
		byTable[c.Table]++
	}
	kept := false
	for _, table := range slices.Sorted(maps.Keys(byTable)) {
		rows := logged[decided{l.ID, uint64(tx[0].XID), table}]
		if len(rows) < byTable[table] {
			return fmt.Sprintf("%d of %d changes of %s by transaction %d are in no conflict log", byTable[table]-len(rows), byTable[table], table, tx[0].XID)
		}
		kept = kept || slices.ContainsFunc(rows, func(r *ConflictRow) bool { return r.Decision != decisionApplied })
	}
	if kept {
		return decisionKept
	}
	return decisionApplied
}

// clients finds the operation behind a transaction of the lost site.
type clients struct {
	orders map[string]*Operation   // by the order that they made
	others map[string][]*Operation // cancellations, notes and registers, by customer
	values map[uint32]string       // the register's value that a transaction wrote, where the log says it
	found  map[*Operation]bool     // whose transaction is known
}

func clientsOf(ops []Operation, conflicts []ConflictRow, l Loss) clients {
	out := clients{map[string]*Operation{}, map[string][]*Operation{}, map[uint32]string{}, map[*Operation]bool{}}
	for i := range ops {
		o := &ops[i]
		switch {
		case !o.Write || o.Outcome != OK || o.Status >= 400 || !l.Opened.IsZero() && o.Invoked().After(l.Opened):
		case o.Op == buyOp && o.Order != nil:
			out.orders[o.Order.ID] = o
		case o.Op != buyOp:
			out.others[o.Key] = append(out.others[o.Key], o)
		}
	}
	for i := range conflicts {
		r := &conflicts[i]
		if value := column(r.Remote, registerColumn); r.Handover == l.ID && bareTable(r.Table) == registerTable && value != "" {
			out.values[uint32(r.XID)] = value
		}
	}
	return out
}

// whose finds the acknowledged operation that made a transaction; nil if there is none. It knows how the shop writes:
// a purchase inserts the order, a cancellation changes it and leaves a job in the outbox, a register changes the
// customer alone. A transaction is a client's only if it was committed while the client waited.
func (c clients) whose(tx []*Change) *Operation {
	did := map[string]string{} // table and operation → row
	for _, ch := range tx {
		did[ch.Table+" "+ch.Op] = ch.Row
	}
	if row, made := did["orders INSERT"]; made {
		_, id, _ := strings.Cut(row, "/")
		return c.orders[id]
	}
	customer, locked := did["customers UPDATE"]
	_, job := did["outbox INSERT"]
	_, order, _ := strings.Cut(did["orders UPDATE"], "/")
	for _, o := range c.others[customer] {
		fits := false
		switch {
		case !locked || c.found[o] || tx[0].At.Before(o.Invoked()) || tx[0].At.After(o.Returned()):
		case o.Op == cancelOp:
			fits = job && o.Order != nil && o.Order.ID == order
		case o.Op == registerWrite:
			value, known := c.values[tx[0].XID]
			fits = len(tx) == 1 && (!known || value == o.Value)
		default: // a note
			fits = !job
		}
		if fits {
			return o
		}
	}
	return nil
}
