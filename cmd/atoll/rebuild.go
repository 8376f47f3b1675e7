package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) rebuild() *cobra.Command {
	var req api.RebuildRequest
	var site, from string
	var yes bool
	op := &operator{}
	cmd := &cobra.Command{
		Use:   "rebuild",
		Short: "bring a site whose database was replaced to another site's content",
		Long: `A site whose database is another one than before (a promoted standby, a restored copy, an empty one prepared by
atoll apply) cannot go on with the streams of the one that it replaces. This command takes a copy of another site (one that
took buckets over from it, or --from), writes every row version that only the replaced database has to its conflict log
(atoll conflicts), brings its tables to the copy in the same transaction, and begins the streams anew. Of every third site
it goes on where the copied one was. Writes go on everywhere meanwhile. The site then returns as after any failover.

It is refused while the site owns buckets, where its changes can still be settled in the ordinary way, and while another
full site does not answer: all take part, because the site's stream begins anew at each.`,
		Example: `  atoll rebuild --site a --dry-run
  atoll rebuild --site a --from c --yes
  atoll rebuild --site a --yes --why "promoted standby after the disk failed"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			if !req.DryRun && !yes {
				return fmt.Errorf("this removes from the tables of site %s what site %s's owners do not have (it is kept in the conflict log only); "+
					"look first with --dry-run, then say --yes", site, site)
			}
			req.Site, req.From, op.at = topo.SiteID(site), topo.SiteID(from), site
			client, err := op.client(cmd.Context(), s)
			if err != nil {
				return err
			}
			defer client.Close()
			answer, err := client.Rebuild(cmd.Context(), req)
			if err != nil {
				return err
			}
			return c.reportRebuild(cmd, answer)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&site, "site", "", "the site whose database was replaced")
	flags.StringVar(&from, "from", "", "the site to copy (default: one that took its buckets over, else the first by name)")
	flags.StringVar(&req.Why, "why", "", "reason, for the record")
	flags.BoolVar(&req.DryRun, "dry-run", false, "check whether it could start; change nothing")
	flags.BoolVar(&yes, "yes", false, "do it")
	flags.StringVar(&op.as, "as", "", "certificate to use, such as operator-kim (default: the only operator certificate in the pki folder)")
	if err := cmd.MarkFlagRequired("site"); err != nil {
		panic("BUG: " + err.Error())
	}
	return cmd
}

func (c *cli) reportRebuild(cmd *cobra.Command, a api.RebuildAnswer) error {
	out := cmd.OutOrStdout()
	if c.json {
		return printJSON(out, a)
	}
	ids := make([]string, len(a.Handovers))
	for i, id := range a.Handovers {
		ids[i] = string(id)
	}
	if a.DryRun {
		fmt.Fprintf(out, "ready: site %s would be rebuilt from site %s", a.Site, a.From)
		if len(ids) > 0 {
			fmt.Fprintf(out, "; failovers that are not settled: %s", strings.Join(ids, ", "))
		}
		fmt.Fprintln(out)
		return nil
	}
	fmt.Fprintf(out, "site %s is rebuilt from site %s, in %.1f s\n", a.Site, a.From, float64(a.TookMS)/1000)
	for _, t := range a.Tables {
		fmt.Fprintf(out, "  %-30s %8d removed  %8d written  %6d only here, logged\n", t.Table, t.Removed, t.Written, t.Logged)
	}
	fmt.Fprintf(out, "%d row versions that only site %s had are in its conflict log\n", a.Logged, a.Site)
	return nil
}
