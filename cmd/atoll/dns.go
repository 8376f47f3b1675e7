package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/agent"
	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/dns"
	"github.com/atollhq/atoll/internal/publish"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// publishBound is how long one document may take on its way to a server or provider.
const publishBound = time.Minute

func (c *cli) dns() *cobra.Command {
	var site string
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "run a site's DNS server",
		Long: `Answers for the zones of the spec's section dns, over UDP and TCP at the address that the section gives the site: names of the
service with addresses of the sites that are well, by weight. It asks the site's agent who is well, and while no agent answers, or
no site is known to be well, goes on with the last good answer, which it keeps in the state folder.

Delegate the zones to the servers of all sites, for example in the zone shop.example:

  live       NS  ns-a.live.shop.example.
  live       NS  ns-b.live.shop.example.
  ns-a.live  A   192.0.2.53
  ns-b.live  A   198.51.100.53

What it says is advice: a gateway forwards what comes to the wrong site. Where others run the zones, dns.publish in the spec
makes the agents publish there; this command is not needed then.`,
		Example: `  atoll dns --site a
  dig @192.0.2.53 live.shop.example A`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, _, err := c.loadFullSite(site)
			if err != nil {
				return err
			}
			return c.serveDNS(cmd.Context(), s, topo.SiteID(site))
		},
	}
	siteFlag(cmd, &site)
	cmd.AddCommand(c.dnsPublish())
	return cmd
}

func (c *cli) serveDNS(ctx context.Context, s *spec.Spec, site topo.SiteID) error {
	here := s.DNSServer(site)
	switch {
	case s.DNS == nil:
		return fmt.Errorf("%s has no section dns; `atoll validate --sample` shows one", c.file)
	case here == nil:
		return fmt.Errorf("%s gives site %s no DNS server; add dns.sites.%s.listen", c.file, site, site)
	}
	log, err := c.logger()
	if err != nil {
		return err
	}
	id, err := loadIdentity(s.PKI, siteCert(site), s.Deployment)
	if err != nil {
		return err
	}
	client := api.NewSiteClient(agent.APIAddrs(s, site, site), id.ClientTLS(site), nil)
	defer client.Close()
	follow := &dns.Follow{Sites: dns.SitesOf(s), Ask: client.Health, File: filepath.Join(s.State, "dns-"+string(site)+".json"), Log: log}
	first := follow.First()
	server := dns.NewServer(dns.ZonesOf(s), first, log)
	follow.Set = server.Set
	pc, ln, err := dns.Listen(ctx, here.Listen)
	if err != nil {
		return err
	}
	log.Info("DNS server started", "site", site, "listen", ln.Addr(), "zones", s.DNS.Zones, "basis", first.Basis)
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return server.Serve(ctx, pc, ln) })
	parts.Go(func() error { return follow.Run(ctx) })
	return ended(parts.Wait())
}

// ended is nil for what ended because it was to.
func ended(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// dnsPublish is what agents run to publish: modules of providers have a process of their own, which can crash and hang.
func (c *cli) dnsPublish() *cobra.Command {
	return &cobra.Command{
		Use:   "publish",
		Short: "put a document's addresses where dns.publish says",
		Long: `Reads one JSON document, the same that hooks get, from standard input, and makes the names' A and AAAA records what it says:
by RFC 2136, or at a provider. Agents run it; by hand it tries out credentials and rights.`,
		Example: `  echo '{"format": 1, "records": [{"zone": "live.shop.example", "name": "live.shop.example", "type": "A", "ttl": 30,
    "values": ["192.0.2.10"]}]}' | atoll dns publish -f atoll.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			if s.DNS == nil {
				return fmt.Errorf("%s has no section dns", c.file)
			}
			zones, err := publish.Open(s.DNS.Publish)
			if err != nil {
				return err
			}
			doc, err := dns.ReadDocument(cmd.InOrStdin())
			if err != nil {
				return err
			}
			for _, r := range doc.Records {
				if !slices.Contains(s.DNS.Names, r.Name) || s.DNS.ZoneOf(r.Name) != r.Zone {
					return fmt.Errorf("%s in zone %s is not under dns.names", r.Name, r.Zone)
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), publishBound)
			defer cancel()
			changed, err := publish.Document(ctx, zones, doc)
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"changed": changed})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d record set(s) changed\n", changed)
			return nil
		},
	}
}

// publisher is how the site's agent publishes; nil: the spec does not want it to.
func (c *cli) publisher(s *spec.Spec, log *slog.Logger) func(context.Context, dns.Document) error {
	if s.DNS == nil || s.DNS.Publish == nil {
		return nil
	}
	command := publish.Command{Env: withoutDSNs(s, os.Environ())}
	if hook := s.DNS.Publish.Hook; hook != nil {
		command.Args, command.Timeout = hook.Command, hook.Timeout
		return command.Publish
	}
	self, err := os.Executable()
	if err == nil {
		_, err = publish.Open(s.DNS.Publish)
	}
	if err != nil { // said now, and not when a site is lost; the agent has more to do than this
		log.Error("the addresses cannot be published", "error", err)
	}
	command.Args, command.Timeout = []string{self, "dns", "publish", "-f", c.file, "--log-format", c.logFormat, "--log-level", c.logLevel.String()}, publishBound+10*time.Second
	return command.Publish
}

// withoutDSNs is an environment without the databases' connection strings, which are nobody's business there.
func withoutDSNs(s *spec.Spec, env []string) []string {
	return slices.DeleteFunc(env, func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		for _, site := range s.Sites {
			if d := site.Database; d != nil && (name == d.DSNEnv || name == d.AdminDSNEnv) {
				return true
			}
		}
		return false
	})
}
