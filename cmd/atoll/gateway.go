package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/agent"
	"github.com/atollhq/atoll/internal/gateway"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) gateway() *cobra.Command {
	var site, name string
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "run a gateway of a site",
		Long: `Takes requests of users and of this site's applications, and brings each to the site that owns its key. It needs
no disk and no store; it follows the agent's view and goes on with the last one if every agent is away.`,
		Example: "  atoll gateway --site a --name g1",
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
			gw, err := gateway.New(conf)
			if err != nil {
				return err
			}
			return gw.Run(cmd.Context())
		},
	}
	siteFlag(cmd, &site)
	cmd.Flags().StringVar(&name, "name", "g1", "which of the site's gateways this is")
	return cmd
}

func gatewayConfig(s *spec.Spec, site topo.SiteID, name string, id *pki.Identity, log *slog.Logger) (gateway.Config, error) {
	here := s.Sites[site]
	g := here.Gateways[name]
	conf := gateway.Config{
		Site: site, Name: name,
		Listen:    gateway.Listen{Users: g.Listen, Plaintext: g.Plaintext, Peer: g.Peer, Admin: g.Admin},
		PeerTLS:   id.ServerTLS(onlySites),
		ClientTLS: id.ClientTLS,
		Routes:    s.RouteTable(), Keyspaces: s.KeyspaceTable(), Upstreams: here.Upstreams,
		Peers: map[topo.SiteID][]string{},
		Hold: gateway.Hold{MaxTime: s.Policies.Hold.MaxTime, MaxPerBucket: s.Policies.Hold.MaxPerBucket,
			MaxRequests: s.Policies.Hold.MaxRequests},
		StateDir: s.State, Log: log,
	}
	if err := os.MkdirAll(s.State, 0o700); err != nil {
		return conf, fmt.Errorf("state folder: %w", err)
	}
	if g.TLS != nil {
		cert, err := tls.LoadX509KeyPair(g.TLS.Cert, g.TLS.Key)
		if err != nil {
			return conf, fmt.Errorf("tls of gateway %s: %w", name, err)
		}
		conf.Listen.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
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

// onlySites lets gateways and agents of the deployment's sites in, and nobody else.
func onlySites(p pki.Peer) error {
	if _, ok := p.Site(); !ok {
		return errors.New("only sites may call here")
	}
	return nil
}
