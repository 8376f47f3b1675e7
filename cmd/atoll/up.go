package main

import (
	"context"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/supervise"
	"github.com/atollhq/atoll/topo"
)

// bindable tells whether an address is this machine's, by binding any port of it.
func bindable(ctx context.Context, addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return err
	}
	return ln.Close()
}

// renewOn passes a signal on as a word to renew a child, until ctx ends.
func renewOn(ctx context.Context, sig os.Signal) <-chan struct{} {
	signals, words := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, sig)
	go func() {
		defer signal.Stop(signals)
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
			}
			select {
			case <-ctx.Done():
				return
			case words <- struct{}{}:
			}
		}
	}()
	return words
}

func (c *cli) up() *cobra.Command {
	var site string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "run everything of a site: store, agent, gateways, DNS server",
		Long: `Runs the processes of a site as supervised children of this one: what ends is started again, and all end with it.
A standby_agent whose address is another machine's is left out: run atoll agent --standby there.
SIGUSR2 starts new gateways, from the file that this program is now and the spec as it is now: they take the connections over, and none is refused.
For one process per unit or container run atoll store, agent, gateway and dns by themselves.`,
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
				if here.Standby != nil {
					if err := bindable(cmd.Context(), here.Standby.API); err == nil {
						children = append(children, child("standby agent", "agent", "--standby"))
					} else {
						log.Info("the standby agent is not started here: its address is not this machine's", "api", here.Standby.API, "error", err)
					}
				}
				for _, name := range slices.Sorted(maps.Keys(here.Gateways)) {
					g := child("gateway "+name, "gateway", "--name", name, "--takeover")
					g.Renew = renewOn(cmd.Context(), syscall.SIGUSR2)
					children = append(children, g)
				}
				if s.DNSServer(topo.SiteID(site)) != nil {
					children = append(children, child("dns", "dns"))
				}
			}
			return supervise.Run(cmd.Context(), log, children...)
		},
	}
	siteFlag(cmd, &site)
	return cmd
}
