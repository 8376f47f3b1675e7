package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// A site's database dies for good, and its streaming standby, which lags, is promoted and takes its address, at once. Twice:
// first the standby has what no other site has, then the other site has what the standby lacks; each time the dead one had
// something that neither has. What the standby alone had must be in the conflict log after the rebuild, what the other site had
// must stand, and what only the dead one had, as its files say, may be missing: K3, K4 and seats would find anything else. That
// the promoted database takes a write at an epoch of before is found by the writer beside the gateways, from its first answer
// on, and by K1 from when the other site has opened.
func TestDatabasePromoted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	w := ownWorld(ctx, t, Options{})
	w.play(ctx, func(ctx context.Context, w *faultWorld) {
		for _, ahead := range []bool{true, false} {
			w.promote(ctx, ahead)
		}
	})
}

// promote plays it once: the standby is ahead of the other site, or behind it.
func (w *faultWorld) promote(ctx context.Context, ahead bool) {
	w.t.Helper()
	site, other := w.a(), w.b()
	primary := w.d.databases[site]
	standby, err := primary.Standby(ctx, pgserver.Options{Dir: fmt.Sprintf("%s-standby-%d", w.d.databaseDir(site), len(w.formers)), Name: string(site)})
	w.must(err)
	promoted := false
	defer func() {
		if !promoted {
			_ = standby.Kill()
		}
	}()
	w.must(rest(ctx, 2*time.Second))
	w.must(primary.CaughtUp(ctx, standby))

	link := w.d.CutKinds(site, other, Link)
	if ahead {
		w.must(link.Inject(ctx))
	} else {
		w.must(stopReceiving(ctx, standby))
	}
	w.must(rest(ctx, tailTime))
	if ahead {
		w.must(stopReceiving(ctx, standby))
	} else {
		w.must(link.Inject(ctx))
	}
	w.must(rest(ctx, tailTime/2))

	writers := w.beside(ctx, site)
	defer writers.stop()
	w.bury(site)
	writers.refusedFromNowOn()
	w.must(standby.Stop())
	standby.Port = primary.Port
	w.must(standby.Restart(ctx))
	w.must(standby.Promote(ctx))
	promoted = true
	w.d.databases[site] = standby
	w.t.Logf("promoted %.1f s behind the death of the primary", time.Since(w.formers[len(w.formers)-1].died).Seconds())
	w.takenOver(ctx, site)
	if ahead { // else what its agent had read before, and had not got through, comes late
		w.d.Network.Reset(site, other)
	}
	w.must(link.Heal(ctx))
	w.rebuilt(ctx, site)
	writers.stop()
	w.settledAndShared(ctx)
}

// stopReceiving has a standby stay where it is.
func stopReceiving(ctx context.Context, standby *pgserver.Server) error {
	db, err := pgx.Connect(ctx, standby.DSN(pgserver.Superuser, database))
	if err != nil {
		return err
	}
	defer db.Close(context.WithoutCancel(ctx))
	for _, sql := range []string{"ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"} {
		if _, err := db.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return every(ctx, 5*time.Millisecond, func() (bool, error) {
		var receivers int
		err := db.QueryRow(ctx, "SELECT count(*) FROM pg_stat_wal_receiver").Scan(&receivers)
		return receivers == 0, err
	})
}

// The files of a site's database are replaced by a snapshot of themselves from before the load, at once. It has the right
// identity, every ownership bit, and nothing of what was acknowledged since. The writer beside the gateways finds a fence that
// is opened at an epoch of before, K1 likewise from when the other site has opened; K3, K4 and seats find what is missing though the
// other site had it, sites_equal a site that did not become an equal.
func TestOldSnapshotRestored(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	w := ownWorld(ctx, t, Options{})
	site, other := w.a(), w.b()
	server, snapshot := w.d.databases[site], w.d.databaseDir(site)+"-snapshot"
	w.must(server.Stop())
	w.must(server.Snapshot(ctx, snapshot))
	w.must(server.Restart(ctx))
	w.must(w.recover(ctx))
	w.must(w.share(ctx))
	w.play(ctx, func(ctx context.Context, w *faultWorld) {
		w.must(rest(ctx, 5*time.Second))
		link := w.d.CutKinds(site, other, Link)
		w.must(link.Inject(ctx))
		w.must(rest(ctx, tailTime))
		writers := w.beside(ctx, site)
		defer writers.stop()
		w.bury(site)
		writers.refusedFromNowOn()
		w.must(server.Rewind(ctx, snapshot))
		w.must(server.Restart(ctx))
		w.t.Logf("restored %.1f s behind the death of the newer state", time.Since(w.formers[0].died).Seconds())
		w.takenOver(ctx, site)
		w.must(link.Heal(ctx))
		w.rebuilt(ctx, site)
		writers.stop()
		w.settledAndShared(ctx)
	})
}

// takenOver waits until another site has what a site with another database owned.
func (w *faultWorld) takenOver(ctx context.Context, site topo.SiteID) {
	w.t.Helper()
	if out, err := w.d.Atoll(ctx, "rebuild", "--site", string(site), "--yes"); err == nil && w.lostBy(ctx, site) == "" {
		w.t.Errorf("it is rebuilt while it owns buckets:\n%s", out)
	}
	w.eventually(ctx, "another site has taken over", func() bool { return w.lostBy(ctx, site) != "" })
}

// rebuilt has the operator's command bring a site with another database to the content of the one that took over.
func (w *faultWorld) rebuilt(ctx context.Context, site topo.SiteID) {
	w.t.Helper()
	w.eventually(ctx, "its agent says that the database is another one", func() bool {
		st, err := w.d.status(ctx, site)
		return err == nil && slices.ContainsFunc(st.Problems, func(p string) bool { return strings.Contains(p, "rebuild") })
	})
	w.must(rest(ctx, time.Second)) // load on what came of it
	w.command(ctx, "rebuild", "--site", string(site), "--dry-run")
	w.command(ctx, "rebuild", "--site", string(site), "--why", "another database", "--yes")
}
