package main

import (
	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/agent"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) agent() *cobra.Command {
	var site string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "run a site's agent",
		Long: `Keeps the site's lease and the fence in its database, replicates to and from the other sites, drives switches and
answers operators and gateways. Run one per site, near its database.`,
		Example: "  atoll agent --site a",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, here, err := c.loadFullSite(site)
			if err != nil {
				return err
			}
			log, err := c.logger()
			if err != nil {
				return err
			}
			dsn, err := here.Database.DSN()
			if err != nil {
				return err
			}
			id, err := loadIdentity(s.PKI, siteCert(topo.SiteID(site)), s.Deployment)
			if err != nil {
				return err
			}
			return agent.Run(cmd.Context(), agent.Config{Spec: s, Site: topo.SiteID(site), DSN: dsn, Identity: id, Log: log})
		},
	}
	siteFlag(cmd, &site)
	return cmd
}
