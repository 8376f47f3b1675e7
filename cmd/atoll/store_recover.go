package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/agent"
	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/recovery"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// recoverFlags are what the recovery of a store is asked with.
type recoverFlags struct {
	site, from, why, words string
	empty, dryRun          bool
	without                []string
}

func (c *cli) storeRecover() *cobra.Command {
	var f recoverFlags
	op := &operator{}
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "begin a new generation of a store whose quorum is lost for good",
		Long: `Run it on the machine of one site, whose member is stopped. It makes a new store out of what is left: that member's folder
(the default), another member's folder or a backup file (--from), or nothing (--empty). Then it reads from every full site's
database, through its agent or with the DSN of the spec, who holds what, and computes the ownership: the highest epoch that
any of them knows decides, so a backup may be old. It shows what it will write and writes it once you have typed the words
that it asks for, under the next generation and with every epoch raised. It writes nothing if anything is in doubt.

Before: make sure that the other members are off and stay off; nothing can tell a lost quorum from one that is out of reach.
A site whose database cannot be read is waited for, or given up by name with --without; that database must be off.
After: start the member (atoll store --site SITE); each other member begins with an empty folder and atoll store add. Agents
need no restart. The former folder is kept beside the new one. See "The store is lost" in docs/operating.md.`,
		Example: `  atoll store recover --site a --dry-run
  atoll store recover --site a --from /var/backups/shop.store
  atoll store recover --site a --without b --yes "begin generation 2 of the store of shop at a, with the databases of b off"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.recoverStore(cmd, op, f) },
	}
	flags := cmd.Flags()
	siteFlag(cmd, &f.site)
	flags.StringVar(&f.from, "from", "", "a member's folder, or a backup file (default: the folder of the site's own member)")
	flags.BoolVar(&f.empty, "empty", false, "nothing is left of the store: go by the databases alone")
	flags.StringSliceVar(&f.without, "without", nil, "a full site whose database is off for good; repeat it")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show what would be written, and change nothing")
	flags.StringVar(&f.words, "yes", "", "the words that would be asked for, for automation")
	flags.StringVar(&f.why, "why", "", "reason, for the audit")
	flags.StringVar(&op.as, "as", "", "certificate to use, such as operator-kim (default: the only operator certificate in the pki folder)")
	cmd.MarkFlagsMutuallyExclusive("from", "empty")
	return cmd
}

func (c *cli) recoverStore(cmd *cobra.Command, op *operator, f recoverFlags) error {
	s, here, err := c.loadSite(f.site)
	if err != nil {
		return err
	}
	member, err := memberConfig(s, here, topo.SiteID(f.site)) // without a log: what goes wrong is returned
	if err != nil {
		return err
	}
	for _, site := range f.without {
		if err := fullSite(s, "--without", site); err != nil {
			return err
		}
	}
	if err := lostForGood(cmd.Context(), s, member.Site); err != nil {
		return err
	}
	from := f.from
	if from == "" && !f.empty {
		from = member.Dir
	}
	revived, err := store.Revive(cmd.Context(), store.Revival{Member: member, From: from})
	if err != nil {
		return err
	}
	former, done, err := c.carryOut(cmd, f, revived, recovery.Config{
		Deployment: s.Deployment, Member: member.Site, Sites: s.FullSites(), Without: siteIDs(f.without), First: s.FirstOwnership(),
		Store: revived.Client, Ask: op.evidence(s), Who: who(op), Why: f.why, Now: time.Now,
	})
	if !done {
		return errors.Join(err, revived.Discard())
	}
	return c.recovered(cmd, s, member, former)
}

// carryOut looks, asks, and does it.
func (c *cli) carryOut(cmd *cobra.Command, f recoverFlags, revived *store.Revived, cfg recovery.Config) (former string, done bool, err error) {
	ctx := cmd.Context()
	plan, err := recovery.Look(ctx, cfg)
	if err != nil {
		return "", false, err
	}
	words := plan.Words(cfg)
	if c.json && f.dryRun {
		return "", false, printJSON(cmd.OutOrStdout(), planJSON(plan, words))
	}
	out := cmd.ErrOrStderr()
	if f.dryRun {
		out = cmd.OutOrStdout()
	}
	if err := printRecovery(out, plan, cfg); err != nil {
		return "", false, err
	}
	fmt.Fprintf(out, "\nThe words for it: %s\n", words)
	switch {
	case f.dryRun:
		return "", false, nil
	case f.words == "":
		fmt.Fprint(out, "To go on, type them: ")
		if err := confirm(cmd.InOrStdin(), words); err != nil {
			return "", false, err
		}
	case f.words != words:
		return "", false, errors.New("--yes says something else; nothing was changed")
	}
	if err := recovery.Carry(ctx, cfg, plan); err != nil {
		return "", false, fmt.Errorf("nothing was written: %w; run this again", err)
	}
	former, err = revived.Install(time.Now())
	return former, err == nil, err
}

func planJSON(p recovery.Plan, words string) map[string]any {
	return map[string]any{"generation": p.Next.Generation, "version": p.Next.Version, "words": words, "ranges": p.Ranges,
		"conclude": p.Conclude, "ownership": p.Next}
}

func printRecovery(out io.Writer, p recovery.Plan, cfg recovery.Config) error {
	fmt.Fprintf(out, "what is left of the store: ownership %d.%d; it would go on as %d.%d\n\n", p.Old.Generation, p.Old.Version, p.Next.Generation, p.Next.Version)
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "KEYSPACE\tBUCKETS\tOWNER\tWAS\tBECAUSE")
	for _, r := range p.Ranges {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Keyspace, topo.Spans{{First: r.First, Last: r.Last}}, r.Owner, r.Was, plain(r.Because))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, id := range p.Conclude {
		fmt.Fprintf(out, "handover %s was under way, and is concluded by this\n", plain(string(id)))
	}
	for _, l := range p.Failovers {
		fmt.Fprintf(out, "failover %s from %s to %s is known to the databases only; its record is written again\n", plain(string(l.ID)), l.From, l.To)
	}
	for _, site := range cfg.Without {
		fmt.Fprintf(out, "site %s was not read. Its database has to be off: if it accepts writes now, they are in no other site's way, and lost to it.\n", site)
	}
	return nil
}

func (c *cli) recovered(cmd *cobra.Command, s *spec.Spec, member store.MemberConfig, former string) error {
	out := cmd.OutOrStdout()
	var others []topo.SiteID
	for _, site := range s.SiteIDs() {
		if s.Sites[site].Store != nil && site != member.Site {
			others = append(others, site)
		}
	}
	if c.json {
		return printJSON(out, map[string]any{"folder": member.Dir, "former": former, "add": others})
	}
	fmt.Fprintf(out, "the store begins anew in %s", member.Dir)
	if former != "" {
		fmt.Fprintf(out, "; the former folder is %s", former)
	}
	fmt.Fprintf(out, "\nnext:\n  atoll store --site %s\n", member.Site)
	for _, site := range others {
		fmt.Fprintf(out, "  move the folder %s of site %s away, start its member, then: atoll store add %s\n", filepath.Base(filepath.Join(s.State, "store-"+string(site))), site, site)
	}
	return nil
}

// lostForGood refuses while the store decides things.
func lostForGood(ctx context.Context, s *spec.Spec, site topo.SiteID) error {
	id, err := loadIdentity(s.PKI, siteCert(site), s.Deployment)
	if err != nil {
		return err
	}
	client, err := store.Open(ctx, agent.StoreConfig(s, site, id, nil))
	if err != nil {
		return err
	}
	defer client.Close()
	bound, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if all, err := client.Members(bound); err == nil && all.Problem == "" {
		return fmt.Errorf("the store is not lost: %d of its %d voters answer; see atoll store members, add and remove", all.Healthy, all.Voters)
	}
	return ctx.Err()
}

// evidence asks a site's agent, and where none answers, its database, with the DSN that the spec names.
func (o *operator) evidence(s *spec.Spec) recovery.Ask {
	return func(ctx context.Context, site topo.SiteID, seal uint64) (topo.Evidence, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		e, err := o.evidenceOfAgent(ctx, s, site, seal)
		if err == nil {
			return e, nil
		}
		e, direct := evidenceOfDatabase(ctx, s.Sites[site], site, seal)
		if direct != nil {
			return e, errors.Join(err, direct)
		}
		return e, nil
	}
}

func (o *operator) evidenceOfAgent(ctx context.Context, s *spec.Spec, site topo.SiteID, seal uint64) (topo.Evidence, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	id, err := o.identity(s)
	if err != nil {
		return topo.Evidence{}, err
	}
	client := api.NewSiteClient(agent.APIAddrs(s, site, site), id.ClientTLS(site), nil)
	defer client.Close()
	return client.Evidence(ctx, api.EvidenceRequest{Seal: seal})
}

func evidenceOfDatabase(ctx context.Context, here *spec.Site, site topo.SiteID, seal uint64) (topo.Evidence, error) {
	dsn, err := here.Database.DSN()
	if err != nil {
		return topo.Evidence{}, err
	}
	fence, err := postgres.OpenFence(ctx, dsn, site)
	if err != nil {
		return topo.Evidence{}, err
	}
	defer fence.Close()
	if seal > 0 {
		if err := fence.RaiseGeneration(ctx, seal); err != nil {
			return topo.Evidence{}, err
		}
	}
	return fence.Evidence(ctx)
}

func siteIDs(names []string) []topo.SiteID {
	out := make([]topo.SiteID, len(names))
	for i, n := range names {
		out[i] = topo.SiteID(n)
	}
	return out
}

// who is the operator, for the audit.
func who(o *operator) string {
	if o.as != "" {
		return o.as
	}
	host, err := os.Hostname()
	if err != nil {
		return "an operator"
	}
	return "an operator on " + host
}
