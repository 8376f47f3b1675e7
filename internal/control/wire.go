package control

import (
	"strings"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/topo"
)

// wire is a record as operators see it.
func wire(r handover.Record) api.Handover {
	h := api.Handover{
		ID: r.ID, Kind: r.Kind, Keyspace: r.Move.Keyspace, Buckets: r.Move.Buckets.String(), Count: r.Move.Buckets.Len(),
		From: r.Move.From, To: r.Move.To, Epochs: r.Move.Epochs, Who: r.Who, Why: r.Why,
		Phase: string(r.Phase), Driver: r.Driver, Claimed: r.Claimed, Decided: r.Decided,
		Outcome: string(r.Outcome), Reasons: r.Reasons, Steps: make([]api.Step, len(r.Steps)),
	}
	for i, s := range r.Steps {
		h.Steps[i] = api.Step{Phase: string(s.Phase), At: s.At, Driver: s.Driver, Facts: s.Facts}
	}
	if r.Pause != nil {
		h.Pause = &api.Pause{HoldMS: float64(r.Pause.HoldUS) / 1000, ClosedMS: float64(r.Pause.ClosedUS) / 1000, Approximate: r.Pause.Approximate}
	}
	if f := r.Failover; f != nil {
		h.Buckets, h.Count = takenText(f.Taken)
		ms := func(us int64) float64 { return float64(us) / 1000 }
		h.Failover = &api.Failover{Taken: f.Taken, Position: f.Position, Automatic: f.Automatic, Override: f.Override,
			ExpiredMS: ms(f.ExpiredUS), WaitedMS: ms(f.WaitedUS), OpenMS: ms(f.OpenUS), LossMS: f.LossMS, Survivors: f.Survivors, Silent: f.Silent}
		if h.Failover.Taken == nil {
			h.Failover.Taken = []topo.Taken{}
		}
		if f.Return != nil {
			h.Failover.Return = &api.Return{At: f.Return.At, Applied: f.Return.Applied, Kept: f.Return.Kept}
		}
	}
	return h
}

// takenText names what a failover took, over all keyspaces: "catalog 0, users 0-511".
func takenText(taken []topo.Taken) (text string, count int) {
	var parts []string
	for _, t := range taken {
		var spans topo.Spans
		for _, e := range t.Buckets {
			count += int(e.Last-e.First) + 1
			if n := len(spans); n > 0 && spans[n-1].Last+1 == e.First {
				spans[n-1].Last = e.Last
				continue
			}
			spans = append(spans, topo.Span{First: e.First, Last: e.Last})
		}
		parts = append(parts, string(t.Keyspace)+" "+spans.String())
	}
	return strings.Join(parts, ", "), count
}
