package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) failover() *cobra.Command {
	var req api.FailoverRequest
	var site, to string
	var yes bool
	op := &operator{}
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "let another site take over from one that is lost",
		Long: `Lets the surviving site take over everything that a lost site owns. Nothing is asked of the lost site: the survivor waits until
the lost site's lease has run out on any clock, stops applying its changes, takes its buckets in one transaction of the store,
and opens. What the lost site had acknowledged and the survivor has not received is missing until the lost site is back; then
every such write is applied or kept in the conflict log (atoll conflicts). A site that still answers is not lost: move its
buckets with atoll switch, which loses nothing.

Every safety rule that speaks against it is named. --override lets an operator go on in spite of rules, by name; it is written
to the audit. That the lease must have run out cannot be overridden.

Exit status: 0 if the failover is done, or with --dry-run if it could start; else 1, and nothing was taken unless it says so.`,
		Example: `  atoll failover --site a --dry-run
  atoll failover --site a --why "fire in the data centre of a"
  atoll failover --site a --override max-loss,quiet-time --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			if req.Site, req.To, err = failoverSites(s, site, to); err != nil {
				return err
			}
			asks := isTerminal(cmd.InOrStdin())
			if !req.DryRun && !yes && !asks {
				return errors.New("this takes over from a site; there is no terminal to ask at, so say --yes")
			}
			client, err := op.agentOf(cmd.Context(), s, req.To)
			if err != nil {
				return fmt.Errorf("the agent of site %s, which would take over, does not answer: %w", req.To, err)
			}
			defer client.Close()
			return c.runFailover(cmd, client, req, asks && !yes)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&site, "site", "", "the site that is lost")
	flags.StringVar(&to, "to", "", "the site that takes over (default: the only other one that serves)")
	flags.StringVar(&req.Why, "why", "", "reason, for the record")
	flags.BoolVar(&req.DryRun, "dry-run", false, "show what would happen and be lost; change nothing")
	flags.StringSliceVar(&req.Override, "override", nil, "safety rules to override, by name, separated by commas")
	flags.BoolVar(&yes, "yes", false, "do not ask")
	flags.StringVar(&op.as, "as", "", "certificate to use, such as operator-kim (default: the only operator certificate in the pki folder)")
	if err := cmd.MarkFlagRequired("site"); err != nil {
		panic("BUG: " + err.Error())
	}
	return cmd
}

// failoverSites checks which site is lost, and finds the one that takes over.
func failoverSites(s *spec.Spec, site, to string) (lost, taker topo.SiteID, err error) {
	if err := fullSite(s, "--site", site); err != nil {
		return "", "", err
	}
	if to != "" {
		if to == site {
			return "", "", fmt.Errorf("--to %s: a site cannot take over from itself", to)
		}
		return topo.SiteID(site), topo.SiteID(to), fullSite(s, "--to", to)
	}
	var others []topo.SiteID
	for _, other := range s.FullSites() {
		if other != topo.SiteID(site) {
			others = append(others, other)
		}
	}
	if len(others) != 1 {
		return "", "", fmt.Errorf("say with --to which of the sites %v takes over", others)
	}
	return topo.SiteID(site), others[0], nil
}

// runFailover looks, shows, asks, orders, waits and reports. What is shown on the way goes to stderr: stdout has the
// outcome.
func (c *cli) runFailover(cmd *cobra.Command, client *api.Client, req api.FailoverRequest, ask bool) error {
	look := req
	look.DryRun = true
	before, err := client.Failover(cmd.Context(), look)
	if err != nil {
		return c.refusedFailover(cmd, err)
	}
	if req.DryRun && c.json {
		return printJSON(cmd.OutOrStdout(), before)
	}
	out := cmd.ErrOrStderr()
	if req.DryRun {
		out = cmd.OutOrStdout()
	}
	if err := printFailoverPlan(out, req, before); err != nil || req.DryRun {
		return err
	}
	if ask {
		fmt.Fprintf(out, "\nTo go on, type the name of the site that is lost: ")
		if err := confirm(cmd.InOrStdin(), string(req.Site)); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "\nsite %s is asked to take over; it waits for the end of the lease\n", req.To)
	answer, err := client.Failover(cmd.Context(), req)
	if err != nil {
		return c.refusedFailover(cmd, err)
	}
	fmt.Fprintf(out, "failover %s is under way\n", plain(string(answer.ID)))
	h, err := waitOver(cmd.Context(), client, answer.ID, answer.Handover)
	if err != nil {
		return fmt.Errorf("failover %s is under way, but how it ends is not known here; see atoll status and atoll explain: %w", answer.ID, err)
	}
	return c.reportFailover(cmd, h)
}

// refusedFailover passes a refusal on, for programs too.
func (c *cli) refusedFailover(cmd *cobra.Command, err error) error {
	var refused *api.Error
	if c.json && errors.As(err, &refused) {
		return errors.Join(printJSON(cmd.OutOrStdout(), refused), errors.New(refused.Message))
	}
	if errors.As(err, &refused) && refused.Code == api.CodeRefused {
		return fmt.Errorf("%w\n  override a rule, if you know better than it, with --override NAME; atoll explain shows them all", err)
	}
	return err
}

// waitOver follows a handover to its end. An agent that does not answer for a moment is asked again.
func waitOver(ctx context.Context, client *api.Client, id topo.HandoverID, h api.Handover) (api.Handover, error) {
	const patience = 15 * time.Second
	heard := time.Now()
	for !h.Over() {
		next, err := client.Handover(ctx, id, 20*time.Second)
		switch {
		case err == nil:
			h, heard = next, time.Now()
		case ctx.Err() != nil || time.Since(heard) > 20*time.Second+patience:
			return h, err
		default:
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
				return h, err
			}
		}
	}
	return h, nil
}

func printFailoverPlan(out io.Writer, req api.FailoverRequest, a api.FailoverAnswer) error {
	st := a.Standing
	fmt.Fprintf(out, "site %s would take over from site %s\n\n", req.To, req.Site)
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	loss := "not known: nothing says how long site " + string(req.Site) + " has gone on without being heard"
	if st.LossMS >= 0 {
		loss = fmt.Sprintf("about %s of what site %s acknowledged, until it is back", msText(st.LossMS), req.Site)
	}
	fmt.Fprintf(w, "  estimated loss\t%s\n", loss)
	if f := a.Handover.Failover; f != nil && len(f.Taken) > 0 {
		fmt.Fprintf(w, "  would move\tbuckets: %s\n", takenText(f.Taken))
	}
	fmt.Fprintf(w, "  applied at %s\tup to %s\n", st.Site, lsn(st.Applied))
	fmt.Fprintf(w, "  last heard of %s\t%s\n", st.Of, heardText(st))
	fmt.Fprintf(w, "  its last write\t%s\n", agoText(st.WroteMS, "none seen since this agent began"))
	if len(req.Override) > 0 {
		fmt.Fprintf(w, "  overridden\t%s\n", plain(strings.Join(req.Override, ", ")))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, `
What happens: %[2]s waits until the lease of %[1]s has run out on any clock, stops applying its changes, takes its buckets at the
next epoch and opens. Writes of these buckets are refused until then. %[1]s, if it lives, refuses writes by then by itself.
When %[1]s is back, what it had committed beyond is applied or kept in the conflict log, and it can be given its buckets
again with atoll switch.
`, req.Site, req.To)
	return err
}

func heardText(st api.Standing) string {
	text := agoText(st.HeardMS, "never")
	switch {
	case st.Closed != "":
		text += ", that it has closed"
	case st.Serving && st.RemainingMS > 0:
		text += fmt.Sprintf(", that it serves for %s more", msText(st.RemainingMS))
	}
	if !st.Linked {
		text += "; the link is down"
	}
	return text
}

func agoText(ms int64, never string) string {
	if ms < 0 {
		return never
	}
	return msText(ms) + " ago"
}

func msText(ms int64) string {
	switch {
	case ms < 2000:
		return fmt.Sprintf("%d ms", ms)
	case ms < 120_000:
		return fmt.Sprintf("%.1f s", float64(ms)/1000)
	}
	return (time.Duration(ms) * time.Millisecond).Round(time.Second).String()
}

// confirm reads a line and compares it.
func confirm(in io.Reader, word string) error {
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != word {
		return errors.New("nothing was changed")
	}
	return nil
}

func (c *cli) reportFailover(cmd *cobra.Command, h api.Handover) error {
	out := cmd.OutOrStdout()
	if c.json {
		if err := printJSON(out, h); err != nil {
			return err
		}
	} else if h.Outcome == "done" {
		if err := printFailoverReport(out, h); err != nil {
			return err
		}
	}
	if h.Outcome == "done" {
		return nil
	}
	err := fmt.Errorf("failover %s is %s; nothing was taken", h.ID, h.Outcome)
	for _, r := range h.Reasons {
		err = errors.Join(err, errors.New(plain(r)))
	}
	return err
}

func printFailoverReport(out io.Writer, h api.Handover) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "failover %s is %s: site %s has taken over from %s (buckets: %s)\n", plain(string(h.ID)), h.Outcome, h.To, h.From, bucketsText(h))
	if f := h.Failover; f != nil {
		fmt.Fprintf(w, "  from the last renewal of %s\tlease out after %.0f ms, taken after %.0f ms, open after %.0f ms\n", h.From, f.ExpiredMS, f.WaitedMS, f.OpenMS)
		fmt.Fprintf(w, "  cut\t%s\n", lsn(f.Position))
		loss := "not known"
		if f.LossMS >= 0 {
			loss = msText(f.LossMS)
		}
		fmt.Fprintf(w, "  estimated loss\t%s\n", loss)
		if len(f.Override) > 0 {
			fmt.Fprintf(w, "  overridden\t%s\n", plain(strings.Join(f.Override, ", ")))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "When %s is back its tail is settled by itself; atoll status tells. Then atoll conflicts list --handover %s shows what was kept out.\n", h.From, plain(string(h.ID)))
	return err
}
