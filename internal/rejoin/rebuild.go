package rejoin

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	// Begin says, with the next renewal of the lease, that this database is to be rebuilt, and with anew that the other
	// sites let go of its former stream. Nothing is handed on or applied from then on.
	Begin(ctx context.Context, anew bool) error
	// Standing is what another site has of this site's stream.
	Standing(ctx context.Context, at topo.SiteID) (api.Standing, error)
	// Place has another site make ready.
	Place(ctx context.Context, at topo.SiteID, r api.PlaceRequest) (api.PlaceAnswer, error)
	// Resync brings this database to a site's content, and begins this site's stream anew for every site. Nothing else is
	// applied meanwhile.
	Resync(ctx context.Context, from topo.SiteID, cuts []topo.CutRange, step func(string)) (postgres.ResyncReport, error)
	// Epochs are those at which this site last held its buckets.
	Epochs(context.Context) (change.Epochs, error)
	// Anew tells a site where this site's stream begins now.
	Anew(ctx context.Context, to topo.SiteID, r api.BeginAnewRequest) (api.BeginAnewAnswer, error)
	// Rebuilt says that the database is in order.
	Rebuilt()
}

// equalBound is how long the other sites may take to have the same of this site's former stream, and the copied one to
// reach the places that the others made.
const equalBound = time.Minute

