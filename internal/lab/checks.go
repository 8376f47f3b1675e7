package lab

import (
	"fmt"
	"slices"
	"time"

	"github.com/atollhq/atoll/topo"
)

// A check reads evidence and finds counter-examples; it knows no clock, process or database, so that hand-made
// histories can show that it finds what it is for.

// maxExamples is how many counter-examples a report carries; all are counted.
const maxExamples = 10

// Check is the result of one check.
type Check struct {
	Name     string   `json:"name"`
	Claim    string   `json:"claim"`
	Looked   string   `json:"looked_at"` // what there was to look at: a check of nothing proves nothing
	Violated int      `json:"violated"`
	Examples []string `json:"examples,omitempty"`
	Error    string   `json:"error,omitempty"` // it could not be done; that is no pass
}

// Passed tells whether the check was done and found nothing.
func (c *Check) Passed() bool { return c.Violated == 0 && c.Error == "" }

// Result is the word for out/demo.json.
func (c *Check) Result() string {
	switch {
	case c.Error != "":
		return "error"
	case c.Violated > 0:
		return "fail"
	default:
		return "pass"
	}
}

func (c *Check) found(format string, args ...any) {
	c.Violated++
	if len(c.Examples) < maxExamples {
		c.Examples = append(c.Examples, fmt.Sprintf(format, args...))
	}
}

// Change is one row change that some session committed, as the lab's own trigger saw it.
type Change struct {
	Database topo.SiteID // where it was committed
	Applied  bool        // by the applier: it was born at another site
	Origin   topo.SiteID // if it was applied: where it was born
	Decided  bool        // by Atoll on its own account: what becomes of a stale change, or a copy; no application's write
	XID      uint32
	Table    string
	Op       string // INSERT, UPDATE, DELETE
	Row      string // the row's primary key
	Keyspace topo.KeyspaceID
	Bucket   topo.BucketID // as the lab computes it from the key, on its own
	At       time.Time     // of the commit
}

func (c *Change) String() string {
	return fmt.Sprintf("%s of %s %s at %s (transaction %d, %s)", c.Op, c.Table, c.Row, c.Database, c.XID, clock(c.At))
}

// EpochRow is one state of an epoch row (atoll.bucket) as it was committed in a database: a site's own word in its
// own database, or its arrival in another.
type EpochRow struct {
	Database topo.SiteID
	XID      uint32
	Site     topo.SiteID // whose row it is
	Keyspace topo.KeyspaceID
	Bucket   topo.BucketID
	Epoch    topo.Epoch
	Open     bool
	Handover topo.HandoverID
	At       time.Time // of the commit in Database
}

// Evidence is what the databases say, and which sites the lab took away.
type Evidence struct {
	Changes   []Change
	Epochs    []EpochRow
	Conflicts []ConflictRow
	Losses    []Loss
}

type slot struct {
	keyspace topo.KeyspaceID
	bucket   topo.BucketID
}

func (s slot) String() string { return fmt.Sprintf("%s/%d", s.keyspace, s.bucket) }

// bySlot groups items and sorts each group by time.
func bySlot[T any](items []T, key func(*T) (slot, time.Time)) map[slot][]*T {
	out := map[slot][]*T{}
	for i := range items {
		s, _ := key(&items[i])
		out[s] = append(out[s], &items[i])
	}
	for _, group := range out {
		slices.SortStableFunc(group, func(a, b *T) int {
			_, at := key(a)
			_, bt := key(b)
			return at.Compare(bt)
		})
	}
	return out
}

func changeSlot(c *Change) (slot, time.Time)  { return slot{c.Keyspace, c.Bucket}, c.At }
func epochSlot(e *EpochRow) (slot, time.Time) { return slot{e.Keyspace, e.Bucket}, e.At }

// window is a time during which one site's fence stood open for a bucket at an epoch, by its own epoch rows. It ends
// at the latest when a higher epoch is opened anywhere: a site that died says nothing of its end, or says it late.
type window struct {
	site      topo.SiteID
	epoch     topo.Epoch
	handover  topo.HandoverID
	open      time.Time
	closed    time.Time       // zero: open to the end
	overtaken bool            // ended by another site's opening, not by its own word
	closedFor topo.HandoverID // that its own word named
}

func (w *window) holds(at time.Time) bool {
	return !at.Before(w.open) && (w.closed.IsZero() || !at.After(w.closed))
}

func (w *window) String() string {
	end := "to the end"
	if !w.closed.IsZero() {
		end = "to " + clock(w.closed)
	}
	return fmt.Sprintf("%s at epoch %d from %s %s", w.site, w.epoch, clock(w.open), end)
}

// windows follows a bucket's epoch rows, each in its own site's database, in the order of their commits.
func windows(rows []*EpochRow) []window {
	var out []window
	last := map[topo.SiteID]int{} // index of the site's latest window
	for _, r := range rows {
		if r.Database != r.Site {
			continue
		}
		i, had := last[r.Site]
		isOpen := had && out[i].closed.IsZero()
		switch {
		case r.Open && isOpen && out[i].epoch == r.Epoch: // said again
		case r.Open:
			if isOpen {
				out[i].closed = r.At // a higher epoch at the same site: an aborted handover
			}
			for _, j := range last {
				if out[j].closed.IsZero() && out[j].epoch < r.Epoch {
					out[j].closed, out[j].overtaken = r.At, true
				}
			}
			last[r.Site] = len(out)
			out = append(out, window{site: r.Site, epoch: r.Epoch, handover: r.Handover, open: r.At})
		case isOpen:
			out[i].closed, out[i].closedFor = r.At, r.Handover
		}
	}
	return out
}

func clock(t time.Time) string { return t.Local().Format("15:04:05.000000") }

// CheckK6: a gateway's version never decreases (I8). Of two answers by one gateway, the second asked for after the
// first had arrived, the second shows no older view.
func CheckK6(ops []Operation) Check {
	c := Check{Name: "K6", Claim: "a gateway's view never goes back to an older version"}
	byGateway := map[string][]*Operation{}
	answers := 0
	for i := range ops {
		if ops[i].View != "" && ops[i].Gateway != "" {
			if _, err := parseView(ops[i].View); err != nil {
				c.found("gateway %s answered %s with a view that is none: %v", ops[i].Gateway, ops[i].ID, err)
			}
			byGateway[ops[i].Gateway] = append(byGateway[ops[i].Gateway], &ops[i])
			answers++
		}
	}
	c.Looked = fmt.Sprintf("%d answers of %d gateways", answers, len(byGateway))
	if answers == 0 {
		c.Error = "no answer names its gateway and view"
	}
	for _, answered := range byGateway {
		byReturn := slices.Clone(answered)
		slices.SortFunc(answered, func(a, b *Operation) int { return int(a.InvokedUS - b.InvokedUS) })
		slices.SortFunc(byReturn, func(a, b *Operation) int { return int(a.ReturnedUS - b.ReturnedUS) })
		var newest *Operation
		var newestView version
		next := 0
		for _, o := range answered {
			for ; next < len(byReturn) && byReturn[next].ReturnedUS < o.InvokedUS; next++ {
				if v, err := parseView(byReturn[next].View); err == nil && (newest == nil || newestView.less(v)) {
					newest, newestView = byReturn[next], v
				}
			}
			if v, err := parseView(o.View); newest != nil && err == nil && v.less(newestView) {
				c.found("gateway %s answered %s with view %s after it had answered %s with view %s", o.Gateway, o.ID, v, newest.ID, newestView)
			}
		}
	}
	return c
}
