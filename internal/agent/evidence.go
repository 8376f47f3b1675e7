package agent

import (
	"context"
	"errors"

	"github.com/atollhq/atoll/topo"
)

// evidence is what this site's database knows of who owns what. With seal the database is told of that generation first;
// whichever agent of the site does it, and whether the site has its lease, does not matter.
func (a *agent) evidence(ctx context.Context, seal uint64) (topo.Evidence, error) {
	k := a.kept.Load()
	if k == nil {
		return topo.Evidence{}, unavailable(errors.New("the database is away: " + a.whyAway()))
	}
	if seal > 0 {
		if err := k.fence.RaiseGeneration(ctx, seal); err != nil {
			return topo.Evidence{}, unavailable(err)
		}
	}
	e, err := k.fence.Evidence(ctx)
	if err != nil {
		return e, unavailable(err)
	}
	return e, nil
}
