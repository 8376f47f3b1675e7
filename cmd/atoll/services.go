package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/agent"
	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/sdk"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) services() *cobra.Command {
	var op *operator
	cmd := &cobra.Command{
		Use:   "services",
		Short: "show the instances of services that have registered themselves",
		Long: `Shows what the sites' agents know of instances that register themselves (discover: {register: 30s} of an upstream). Whether an
instance is used is decided by each gateway for itself: curl http://127.0.0.1:8081/debug/services on its machine shows that.`,
		Example: `  atoll services
  atoll services --at a --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			at := s.FullSites()
			if op.at != "" {
				if err := fullSite(s, "--at", op.at); err != nil {
					return err
				}
				at = []topo.SiteID{topo.SiteID(op.at)}
			}
			agents, err := op.everyone(cmd.Context(), s, at)
			if err != nil {
				return err
			}
			defer closeAll(agents)
			all := make([]siteServices, len(agents))
			for i, a := range agents {
				all[i].Site = a.site
				if err := a.err; err == nil {
					all[i].Services, err = a.client.Services(cmd.Context())
					a.err = err
				}
				if a.err != nil {
					all[i].Problem = a.err.Error()
				}
			}
			if c.json {
				return printJSON(cmd.OutOrStdout(), all)
			}
			return printServices(cmd.OutOrStdout(), all)
		},
	}
	op = operatorFlags(cmd)
	return cmd
}

// siteServices is what one site's agent says, or why it does not.
type siteServices struct {
	Site     topo.SiteID        `json:"site"`
	Problem  string             `json:"problem,omitempty"`
	Services []api.InstanceList `json:"services"`
}

func printServices(out io.Writer, all []siteServices) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "SITE\tSERVICE\tINSTANCE\tZONE\tWEIGHT\tHEARD")
	for _, site := range all {
		for _, s := range site.Services {
			for _, i := range s.Instances {
				heard := fmt.Sprintf("for %s more", ms(i.RemainingMS))
				if i.RemainingMS < 0 {
					heard = fmt.Sprintf("silent for %s too long", ms(-i.RemainingMS))
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", site.Site, plain(s.Service), plain(i.Address), orDash(plain(i.Zone)), cmp.Or(i.Weight, 1), heard)
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, site := range all {
		if site.Problem != "" {
			fmt.Fprintf(out, "! site %s: %s\n", site.Site, oneLine(site.Problem))
		}
		for _, s := range site.Services {
			if !s.Complete {
				fmt.Fprintf(out, "! %s at site %s: the agent has not heard its instances for long enough to know them all; gateways keep those that they know\n", plain(s.Service), site.Site)
			}
		}
	}
	return nil
}

func ms(n int64) time.Duration { return (time.Duration(n) * time.Millisecond).Round(time.Second) }

func (c *cli) register() *cobra.Command {
	var site string
	var conf sdk.RegistrarConfig
	cmd := &cobra.Command{
		Use:   "register",
		Short: "keep an instance of a service registered",
		Long: `Registers an instance of a service at the agents of its site, renews that, and leaves when it is stopped (SIGTERM): for services
that do not do so themselves (sdk.Registrar). Run one beside each instance, start it when the instance serves, and stop it first.
It needs the spec, ca.crt, and service-NAME.crt and .key of ` + "`atoll ca issue service NAME`" + `. That the instance is well is no matter of
this command: write health: under the upstream.`,
		Example: "  atoll register --site a --service basket --address 10.0.0.5:9000 --zone z1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, here, err := c.loadFullSite(site)
			if err != nil {
				return err
			}
			services := here.Registering()
			if _, ok := services[conf.Service]; !ok {
				return fmt.Errorf("--service %q: the upstreams of site %s whose instances register themselves are %v; write discover: {register: 30s} under the upstream", conf.Service, site, slices.Sorted(maps.Keys(services)))
			}
			if conf.Log, err = c.logger(); err != nil {
				return err
			}
			conf.Site, conf.PKI = topo.SiteID(site), s.PKI
			conf.Agents = agent.APIAddrs(s, conf.Site, conf.Site)
			r, err := sdk.NewRegistrar(conf)
			if err != nil {
				return err
			}
			if err := r.Run(cmd.Context()); err != nil && cmd.Context().Err() == nil {
				return err
			}
			return nil
		},
	}
	siteFlag(cmd, &site)
	flags := cmd.Flags()
	flags.StringVar(&conf.Service, "service", "", "the upstream's name")
	flags.StringVar(&conf.Address, "address", "", "host:port, as the site's gateways reach the instance")
	flags.StringVar(&conf.Zone, "zone", "", "gateways of the same zone prefer it")
	flags.IntVar(&conf.Weight, "weight", 1, "how much it gets of what others get, 1 to 1000")
	flags.DurationVar(&conf.TTL, "ttl", 0, "how long it stays without renewing (default: as long as the spec allows)")
	return cmd
}
