// Package agent assembles the agent of one site: it keeps the site's lease and fence, replicates from and to every
// other full site, drives handovers, and serves operators, gateways and other agents. The main function is [Run].
//
// Of a site's two agents one is active: the one whose keeper has the site's lease. Links, appliers, the fence and
// handovers are its business alone. The other one stands by: it answers status, streams views, and waits.
//
// It guarantees that the loss of anything around it (database, store, other sites) ends nothing but what depends on
// that: without its database it still streams views and drives handovers, without the store it still replicates. It
// holds no state of its own: the truth is in the store and in the databases, and an agent that was killed is simply
// started again; instances that had registered themselves come back by renewing that.
//
// It refuses to start with a certificate of another site, with an address that is in use, and for a site without a
// database.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/control"
	"github.com/atollhq/atoll/internal/dashboard"
	"github.com/atollhq/atoll/internal/dns"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/registry"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// Config says which site's agent this is.
type Config struct {
	Spec     *spec.Spec
	Site     topo.SiteID
	Standby  bool   // the site's second agent, at the addresses of standby_agent; which of the two is active, the lease says
	DSN      string // of the agent's role
	Identity *pki.Identity
	Ready    func() // called when the API listens; may be nil
	// Publish puts the sites' addresses into DNS that others run, while this agent is the one to do so; nil: the spec wants none.
	Publish func(context.Context, dns.Document) error
	Log     *slog.Logger // nil discards
}

// agent is one site's agent while it runs.
type agent struct {
	cfg         Config
	site        topo.SiteID
	addr        *spec.AgentAddr
	tables      []postgres.TableSpec
	incarnation string
	previous    string // incarnation of an earlier run that is known to have ended
	since       time.Time
	store       *store.Client
	hub         *control.Hub
	controller  *control.Controller
	page        *dashboard.Page
	instances   *registry.Registry // of this site's services
	remote      map[topo.SiteID]*api.Client
	sibling     *api.Client // the site's other agent; nil: it has one only
	log         *slog.Logger
	pulse       pulse

	kept     atomic.Pointer[kept]     // nil while the database is away
	database atomic.Pointer[database] // what the active agent works with; nil while the database is away, or this agent stands by
	why      atomic.Pointer[string]   // why the database is away
	fresh    fresh                    // how old the copies of other sites are
	rebuilt  atomic.Bool              // this run has rebuilt the database of a site that is no member yet
}

// Run is the agent of one site until ctx ends. Whatever is away is waited for; Run ends early only for what waiting
// does not heal: a wrong certificate, a port in use, a contradiction in the spec.
func Run(ctx context.Context, cfg Config) error {
	a, err := newAgent(cfg)
	if err != nil {
		return fmt.Errorf("agent of site %s: %w", cfg.Site, err)
	}
	unlock, previous, err := lockState(filepath.Join(cfg.Spec.State, a.name()+".lock"), a.incarnation)
	if err != nil {
		return fmt.Errorf("agent of site %s: %w", cfg.Site, err)
	}
	defer unlock()
	a.previous = previous
	if a.store, err = store.Open(ctx, StoreConfig(cfg.Spec, cfg.Site, a.cfg.Identity, a.log)); err != nil {
		return fmt.Errorf("agent of site %s: %w", cfg.Site, err)
	}
	defer a.store.Close()
	a.connect()
	apiListener, err := listen(ctx, "API", a.addr.API)
	if err != nil {
		return fmt.Errorf("agent of site %s: %w", cfg.Site, err)
	}
	linkListener, err := listen(ctx, "link", a.addr.Link)
	if err != nil {
		_ = apiListener.Close()
		return fmt.Errorf("agent of site %s: %w", cfg.Site, err)
	}
	if err := a.run(ctx, apiListener, linkListener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("agent of site %s: %w", cfg.Site, err)
	}
	return nil
}

