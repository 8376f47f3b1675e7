package main

import (
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/supervise"
)

func (c *cli) up() *cobra.Command {
	var site string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "run everything of a site: store, agent, gateways",
		Long: `Runs the processes of a site as supervised children of this one: what ends is started again, and all end with it.
For one process per unit or container run atoll store, agent and gateway by themselves.`,
		Example: "  atoll up --site a",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, here, err := c.loadSite(site)
			if err != nil {
				return err
			}
			log, err := c.logger()
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			child := func(name, role string, more ...string) supervise.Child {
				args := []string{role, "-f", c.file, "--site", site, "--log-format", c.logFormat, "--log-level", c.logLevel.String()}
				return supervise.Child{Name: name, Path: self, Args: append(args, more...), Output: os.Stderr}
			}
			var children []supervise.Child
			if here.Store != nil && len(s.Policies.Store.External) == 0 {
				children = append(children, child("store", "store"))
			}
			if !here.Witness {
				children = append(children, child("agent", "agent"))
				for _, name := range slices.Sorted(maps.Keys(here.Gateways)) {
					children = append(children, child("gateway "+name, "gateway", "--name", name))
				}
			}
			return supervise.Run(cmd.Context(), log, children...)
		},
	}
	siteFlag(cmd, &site)
	return cmd
}
