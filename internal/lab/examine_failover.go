package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

const (
	// viewSlack is how long after the opening of a fence the gateways may take to send requests there.
	viewSlack = 1500 * time.Millisecond
	minTail   = 20 // writes, or the accident lost nothing that could be accounted for
	goalRTO   = 6 * time.Second
)

// Failovers measures the loss of a site, from the clients' history and the databases.
type Failovers struct {
	Count              int       `json:"count"` // that were taken over
	LeaseS             float64   `json:"lease_s"`
	WS                 float64   `json:"w_s"`
	RTOms              Quantiles `json:"rto_ms"`     // per bucket that is written: from the kill to the first acknowledged write
	RPOWrites          int       `json:"rpo_writes"` // acknowledged by the lost site, and not at its taker when that opened
	RPOms              float64   `json:"rpo_ms"`
	AppliedAfterReturn int       `json:"applied_after_return"`
	InConflictLog      int       `json:"in_conflict_log"`
	MissingAfterReturn int       `json:"acknowledged_missing_after_return"`
	Course

	examples []string // of what is missing
}

// Course is how a failover went.
type Course struct {
	Lost           topo.SiteID `json:"lost"`
	Taker          topo.SiteID `json:"taker"`
	Handover       string      `json:"handover,omitempty"`
	Automatic      bool        `json:"automatic"`
	Buckets        int         `json:"buckets"`
	OpenedAfterMS  int64       `json:"opened_after_ms"`  // from the kill to the open fence of the last bucket
	WaitedMS       float64     `json:"waited_ms"`        // from the taker's last sight of a renewal to the takeover in the store, by its record
	DownMS         int64       `json:"down_ms"`          // from the kill to the start of the site's processes
	SettledAfterMS int64       `json:"settled_after_ms"` // from then to the settled tail
	RowsStand      int         `json:"rows_stand"`       // row changes of the tail, by the record
	RowsGaveWay    int         `json:"rows_gave_way"`
	Problem        string      `json:"problem,omitempty"`
}

// Names of the outages, and of the drills' entries in the report.
const (
	nominalLoss    = "failover"
	stoppedApplier = "stopped_applier"
	heldLeaseWrite = "held_lease_write"
)

// keepConflicts writes the conflict logs of all sites beside the report, an entry a line.
func (m *demo) keepConflicts(rows []ConflictRow) error {
	var out bytes.Buffer
	for i := range rows {
		line, err := json.Marshal(&rows[i])
		if err != nil {
			return fmt.Errorf("lab: conflict log of %s: %w", rows[i].Database, err)
		}
		out.Write(append(line, '\n'))
	}
	if err := os.WriteFile(filepath.Join(m.opts.Out, "conflicts.jsonl"), out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("lab: conflict logs: %w", err)
	}
	return nil
}

// quietEnd is when the first loss begins; what fails from then on is looked at with the losses.
func (m *demo) quietEnd() time.Time {
	for _, o := range m.outages {
		if !o.cut.IsZero() {
			return o.cut
		}
	}
	return m.loaded[1]
}

// opened says when the taker's fence opened for the first and for the last of the lost buckets; zero: never.
func (o *outage) opened(epochs []EpochRow) (first, all time.Time) {
	seen := map[slot]bool{}
	for i := range epochs {
		r := &epochs[i]
		s := slot{r.Keyspace, r.Bucket}
		if r.Database != o.taker || r.Site != o.taker || !r.Open || seen[s] || !r.At.After(o.killed) || !o.buckets[r.Keyspace].Contains(r.Bucket) ||
			!o.back.IsZero() && r.At.After(o.back) {
			continue
		}
		seen[s] = true
		if first.IsZero() || r.At.Before(first) {
			first = r.At
		}
		if r.At.After(all) {
			all = r.At
		}
	}
	if len(seen) < o.bucketCount() {
		all = time.Time{}
	}
	return first, all
}

// loss is an outage as the checks want it; false if the site was not replaced.
func (o *outage) loss(epochs []EpochRow) (Loss, bool) {
	first, _ := o.opened(epochs)
	return Loss{ID: o.record.ID, Lost: o.lost, Taker: o.taker, Cut: o.cut, Killed: o.killed, Opened: first, Back: o.back, Settled: o.settled}, !first.IsZero()
}

// underWayInOutage tells whether a request was sent before a lost site was back in order and answered after its loss.
func (m *demo) underWayInOutage(op *Operation) bool {
	return slices.ContainsFunc(m.outages, func(o *outage) bool {
		return !o.killed.IsZero() && op.Returned().After(o.killed) && (o.settled.IsZero() || op.Invoked().Before(o.settled))
	})
}

