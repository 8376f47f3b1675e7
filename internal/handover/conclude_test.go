package handover

import (
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// TestConclude: whatever phase a record was left in, the concluded one can be stored, is over, and says what became of it.
func TestConclude(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	planned := func(p Phase) Record {
		r := Record{Format: Format, ID: "s-1", Kind: Switch, Move: Move{Keyspace: "users", Buckets: topo.Spans{{First: 0, Last: 3}}, From: "a", To: "b",
			Epochs: []topo.EpochSpan{{First: 0, Last: 3, Epoch: 4}}}, Sites: []topo.SiteID{"a", "b"}, Who: "ann", Phase: p, Driver: "a/1", Claimed: 7,
			Steps: []Step{{Phase: p, At: now, Driver: "a/1"}}}
		if p == Committed || p == Opened || p == Aborted {
			r.Decided = 8
		}
		return r
	}
	failover := func(p Phase) Record {
		return Record{Format: Format, ID: "f-1", Kind: KindFailover, Move: Move{From: "a", To: "b"}, Sites: []topo.SiteID{"a", "b"}, Who: "automatic", Phase: p,
			Driver: "b/1", Decided: 9, Steps: []Step{{Phase: p, At: now, Driver: "b/1"}},
			Failover: &Failover{Taken: []topo.Taken{{Keyspace: "users", Buckets: []topo.EpochSpan{{First: 0, Last: 3, Epoch: 4}}}}, LossMS: -1}}
	}
	for _, tc := range []struct {
		rec     Record
		moved   bool
		phase   Phase
		outcome Outcome
	}{
		{planned(Moving), false, Aborted, OutcomeAborted},
		{planned(Fenced), false, Aborted, OutcomeAborted},
		{planned(CaughtUp), false, Aborted, OutcomeAborted},
		{planned(CaughtUp), true, Done, OutcomeDone}, // decided in what was lost
		{planned(Committed), true, Done, OutcomeDone},
		{planned(Opened), true, Done, OutcomeDone},
		{planned(Aborted), false, Aborted, OutcomeAborted},
		{failover(Taken), true, Done, OutcomeDone},
		{failover(Opened), true, Done, OutcomeDone},
	} {
		if _, err := DecodeRecord(tc.rec.Encode()); err != nil {
			t.Fatalf("%s in %s: %v", tc.rec.Kind, tc.rec.Phase, err)
		}
		got, err := DecodeRecord(tc.rec.Conclude(tc.moved, 1_000_008, "recovery", "the store was recovered", now).Encode())
		if err != nil {
			t.Errorf("%s in %s, moved %v: %v", tc.rec.Kind, tc.rec.Phase, tc.moved, err)
			continue
		}
		if got.Phase != tc.phase || got.Outcome != tc.outcome || !got.Over() || got.Driver != "recovery" || got.Decided == 0 || len(got.Reasons) == 0 {
			t.Errorf("%s in %s, moved %v: %+v", tc.rec.Kind, tc.rec.Phase, tc.moved, got)
		}
	}
}
