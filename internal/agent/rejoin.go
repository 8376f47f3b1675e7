package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/rejoin"
	"github.com/atollhq/atoll/internal/replicate"
	"github.com/atollhq/atoll/topo"
)

// whole says why nothing may pass to or from this database: it is another one than the streams were begun with. What
// it alone has must not be overwritten unseen, and what it lacks must not look as if it had been sent.
func (db *database) whole() error {
	if err := db.keeper.Differs(); err != nil {
		return err
	}
	if o := db.document(); !o.Takes(db.site) && !db.admitted() {
		return fmt.Errorf("site %s is no member of the deployment, or not any more; take it in with atoll site add %s", db.site, db.site)
	}
	if db.keeper.Status().Rebuild {
		return errors.New("the site's database is another one than before, and has to be rebuilt from the site that owns its buckets now (atoll rebuild)")
	}
	return nil
}

// returning makes this site's part in returns.
func (a *agent) returning(db *database) *rejoin.Rejoin {
	return rejoin.New(rejoin.Config{
		Site: a.site, Sites: a.listed(), Store: a.store, Ownership: a.hub.Ownership, Fence: db.fence, WaitMarkers: db.applied.WaitMarkers,
		Flushed: func(target topo.SiteID) change.Position {
			for _, t := range db.serve.State() {
				if t.Target == target {
					return t.Flushed
				}
			}
			return 0
		},
		Rebuilding: &rebuilding{agent: a, db: db}, WaitVector: db.applied.WaitVector, Logger: a.cfg.Log,
		BeginAnew: func(ctx context.Context, anew postgres.Anew, last bool) error {
			return a.afresh(ctx, db, func() error {
				if err := db.fence.BeginAnew(ctx, anew); err != nil {
					return err
				}
				db.applied.Anew(anew.Origin, anew.Position, last)
				return nil
			})
		},
		Place: func(ctx context.Context, target topo.SiteID) (change.Position, error) {
			return a.place(ctx, db, target)
		},
	})
}

// afresh changes what this site knows of others while nothing is applied, and nothing that was said before is heard.
func (a *agent) afresh(ctx context.Context, db *database, change func() error) error {
	release := db.applying.Hold()
	defer release()
	if err := db.serve.Renew(ctx); err != nil {
		return err
	}
	return change()
}

// place is this site's part in another one's rebuild; see rejoin.Config.
func (a *agent) place(ctx context.Context, db *database, target topo.SiteID) (change.Position, error) {
	source, err := a.capture(ctx, target)
	if err != nil {
		return 0, err
	}
	defer source.Close()
	if _, err := source.Anew(ctx); err != nil {
		return 0, err
	}
	return db.fence.Point(ctx) // behind the place, and the copied site hears of it at once
}

// rebuilding is what a rebuild needs of this agent. It satisfies rejoin.Rebuilding.
type rebuilding struct {
	*agent
	db *database
}

// Replaced tells whether the keeper took this database in the place of another.
func (r *rebuilding) Replaced() bool { return r.db.keeper.Status().Rebuild }

// capture opens this site's stream for a target.
func (a *agent) capture(ctx context.Context, target topo.SiteID) (*postgres.Capture, error) {
	return postgres.OpenCapture(ctx, postgres.CaptureConfig{DSN: a.cfg.DSN, Site: a.site, Target: target,
		Deployment: a.cfg.Spec.Deployment, Tables: a.tables, Keyspaces: a.cfg.Spec.KeyspaceTable(), Logger: a.log})
}

// Begin tells the keeper, and ends what is being handed on.
func (r *rebuilding) Begin(ctx context.Context, anew bool) error {
	r.db.keeper.Rebuilds(anew)
	return r.afresh(ctx, r.db, func() error { return nil })
}

// Standing asks another site what it has of this one.
func (r *rebuilding) Standing(ctx context.Context, at topo.SiteID) (api.Standing, error) {
	client := r.remote[at]
	if client == nil {
		return api.Standing{}, fmt.Errorf("site %s is not in this agent's spec", at)
	}
	ctx, cancel := context.WithTimeout(ctx, askBound)
	defer cancel()
	st, err := client.Standing(ctx, api.StandingRequest{Of: r.site})
	if err == nil && st.Problem != "" {
		err = errors.New(st.Problem)
	}
	return st, err
}

// Place has another site make ready.
func (r *rebuilding) Place(ctx context.Context, at topo.SiteID, req api.PlaceRequest) (api.PlaceAnswer, error) {
	client := r.remote[at]
	if client == nil {
		return api.PlaceAnswer{}, fmt.Errorf("site %s is not in this agent's spec", at)
	}
	return client.Place(ctx, req)
}