// failuresOfOutages lists the requests that failed since the first loss and that no loss explains.
func (m *demo) failuresOfOutages(ops []Operation, epochs []EpochRow) []*Operation {
	begin := m.quietEnd()
	opened := map[*outage]time.Time{}
	for _, o := range m.outages {
		_, opened[o] = o.opened(epochs)
	}
	var out []*Operation
	for i := range ops {
		op := &ops[i]
		if !op.Failed() || op.gaveUp() || op.Returned().Before(begin) || op.Invoked().Before(begin) && begin.Equal(m.loaded[1]) {
			continue
		}
		if slices.ContainsFunc(m.switches, func(s switchRun) bool { return m.touches(op, s) }) && !m.underWayInOutage(op) {
			continue // counted with the switches
		}
		if !slices.ContainsFunc(m.outages, func(o *outage) bool {
			return o.explains(op, opened[o], m.opts.Buckets)
		}) {
			out = append(out, op)
		}
	}
	return out
}

// gaveUp tells whether a register's or a list's client was less patient than the others. It asks again a moment later; those who wait tell
// whether the request would have been answered.
func (o *Operation) gaveUp() bool {
	return (o.Register() || o.ofList()) && o.Status == 0 && o.Returned().Sub(o.Invoked()) < loadTimeout && strings.Contains(o.Error, context.DeadlineExceeded.Error())
}

// explains tells whether a failed request may have failed because of an outage: it was under way between the kill and
// the end, and it went through the lost site's gateways, or to a bucket or the catalogue that was lost.
func (o *outage) explains(op *Operation, opened time.Time, buckets int) bool {
	if o.killed.IsZero() || op.Returned().Before(o.killed) {
		return false
	}
	at, _, _ := strings.Cut(op.Target, "/")
	if topo.SiteID(at) == o.lost {
		return o.settled.IsZero() || op.Invoked().Before(o.settled.Add(viewSlack))
	}
	if !opened.IsZero() && op.Invoked().After(opened.Add(viewSlack)) {
		return false
	}
	if _, lost := o.buckets[catalog]; lost && op.needsCatalog() {
		return true
	}
	return op.Keyspace == users && o.buckets[users].Contains(bucketOf(op.Key, buckets))
}

// losses names what was lost, the accident first.
func (r *Report) losses() []string {
	return append([]string{nominalLoss}, slices.Sorted(maps.Keys(r.Drills))...)
}

func (r *Report) loss(name string) Failovers {
	if name == nominalLoss {
		return r.Failover
	}
	return r.Drills[name]
}

// sumUpOutages fills in the failover and the drills.
func (m *demo) sumUpOutages(r *Report, e *evidence) {
	r.Drills = map[string]Failovers{}
	for _, o := range m.outages {
		f := m.sumUpOutage(o, e)
		if o.name == nominalLoss {
			r.Failover = f
		} else {
			r.Drills[o.name] = f
		}
	}
}

func (m *demo) sumUpOutage(o *outage, e *evidence) Failovers {
	f := Failovers{LeaseS: m.opts.Lease.Duration.Seconds(), WS: m.opts.Lease.W.Seconds(), Course: Course{Lost: o.lost, Taker: o.taker, Handover: string(o.record.ID), Buckets: o.bucketCount()}}
	if o.trigger != nil {
		f.Problem = "the fault could not be brought about: " + o.trigger.Error()
		return f
	}
	loss, taken := o.loss(e.Epochs)
	_, all := o.opened(e.Epochs)
	switch {
	case !taken || all.IsZero():
		f.Problem = fmt.Sprintf("%s did not open all buckets of %s within %v", names(o.survivors, "nor"), o.lost, m.opts.takeoverBound())
		return f
	case o.settled.IsZero():
		f.Problem = fmt.Sprintf("The tail of %s was not settled within %v of its return", o.lost, returnBound)
	}
	f.Count = 1
	f.RTOms = quantiles(RTO(e.ops, loss, o.buckets[users].Buckets(), m.opts.Buckets))
	f.OpenedAfterMS, f.DownMS = all.Sub(o.killed).Milliseconds(), o.back.Sub(o.killed).Milliseconds()
	if !o.settled.IsZero() {
		f.SettledAfterMS = o.settled.Sub(o.back).Milliseconds()
	}
	if x := o.record.Failover; x != nil {
		f.Automatic, f.WaitedMS = x.Automatic, round(x.WaitedMS, 1)
		if x.Return != nil {
			f.RowsStand, f.RowsGaveWay = x.Return.Applied, x.Return.Kept
		}
	}
	a := Account(e.ops, e.Evidence, loss)
	f.RPOWrites, f.RPOms, f.AppliedAfterReturn, f.InConflictLog, f.MissingAfterReturn = a.RPOWrites, round(a.RPOms, 1), a.Applied, a.Logged, a.Missing
	f.examples = a.Examples
	return f
}

