package agent

import (
	"context"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/dashboard"
	"github.com/atollhq/atoll/internal/postgres"
)

// servePage serves the status page to this machine, without TLS, where the spec wants it; else there is nothing to do.
func (a *agent) servePage(ctx context.Context) error {
	if a.addr.Admin == "" {
		return nil
	}
	ln, err := listen(ctx, "admin", a.addr.Admin)
	if err != nil {
		return err
	}
	a.log.Info("status page", "url", "http://"+ln.Addr().String())
	return dashboard.Serve(ctx, ln, a.page)
}

// conflictLog is the log of this site's database, also while nothing else works with it.
type conflictLog struct{ dsn string }

func (c conflictLog) Conflicts(ctx context.Context, q api.ConflictQuery) ([]api.Conflict, bool, error) {
	log, err := postgres.OpenConflictLog(c.dsn)
	if err != nil {
		return nil, false, err
	}
	return log.Conflicts(ctx, q)
}

func (c conflictLog) Conflict(ctx context.Context, id int64) (api.Conflict, bool, error) {
	log, err := postgres.OpenConflictLog(c.dsn)
	if err != nil {
		return api.Conflict{}, false, err
	}
	return log.Conflict(ctx, id)
}
