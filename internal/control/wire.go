package control

import (
	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
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
	return h
}