// checkFailover: the site was replaced without anybody's doing, came back, and has its users again.
func (m *demo) checkFailover(r *Report) Check {
	c := Check{Name: "failover", Claim: "every lost site was taken over by itself, came back, was settled, and has its users again"}
	replaced := 0
	for _, o := range m.outages {
		f := r.loss(o.name)
		switch {
		case o.trigger != nil && o.name == nominalLoss:
			c.Error = f.Problem
		case o.trigger != nil: // the drill's own check says so
			continue
		case f.Problem != "":
			c.found("%s: %s", o.name, f.Problem)
		case f.Handover == "":
			c.found("%s: no record of the failover from %s to %s", o.name, o.lost, o.taker)
		case !f.Automatic:
			c.found("%s: the record says that it was not automatic", o.name)
		}
		replaced += f.Count
	}
	if r.Home.Count < r.Home.Tried || r.Home.Tried == 0 {
		c.found("%d of %d switches home moved their buckets", r.Home.Count, r.Home.Tried)
	}
	c.Looked = fmt.Sprintf("%d losses of a site, %d switches home", replaced, r.Home.Tried)
	if replaced == 0 && c.Violated == 0 {
		c.Error = "no site was lost"
	}
	return c
}

// checkDrills: each fault was there when it counted, and the survivor waited for it.
func (m *demo) checkDrills(r *Report, e *evidence) Check {
	c := Check{Name: "drills", Claim: "no survivor opens while its own applier may still commit the lost site's changes, or while the lost site's fence may be open"}
	done := 0
	for _, o := range m.outages {
		if o.name == nominalLoss {
			continue
		}
		first, _ := o.opened(e.Epochs)
		switch {
		case o.trigger != nil:
			c.Error = o.name + ": " + r.Drills[o.name].Problem
			continue
		case first.IsZero(): // the failover's check says so
		case o.name == stoppedApplier && o.taker == o.stoppedAt && first.Before(o.held):
			c.found("%s opened at %s, %v before its applier went on", o.taker, clock(first), o.held.Sub(first))
		case o.name == heldLeaseWrite && first.Before(o.killed.Add(checkToCommit)):
			c.found("%s opened at %s, %v after the kill: the lease could not have run out", o.taker, clock(first), first.Sub(o.killed))
		case o.name == heldLeaseWrite:
			for i := range e.Changes {
				ch := &e.Changes[i]
				if ch.Database == o.lost && !ch.Applied && ch.At.After(first) && ch.At.Before(o.back) && o.buckets[ch.Keyspace].Contains(ch.Bucket) {
					c.found("%s, after %s had opened at %s", ch, o.taker, clock(first))
				}
			}
		}
		done++
	}
	c.Looked = fmt.Sprintf("%d drills", done)
	if done == 0 && c.Error == "" {
		c.Error = "no drill was made"
	}
	return c
}

// accountFor adds to a check of the tail what clients say: the accident cost something, and nothing of what they were told
// is unaccounted for.
func accountFor(c *Check, r *Report) {
	f := r.Failover
	if f.Count > 0 && f.RPOWrites < minTail {
		c.found("only %d writes were acknowledged by the lost site alone; %d would show something", f.RPOWrites, minTail)
	}
	for _, name := range r.losses() {
		f := r.loss(name)
		for _, example := range f.examples {
			c.found("%s: %s", name, example)
		}
		if more := f.MissingAfterReturn - len(f.examples); more > 0 {
			c.Violated += more
		}
		if left := f.RPOWrites - f.AppliedAfterReturn - f.InConflictLog - f.MissingAfterReturn; left > 0 {
			c.found("%s: %d writes are neither applied nor logged nor missing", name, left)
		}
		c.Looked += fmt.Sprintf("; %s: %d acknowledged writes, %d applied, %d in the conflict log", name, f.RPOWrites, f.AppliedAfterReturn, f.InConflictLog)
	}
}
