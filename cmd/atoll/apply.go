package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/agent"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) apply() *cobra.Command {
	var site string
	var dryRun, printSQL, adopt bool
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "prepare a site's database: fence, publication, grants",
		Long: `Looks for everything that would stand in the way, then makes what is missing in the site's database, one transaction
per table, never queueing on a busy one for more than half a second at a time. It may be run again at any time and while the
application is at work. Every statement can be seen first, and atoll remove takes all of it out again.

The fence begins closed: nothing is written before the site's agent has a lease. For the site that has the data and the users
today, say --adopt: its application goes on writing until the agent takes over, for a day at most. That is only for the first
time; if another site of the deployment has ever taken writes, leave it out.`,
		Example: `  atoll apply --site a --dry-run      # what is in the way, and what would be done
  atoll apply --site a --print-sql    # the statements, for a review or to run by hand
  atoll apply --site a --adopt        # the first site, with its application at work
  atoll apply --site b`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := c.target(site)
			if err != nil {
				return err
			}
			if t.deployment.Adopt = adopt; adopt && t.spec.Seed != t.site {
				return fmt.Errorf("--adopt is for the seed, site %s; the application of site %s writes once buckets are switched to it", t.spec.Seed, site)
			}
			log, err := c.logger()
			if err != nil {
				return err
			}
			plan, problems, err := t.plan(cmd)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case c.json:
				err = printJSON(out, planDoc{Site: site, Problems: append([]postgres.Problem{}, problems...), Statements: append([]postgres.Statement{}, plan...), Applied: len(problems) == 0 && !dryRun && !printSQL})
			case printSQL:
				printStatements(out, plan)
			case dryRun:
				printPlan(out, site, plan)
			}
			if err != nil {
				return err
			}
			if len(problems) > 0 {
				return problemsError(site, problems)
			}
			if dryRun || printSQL {
				return nil
			}
			if err := postgres.Apply(cmd.Context(), t.adminDSN, plan, log); err != nil {
				return err
			}
			if !c.json {
				fmt.Fprintf(out, "site %s is prepared: %d statement(s) run\n", site, len(plan))
			}
			return nil
		},
	}
	siteFlag(cmd, &site)
	cmd.Flags().BoolVar(&adopt, "adopt", false, "the seed's application goes on writing until the agent takes over; only for a deployment that never ran")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what is in the way and what would be done; change nothing")
	cmd.Flags().BoolVar(&printSQL, "print-sql", false, "print the statements; change nothing")
	return cmd
}

// planDoc is what apply prints with --json.
type planDoc struct {
	Site       string               `json:"site"`
	Problems   []postgres.Problem   `json:"problems"`   // never null
	Statements []postgres.Statement `json:"statements"` // never null
	Applied    bool                 `json:"applied"`    // they are being run
}

// target is a site's database for apply and remove.
type target struct {
	spec               *spec.Spec
	site               topo.SiteID
	agentDSN, adminDSN string
	deployment         postgres.Deployment
}

func (c *cli) target(site string) (*target, error) {
	s, here, err := c.loadFullSite(site)
	if err != nil {
		return nil, err
	}
	t := &target{spec: s, site: topo.SiteID(site)}
	if t.agentDSN, err = here.Database.DSN(); err != nil {
		return nil, err
	}
	if t.adminDSN, err = here.Database.AdminDSN(); err != nil {
		return nil, err
	}
	conf, err := pgx.ParseConfig(t.agentDSN)
	if err != nil {
		return nil, fmt.Errorf("the agent's DSN: %w", err)
	}
	t.deployment = agent.Deployment(s, t.site, conf.User)
	return t, nil
}

func (t *target) plan(cmd *cobra.Command) ([]postgres.Statement, []postgres.Problem, error) {
	problems := postgres.Preflight(cmd.Context(), t.adminDSN, t.agentDSN, t.deployment)
	plan, err := postgres.Plan(cmd.Context(), t.adminDSN, t.deployment)
	if err != nil && len(problems) > 0 {
		err = nil // the problems say it better
	}
	return plan, problems, err
}

func problemsError(site string, problems []postgres.Problem) error {
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = "  " + p.String()
	}
	return fmt.Errorf("site %s: %d problem(s); nothing was changed\n%s", site, len(problems), strings.Join(lines, "\n"))
}

func printPlan(out io.Writer, site string, plan []postgres.Statement) {
	if len(plan) == 0 {
		fmt.Fprintf(out, "site %s: nothing to do\n", site)
		return
	}
	fmt.Fprintf(out, "site %s: %d statement(s) to run; --print-sql shows them\n", site, len(plan))
	for _, s := range plan {
		fmt.Fprintf(out, "  %-28s %s\n", s.Group, s.Reason)
	}
}

func printStatements(out io.Writer, plan []postgres.Statement) {
	group := ""
	for _, s := range plan {
		if s.Group != group {
			if group != "" {
				fmt.Fprintln(out, "COMMIT;")
			}
			fmt.Fprintf(out, "\n-- %s\nBEGIN;\n", s.Group)
			group = s.Group
		}
		fmt.Fprintf(out, "-- %s\n%s;\n", s.Reason, strings.TrimRight(strings.TrimSpace(s.SQL), ";"))
	}
	if group != "" {
		fmt.Fprintln(out, "COMMIT;")
	}
}

func (c *cli) remove() *cobra.Command {
	var site string
	var yes bool
	cmd := &cobra.Command{
		Use:   "remove",
		Short: "take everything out of a site's database again, data untouched",
		Long: `Takes out what apply and the agents put into the site's database: replication slots, publication, triggers, grants,
replication origins, the schema atoll. Rows of your tables are not touched. Stop the site's agent first; the fence goes too,
so see to it that no other site still takes writes for the same data.`,
		Example: "  atoll remove --site a --yes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := c.target(site)
			if err != nil {
				return err
			}
			if !yes {
				return errors.New("this takes the fence away; say --yes if no other site takes writes for the same data")
			}
			log, err := c.logger()
			if err != nil {
				return err
			}
			if err := postgres.Remove(cmd.Context(), t.adminDSN, log.With(slog.String("site", site))); err != nil {
				return err
			}
			return c.said(cmd, map[string]any{"site": site, "removed": true}, "site %s: removed", site)
		},
	}
	siteFlag(cmd, &site)
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}
