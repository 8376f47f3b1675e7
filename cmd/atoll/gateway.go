package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/acme"
	"github.com/atollhq/atoll/internal/agent"
	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/balance"
	"github.com/atollhq/atoll/internal/bearer"
	"github.com/atollhq/atoll/internal/discover"
	"github.com/atollhq/atoll/internal/gateway"
	"github.com/atollhq/atoll/internal/limit"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) gateway() *cobra.Command {
	var site, name string
	var takeover bool
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "run a gateway of a site",
		Long: `Takes requests of users and of this site's applications, and brings each to the site that owns its key. It needs
no disk and no store; it follows the agent's view and goes on with the last one if every agent is away.`,
		Example: "  atoll gateway --site a --name g1\n  atoll gateway --site a --name g1 --takeover   # restart without a refused connection",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, here, err := c.loadFullSite(site)
			if err != nil {
				return err
			}
			g := here.Gateways[name]
			if g == nil {
				return fmt.Errorf("--name %q: site %s has the gateways %v", name, site, slices.Sorted(maps.Keys(here.Gateways)))
			}
			log, err := c.logger()
			if err != nil {
				return err
			}
			id, err := loadIdentity(s.PKI, siteCert(topo.SiteID(site)), s.Deployment)
			if err != nil {
				return err
			}
			conf, err := gatewayConfig(s, topo.SiteID(site), name, id, log)
			if err != nil {
				return err
			}
			conf.Takeover = takeover
			lines, closeLines, err := openAccessLog(g.AccessLog)
			if err != nil {
				return err
			}
			defer closeLines()
			tracer, endTraces, err := openTracer(cmd.Context(), s.Telemetry, site+"/"+name)
			if err != nil {
				return err
			}
			defer endTraces()
			conf.AccessLog, conf.Tracer = lines, tracer
			gw, err := gateway.New(conf)
			if err != nil {
				return err
			}
			return gw.Run(cmd.Context())
		},
	}
	siteFlag(cmd, &site)
	cmd.Flags().StringVar(&name, "name", "g1", "which of the site's gateways this is")
	cmd.Flags().BoolVar(&takeover, "takeover", false, "if this gateway runs already, take its connections over: it stops when this one serves")
	return cmd
}

func gatewayConfig(s *spec.Spec, site topo.SiteID, name string, id *pki.Identity, log *slog.Logger) (gateway.Config, error) {
	here := s.Sites[site]
	g := here.Gateways[name]
	conf := gateway.Config{
		Site: site, Name: name,
		Listen: gateway.Listen{Users: g.Listen, Plaintext: g.Plaintext, Peer: g.Peer, Admin: g.Admin,
			Balancers: spec.Networks(g.ProxyProtocol), Trusted: spec.Networks(g.TrustedProxies), MaxConns: g.MaxConnections, MaxPerClient: g.MaxPerClient},
		PeerTLS:   id.ServerTLS(onlySites),
		ClientTLS: id.ClientTLS,
		Routes:    s.RouteTableAt(site), Keyspaces: s.KeyspaceTable(), Upstreams: upstreams(here, log), Zone: g.Zone,
		Peers: map[topo.SiteID][]string{},
		Hold: gateway.Hold{MaxTime: s.Policies.Hold.MaxTime, MaxPerBucket: s.Policies.Hold.MaxPerBucket,
			MaxRequests: s.Policies.Hold.MaxRequests},
		StateDir: s.State, Log: log,
	}
	registered(&conf, here.Registering(), api.NewSiteClient(agent.APIAddrs(s, site, site), id.ClientTLS(site), nil))
	if err := os.MkdirAll(s.State, 0o700); err != nil {
		return conf, fmt.Errorf("state folder: %w", err)
	}
	if err := tokens(&conf, s.Policies.JWT, log); err != nil {
		return conf, err
	}
	if g.TLS != nil {
		if err := usersTLS(&conf, g, log); err != nil {
			return conf, fmt.Errorf("tls of gateway %s: %w", name, err)
		}
	}
	for _, other := range s.FullSites() {
		if other == site {
			continue
		}
		r := here.Reach[other]
		for _, peer := range slices.Sorted(maps.Keys(s.Sites[other].Gateways)) {
			addr := s.Sites[other].Gateways[peer].Peer
			if r != nil && r.Gateways[peer] != "" {
				addr = r.Gateways[peer]
			}
			conf.Peers[other] = append(conf.Peers[other], addr)
		}
	}
	sites := append([]topo.SiteID{site}, slices.DeleteFunc(s.FullSites(), func(other topo.SiteID) bool { return other == site })...)
	for _, of := range sites { // its own agents first
		for _, addr := range agent.APIAddrs(s, site, of) {
			conf.Agents = append(conf.Agents, gateway.Agent{Site: of, URL: "https://" + addr, TLS: id.ClientTLS(of)})
		}
	}
	return conf, nil
}

