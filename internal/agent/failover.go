package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/replicate"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// linkQuiet is how long a link may be silent before what was said over it does not count: links speak every second.
const linkQuiet = 2500 * time.Millisecond

// failoverPolicy is what a lookout goes by, but for the sites.
func failoverPolicy(s *spec.Spec) handover.Policy {
	p := s.Policies.Failover
	policy := handover.Policy{Mode: handover.Mode(p.Mode), W: s.Policies.Lease.W, MaxLoss: p.MaxLoss, VetoBound: p.VetoBound, PerHour: p.PerHour}
	if p.QuietTime != nil {
		policy.QuietTime = *p.QuietTime
	}
	return policy
}

// Standing says what this site knows of another one: from its link, its applier and its database.
func (s localSite) Standing(ctx context.Context, of topo.SiteID) (api.Standing, error) {
	out := api.Standing{Site: s.site, Of: of, HeardMS: -1, WroteMS: -1, LossMS: -1}
	db := s.database.Load()
	if db == nil {
		out.Problem = "the agent does not reach its database: " + s.whyAway()
		return out, nil
	}
	_, out.Lease = s.deadline()
	follow := db.follows[of]
	if follow == nil {
		out.Problem = fmt.Sprintf("site %s is not in this agent's spec", of)
		return out, nil
	}
	var silence time.Duration
	err := db.recorded.with(ctx, func(c *pgx.Conn) error {
		at, ago, known, err := postgres.LastApplied(ctx, c, of)
		out.Known, out.Applied, silence = known, uint64(at), ago
		return err
	})
	if err == nil {
		var halts map[topo.SiteID]topo.HandoverID
		halts, err = db.fence.Halts(ctx)
		out.Halted = halts[of]
	}
	if err != nil {
		out.Problem = "the database: " + err.Error()
	}
	linkStanding(&out, follow.State(), silence)
	return out, nil
}

// linkStanding adds what the link knows. Without a word since this agent started, the database says when the other
// site's changes last moved: its silence is at most that.
func linkStanding(out *api.Standing, st replicate.OriginState, silence time.Duration) {
	if !st.Wrote.IsZero() {
		out.WroteMS = time.Since(st.Wrote).Milliseconds()
	}
	switch {
	case !st.Heard.IsZero():
		silence = time.Since(st.Heard)
		out.HeardMS = silence.Milliseconds()
		out.Linked = st.Phase == replicate.Streaming && silence < linkQuiet
		out.Serving = out.Linked && st.Says.Serving
		out.RemainingMS = max(0, st.Says.RemainingMS-out.HeardMS)
		out.Closed = st.Says.Closed
		out.LossMS = max(st.Lag, silence).Milliseconds()
	case out.Known:
		out.LossMS = silence.Milliseconds()
	}
}

// Halt stops applying another site's changes and says how far they are durably here.
func (s localSite) Halt(ctx context.Context, of topo.SiteID, id topo.HandoverID) (uint64, error) {
	db, err := s.active()
	if err != nil {
		return 0, err
	}
	at, err := db.fence.Halt(ctx, of, id)
	if err != nil {
		return 0, err
	}
	s.log.Info("applying halted", "of", of, "handover", id, "position", at, "unix_us", time.Now().UnixMicro())
	return uint64(at), nil
}

// Unhalt goes on applying them, if it is this failover that halted them.
func (s localSite) Unhalt(ctx context.Context, of topo.SiteID, id topo.HandoverID) error {
	db := s.database.Load()
	if db == nil {
		return unavailable(errors.New("the database is away: " + s.whyAway()))
	}
	if err := db.fence.Unhalt(ctx, of, id); err != nil {
		return err
	}
	s.log.Info("applying goes on", "of", of, "handover", id)
	return nil
}