// run starts everything and ends it in this order: first what others ask of this site (API, the watch of the store), so
// that no new step begins; then what has the database (handovers, links, appliers), the keeper with it: it releases the
// lease last. The fence stays as it is and closes at its moment, unless the next agent extends it.
func (a *agent) run(ctx context.Context, apiListener, linkListener net.Listener) error {
	inner, stopInner := context.WithCancel(context.WithoutCancel(ctx))
	defer stopInner()
	data := make(chan struct{})
	go func() { // joined below
		defer close(data)
		a.keepDatabase(inner, linkListener)
	}()

	outer, outerCtx := errgroup.WithContext(ctx)
	outer.Go(func() error { return a.server().Serve(outerCtx, apiListener) })
	outer.Go(func() error { return a.watchStore(outerCtx) })
	outer.Go(func() error { return a.servePage(outerCtx) })
	if a.cfg.Ready != nil {
		a.cfg.Ready()
	}
	a.log.Info("agent started", "incarnation", a.incarnation, "standby", a.cfg.Standby, "api", apiListener.Addr(), "link", linkListener.Addr())
	err := outer.Wait()
	stopInner()
	<-data
	for _, c := range a.remote {
		c.Close()
	}
	if a.sibling != nil {
		a.sibling.Close()
	}
	a.log.Info("agent stopped", "cause", err)
	return err
}

func newAgent(cfg Config) (*agent, error) {
	site := cfg.Spec.Sites[cfg.Site]
	switch {
	case site == nil:
		return nil, fmt.Errorf("the spec has no such site; it has %v", cfg.Spec.SiteIDs())
	case site.Witness || site.Agent == nil || site.Database == nil:
		return nil, errors.New("it is a witness: it has a store member and no agent; run `atoll store` there")
	case cfg.Standby && site.Standby == nil:
		return nil, errors.New("the spec names no standby_agent for it")
	}
	if self, isSite := cfg.Identity.Self().Site(); !isSite || self != cfg.Site {
		return nil, fmt.Errorf("the certificate is of %s", cfg.Identity.Self())
	}
	if err := cfg.Identity.CheckDeployment(cfg.Spec.Deployment); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a := &agent{cfg: cfg, site: cfg.Site, addr: site.Agent, tables: Tables(cfg.Spec), incarnation: uuid.NewString(), since: time.Now(),
		hub: control.NewHub(), remote: map[topo.SiteID]*api.Client{}, log: cfg.Log.With("site", cfg.Site)}
	a.instances = registry.New(string(cfg.Site), a.incarnation, site.Registering())
	a.pulse = newPulse()
	if cfg.Standby {
		a.addr = site.Standby
	}
	a.page = dashboard.New(dashboard.Config{Status: a.status, Logger: a.log})
	return a, nil
}

// name tells the two agents of a site apart.
func (a *agent) name() string {
	if a.cfg.Standby {
		return "agent-" + string(a.site) + "-standby"
	}
	return "agent-" + string(a.site)
}

// connect makes the controller, with a client for every other full site; nothing is dialled before it is needed.
func (a *agent) connect() {
	sites := map[topo.SiteID]control.Site{a.site: localSite{a}}
	for _, other := range a.listed() {
		a.remote[other] = api.NewSiteClient(APIAddrs(a.cfg.Spec, a.site, other), a.cfg.Identity.ClientTLS(other), nil)
		sites[other] = a.remote[other]
	}
	for _, addr := range APIAddrs(a.cfg.Spec, a.site, a.site) {
		if addr != a.addr.API {
			a.sibling = api.NewClient(addr, a.cfg.Identity.ClientTLS(a.site), nil)
		}
	}
	lead := a.store.Lead
	if len(a.cfg.Spec.Policies.Store.External) > 0 { // others may use it, too
		lead = nil
	}
	a.controller = control.New(control.Config{Site: a.site, Incarnation: a.incarnation, Store: a.store, Sites: sites, Ownership: a.hub.Ownership, Lead: lead,
		Bounds: bounds(a.cfg.Spec), Survivor: localSite{a}, Failover: failoverPolicy(a.cfg.Spec), Lease: a.cfg.Spec.Policies.Lease.Duration, Logger: a.log})
}

func (a *agent) server() *control.Server {
	cfg := control.ServerConfig{
		Site: a.site, Identity: a.cfg.Identity, Controller: a.controller, Hub: a.hub, Local: localSite{a}, Returns: returns{a}, Readers: readers{a}, Instances: a.instances,
		Status: a.status, Health: a.health, Deadline: a.deadline, Standby: a.standby, Conflicts: conflictLog{a.cfg.DSN}, Page: a.page, Logger: a.log,
		Evidence: a.evidence,
	}
	if len(a.cfg.Spec.Policies.Store.External) == 0 {
		cfg.Store = a.store
	}
	return control.NewServer(cfg)
}

// listen binds an address, and says what to do if it is in use.
func listen(ctx context.Context, what, addr string) (net.Listener, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s address %s: %w; is an agent running already, or does another program have the port?", what, addr, err)
	}
	return ln, nil
}

func sortedKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
