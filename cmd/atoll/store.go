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
		Short: "run a site's member of the store, and care for the members",
		Long: `Runs the site's vote: an etcd member in a process of its own, mutual TLS for clients and peers. Every site of the
spec that has a store: runs one, a witness nothing else. With policies.store.external there is nothing to run.

A member whose folder is empty asks the others how to begin. If all of them are there and empty too, the store begins; if
there is a store, the member waits until it is added (atoll store add); if the store knows it already, its disk was lost, and
it says what to run. So the first start of all needs every member.`,
		Example: `  atoll store --site w           # run the member of site w
  atoll store members            # who is in the store, and how they are
  atoll store add d              # a member that the spec names joins the running store
  atoll store remove w           # one leaves it
  atoll store backup shop.store  # a snapshot with its checksum
  atoll store recover --site a   # the quorum is lost for good`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, here, err := c.loadSite(site)
			if err != nil {
				return err
			}
			log, err := c.logger()
			if err != nil {
				return err
			}
			cfg, err := memberConfig(s, here, topo.SiteID(site))
			if err != nil {
				return err
			}
			cfg.Logger = log
			return store.RunMember(cmd.Context(), cfg)
		},
	}
	siteFlag(cmd, &site)
	cmd.AddCommand(c.storeMembers(), c.storeAdd(), c.storeRemove(), c.storeBackup(), c.storeRecover())
	return cmd
}

// memberConfig is a site's member as the spec has it.
func memberConfig(s *spec.Spec, here *spec.Site, site topo.SiteID) (store.MemberConfig, error) {
	if here.Store == nil || len(s.Policies.Store.External) > 0 {
		return store.MemberConfig{}, fmt.Errorf("the spec gives site %s no store to run", site)
	}
	id, err := loadIdentity(s.PKI, siteCert(site), s.Deployment)
	if err != nil {
		return store.MemberConfig{}, err
	}
	cfg := store.MemberConfig{Deployment: s.Deployment, Site: site, Dir: filepath.Join(s.State, "store-"+string(site)),
		ListenClient: here.Store.ListenClient, ListenPeer: here.Store.ListenPeer,
		AdvertiseClient: here.Store.Client, AdvertisePeer: here.Store.Peer, InitialCluster: map[topo.SiteID]string{}, Clients: map[topo.SiteID]string{},
		Heartbeat: s.Policies.Store.Heartbeat, Election: s.Policies.Store.Election}
	cfg.CA, cfg.Cert, cfg.Key = id.Files()
	for _, other := range s.SiteIDs() {
		if st := s.Sites[other].Store; st != nil {
			cfg.InitialCluster[other], cfg.Clients[other] = st.Peer, st.Client
		}
	}
	return cfg, nil
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
