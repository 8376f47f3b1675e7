package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/replicate"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// links are a site's replication: one served stream to each other full site, one followed stream from each.
type links struct {
	serve   *replicate.Serve
	follows []*replicate.Follow
	applied *replicate.Applied
}

// linksConfig is what links are made of.
type linksConfig struct {
	spec     *spec.Spec
	site     topo.SiteID
	dsn      string
	identity *pki.Identity
	says     func() link.Statement // what this site says of its lease in every heartbeat
	log      *slog.Logger
}

func newLinks(ctx context.Context, c linksConfig) (*links, error) {
	applied, err := replicate.LoadApplied(ctx, c.site, recorded{c.dsn})
	if err != nil {
		return nil, err
	}
	tables, keyspaces := Tables(c.spec), c.spec.KeyspaceTable()
	l := &links{applied: applied}
	l.serve = &replicate.Serve{Site: c.site, Deployment: c.spec.Deployment, Identity: c.identity, Applied: applied, Says: c.says, Logger: c.log,
		Open: func(ctx context.Context, target topo.SiteID) (replicate.Source, error) {
			return postgres.OpenCapture(ctx, postgres.CaptureConfig{DSN: c.dsn, Site: c.site, Target: target,
				Deployment: c.spec.Deployment, Tables: tables, Keyspaces: keyspaces, Logger: c.log})
		}}
	full := c.spec.FullSites()
	for _, origin := range full {
		if origin == c.site {
			continue
		}
		l.follows = append(l.follows, &replicate.Follow{Site: c.site, Origin: origin, Deployment: c.spec.Deployment,
			Addr: linkAddress(c.spec, c.site, origin), Identity: c.identity, CopyFrom: origin == c.spec.Seed, Applied: applied, Logger: c.log,
			Others: slices.DeleteFunc(slices.Clone(full), func(s topo.SiteID) bool { return s == c.site || s == origin }),
			Open: func(ctx context.Context) (replicate.Sink, error) {
				return postgres.OpenApply(ctx, postgres.ApplyConfig{DSN: c.dsn, Site: c.site, Origin: origin, Tables: tables, Logger: c.log})
			}})
	}
	return l, nil
}

// linkAddress is where from's agent reaches to's link port.
func linkAddress(s *spec.Spec, from, to topo.SiteID) string {
	if r := s.Sites[from].Reach[to]; r != nil && r.Link != "" {
		return r.Link
	}
	return s.Sites[to].Agent.Link
}

// run serves and follows until ctx ends. Nothing here ends by itself: what breaks is tried again, and readable.
func (l *links) run(ctx context.Context, ln net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.serve.Run(ctx, ln) })
	for _, f := range l.follows {
		g.Go(func() error { return f.Run(ctx) })
	}
	return g.Wait()
}

// recorded reads what the site's database says of its progress. It is asked at the start and when somebody waits for
// a marker, so it does not keep a connection.
type recorded struct{ dsn string }

func (r recorded) Vector(ctx context.Context) (v topo.Vector, err error) {
	err = r.with(ctx, func(conn *pgx.Conn) error {
		v, err = postgres.Vector(ctx, conn)
		return err
	})
	return v, err
}

func (r recorded) Marker(ctx context.Context, site topo.SiteID, id topo.HandoverID) (m change.Marker, found bool, err error) {
	err = r.with(ctx, func(conn *pgx.Conn) error {
		m, found, err = postgres.Marker(ctx, conn, site, id)
		return err
	})
	return m, found, err
}

func (r recorded) with(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, r.dsn)
	if err != nil {
		return fmt.Errorf("the site's database: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return f(conn)
}
