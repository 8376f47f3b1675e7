package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/export"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/sdk"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) export() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export",
		Short: "let another proxy route by the ownership",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(c.exportHAProxy())
	return cmd
}

// exportFlags are those of `atoll export haproxy`.
type exportFlags struct {
	site, out, file, bind string
	gateways              []string
	views                 []string
	first, follow         bool
	socket                string
}

func (c *cli) exportHAProxy() *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "haproxy",
		Short: "write a map and a configuration for HAProxy, or keep a running one in step",
		Long: `Writes a map (which site owns each bucket) and a configuration that computes the bucket of a request in HAProxy itself and
sends it to a gateway of the owner's site. With --follow it goes on: it swaps the map of a running HAProxy, and its file, at each
change of the ownership, all at once, and reads it again. HAProxy 2.6 or later.

The proxy only steers. It cannot hold a request while its bucket moves, and knows no epochs; so what moves goes to this site's
gateways, which hold, and every gateway decides again.

The ownership comes from a gateway of the site, at its admin address on this machine.`,
		Example: `  atoll export haproxy --site a --out /etc/haproxy/atoll
  atoll export haproxy --site a --out /etc/haproxy/atoll --socket /run/haproxy.sock --follow`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, _, err := c.loadFullSite(f.site)
			if err != nil {
				return err
			}
			h, err := f.haproxy(s)
			if err != nil {
				return err
			}
			if f.follow {
				return f.keepUp(cmd.Context(), c, s, h)
			}
			return f.write(cmd.Context(), cmd.OutOrStdout(), s, h)
		},
	}
	siteFlag(cmd, &f.site)
	flags := cmd.Flags()
	flags.StringVar(&f.out, "out", "haproxy", "folder to write atoll.map and atoll.cfg to")
	flags.StringVar(&f.file, "map", "", "the map as HAProxy's configuration names it (default: atoll.map in the folder of --out, as an absolute path)")
	flags.StringVar(&f.bind, "bind", "127.0.0.1:8000", "where the frontend of the configuration listens")
	flags.StringArrayVar(&f.gateways, "gateway", nil, "SITE=URL of another site's gateway for users, where HAProxy reaches it; may be repeated (default: through this site's gateways)")
	flags.StringArrayVar(&f.views, "view", nil, "admin URL of a gateway of this site, to take the ownership from (default: those of the spec)")
	flags.BoolVar(&f.first, "first", false, "write the ownership that a new deployment begins with, and ask nobody")
	flags.StringVar(&f.socket, "socket", "", "stats socket of the running HAProxy (level admin): a path, or host:port")
	flags.BoolVar(&f.follow, "follow", false, "keep the map of the running HAProxy in step, until stopped")
	return cmd
}

func (f *exportFlags) haproxy(s *spec.Spec) (export.HAProxy, error) {
	h, err := export.ForSite(s, topo.SiteID(f.site))
	if err != nil {
		return h, err
	}
	switch {
	case f.follow && f.first:
		return h, errors.New("--follow and --first: the first ownership does not change")
	case f.follow && f.socket == "":
		return h, errors.New("--follow needs --socket, the stats socket of the running HAProxy (stats socket PATH mode 660 level admin)")
	case f.socket != "" && !f.follow:
		return h, errors.New("--socket is for --follow")
	}
	if f.file == "" {
		if f.file, err = filepath.Abs(filepath.Join(f.out, "atoll.map")); err != nil {
			return h, err
		}
	}
	if strings.ContainsAny(f.file, " \t\n,()'\"\\") {
		return h, fmt.Errorf("--map %q: HAProxy's configuration cannot name such a file", f.file)
	}
	if _, _, err := net.SplitHostPort(f.bind); err != nil {
		return h, fmt.Errorf("--bind %q: want ip:port", f.bind)
	}
	h.File, h.Bind = f.file, f.bind
	for _, text := range f.gateways {
		site, addr, _ := strings.Cut(text, "=")
		u, err := url.Parse(addr)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Path != "" || u.User != nil || u.RawQuery != "" {
			return h, fmt.Errorf("--gateway %q: want SITE=URL, such as b=https://b.example.com", text)
		}
		if !slices.Contains(h.Sites, topo.SiteID(site)) || site == f.site {
			return h, fmt.Errorf("--gateway %q: the other sites are %v", text, slices.DeleteFunc(slices.Clone(h.Sites), func(s topo.SiteID) bool { return s == h.Site }))
		}
		h.Remote[topo.SiteID(site)] = append(h.Remote[topo.SiteID(site)], u)
	}
	return h, nil
}

// view follows a gateway of the site.
func (f *exportFlags) view(s *spec.Spec) (*sdk.View, error) {
	from := f.views
	if len(from) == 0 {
		gateways := s.Sites[topo.SiteID(f.site)].Gateways
		for _, name := range slices.Sorted(maps.Keys(gateways)) {
			if admin := gateways[name].Admin; admin != "" {
				from = append(from, "http://"+admin)
			}
		}
	}
	if len(from) == 0 {
		return nil, fmt.Errorf("no gateway of site %s has an admin address to take the ownership from; give one its `admin`", f.site)
	}
	return sdk.NewView(sdk.ViewConfig{Site: topo.SiteID(f.site), Gateways: from})
}

// ownership is the one at this moment.
func (f *exportFlags) ownership(ctx context.Context, s *spec.Spec) (*topo.View, error) {
	if f.first {
		return topo.NewView(s.FirstOwnership())
	}
	view, err := f.view(s)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("none within 10 s"))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- view.Run(ctx) }()
	doc, err := view.Next(ctx, nil)
	cancel()
	<-ended
	if err != nil {
		return nil, fmt.Errorf("no ownership from a gateway of site %s; does one run on this machine? (--first writes what a new deployment begins with): %w", f.site, err)
	}
	return doc, nil
}

// write writes both files, once.
func (f *exportFlags) write(ctx context.Context, out io.Writer, s *spec.Spec, h export.HAProxy) error {
	view, err := f.ownership(ctx, s)
	if err != nil {
		return err
	}
	text, err := h.Config()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.out, 0o755); err != nil {
		return err
	}
	conf, table, m := filepath.Join(f.out, "atoll.cfg"), filepath.Join(f.out, "atoll.map"), export.NewMap(view)
	if err := m.WriteFile(table); err != nil {
		return err
	}
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: view %s, %d entries\n%s: check it with  haproxy -c -f %s\n", table, m.Version(), len(m), conf, conf)
	if abs, err := filepath.Abs(table); err == nil && abs != f.file {
		fmt.Fprintf(out, "the configuration reads the map as %s; put it there\n", f.file)
	}
	return nil
}

// keepUp keeps a running HAProxy in step.
func (f *exportFlags) keepUp(ctx context.Context, c *cli, s *spec.Spec, h export.HAProxy) error {
	log, err := c.logger()
	if err != nil {
		return err
	}
	view, err := f.view(s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- view.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	follower := export.Follower{File: h.File, Socket: f.socket, Next: view.Next, Log: log}
	if err := follower.Run(ctx); ctx.Err() == nil {
		return err
	}
	return nil // it was stopped
}