// within is ctx that ends with this agent's being active, too.
func (r *Rejoin) within(ctx context.Context) (context.Context, func(), error) {
	r.mu.Lock()
	run := r.mu.run
	r.mu.Unlock()
	if run == nil || run.Err() != nil {
		return nil, nil, &api.Error{Status: 503, Code: api.CodeUnavailable, Message: "this agent is not active", Hint: "ask the site's other agent, or try again in a moment"}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(run, func() { cancel(errors.New("this agent is not active any more")) })
	return ctx, func() { stop(); cancel(nil) }, nil
}

// Rebuild brings this site's database to the content of another full site, where every row version that only this
// database has goes to its conflict log. What fails leaves a site that can be rebuilt again.
func (r *Rejoin) Rebuild(ctx context.Context, who string, req api.RebuildRequest) (api.RebuildAnswer, error) {
	began := time.Now()
	ctx, end, err := r.within(ctx)
	if err != nil {
		return api.RebuildAnswer{}, err
	}
	defer end()
	if !r.rebuilding.TryLock() {
		return api.RebuildAnswer{}, &api.Error{Status: 409, Code: api.CodeRefused, Message: "a rebuild is under way; see atoll status"}
	}
	defer r.rebuilding.Unlock()
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
	from := r.source(o)
	switch {
	case req.From != "" && !slices.Contains(r.peers(), req.From):
		return "", o, refused("from", "", "site %q is no other full site; there are %s", req.From, join(r.peers()))
	case req.From != "":
		from = req.From
	case from == "":
		return "", o, refused("from", "", "there is no other full site to rebuild it from")
	}
	if owned(o, r.cfg.Site) {
		return "", o, refused("owns-nothing", fmt.Sprintf("let another site take over first: atoll failover --site %s", r.cfg.Site),
			"the site owns buckets, or some are on their way to it")
	}
	if !r.cfg.Rebuilding.Replaced() && !r.broken(ctx) {
		return "", o, refused("replaced", "the site returns by itself; see atoll status",
			"the database is the one that the site had, and its streams for %s are whole: its tail is settled in the ordinary way", join(r.peers()))
	}
	if lost := o.Unsettled(from); lost != "" {
		return "", o, refused("source", "wait until that is settled, or name another site with --from", "site %s is itself returning from failover %s", from, lost)
	}
	for _, peer := range r.peers() {
		if _, err := r.cfg.Rebuilding.Standing(ctx, peer); err != nil {
			return "", o, refused("every-site", fmt.Sprintf("bring site %s back first", peer),
				"every other full site takes part, because this site's stream begins anew there; site %s does not answer: %v", peer, err)
		}
	}
	return from, o, nil
}

// source is the site that is copied if nobody names one: one that follows this site in buckets that it lost, else the first.
func (r *Rejoin) source(o topo.Ownership) topo.SiteID {
	for _, c := range o.Cuts() {
		if c.Cut.From == r.cfg.Site && slices.Contains(r.peers(), c.Range.Owner) {
			return c.Range.Owner
		}
	}
	full := slices.DeleteFunc(r.peers(), func(s topo.SiteID) bool { return !o.Full(s) })
	if len(full) == 0 {
		return ""
	}
	return slices.Min(full)
}

// broken tells whether a stream of this site cannot go on.
func (r *Rejoin) broken(ctx context.Context) bool {
	return slices.ContainsFunc(r.peers(), func(peer topo.SiteID) bool { return r.cfg.Rebuilding.Broken(ctx, peer) != nil })
}

// rebuild is the whole of it; each step may be repeated. The closing comes first, so that no writer of an old epoch is
// left, not even a prepared one; its markers are written again behind the place where the stream begins.
func (r *Rejoin) rebuild(ctx context.Context, what string, from topo.SiteID, o topo.Ownership, cuts []topo.CutRange) (postgres.ResyncReport, error) {
	none := postgres.ResyncReport{}
	if err := r.letGo(ctx, what); err != nil {
		return none, err
	}
	close := closings(r.cfg.Site, o)
	r.waits(what, "its writers of old epochs to end")
	for _, c := range close {
		if err := r.close(ctx, c); err != nil {
			return none, err
		}
	}
	if err := r.places(ctx, what, from); err != nil {
		return none, err
	}
	report, err := r.cfg.Rebuilding.Resync(ctx, from, cuts, func(step string) { r.waits(what, "%s", step) })
	if err != nil {
		return report, err
	}
	for _, c := range close {
		if err := r.close(ctx, c); err != nil { // closed for this handover already: its marker is written
			return report, err
		}
	}
	epochs, err := r.cfg.Rebuilding.Epochs(ctx)
	if err != nil {
		return report, err
	}
	if err := r.beginAnew(ctx, what, api.BeginAnewRequest{Origin: r.cfg.Site, Position: uint64(report.Begins), Epochs: remembered(o, epochs)}); err != nil {
		return report, err
	}
	r.cfg.Rebuilding.Rebuilt()
	r.log.Info("rebuilt", "site", r.cfg.Site, "from", from, "copied", report.Copied, "stream_begins", report.Begins)
	return report, nil
}

// letGo has the other sites come to the same position of this site's former stream, from each other's relays: behind
// that nobody can be given any more of it. That it is so is written down, because a site that has begun anew cannot be
// asked again.
func (r *Rejoin) letGo(ctx context.Context, what string) error {
	l, _, err := r.cfg.Store.Lease(ctx, r.cfg.Site)
	if err != nil {
		return err
	}
	if err := r.cfg.Rebuilding.Begin(ctx, l.Anew); err != nil {
		return err
	}
	if !l.Anew {
		if err := r.equal(ctx, what); err != nil {
			return err
		}
		if err := r.cfg.Rebuilding.Begin(ctx, true); err != nil {
			return err
		}
	}
	r.waits(what, "the store to know that it is rebuilt")
	for !l.Rebuild || !l.Anew {
		if err := sleep(ctx, lookEvery); err != nil {
			return err
		}
		if l, _, err = r.cfg.Store.Lease(ctx, r.cfg.Site); err != nil {
			return err
		}
	}
	return nil
}

// equal waits until every other site has the same of this site's former stream. It hands nothing on any more, so those
// that lack something take it from the others.
func (r *Rejoin) equal(ctx context.Context, what string) error {
	ctx, cancel := context.WithTimeout(ctx, equalBound)
	defer cancel()
	for {
		least, most := api.Standing{}, api.Standing{}
		for i, peer := range r.peers() {
			st, err := r.cfg.Rebuilding.Standing(ctx, peer)
			if err != nil {
				return fmt.Errorf("site %s does not say how far it has this site's changes: %w", peer, err)
			}
			if st.Site = peer; i == 0 || st.Applied < least.Applied {
				least = st
			}
			if i == 0 || st.Applied > most.Applied {
				most = st
			}
		}
		if least.Applied == most.Applied {
			return nil
		}
		r.waits(what, "site %s to take from site %s what it lacks of this site's former stream", least.Site, most.Site)
		if err := sleep(ctx, lookEvery); err != nil {
			return fmt.Errorf("site %s has this site's former stream up to %d and site %s up to %d only; see the links of site %s in atoll status: %w",
				most.Site, most.Applied, least.Site, least.Applied, least.Site, err)
		}
	}
}

// places has every other site make ready. A third site's new place comes first; when the copied one has applied what is
// before that, it is copied, and what the copy says of the third site is behind its place.
func (r *Rejoin) places(ctx context.Context, what string, from topo.SiteID) error {
	ctx, cancel := context.WithTimeout(ctx, equalBound)
	defer cancel()
	until := topo.Vector{}
	for _, peer := range r.peers() {
		if peer == from {
			continue
		}
		r.waits(what, "a place in the stream of site %s", peer)
		answer, err := r.cfg.Rebuilding.Place(ctx, peer, api.PlaceRequest{Site: r.cfg.Site, Place: true})
		if err != nil {
			return fmt.Errorf("a place in the stream of site %s: %w", peer, err)
		}
		until[peer] = answer.Position
	}
	r.waits(what, "site %s to have what is before the other sites' places", from)
	if _, err := r.cfg.Rebuilding.Place(ctx, from, api.PlaceRequest{Site: r.cfg.Site, Until: until}); err != nil {
		return fmt.Errorf("site %s, which is to be copied: %w", from, err)
	}
	return nil
}

// beginAnew tells every other site where this site's stream begins. A second round makes sure that none counts what
// another one had said of the former stream before it was told, nor waits for what a marker of before asks of it.
func (r *Rejoin) beginAnew(ctx context.Context, what string, anew api.BeginAnewRequest) error {
	until := topo.Vector{}
	for _, anew.Last = range []bool{false, true} {
		for _, peer := range r.peers() {
			r.waits(what, "site %s to begin anew with this site's stream", peer)
			anew.Until = nil
			if anew.Last {
				anew.Until = maps.Clone(until)
				delete(anew.Until, peer)
			}
			answer, err := r.cfg.Rebuilding.Anew(ctx, peer, anew)
			if err != nil {
				return fmt.Errorf("site %s does not begin anew with this site's stream: %w", peer, err)
			}
			until[peer] = answer.Position
		}
	}
	return nil
}
