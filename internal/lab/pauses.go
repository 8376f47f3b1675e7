package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Hold is one line of a gateway's log: it began or ended to hold the writes of a handover's buckets.
type Hold struct {
	Gateway  string
	Begin    bool
	Handover topo.HandoverID
	Keyspace topo.KeyspaceID
	Buckets  topo.Spans
	At       time.Time
}

// ReadHolds finds the hold lines in a gateway's log; other lines are left out, lines that say "hold begin" or
// "hold end" and cannot be read are refused.
func ReadHolds(gateway string, log io.Reader) ([]Hold, error) {
	var out []Hold
	r := bufio.NewReaderSize(log, 1<<16)
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return out, nil // a line without its end is the process's last breath
		}
		if err != nil {
			return nil, fmt.Errorf("lab: log of %s: %w", gateway, err)
		}
		if !bytes.Contains(line, []byte(`"hold begin"`)) && !bytes.Contains(line, []byte(`"hold end"`)) {
			continue
		}
		h, err := parseHold(gateway, line)
		if err != nil {
			return nil, fmt.Errorf("lab: log of %s: %w in %s", gateway, err, bytes.TrimSpace(line))
		}
		out = append(out, h)
	}
}

func parseHold(gateway string, line []byte) (Hold, error) {
	var l struct {
		Msg      string          `json:"msg"`
		Handover topo.HandoverID `json:"handover"`
		Keyspace topo.KeyspaceID `json:"keyspace"`
		Buckets  string          `json:"buckets"`
		UnixUS   int64           `json:"unix_us"`
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return Hold{}, err
	}
	if l.Msg != "hold begin" && l.Msg != "hold end" {
		return Hold{}, fmt.Errorf("message %q", l.Msg)
	}
	spans, err := topo.ParseSpans(l.Buckets, topo.MaxBuckets)
	if err != nil {
		return Hold{}, err
	}
	if l.Handover == "" || l.UnixUS <= 0 {
		return Hold{}, fmt.Errorf("no handover or no time")
	}
	return Hold{Gateway: gateway, Begin: l.Msg == "hold begin", Handover: l.Handover, Keyspace: l.Keyspace,
		Buckets: spans, At: time.UnixMicro(l.UnixUS)}, nil
}

// pause is the time during which writes of a bucket waited in a handover: from the first gateway that held them to
// the first that let them go, or to the opening of the owner's fence if that came later: a gateway of another site
// passes them on as soon as it knows the owner, whose gateway then holds them for the rest.
type pause struct {
	handover topo.HandoverID
	slot     slot
	from, to time.Time
}

func (p pause) length() time.Duration { return p.to.Sub(p.from) }

// pausesOf measures every moved bucket of the given handovers.
func pausesOf(holds []Hold, handovers map[topo.HandoverID]bool, opened openings) []pause {
	type key struct {
		handover topo.HandoverID
		slot     slot
	}
	at := map[key]*pause{}
	for _, h := range holds {
		if !handovers[h.Handover] {
			continue
		}
		for _, b := range h.Buckets.Buckets() {
			k := key{h.Handover, slot{h.Keyspace, b}}
			p := at[k]
			if p == nil {
				p = &pause{handover: k.handover, slot: k.slot}
				at[k] = p
			}
			if h.Begin && (p.from.IsZero() || h.At.Before(p.from)) {
				p.from = h.At
			}
			if !h.Begin && (p.to.IsZero() || h.At.Before(p.to)) {
				p.to = h.At
			}
		}
	}
	var out []pause
	for _, p := range at {
		if p.from.IsZero() || p.to.IsZero() {
			continue
		}
		if w := opened.after(p.slot, p.from); w != nil && w.open.After(p.to) {
			p.to = w.open
		}
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b pause) int { return a.from.Compare(b.from) })
	return out
}

// openings are the windows of every bucket.
type openings map[slot][]window

func openingsOf(e Evidence) openings {
	out := openings{}
	for s, rows := range bySlot(e.Epochs, epochSlot) {
		out[s] = windows(rows)
	}
	return out
}

// after finds the first opening of a bucket after a moment.
func (o openings) after(s slot, t time.Time) *window {
	for i := range o[s] {
		if o[s][i].open.After(t) {
			return &o[s][i]
		}
	}
	return nil
}

// leftOut tells whether an epoch that nobody opened lies between the last opening of a bucket before a moment and the next
// one: it was another site's, which never opened it, or that of an abort, whose owner was lost to the next one's site.
func (o openings) leftOut(s slot, t time.Time, next *window, losses []Loss) bool {
	var last *window
	for i := range o[s] {
		if w := &o[s][i]; !w.open.After(t) {
			last = w
		}
	}
	return last != nil && next.epoch > last.epoch+1 && (last.site == next.site || slices.ContainsFunc(losses, func(l Loss) bool {
		return l.ID == next.handover && l.Lost == last.site && l.Taker == next.site
	}))
}

// Quantiles of a set of times, in milliseconds.
type Quantiles struct {
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
	Count int     `json:"count"`
}

// quantiles takes the nearest rank: p99 of fewer than 100 values is their maximum.
func quantiles(values []time.Duration) Quantiles {
	if len(values) == 0 {
		return Quantiles{}
	}
	v := slices.Sorted(slices.Values(values))
	rank := func(q float64) float64 {
		i := int(math.Ceil(q*float64(len(v)))) - 1
		return math.Round(v[max(i, 0)].Seconds()*1e5) / 100
	}
	return Quantiles{P50: rank(0.5), P99: rank(0.99), Max: rank(1), Count: len(v)}
}

// CheckReleases: no gateway lets held writes go to its own site's database before that has opened its fence for them,
// and none at all when no fence opens again. What is let go earlier is refused by the fence at best.
func CheckReleases(holds []Hold, e Evidence) Check {
	c := Check{Name: "release", Claim: "held writes are let go only when a fence opens for them again, and at its site not before"}
	opened := openingsOf(e)
	began := map[topo.HandoverID]time.Time{}
	for _, h := range holds {
		if first, seen := began[h.Handover]; h.Begin && (!seen || h.At.Before(first)) {
			began[h.Handover] = h.At
		}
	}
	seen := 0
	for _, h := range holds {
		from, held := began[h.Handover]
		if h.Begin || !held {
			continue
		}
		for _, b := range h.Buckets.Buckets() {
			s := slot{h.Keyspace, b}
			seen++
			site, _, _ := strings.Cut(h.Gateway, "/")
			switch w := opened.after(s, from); {
			case w != nil && w.handover != h.Handover && string(w.site) == site && opened.leftOut(s, from, w, e.Losses):
				// The bucket had gone to another site, which was lost before it opened: its gateways were to hold what was passed
				// on. Or the switch was aborted, its site was lost before it opened again, and this one took over: what a
				// failover holds, it holds without a word in the log.
			case w == nil:
				c.found("gateway %s let go the writes of bucket %s at %s; no fence opened for them after %s (handover %s)",
					h.Gateway, s, clock(h.At), clock(from), h.Handover)
			case string(w.site) == site && w.open.After(h.At):
				c.found("gateway %s let go the writes of bucket %s at %s, before the fence of its site opened at %s (handover %s)",
					h.Gateway, s, clock(h.At), clock(w.open), h.Handover)
			}
		}
	}
	c.Looked = fmt.Sprintf("%d releases of a bucket by a gateway", seen)
	if seen == 0 {
		c.Error = "no gateway released anything"
	}
	return c
}
