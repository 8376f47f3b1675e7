package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// shownHappenings are enough for one incident.
const shownHappenings = 12

func (c *cli) explain() *cobra.Command {
	var site string
	op := &operator{}
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "say why there was a failover, or why there is none",
		Long: `Asks the agent of every site what it makes of the others: whether it would take over, and for each condition whether it is met.
Every agent judges for itself, by its own clock; where two disagree, that is often the answer.

Exit status: 0 if at least one agent answered; else 1.`,
		Example: `  atoll explain
  atoll explain --site a
  atoll explain --site a --json | jq '.observers[].sites[].verdict'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			if site != "" {
				if err := fullSite(s, "--site", site); err != nil {
					return err
				}
			}
			agents, err := op.everyone(cmd.Context(), s, s.FullSites())
			if err != nil {
				return err
			}
			defer closeAll(agents)
			found := explanations(cmd.Context(), agents, topo.SiteID(site))
			if c.json {
				err = printJSON(cmd.OutOrStdout(), map[string]any{"observers": found})
			} else {
				err = printExplanations(cmd.OutOrStdout(), found)
			}
			for _, f := range found {
				if f.Error == "" {
					return err
				}
			}
			return errors.Join(err, errors.New("no agent could say"))
		},
	}
	cmd.Flags().StringVar(&site, "site", "", "only what is thought of this site (default: every site)")
	cmd.Flags().StringVar(&op.as, "as", "", "certificate to use, such as operator-kim (default: the only operator certificate in the pki folder)")
	return cmd
}

// observed is what one site's agent says, or why it says nothing.
type observed struct {
	api.Explanation
	Error string `json:"error,omitempty"`
}

func explanations(ctx context.Context, agents []reached, site topo.SiteID) []observed {
	var out []observed
	for _, r := range agents {
		if r.site != site { // a site does not watch itself
			out = append(out, observed{Explanation: api.Explanation{Site: r.site}})
		}
	}
	byName := map[topo.SiteID]reached{}
	for _, r := range agents {
		byName[r.site] = r
	}
	var wg sync.WaitGroup
	for i := range out {
		r := byName[out[i].Site]
		if r.err != nil {
			out[i].Error = r.err.Error()
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			e, err := r.client.Explain(ctx, site)
			if err != nil {
				out[i].Error = err.Error()
				return
			}
			out[i].Explanation = e
		})
	}
	wg.Wait()
	return out
}

func printExplanations(out io.Writer, found []observed) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.DiscardEmptyColumns)
	for i, o := range found {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if o.Error != "" {
			fmt.Fprintf(w, "site %s cannot say: %s\n", o.Site, oneLine(o.Error))
			continue
		}
		for j, s := range o.Sites {
			if j > 0 {
				fmt.Fprintln(w)
			}
			printSiteExplanation(w, o.Explanation, s)
		}
		if len(o.Sites) == 0 {
			fmt.Fprintf(w, "site %s watches no other site\n", o.Site)
		}
	}
	return w.Flush()
}

func printSiteExplanation(w io.Writer, e api.Explanation, s api.SiteExplanation) {
	fmt.Fprintf(w, "site %s, as %s sees it at %s (mode %s)\n", s.Of, e.Site, e.At.Local().Format(time.TimeOnly), cmp.Or(plain(e.Mode), "unknown"))
	fmt.Fprintf(w, "  %s\n\n", oneLine(s.Verdict))
	for _, r := range s.Reasons {
		met := "met"
		if !r.Met {
			met = "NOT MET"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", met, plain(r.Rule), oneLine(r.Text))
		if !r.Met && r.Hint != "" {
			fmt.Fprintf(w, "  \t\t→ %s\n", oneLine(r.Hint))
		}
	}
	fmt.Fprintf(w, "\n  known of %s: heard %s; applied up to %s; its last write %s\n", s.Of, heardText(s.Standing), lsn(s.Standing.Applied), agoText(s.Standing.WroteMS, "not seen yet"))
	if l := s.Last; l != nil {
		state := cmp.Or(l.Outcome, l.Phase)
		fmt.Fprintf(w, "  last failover: %s, %s, %s → %s\n", plain(string(l.ID)), state, l.From, l.To)
	}
	if len(s.History) > 0 {
		fmt.Fprintln(w, "  what happened, newest first:")
		for _, h := range s.History[:min(len(s.History), shownHappenings)] {
			fmt.Fprintf(w, "    %s  %s\n", h.At.Local().Format("15:04:05.000"), oneLine(h.Text))
		}
	}
}
