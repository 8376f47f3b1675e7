package main

import (
	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/agent"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) agent() *cobra.Command {
	var site string
	var standby bool
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "run a site's agent",
		Long: `Keeps the site's lease and the fence in its database, replicates to and from the other sites, drives switches and
answers operators and gateways. Run one per site, near its database; or two, on different machines: the second with --standby, at
the addresses of the site's standby_agent. One of the two is active at a time, and the other takes over: at once when the active one
is stopped in good order, else when it has been silent for a whole lease.`,
		Example: `  atoll agent --site a
  atoll agent --site a --standby`,
		Args: cobra.NoArgs,
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
			return agent.Run(cmd.Context(), agent.Config{Spec: s, Site: topo.SiteID(site), Standby: standby, DSN: dsn, Identity: id,
				Publish: c.publisher(s, log), Log: log})
		},
	}
	siteFlag(cmd, &site)
	cmd.Flags().BoolVar(&standby, "standby", false, "the site's second agent, at the addresses of standby_agent")
	return cmd
}
