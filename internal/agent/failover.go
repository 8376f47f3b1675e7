package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/lease"
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

// tailOf tells of an origin's changes which other sites have to decide them: the owners of buckets with a cut before them.
// What it has made of a document it keeps until there is a newer one.
func tailOf(site, origin topo.SiteID, newest func() (topo.Ownership, bool)) func(change.Position) []topo.SiteID {
	type end struct {
		position change.Position
		owner    topo.SiteID
	}
	var mu sync.Mutex
	var of [2]uint64
	var ends []end
	return func(at change.Position) (owners []topo.SiteID) {
		o, known := newest()
		mu.Lock()
		defer mu.Unlock()
		if version := [2]uint64{o.Generation, o.Version}; known && version != of {
			of, ends = version, nil
			for _, c := range o.Cuts() {
				e := end{change.Position(c.Cut.Position), c.Range.Owner}
				if c.Cut.From == origin && e.owner != site && e.owner != origin && !slices.Contains(ends, e) {
					ends = append(ends, e)
				}
			}
		}
		for _, e := range ends {
			if at > e.position && !slices.Contains(owners, e.owner) {
				owners = append(owners, e.owner)
			}
		}
		return owners
	}
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
		out.HaltedFor = db.halted.of(out.Halted)
	}
	if err != nil {
		out.Problem = "the database: " + err.Error()
	} else if err := db.whole(); err != nil { // what it has is not what the site had
		out.Problem = err.Error()
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

// Halt stops applying a lost site's changes, for whichever site takes over, and says how far they are durably here.
func (s localSite) Halt(ctx context.Context, r api.HaltRequest) (api.HaltAnswer, error) {
	bound, err := checkedBound(r.BoundMS)
	if err != nil {
		return api.HaltAnswer{}, err
	}
	if r.Of == s.site || !slices.Contains(s.listed(), r.Of) {
		return api.HaltAnswer{}, &api.Error{Status: 400, Code: api.CodeBadRequest, Message: fmt.Sprintf("site %q is no other full site of site %s", r.Of, s.site)}
	}
	db, err := s.active()
	if err != nil {
		return api.HaltAnswer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	at, err := db.fence.Halt(ctx, r.Of, r.Handover)
	if whole := db.whole(); whole != nil && r.For != s.site && (err == nil || errors.Is(err, postgres.ErrNoProgress)) {
		s.log.Warn("what this site has of a lost one does not count", "of", r.Of, "handover", r.Handover, "because", whole)
		return api.HaltAnswer{}, nil // nobody could take it from here, and it is not what the site had
	}
	if errors.Is(err, postgres.ErrNoProgress) && r.For != s.site { // nothing of it is here, and nothing is begun from a lost site
		return api.HaltAnswer{}, nil
	}
	if err != nil {
		return api.HaltAnswer{}, unavailable(err)
	}
	db.halted.note(r.Handover, r.For)
	s.log.Info("applying halted", "of", r.Of, "handover", r.Handover, "for", r.For, "position", at, "unix_us", time.Now().UnixMicro())
	return api.HaltAnswer{Position: uint64(at)}, nil
}

// Unhalt goes on applying them, if it is this failover that halted them.
func (s localSite) Unhalt(ctx context.Context, r api.UnhaltRequest) (api.UnhaltAnswer, error) {
	db := s.database.Load()
	if db == nil {
		return api.UnhaltAnswer{}, unavailable(errors.New("the database is away: " + s.whyAway()))
	}
	if err := db.fence.Unhalt(ctx, r.Of, r.Handover); err != nil {
		return api.UnhaltAnswer{}, unavailable(err)
	}
	s.log.Info("applying goes on", "of", r.Of, "handover", r.Handover)
	return api.UnhaltAnswer{}, nil
}

// CatchUp takes a lost site's changes from another one that has more of them, and waits until they are here.
func (s localSite) CatchUp(ctx context.Context, of, from topo.SiteID, position uint64) error {
	db, err := s.active()
	if err != nil {
		return err
	}
	follow := db.follows[of]
	if follow == nil {
		return fmt.Errorf("site %s is not in this agent's spec", of)
	}
	db.applied.Told(from, of, change.Position(position))
	follow.Pull(change.Position(position))
	return db.applied.WaitVector(ctx, topo.Vector{of: position})
}

// halts remembers for which site a halt was asked for, as long as this agent is active.
type halts struct {
	mu sync.Mutex
	by map[topo.HandoverID]topo.SiteID
}

// mostHalts bounds what is remembered; what is forgotten is looked into a little earlier.
const mostHalts = 100

func (h *halts) note(id topo.HandoverID, by topo.SiteID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil || len(h.by) >= mostHalts {
		h.by = map[topo.HandoverID]topo.SiteID{}
	}
	h.by[id] = by
}

func (h *halts) of(id topo.HandoverID) topo.SiteID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.by[id]
}

// without is what the keeper does while the store does not answer.
func without(policy string) lease.Without {
	return map[string]lease.Without{spec.QuorumPromise: lease.Promised, spec.QuorumKeep: lease.Kept}[policy]
}

// askPromise asks another site not to take over from this one for a while.
func (a *agent) askPromise(ctx context.Context, site topo.SiteID, holder string, long time.Duration) (time.Duration, error) {
	client := a.remote[site]
	if client == nil {
		return 0, fmt.Errorf("site %s is not in this agent's spec", site)
	}
	answer, err := client.Promise(ctx, api.PromiseRequest{Holder: holder, ForMS: long.Milliseconds()})
	return time.Duration(answer.ForMS) * time.Millisecond, err
}
