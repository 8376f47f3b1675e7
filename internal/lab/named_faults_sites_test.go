package lab

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// A site is removed in good order and taken in again as a new one, while users are served at both: no request that was
// answered is missing, and the two are equal in the end.
func TestSiteRemovedAndAdded(t *testing.T) {
	playFault(t, func(ctx context.Context, w *faultWorld) {
		site, other := w.b(), w.a()
		if out, err := w.d.Atoll(ctx, "site", "remove", string(site)); err == nil || !strings.Contains(string(out)+err.Error(), "owns-nothing") {
			w.t.Errorf("a site that owns half of the users is removed: %v\n%s", err, out)
		}
		for _, ks := range []topo.KeyspaceID{users, catalog} {
			w.eventually(ctx, fmt.Sprintf("%s owns nothing of %s", site, ks), func() bool {
				have := w.owned(ctx, ks, site)
				if have.Len() > 0 {
					_, _ = w.d.Atoll(ctx, "switch", "--keyspace", string(ks), "--buckets", have.String(), "--to", string(other)) // looked at again
				}
				return have.Len() == 0
			})
		}
		command := func(args ...string) string {
			out, err := w.d.Atoll(ctx, args...)
			if err != nil {
				w.t.Fatalf("%v: %v\n%s", args, err, out)
			}
			w.t.Logf("%v\n%s", args, out)
			return string(out)
		}
		command("site", "remove", string(site), "--dry-run")
		if out := command("site", "remove", string(site)); !strings.Contains(out, "left to do") {
			w.t.Error("its agent runs, and nothing is left to do")
		}
		before := w.answered()
		w.eventually(ctx, "users of both sites are served by one", func() bool { return w.answered() > before+60 })
		began := time.Now()
		command("site", "add", string(site), "--dry-run")
		command("site", "add", string(site))
		w.t.Logf("added in %.1f s, with %d answers since it was removed", time.Since(began).Seconds(), w.answered()-before)
	})
}
