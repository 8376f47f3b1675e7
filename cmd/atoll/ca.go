package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/pki"
)

func (c *cli) ca() *cobra.Command {
	var dir, deployment string
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "issue the certificates of a small deployment",
		Long: `Everything between sites, and between processes of different hosts, is mutual TLS. A deployment that has no
authority of its own can use this one: init makes it, issue makes a certificate for a site or an operator,
or for a service whose instances register themselves (NAME is the upstream's; docs/services.md).
Keep ca.key off the sites; a site needs ca.crt and its own site-NAME.crt and .key, an operator ca.crt and operator-NAME.*, a
service's instances ca.crt and service-NAME.*.`,
		Example: `  atoll ca init                     # in the pki folder that atoll.yaml names
  atoll ca issue site a             # pki/site-a.crt, pki/site-a.key
  atoll ca issue operator kim
  atoll ca issue service basket`,
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", "", "folder of the certificates (default: pki of the spec)")

	initCmd := &cobra.Command{Use: "init", Short: "make the authority of a deployment", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" || deployment == "" {
				s, err := c.load()
				if err != nil {
					return fmt.Errorf("%w; or name --dir and --deployment", err)
				}
				dir, deployment = orElse(dir, s.PKI), orElse(deployment, s.Deployment)
			}
			if err := pki.Init(dir, deployment); err != nil {
				return err
			}
			return c.said(cmd, map[string]string{"authority": filepath.Join(dir, "ca.crt")}, "made the authority of %s in %s", deployment, dir)
		}}
	initCmd.Flags().StringVar(&deployment, "deployment", "", "name of the deployment (default: that of the spec)")

	var hosts []string
	issue := &cobra.Command{Use: "issue site|operator|service NAME", Short: "issue a certificate", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir == "" {
				s, err := c.load()
				if err != nil {
					return fmt.Errorf("%w; or name --dir", err)
				}
				dir = s.PKI
			}
			role := pki.Role{Kind: pki.Kind(args[0]), Name: args[1], Hosts: hosts}
			if err := pki.Issue(dir, role); err != nil {
				return err
			}
			base := filepath.Join(dir, role.File())
			return c.said(cmd, map[string]string{"cert": base + ".crt", "key": base + ".key"}, "issued %s.crt and %s.key", base, base)
		}}
	issue.Flags().StringSliceVar(&hosts, "host", nil, "host names or addresses for tools that check them, such as curl")
	cmd.AddCommand(initCmd, issue)
	return cmd
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// said prints what was done: as JSON, or as a sentence.
func (c *cli) said(cmd *cobra.Command, doc any, format string, args ...any) error {
	if c.json {
		return printJSON(cmd.OutOrStdout(), doc)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
	return err
}

// identity loads the certificate that --as names ("operator-kim", "site-a") from the spec's folder.
func loadIdentity(dir, name, deployment string) (*pki.Identity, error) {
	id, err := pki.Load(dir, name)
	if err != nil {
		return nil, err
	}
	return id, id.CheckDeployment(deployment)
}