// Broken says why this site's stream for a target cannot go on: its slot is gone.
func (r *rebuilding) Broken(ctx context.Context, target topo.SiteID) error {
	source, err := r.capture(ctx, target)
	if err != nil {
		return nil // not known: then it is not taken for broken
	}
	defer source.Close()
	_, exists, err := source.Confirmed(ctx)
	switch {
	case errors.Is(err, postgres.ErrRebuild):
		return err
	case err == nil && !exists:
		return fmt.Errorf("this site's stream for site %s is gone: %w", target, postgres.ErrRebuild)
	}
	return nil
}

// Resync takes a copy of a site over an ordinary link, while nothing else is applied.
func (r *rebuilding) Resync(ctx context.Context, from topo.SiteID, cuts []topo.CutRange, step func(string)) (postgres.ResyncReport, error) {
	release := r.db.applying.Hold()
	defer release()
	source, err := r.capture(ctx, from)
	if err != nil {
		return postgres.ResyncReport{}, err
	}
	defer source.Close()
	var others []*postgres.Capture
	for _, site := range r.peers() {
		if site == from {
			continue
		}
		other, err := r.capture(ctx, site)
		if err != nil {
			return postgres.ResyncReport{}, err
		}
		defer other.Close()
		others = append(others, other)
	}
	document := r.document()
	sink, err := postgres.OpenResync(ctx, postgres.ResyncConfig{Capture: source, Others: others, Outside: !document.Takes(r.site),
		Apply:     postgres.ApplyConfig{DSN: r.cfg.DSN, Site: r.site, Origin: from, Tables: r.tables, Logger: r.log},
		Keyspaces: r.cfg.Spec.KeyspaceTable(), Cuts: cuts, Step: step})
	if err != nil {
		return postgres.ResyncReport{}, err
	}
	applied, err := replicate.LoadApplied(ctx, r.site, r.db.recorded) // of its own: the copy begins with nothing
	if err != nil {
		return postgres.ResyncReport{}, err
	}
	f := r.following(r.db, from)
	f.Applied, f.Open = applied, func(context.Context) (replicate.Sink, error) { return sink, nil }
	if err := f.Copy(ctx); err != nil {
		return postgres.ResyncReport{}, err
	}
	return sink.Report(), nil
}

// Epochs are those at which this site last held its buckets.
func (r *rebuilding) Epochs(ctx context.Context) (change.Epochs, error) {
	return r.db.fence.OwnEpochs(ctx)
}

// Anew tells another site where this site's stream begins.
func (r *rebuilding) Anew(ctx context.Context, to topo.SiteID, req api.BeginAnewRequest) (api.BeginAnewAnswer, error) {
	client := r.remote[to]
	if client == nil {
		return api.BeginAnewAnswer{}, fmt.Errorf("site %s is not in this agent's spec", to)
	}
	return client.BeginAnew(ctx, req)
}

// Rebuilt tells the keeper.
func (r *rebuilding) Rebuilt() {
	r.rebuilt.Store(true)
	r.db.keeper.Rebuilt()
}

// returns answers for this site's part in returns, while this agent is active. It satisfies control.Returns.
type returns struct{ *agent }

// Place makes ready for the rebuild of the asking site.
func (r returns) Place(ctx context.Context, req api.PlaceRequest) (api.PlaceAnswer, error) {
	db := r.database.Load()
	if db == nil {
		return api.PlaceAnswer{}, unavailable(errors.New("the database is away: " + r.whyAway()))
	}
	return db.returns.Place(ctx, req)
}

// Standing is what this site knows of another one.
func (r returns) Standing(ctx context.Context, of topo.SiteID) (api.Standing, error) {
	return localSite(r).Standing(ctx, of)
}

// Rebuild brings this site's database to the content of another full site.
func (r returns) Rebuild(ctx context.Context, who string, req api.RebuildRequest) (api.RebuildAnswer, error) {
	db := r.database.Load()
	if db == nil {
		return api.RebuildAnswer{}, unavailable(errors.New("the database is away: " + r.whyAway()))
	}
	return db.returns.Rebuild(ctx, who, req)
}

// BeginAnew forgets how far this site has come in the former stream of the asking site.
func (r returns) BeginAnew(ctx context.Context, req api.BeginAnewRequest) (api.BeginAnewAnswer, error) {
	db := r.database.Load()
	if db == nil {
		return api.BeginAnewAnswer{}, unavailable(errors.New("the database is away: " + r.whyAway()))
	}
	return db.returns.BeginAnew(ctx, req)
}

// Markers looks for the closing markers of a handover.
func (r *recorded) Markers(ctx context.Context, site topo.SiteID, id topo.HandoverID) (out []change.Marker, err error) {
	err = r.with(ctx, func(c *pgx.Conn) (err error) {
		out, err = postgres.Markers(ctx, c, site, id)
		return err
	})
	return out, err
}
