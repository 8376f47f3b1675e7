package postgres

import (
	"sync"
	"testing"

	"github.com/atollhq/atoll/internal/pgserver"
)

// Databases of one server that are installed at the same moment: some of what is granted belongs to the server, and
// its catalogs take no lock for it.
func TestInstallManyAtOnce(t *testing.T) {
	t.Parallel()
	srv := pgserver.Shared(t)
	var sites []*fenceSite
	for range 4 {
		sites = append(sites, newFenceSite(t, srv, fenceTables, fenceDeployment()))
	}
	var wg sync.WaitGroup
	for _, s := range sites {
		wg.Go(func() {
			plan, err := Plan(t.Context(), s.adminDSN, s.d)
			if err == nil {
				err = Apply(t.Context(), s.adminDSN, plan, testLog(t))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
