package lab

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Loss is a site that the lab took away, and what became of it. Moments are of this machine's one clock.
type Loss struct {
	ID          topo.HandoverID // of the failover
	Lost, Taker topo.SiteID
	Cut         time.Time // its replication ended; before Killed if the lab wanted a tail, else zero or the same
	Killed      time.Time
	Opened      time.Time // the taker opened
	Back        time.Time // started again; zero: it never returned
	Settled     time.Time // its tail was decided
}

// during tells whether a moment lies between the kill and the settling.
func (l *Loss) during(at time.Time) bool {
	return !at.Before(l.Killed) && (l.Settled.IsZero() || !at.After(l.Settled))
}

// ConflictRow is one entry of a database's conflict log (atoll.conflict).
type ConflictRow struct {
	Database, Origin topo.SiteID
	Position, XID    uint64 // of the source transaction, at Origin
	Kind, Table      string // the table with its schema
	Keyspace         topo.KeyspaceID
	Bucket           topo.BucketID
	Epoch            topo.Epoch
	Handover         topo.HandoverID // the failover whose tail the remote version is of
	Local, Remote    json.RawMessage // column → text form; null: no row
	Decision         string          // applied, kept, logged
	At               time.Time       // written in Database, a little before the decision's commit
	DecidedXID       uint32          // Database's transaction that decided a stale change; 0: no stale one
}

const (
	decisionApplied = "applied"
	decisionKept    = "kept"
)

// column reads one column of a row version; "" where it was not sent.
func column(version json.RawMessage, name string) string {
	var row map[string]*string
	if json.Unmarshal(version, &row) != nil || row[name] == nil {
		return ""
	}
	return *row[name]
}

// lossBetween finds the loss that explains why a window's site never ended it: the lab took that site away, and the
// other one took over; perhaps from a first taker, which was lost before it had opened the bucket. Of several failovers
// from one kill it is the one that the opening names, or else the nearest. A switch right before it, when the site had
// renewed its lease for the last time, is none: the site closed for the handover that opened.
func lossBetween(losses []Loss, from, to *window) *Loss {
	failover := func(l Loss) bool { return l.ID == to.handover }
	if to.handover != "" && from.closedFor == to.handover && !from.closed.After(to.open) && !slices.ContainsFunc(losses, failover) {
		return nil
	}
	var best *Loss
	for i := range losses {
		l := &losses[i]
		if l.Lost != from.site || !l.during(to.open) || l.Taker != to.site && !passedOn(losses, l, to) {
			continue
		}
		if l.ID == to.handover {
			return l
		}
		if best == nil || to.open.Sub(l.Opened).Abs() < to.open.Sub(best.Opened).Abs() {
			best = l
		}
	}
	return best
}

// passedOn tells whether the taker of a loss was lost in its turn, and the window's site took over from it.
func passedOn(losses []Loss, l *Loss, to *window) bool {
	return slices.ContainsFunc(losses, func(next Loss) bool {
		return next.Lost == l.Taker && next.Taker == to.site && next.during(to.open) && !next.Opened.Before(l.Killed)
	})
}

// tails are the row changes that lost sites committed and that their takers did not have when they opened.
type tails map[*Change]*Loss

func (t tails) has(c *Change) bool { return t[c] != nil }

// tailsOf compares by count per row and operation, as K2 does: of the changes that the lost site made to a row, the
// taker has the first ones. What the lost site had decided in favour of the taker's own tail, the taker has too, and
// nobody brings it there. The pointers are into e.Changes and e.Losses.
func tailsOf(e Evidence) tails {
	out := tails{}
	if len(e.Losses) == 0 {
		return out
	}
	taken := takenDecisions(e.Conflicts)
	rows := bySlot(e.Epochs, epochSlot)
	changes := bySlot(e.Changes, changeSlot)
	for _, s := range slots(rows, changes) {
		ws := windows(rows[s])
		for i := 1; i < len(ws); i++ { // in the order of time: an earlier tail is no part of a later one
			if l := lossBetween(e.Losses, &ws[i-1], &ws[i]); l != nil && ws[i].site != ws[i-1].site {
				out.collect(l, toBring(changes[s], taken, ws[i].site), &ws[i])
			}
		}
	}
	return out
}

func (t tails) collect(l *Loss, changes []*Change, by *window) {
	opened := by.open
	had := map[rowOp]int{}
	for _, c := range changes {
		if c.Applied && c.Database == by.site && c.Origin == l.Lost && c.At.Before(opened) {
			had[opOf(c)]++
		}
	}
	for _, c := range changes {
		if c.Applied || c.Database != l.Lost || c.At.After(opened) || t.has(c) {
			continue
		}
		if k := opOf(c); had[k] > 0 {
			had[k]--
		} else {
			t[c] = l
		}
	}
}

// rowsOf are the rows, without an operation, that a site had written in a tail of its own.
func (t tails) rowsOf(lost topo.SiteID) map[rowOp]bool {
	out := map[rowOp]bool{}
	for c, of := range t {
		if of.Lost == lost {
			out[rowOp{table: c.Table, row: c.Row}] = true
		}
	}
	return out
}

// transactions groups the tail of one loss.
func (t tails) transactions(l topo.HandoverID) map[uint32][]*Change {
	out := map[uint32][]*Change{}
	for c, of := range t {
		if of.ID == l {
			out[c.XID] = append(out[c.XID], c)
		}
	}
	return out
}

// inOrder lists the tail as it was committed.
func (t tails) inOrder() []*Change {
	return slices.SortedFunc(maps.Keys(t), func(a, b *Change) int {
		if n := a.At.Compare(b.At); n != 0 {
			return n
		}
		return compareOps(opOf(a), opOf(b))
	})
}

// decisions are the conflict log's entries about the tail of a loss, by transaction and table.
type decisions map[decided][]*ConflictRow

type decided struct {
	handover topo.HandoverID
	xid      uint64
	table    string // without its schema
}

func decisionsOf(rows []ConflictRow) decisions {
	out := decisions{}
	for i := range rows {
		r := &rows[i]
		k := decided{r.Handover, r.XID, bareTable(r.Table)}
		if r.Handover != "" {
			out[k] = append(out[k], r)
		}
	}
	return out
}
