package rejoin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// Rebuilding is what a rebuild needs of the agent.
type Rebuilding interface {
	// Replaced tells whether this database came in the place of another and is not settled.
	Replaced() bool
	// Broken says why this site's stream for a target cannot go on, or nil if it can.
	Broken(ctx context.Context, target topo.SiteID) error
	// Resync brings this database to a site's content, and begins this site's stream for that site anew. Nothing else
	// applies that site's changes meanwhile.
	Resync(ctx context.Context, from topo.SiteID, cuts []topo.CutRange, step func(string)) (postgres.ResyncReport, error)
	// Epochs are those at which this site last held its buckets.
	Epochs(context.Context) (change.Epochs, error)
	// Anew tells a site where this site's stream begins now.
	Anew(ctx context.Context, to topo.SiteID, r api.BeginAnewRequest) error
	// Rebuilt says that the database is in order.
	Rebuilt()
}

// Rebuild brings this site's database to the content of the other full site, where every row version that only this
// database has goes to its conflict log. What fails leaves a site that can be rebuilt again.
func (r *Rejoin) Rebuild(ctx context.Context, who string, req api.RebuildRequest) (api.RebuildAnswer, error) {
	began := time.Now()
	r.mu.Lock()
	run := r.mu.run
	r.mu.Unlock()
	if run == nil || run.Err() != nil {
		return api.RebuildAnswer{}, &api.Error{Status: 503, Code: api.CodeUnavailable, Message: "this agent is not active", Hint: "ask the site's other agent, or try again in a moment"}
	}
	if !r.rebuilding.TryLock() {
		return api.RebuildAnswer{}, &api.Error{Status: 409, Code: api.CodeRefused, Message: "a rebuild is under way; see atoll status"}
	}
	defer r.rebuilding.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(run, func() { cancel(errors.New("this agent is not active any more")) })
	defer stop()

	owner, o, err := r.mayRebuild(ctx, req)
	if err != nil {
		return api.RebuildAnswer{}, err
	}
	answer := api.RebuildAnswer{Site: r.cfg.Site, From: owner, DryRun: req.DryRun}
	var cuts []topo.CutRange
	for _, c := range o.Cuts() {
		if c.Cut.From != r.cfg.Site {
			continue
		}
		cuts = append(cuts, c)
		if id := c.Cut.Handover; !slices.Contains(answer.Handovers, id) {
			answer.Handovers = append(answer.Handovers, id)
		}
	}
	if req.DryRun {
		return answer, nil
	}
	what := "rebuilding from site " + string(owner)
	defer r.over(what)
	report, err := r.rebuild(ctx, what, owner, o, cuts)
	if err != nil {
		return answer, &api.Error{Status: 503, Code: api.CodeUnavailable, Message: fmt.Sprintf("rebuild of site %s: %v", r.cfg.Site, err),
			Hint: "nothing is open at this site; run the same command again"}
	}
	answer.Copied, answer.TookMS = uint64(report.Copied), time.Since(began).Milliseconds()
	for _, t := range report.Tables {
		answer.Tables = append(answer.Tables, api.RebuiltTable(t))
		answer.Logged += t.Logged
	}
	text := fmt.Sprintf("site %s was rebuilt from site %s: %d row versions that only its database had are in its conflict log (by %s", r.cfg.Site, owner, answer.Logged, who)
	if req.Why != "" {
		text += ": " + req.Why
	}
	if _, err := r.cfg.Store.Commit(ctx, store.Change{Audit: text + ")"}); err != nil {
		r.log.Warn("the rebuild is not in the audit", "error", err, "entry", text+")")
	}
	return answer, nil
}

// mayRebuild names the site to rebuild from, or refuses.
func (r *Rejoin) mayRebuild(ctx context.Context, req api.RebuildRequest) (topo.SiteID, topo.Ownership, error) {
	refused := func(check, hint, format string, args ...any) error {
		return &api.Error{Status: 409, Code: api.CodeRefused, Message: "the rebuild is refused; nothing was changed",
			Problems: []api.Problem{{Check: check, Site: r.cfg.Site, Text: fmt.Sprintf(format, args...), Hint: hint}}}
	}
	if req.Site != r.cfg.Site {
		return "", topo.Ownership{}, &api.Error{Status: 400, Code: api.CodeBadRequest, Message: fmt.Sprintf("this is the agent of site %s; ask that of site %q", r.cfg.Site, req.Site)}
	}
	o, _, err := r.cfg.Store.Ownership(ctx)
	if err != nil {
		return "", o, &api.Error{Status: 503, Code: api.CodeUnavailable, Message: "the ownership document: " + err.Error()}
	}
	if len(r.cfg.Peers) != 1 {
		return "", o, refused("two-sites", "", "rebuilding needs exactly two full sites; the spec has %d", len(r.cfg.Peers)+1)
	}
	owner := r.cfg.Peers[0]
	if owned(o, r.cfg.Site) {
		return "", o, refused("owns-nothing", fmt.Sprintf("let site %s take over first: atoll failover %s --to %s", owner, r.cfg.Site, owner),
			"the site owns buckets, or some are on their way to it")
	}
	if !r.cfg.Rebuilding.Replaced() {
		if err := r.cfg.Rebuilding.Broken(ctx, owner); err == nil {
			return "", o, refused("replaced", "the site returns by itself; see atoll status",
				"the database is the one that the site had, and its stream for site %s is whole: its tail is settled in the ordinary way", owner)
		}
	}
	return owner, o, nil
}

// rebuild is the whole of it; each step may be repeated. The closing comes first, so that no writer of an old epoch is
// left, not even a prepared one; its markers are written again behind the place where the stream begins.
func (r *Rejoin) rebuild(ctx context.Context, what string, owner topo.SiteID, o topo.Ownership, cuts []topo.CutRange) (postgres.ResyncReport, error) {
	close := closings(r.cfg.Site, o)
	r.waits(what, "its writers of old epochs to end")
	for _, c := range close {
		if err := r.close(ctx, c); err != nil {
			return postgres.ResyncReport{}, err
		}
	}
	report, err := r.cfg.Rebuilding.Resync(ctx, owner, cuts, func(step string) { r.waits(what, "%s", step) })
	if err != nil {
		return report, err
	}
	for _, c := range close {
		if err := r.close(ctx, c); err != nil { // closed for this handover already: its marker is written
			return report, err
		}
	}
	r.waits(what, "site %s to begin anew with this site's stream", owner)
	epochs, err := r.cfg.Rebuilding.Epochs(ctx)
	if err != nil {
		return report, err
	}
	anew := api.BeginAnewRequest{Origin: r.cfg.Site, Position: uint64(report.Begins), Epochs: remembered(o, epochs)}
	if err := r.cfg.Rebuilding.Anew(ctx, owner, anew); err != nil {
		return report, err
	}
	r.cfg.Rebuilding.Rebuilt()
	r.log.Info("rebuilt", "site", r.cfg.Site, "from", owner, "copied", report.Copied, "stream_begins", report.Begins)
	return report, nil
}
