package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) store() *cobra.Command {
	var site string
	cmd := &cobra.Command{
		Use:   "store",
		Short: "run a site's member of the store",
		Long: `Runs the site's vote: an etcd member in a process of its own, mutual TLS for clients and peers. Every site of the
spec that has a store: runs one, a witness nothing else. With policies.store.external there is nothing to run.`,
		Example: "  atoll store --site w",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, here, err := c.loadSite(site)
			if err != nil {
				return err
			}
			if here.Store == nil || len(s.Policies.Store.External) > 0 {
				return fmt.Errorf("the spec gives site %s no store to run", site)
			}
			log, err := c.logger()
			if err != nil {
				return err
			}
			id, err := loadIdentity(s.PKI, siteCert(topo.SiteID(site)), s.Deployment)
			if err != nil {
				return err
			}
			cfg := store.MemberConfig{Deployment: s.Deployment, Site: topo.SiteID(site), Dir: filepath.Join(s.State, "store-"+site),
				ListenClient: here.Store.ListenClient, ListenPeer: here.Store.ListenPeer,
				AdvertiseClient: here.Store.Client, AdvertisePeer: here.Store.Peer, InitialCluster: map[topo.SiteID]string{}, Clients: map[topo.SiteID]string{},
				Heartbeat: s.Policies.Store.Heartbeat, Election: s.Policies.Store.Election, Logger: log}
			cfg.CA, cfg.Cert, cfg.Key = id.Files()
			for _, other := range s.SiteIDs() {
				if st := s.Sites[other].Store; st != nil {
					cfg.InitialCluster[other], cfg.Clients[other] = st.Peer, st.Client
				}
			}
			return store.RunMember(cmd.Context(), cfg)
		},
	}
	siteFlag(cmd, &site)
	return cmd
}

// siteFlag declares --site, which every process of a site needs.
func siteFlag(cmd *cobra.Command, site *string) {
	cmd.Flags().StringVar(site, "site", "", "which site of the spec this is")
	if err := cmd.MarkFlagRequired("site"); err != nil {
		panic("BUG: " + err.Error())
	}
}

// loadSite reads the spec and picks a site of it.
func (c *cli) loadSite(site string) (*spec.Spec, *spec.Site, error) {
	s, err := c.load()
	if err != nil {
		return nil, nil, err
	}
	here := s.Sites[topo.SiteID(site)]
	if here == nil {
		return nil, nil, fmt.Errorf("--site %s: %s has the sites %v", site, c.file, s.SiteIDs())
	}
	return s, here, nil
}

// loadFullSite is loadSite for what a witness does not run.
func (c *cli) loadFullSite(site string) (*spec.Spec, *spec.Site, error) {
	s, here, err := c.loadSite(site)
	if err == nil && here.Witness {
		err = errors.New("site " + site + " is a witness: it runs `atoll store` and nothing else")
	}
	return s, here, err
}

func siteCert(site topo.SiteID) string { return pki.Role{Kind: pki.Site, Name: string(site)}.File() }
