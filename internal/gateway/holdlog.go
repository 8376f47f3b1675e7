package gateway

import (
	"log/slog"
	"time"

	"github.com/atollhq/atoll/topo"
)

// holdLog writes one line when the gateway begins to hold writes of a handover and one when it lets them go.
type holdLog struct {
	log    *slog.Logger
	active map[holdKey]topo.Spans
}

type holdKey struct {
	handover topo.HandoverID
	keyspace topo.KeyspaceID
}

// update compares a new snapshot with what is held. begun is a moment before the first request can have been held.
func (h *holdLog) update(snap *snapshot, begun time.Time) {
	if snap.site == nil {
		return
	}
	moving := movingSpans(snap.site.View.Ownership)
	for key, spans := range moving {
		if h.active[key] == nil {
			h.write("hold begin", key, spans, snap, begun)
			h.active[key] = spans
		}
	}
	for key, spans := range h.active {
		if moving[key] == nil && !pending(snap, key.keyspace, spans) {
			h.write("hold end", key, spans, snap, time.Now())
			delete(h.active, key)
		}
	}
}

func (h *holdLog) write(msg string, key holdKey, spans topo.Spans, snap *snapshot, at time.Time) {
	h.log.Info(msg, "handover", key.handover, "keyspace", key.keyspace, "buckets", spans.String(),
		"version", snap.version().version, "unix_us", at.UnixMicro())
}

func movingSpans(o topo.Ownership) map[holdKey]topo.Spans {
	out := make(map[holdKey]topo.Spans)
	for ks, p := range o.Keyspaces {
		for _, r := range p.Ranges {
			if r.State != topo.Moving {
				continue
			}
			key := holdKey{r.Handover, ks}
			spans := out[key]
			if n := len(spans); n > 0 && spans[n-1].Last+1 == r.First {
				spans[n-1].Last = r.Last // same handover, other epoch
			} else {
				spans = append(spans, topo.Span{First: r.First, Last: r.Last})
			}
			out[key] = spans
		}
	}
	return out
}

// pending tells whether writes of any of these buckets wait for this site's fence.
func pending(snap *snapshot, ks topo.KeyspaceID, spans topo.Spans) bool {
	for _, sp := range spans {
		for b := sp.First; b <= sp.Last; b++ {
			slot, ok := snap.site.View.Slot(ks, b)
			if ok && slot.Owner == snap.site.Here && snap.site.Pending(ks, b, snap.opened) {
				return true
			}
		}
	}
	return false
}