// upstreams are a site's applications in the form that a gateway takes.
func upstreams(site *spec.Site, log *slog.Logger) map[string]gateway.Upstream {
	out := make(map[string]gateway.Upstream, len(site.Upstreams))
	for name, u := range site.Upstreams {
		g := gateway.Upstream{URL: u.URL, Timeout: u.Timeout, Ejection: balance.Ejection(u.Eject)}
		if h := u.Health; h != nil {
			g.Health = gateway.HealthCheck{Path: h.Path, Interval: h.Interval, Timeout: h.Timeout, Rules: balance.Health{Up: h.Healthy, Down: h.Unhealthy}}
		}
		if l := u.Limits; l != nil {
			g.Limits = &gateway.Limits{Requests: l.Requests, Connections: l.Connections, Pending: l.Pending, Wait: l.Wait}
			if !l.Fixed {
				g.Limits.Adaptive = &limit.Adaptive{Min: l.Min, Max: l.Max}
			}
		}
		for _, in := range u.Instances() {
			g.Instances = append(g.Instances, balance.Instance(in))
		}
		if u.Discover != nil {
			for _, n := range u.Discover.DNS {
				g.Sources = append(g.Sources, discover.DNS{Name: n.Name, SRV: n.SRV, Port: n.Port, Zone: n.Zone, Weight: n.Weight, Servers: n.Servers, Log: log.With("upstream", name)}.Find)
			}
		}
		out[name] = g
	}
	return out
}

// registered adds the instances that have registered themselves at one of the site's agents.
func registered(conf *gateway.Config, services map[string]time.Duration, agents *api.Client) {
	for name := range services {
		u := conf.Upstreams[name]
		u.Sources = append(u.Sources, discover.Registered{Service: name, Ask: agents.Instances, Log: conf.Log.With("upstream", name),
			KeepIn: filepath.Join(conf.StateDir, fmt.Sprintf("instances-%s-%s-%s.json", conf.Site, conf.Name, name))}.Find)
		conf.Upstreams[name] = u
	}
}

// usersTLS says what the users' listener shows: files, or what an ACME authority issues.
func usersTLS(conf *gateway.Config, g *spec.Gateway, log *slog.Logger) (err error) {
	t := g.TLS
	if t.ACME == nil {
		conf.Listen.TLS, err = gateway.FileTLS(gateway.TLSFiles{Cert: t.Cert, Key: t.Key, ClientCA: t.ClientCA}, log)
		return err
	}
	certs, err := acme.Open(acme.Config{Email: t.ACME.Email, Domains: t.ACME.Domains, CA: t.ACME.CA, CARoot: t.ACME.CARoot,
		Dir: filepath.Join(conf.StateDir, "acme"), Listen: g.Listen, Log: log})
	if err != nil {
		return err
	}
	conf.Alongside = certs.Run
	conf.Listen.TLS, err = gateway.ClientTLSFrom(certs.TLS(), t.ClientCA, log)
	return err
}

// tokens opens what verifies users' tokens, if any are to be.
func tokens(conf *gateway.Config, p spec.JWTPolicy, log *slog.Logger) (err error) {
	if p.KeysFile == "" && p.KeysURL == "" {
		return nil
	}
	conf.TokenCookie = p.Cookie
	conf.Tokens, err = bearer.Open(bearer.Config{
		Issuer: p.Issuer, Audience: p.Audience, Algorithms: p.Algorithms, KeysFile: p.KeysFile, KeysURL: p.KeysURL, KeysCA: p.KeysCA,
		KeepIn: filepath.Join(conf.StateDir, "jwks.json"), Refresh: p.Refresh, Leeway: p.Leeway, Log: log,
	})
	return err
}

// onlySites lets gateways and agents of the deployment's sites in, and nobody else.
func onlySites(p pki.Peer) error {
	if _, ok := p.Site(); !ok {
		return errors.New("only sites may call here")
	}
	return nil
}
