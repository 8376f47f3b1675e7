package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
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
		w.command(ctx, "site", "remove", string(site), "--dry-run")
		if out := w.command(ctx, "site", "remove", string(site)); !strings.Contains(out, "left to do") {
			w.t.Error("its agent runs, and nothing is left to do")
		}
		before := w.answered()
		w.eventually(ctx, "users of both sites are served by one", func() bool { return w.answered() > before+60 })
		began := time.Now()
		w.command(ctx, "site", "add", string(site), "--dry-run")
		w.command(ctx, "site", "add", string(site))
		w.t.Logf("added in %.1f s, with %d answers since it was removed", time.Since(began).Seconds(), w.answered()-before)
	})
}

// One of three sites is lost with changes that only one survivor, or nobody, has, and never returns. The others take over and
// come to the same; then it is given up by the runbook. They keep nothing of it and for it, and go on as two. What only its
// dead database had may be missing, as the lab reads it in the files; K3, K4 and seats would find anything else that is, and
// sites_equal survivors that differ.
func TestSiteGoneForGood(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	w := ownWorld(ctx, t, Options{Sites: []topo.SiteID{"a", "b", "c"}, NoWitness: true})
	w.play(ctx, func(ctx context.Context, w *faultWorld) {
		const gone = topo.SiteID("c")
		survivors := w.opts.others(gone)
		w.must(rest(ctx, 3*time.Second))
		for _, site := range survivors { // b hears of it for longer than a
			w.must(w.d.CutKinds(gone, site, Link).Inject(ctx))
			w.must(rest(ctx, tailTime/2))
		}
		w.must(w.d.killSite(gone))
		w.bury(gone)
		if out, err := w.d.Atoll(ctx, "site", "forget", string(gone), "--accept-loss"); err == nil {
			t.Errorf("it is given up before anybody has taken over:\n%s", out)
		}
		w.eventually(ctx, "it is taken over", func() bool { return w.lostBy(ctx, gone) != "" })
		if w.kept(ctx, survivors, gone) == 0 {
			t.Error("the survivors keep nothing for it: nothing is tested")
		}
		if out, err := w.d.Atoll(ctx, "site", "remove", string(gone)); err == nil {
			t.Errorf("a lost site is removed in good order:\n%s", out)
		}
		if out := w.command(ctx, "site", "forget", string(gone), "--dry-run"); !strings.Contains(out, "estimated") {
			t.Error("it names no estimate of the loss")
		}
		w.command(ctx, "site", "forget", string(gone), "--accept-loss", "--why", "flooded")
		w.command(ctx, "store", "remove", string(gone))
		w.gone = append(w.gone, gone)
		w.opts.Sites, w.d.opts.Sites = survivors, survivors

		before := w.answered()
		w.eventually(ctx, "users of all sites are served by two", func() bool { return w.answered() > before+120 })
		w.must(w.share(ctx))
		w.eventually(ctx, "nothing is kept of it, or for it", func() bool { return w.kept(ctx, survivors, gone) == 0 })
		w.command(ctx, "site", "list")
	})
}

// lostBy is the failover by which a site was lost and that is not settled; "" if there is none.
func (w *faultWorld) lostBy(ctx context.Context, site topo.SiteID) topo.HandoverID {
	for _, at := range w.opts.others(site) {
		st, err := w.d.status(ctx, at)
		if err != nil {
			continue
		}
		if i := slices.IndexFunc(st.Ownership.Unsettled, func(u api.UnsettledStatus) bool { return u.Site == site }); i >= 0 {
			return st.Ownership.Unsettled[i].Handover
		}
	}
	return ""
}

// command runs an operator's command, which must succeed.
func (w *faultWorld) command(ctx context.Context, args ...string) string {
	w.t.Helper()
	out, err := w.d.Atoll(ctx, args...)
	if err != nil {
		w.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	w.t.Logf("atoll %s\n%s", strings.Join(args, " "), out)
	return string(out)
}

// kept counts what sites keep of another one's stream, and for it: relays of any origin, too, which wait for it.
func (w *faultWorld) kept(ctx context.Context, at []topo.SiteID, of topo.SiteID) (all int) {
	w.t.Helper()
	for _, site := range at {
		w.must(w.d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			var n int
			err := db.QueryRow(ctx, `SELECT (SELECT count(*) FROM atoll.relay) + (SELECT count(*) FROM atoll.progress WHERE origin = $1)
				+ (SELECT count(*) FROM atoll.cut WHERE origin = $1) + (SELECT count(*) FROM atoll.bucket WHERE site = $1) + (SELECT count(*) FROM atoll.marker WHERE site = $1)
				+ (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'atoll\_%\_' || $1)`, string(of)).Scan(&n)
			all += n
			return err
		}))
	}
	return all
}
