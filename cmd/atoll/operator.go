package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/agent"
	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// operator is how a person's commands reach the agents.
type operator struct {
	as string // certificate in the pki folder
	at string // site whose agent is asked first
}

func operatorFlags(cmd *cobra.Command) *operator {
	o := &operator{}
	o.flags(cmd)
	return o
}

func (o *operator) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.as, "as", "", "certificate to use, such as operator-kim (default: the only operator certificate in the pki folder)")
	cmd.Flags().StringVar(&o.at, "at", "", "site whose agent to ask (default: the first that answers)")
}

// client finds an agent that answers. The caller closes it.
func (o *operator) client(ctx context.Context, s *spec.Spec) (*api.Client, error) {
	return o.clientNear(ctx, s, "")
}

// clientNear is client for what is best done at one of the sites: that one is asked first, unless the operator said another.
func (o *operator) clientNear(ctx context.Context, s *spec.Spec, near topo.SiteID) (*api.Client, error) {
	sites := s.FullSites()
	if i := slices.Index(sites, near); i > 0 {
		sites = slices.Concat([]topo.SiteID{near}, sites[:i], sites[i+1:])
	}
	if o.at != "" {
		if err := fullSite(s, "--at", o.at); err != nil {
			return nil, err
		}
		sites = []topo.SiteID{topo.SiteID(o.at)}
	}
	var failures []error
	for _, site := range sites {
		c, err := o.agentOf(ctx, s, site)
		if err == nil {
			return c, nil
		}
		failures = append(failures, err)
	}
	return nil, fmt.Errorf("no agent answers; is `atoll up` running?\n%w", errors.Join(failures...))
}

// agentOf finds the agents of a site; of two, every call goes to the active one, else to one that answers. The caller
// closes it.
func (o *operator) agentOf(ctx context.Context, s *spec.Spec, site topo.SiteID) (*api.Client, error) {
	id, err := o.identity(s)
	if err != nil {
		return nil, err
	}
	c := api.NewSiteClient(agent.APIAddrs(s, site, site), id.ClientTLS(site), nil)
	try, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, err = c.ActiveStatus(try); err != nil && try.Err() == nil {
		_, err = c.Status(try, true)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("site %s: %w", site, err)
	}
	return c, nil
}

// reached is a site's agent, or why it was not reached.
type reached struct {
	site   topo.SiteID
	client *api.Client
	err    error
}

// everyone reaches for the agents of the sites, all at once. The caller closes them with closeAll.
func (o *operator) everyone(ctx context.Context, s *spec.Spec, sites []topo.SiteID) ([]reached, error) {
	if _, err := o.identity(s); err != nil {
		return nil, err
	}
	out := make([]reached, len(sites))
	var wg sync.WaitGroup
	for i, site := range sites {
		wg.Go(func() {
			c, err := o.agentOf(ctx, s, site)
			out[i] = reached{site, c, err}
		})
	}
	wg.Wait()
	var failures []error
	for _, r := range out {
		if r.err == nil {
			return out, nil
		}
		failures = append(failures, r.err)
	}
	return nil, fmt.Errorf("no agent answers; is `atoll up` running?\n%w", errors.Join(failures...))
}

func closeAll(agents []reached) {
	for _, r := range agents {
		if r.client != nil {
			r.client.Close()
		}
	}
}

func (o *operator) identity(s *spec.Spec) (*pki.Identity, error) {
	as := o.as
	if as == "" {
		var err error
		if as, err = onlyOperator(s.PKI); err != nil {
			return nil, err
		}
	}
	return loadIdentity(s.PKI, as, s.Deployment)
}

// fullSite checks the value of a flag.
func fullSite(s *spec.Spec, flag, site string) error {
	if is := s.Sites[topo.SiteID(site)]; is == nil || is.Witness {
		return fmt.Errorf("%s %s: agents run at the sites %v", flag, site, s.FullSites())
	}
	return nil
}

func onlyOperator(dir string) (string, error) {
	found, err := filepath.Glob(filepath.Join(dir, pki.Role{Kind: pki.Operator, Name: "*"}.File()+".crt"))
	if err != nil {
		return "", err
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("%s holds no operator certificate; make one with `atoll ca issue operator NAME`", dir)
	case 1:
		return strings.TrimSuffix(filepath.Base(found[0]), ".crt"), nil
	}
	return "", fmt.Errorf("%s holds %d operator certificates; say which to use with --as operator-NAME", dir, len(found))
}
