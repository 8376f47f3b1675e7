package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
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
	cmd.Flags().StringVar(&o.as, "as", "", "certificate to use, such as operator-kim (default: the only operator certificate in the pki folder)")
	cmd.Flags().StringVar(&o.at, "at", "", "site whose agent to ask (default: the first that answers)")
	return o
}

// client finds an agent that answers. The caller closes it.
func (o *operator) client(ctx context.Context, s *spec.Spec) (*api.Client, error) {
	if o.as == "" {
		var err error
		if o.as, err = onlyOperator(s.PKI); err != nil {
			return nil, err
		}
	}
	id, err := loadIdentity(s.PKI, o.as, s.Deployment)
	if err != nil {
		return nil, err
	}
	sites := s.FullSites()
	if o.at != "" {
		if at := s.Sites[topo.SiteID(o.at)]; at == nil || at.Witness {
			return nil, fmt.Errorf("--at %s: agents run at the sites %v", o.at, sites)
		}
		sites = []topo.SiteID{topo.SiteID(o.at)}
	}
	var failures []error
	for _, site := range sites {
		c := api.NewSiteClient(agent.APIAddrs(s, site, site), id.ClientTLS(site), nil)
		try, cancel := context.WithTimeout(ctx, 3*time.Second)
		_, err := c.Status(try, true)
		cancel()
		if err == nil {
			return c, nil
		}
		c.Close()
		failures = append(failures, fmt.Errorf("site %s: %w", site, err))
	}
	return nil, fmt.Errorf("no agent answers; is `atoll up` running?\n%w", errors.Join(failures...))
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
