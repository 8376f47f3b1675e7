package dashboard

import (
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// noon is when the samples are of.
var noon = time.Date(2026, 3, 14, 12, 0, 30, 0, time.UTC)

// calm is a deployment at work: two sites, some switches behind them, one under way.
func calm() api.Status {
	at := func(before time.Duration) time.Time { return noon.Add(-before) }
	hold := func(ms float64) *api.Pause { return &api.Pause{HoldMS: ms, ClosedMS: ms / 2} }
	steps := func(begin time.Time, phases ...string) []api.Step {
		var out []api.Step
		for i, p := range phases {
			out = append(out, api.Step{Phase: p, At: begin.Add(time.Duration(i*i) * 21 * time.Millisecond), Driver: "a/8c1f"})
		}
		return out
	}
	whole := []string{"PREPARE", "MOVING", "FENCED", "CAUGHT_UP", "COMMITTED", "OPEN", "DONE"}
	return api.Status{
		Deployment: "tickets", Site: "a", At: noon,
		Ownership: &api.OwnershipStatus{Generation: 1, Version: 118, Keyspaces: []api.KeyspaceStatus{
			{Keyspace: "catalog", Buckets: 1, Owners: []api.OwnerStatus{{Site: "a", Count: 1, Buckets: "0", MinEpoch: 3, MaxEpoch: 3}}},
			{Keyspace: "users", Buckets: 1024, Owners: []api.OwnerStatus{
				{Site: "a", Count: 537, Buckets: "0-511,600-624", MinEpoch: 1, MaxEpoch: 9},
				{Site: "b", Count: 487, Buckets: "512-599,625-1023", MinEpoch: 2, MaxEpoch: 8}},
				Moving: []api.MovingStatus{{Handover: "20260314-120029.871-9f2c", Buckets: "600-624", From: "a", To: "b"}}},
		}},
		Sites: []api.SiteStatus{
			{Site: "a", Agent: "8c1f", Since: at(26 * time.Hour), Lease: api.LeaseStatus{Live: true, RemainingMS: 8420, DurationMS: 10_000},
				Database: api.DatabaseStatus{Connected: true, Identity: "7512345678901234567/1"}, Version: 118, Opened: 118,
				Links: []api.LinkStatus{{Origin: "b", Target: "a", Connected: true, State: "streaming", Position: 0x16B3748, LagMS: 12}},
				Gateways: []api.GatewayStatus{{Gateway: "g1", Connected: true, Version: 118, InFlight: map[topo.HandoverID]int{"h": 3}},
					{Gateway: "g2", Connected: true, Version: 117}}},
			{Site: "b", Agent: "02aa", Since: at(61 * time.Minute), Lease: api.LeaseStatus{Live: true, RemainingMS: 7035, DurationMS: 10_000},
				Database: api.DatabaseStatus{Connected: true, Identity: "7598765432109876543/1"}, Version: 118, Opened: 118,
				Links:    []api.LinkStatus{{Origin: "a", Target: "b", Connected: true, State: "streaming", Position: 0x2_0A04_11F0, LagMS: 148}},
				Gateways: []api.GatewayStatus{{Gateway: "g1", Connected: true, Version: 118}, {Gateway: "g2", Connected: true, Version: 118}}},
		},
		Handovers: []api.Handover{
			{ID: "20260314-120029.871-9f2c", Kind: "switch", Keyspace: "users", Buckets: "600-624", Count: 25, From: "a", To: "b", Who: "operator kim", Why: "balance", Phase: "FENCED", Steps: steps(at(130*time.Millisecond), "PREPARE", "MOVING", "FENCED")},
			{ID: "20260314-115120.001-77d0", Kind: "switch", Keyspace: "users", Buckets: "512-536", Count: 25, From: "a", To: "b", Who: "operator kim", Phase: "DONE", Outcome: "done", Pause: hold(176), Steps: steps(at(9*time.Minute), whole...)},
			{ID: "20260314-114020.444-10c3", Kind: "switch", Keyspace: "users", Buckets: "900-1023", Count: 124, From: "b", To: "a", Who: "operator lee", Phase: "ABORTED", Outcome: "aborted",
				Reasons: []string{"writers remain: pid 4711 of shop_app has been in a transaction for 41 s"}, Pause: hold(5210), Steps: steps(at(20*time.Minute), "PREPARE", "MOVING", "ABORTED")},
			{ID: "20260313-090000.120-abcd", Kind: "switch", Keyspace: "users", Buckets: "512-1023", Count: 512, From: "a", To: "b", Who: "operator kim", Why: "half of the users go to b", Phase: "DONE", Outcome: "done", Pause: hold(210), Steps: steps(at(27*time.Hour), whole...)},
		},
	}
}

// stormy is the same deployment after site b was lost: a took over, b is not back.
func stormy() api.Status {
	st := calm()
	id := topo.HandoverID("20260314-120004.310-c0de")
	st.Problems = []string{
		"site b: agent b.agent.example:7400 does not answer: dial tcp 203.0.113.20:7400: i/o timeout",
		"site a: no changes come from b (retrying): dial tcp 203.0.113.20:7401: connect: no route to host",
		"site b is lost: the tail of failover " + string(id) + " is not settled",
	}
	st.Ownership.Version = 121
	st.Ownership.Keyspaces[1].Moving = nil
	st.Ownership.Keyspaces[1].Owners = []api.OwnerStatus{{Site: "a", Count: 1024, Buckets: "0-1023", MinEpoch: 2, MaxEpoch: 10}}
	st.Ownership.Unsettled = []api.UnsettledStatus{{Handover: id, Site: "b", Owner: "a", Buckets: 487, Position: 0x16B3748}}
	a := &st.Sites[0]
	a.Version, a.Opened, a.Lease.RemainingMS = 121, 121, 2100
	a.Gateways = []api.GatewayStatus{{Gateway: "g1", Connected: true, Version: 121}, {Gateway: "g2", Connected: false, Version: 117, SeenMS: 31_000}}
	a.Links = []api.LinkStatus{{Origin: "b", Target: "a", State: "retrying", Position: 0x16B3748, LagMS: 26_400, Error: "dial tcp 203.0.113.20:7401: connect: no route to host"}}
	st.Sites[1] = api.SiteStatus{Site: "b", Error: "agent b.agent.example:7400 does not answer: dial tcp 203.0.113.20:7400: i/o timeout"}
	begin := noon.Add(-26 * time.Second)
	st.Handovers[0] = api.Handover{ID: id, Kind: "failover", From: "b", To: "a", Who: "agent of site a", Phase: "DONE", Outcome: "done",
		Steps: []api.Step{{Phase: "TAKEN", At: begin}, {Phase: "OPEN", At: begin.Add(91 * time.Millisecond)}, {Phase: "DONE", At: begin.Add(430 * time.Millisecond)}},
		Failover: &api.Failover{Automatic: true, Position: 0x16B3748, ExpiredMS: 10_100, WaitedMS: 12_130, OpenMS: 12_221, LossMS: 310,
			Taken: []topo.Taken{{Keyspace: "users", Buckets: []topo.EpochSpan{{First: 512, Last: 599, Epoch: 8}, {First: 625, Last: 1023, Epoch: 2}}}}}}
	returned := *st.Handovers[0].Failover
	returned.Return, returned.Automatic, returned.Override = &api.Return{At: noon.Add(-30 * time.Hour), Applied: 41, Kept: 3}, false, []string{"max-loss"}
	older := st.Handovers[0]
	older.ID, older.From, older.To, older.Who, older.Failover = "20260312-081500.000-beef", "a", "b", "operator kim", &returned
	older.Steps = []api.Step{{Phase: "TAKEN", At: noon.Add(-52 * time.Hour)}, {Phase: "OPEN", At: noon.Add(-52*time.Hour + time.Second)}, {Phase: "DONE", At: noon.Add(-52*time.Hour + 2*time.Second)}}
	st.Handovers = append(st.Handovers, older)
	return st
}
