package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) conflicts() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "conflicts",
		Short: "list and show conflicts: rows that two sites wrote, and what became of each",
		Long: `Every site's database logs the conflicts that it decided: both versions of the row, who wrote which, what was decided. A conflict
comes from a failover (kinds stale_…: what the lost site had committed and the survivor had not received), or from tables that
are written at several sites.`,
		Example: `  atoll conflicts list
  atoll conflicts list --handover 20260314-120004.310-c0de --table public.orders
  atoll conflicts show b/17`,
	}
	cmd.AddCommand(c.listConflicts(), c.showConflict())
	return cmd
}

func (c *cli) listConflicts() *cobra.Command {
	var q api.ConflictQuery
	var site, handover string
	op := &operator{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list the newest conflicts of every site",
		Long: `Lists the newest conflicts of every site's log, newest first. A site whose agent does not answer is named; its conflicts are
then missing from the list.

Exit status: 0 if at least one agent answered; else 1.`,
		Example: `  atoll conflicts list --limit 20
  atoll conflicts list --site b --table public.orders
  atoll conflicts list --json | jq '.conflicts[] | select(.decision == "kept")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			sites := s.FullSites()
			if site != "" {
				if err := fullSite(s, "--site", site); err != nil {
					return err
				}
				sites = []topo.SiteID{topo.SiteID(site)}
			}
			if q.Limit < 1 || q.Limit > api.MaxConflicts {
				return fmt.Errorf("--limit %d; want 1 to %d", q.Limit, api.MaxConflicts)
			}
			q.Handover = topo.HandoverID(handover)
			agents, err := op.everyone(cmd.Context(), s, sites)
			if err != nil {
				return err
			}
			defer closeAll(agents)
			found := collectConflicts(cmd.Context(), agents, q)
			if c.json {
				return printJSON(cmd.OutOrStdout(), found)
			}
			return printConflicts(cmd.OutOrStdout(), found)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&site, "site", "", "only the log of this site (default: of every site)")
	flags.StringVar(&q.Table, "table", "", "only this table, such as public.orders")
	flags.StringVar(&handover, "handover", "", "only the tail of this failover")
	flags.IntVar(&q.Limit, "limit", api.DefaultConflicts, "at most so many")
	flags.StringVar(&op.as, "as", "", "certificate to use, such as operator-kim (default: the only operator certificate in the pki folder)")
	return cmd
}

// conflictsFound are the conflicts of all sites that answered, newest first.
type conflictsFound struct {
	Conflicts []api.Conflict         `json:"conflicts"`
	More      bool                   `json:"more"` // older ones were left off
	Silent    map[topo.SiteID]string `json:"silent,omitempty"`
}

func collectConflicts(ctx context.Context, agents []reached, q api.ConflictQuery) conflictsFound {
	found := conflictsFound{Conflicts: []api.Conflict{}, Silent: map[topo.SiteID]string{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, r := range agents {
		wg.Go(func() {
			var list []api.Conflict
			var more bool
			err := r.err
			if err == nil {
				list, more, err = newestConflicts(ctx, r.client, q)
			}
			mu.Lock()
			defer mu.Unlock()
			found.Conflicts = append(found.Conflicts, list...)
			found.More = found.More || more
			if err != nil {
				found.Silent[r.site] = err.Error()
			}
		})
	}
	wg.Wait()
	slices.SortFunc(found.Conflicts, func(a, b api.Conflict) int {
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(a.Site, b.Site), cmp.Compare(b.ID, a.ID))
	})
	if len(found.Conflicts) > q.Limit {
		found.Conflicts, found.More = found.Conflicts[:q.Limit], true
	}
	return found
}

// newestConflicts reads pages until it has enough.
func newestConflicts(ctx context.Context, client *api.Client, q api.ConflictQuery) (all []api.Conflict, more bool, err error) {
	want := q.Limit
	for {
		q.Limit = want - len(all)
		try, cancel := context.WithTimeout(ctx, 15*time.Second)
		page, err := client.Conflicts(try, q)
		cancel()
		if err != nil {
			return all, false, err
		}
		all = append(all, page.Conflicts...)
		if !page.More || len(page.Conflicts) == 0 || len(all) >= want {
			return all, page.More, nil
		}
		q.Before = page.Conflicts[len(page.Conflicts)-1].ID
	}
}

func printConflicts(out io.Writer, found conflictsFound) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	for _, site := range slices.Sorted(maps.Keys(found.Silent)) {
		fmt.Fprintf(w, "! site %s is left out: %s\n", site, oneLine(found.Silent[site]))
	}
	if len(found.Conflicts) == 0 {
		fmt.Fprintln(w, "no conflicts")
		return w.Flush()
	}
	fmt.Fprintf(w, "CONFLICT\tAT\tKIND\tTABLE\tBUCKET\tFROM\tDECISION\tWHAT DIFFERS\n")
	for _, k := range found.Conflicts {
		fmt.Fprintf(w, "%s/%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Site, k.ID, k.At.Local().Format(time.DateTime), plain(k.Kind), plain(k.Table), bucketText(k), k.Origin, plain(k.Decision), differsText(k))
	}
	if found.More {
		fmt.Fprintln(w, "there are older ones: raise --limit, or narrow it with --site, --table or --handover")
	}
	return w.Flush()
}

func bucketText(k api.Conflict) string {
	if k.Bucket == nil {
		return "–"
	}
	return fmt.Sprintf("%s %d", k.Keyspace, *k.Bucket)
}

func differsText(k api.Conflict) string {
	v, err := versionsOf(k)
	switch {
	case err != nil:
		return oneLine(err.Error())
	case v.here == nil && v.there == nil:
		return "no row on either side"
	case v.here == nil:
		return "no row here"
	case v.there == nil:
		return "deleted there"
	}
	if d := v.differing(); len(d) > 0 {
		return shorten(plain(strings.Join(d, ", ")), 60)
	}
	return "nothing that was sent"
}

func (c *cli) showConflict() *cobra.Command {
	op := &operator{}
	cmd := &cobra.Command{
		Use:     "show SITE/ID",
		Short:   "show one conflict: both versions, who wrote them, what was decided, what can be done",
		Example: "  atoll conflicts show b/17",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			site, id, err := conflictName(s, args[0])
			if err != nil {
				return err
			}
			client, err := op.agentOf(cmd.Context(), s, site)
			if err != nil {
				return err
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), 20*time.Second)
			defer cancel()
			k, err := client.Conflict(ctx, id)
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(cmd.OutOrStdout(), k)
			}
			owner, err := ownerOf(ctx, client, k)
			if err != nil {
				return err
			}
			return printConflict(cmd.OutOrStdout(), k, owner)
		},
	}
	cmd.Flags().StringVar(&op.as, "as", "", "certificate to use, such as operator-kim (default: the only operator certificate in the pki folder)")
	return cmd
}

func conflictName(s *spec.Spec, text string) (topo.SiteID, int64, error) {
	site, number, ok := strings.Cut(text, "/")
	id, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || id < 1 {
		return "", 0, fmt.Errorf("conflict %q; want SITE/ID as atoll conflicts list prints it, such as %s/17", text, s.FullSites()[0])
	}
	return topo.SiteID(site), id, fullSite(s, "site", site)
}

// ownerOf says who owns the conflict's bucket now; "" where there is none, or it is not known.
func ownerOf(ctx context.Context, client *api.Client, k api.Conflict) (topo.SiteID, error) {
	if k.Bucket == nil {
		return "", nil
	}
	st, err := client.Status(ctx, true)
	if err != nil || st.Ownership == nil {
		return "", err
	}
	for _, ks := range st.Ownership.Keyspaces {
		if ks.Keyspace != k.Keyspace {
			continue
		}
		for _, o := range ks.Owners {
			spans, err := topo.ParseSpans(o.Buckets, ks.Buckets)
			if err != nil {
				return "", fmt.Errorf("status of keyspace %s: %w", ks.Keyspace, err)
			}
			for _, sp := range spans {
				if *k.Bucket >= int64(sp.First) && *k.Bucket <= int64(sp.Last) {
					return o.Site, nil
				}
			}
		}
	}
	return "", nil
}

func printConflict(out io.Writer, k api.Conflict, owner topo.SiteID) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "conflict %s/%d: %s in %s\n\n", k.Site, k.ID, plain(k.Kind), plain(k.Table))
	if k.Bucket != nil {
		fmt.Fprintf(w, "  bucket\t%d of %s", *k.Bucket, k.Keyspace)
		if owner != "" {
			fmt.Fprintf(w, ", owned by site %s now", owner)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "  version of %s\tcommitted there in transaction %d, at position %s%s\n", k.Origin, k.XID, lsn(k.Position), underEpoch(k))
	if k.Handover != "" {
		fmt.Fprintf(w, "  \tof the tail that failover %s left\n", plain(string(k.Handover)))
	}
	fmt.Fprintf(w, "  version of %s\tas the row was there when it was decided\n", k.Site)
	fmt.Fprintf(w, "  decided\tby site %s at %s: %s\n", k.Site, k.At.Local().Format(time.DateTime), decisionText(k))
	if err := w.Flush(); err != nil {
		return err
	}
	v, err := versionsOf(k)
	if err != nil {
		_, err = fmt.Fprintf(out, "\nThe versions cannot be shown: %s\n", oneLine(err.Error()))
		return err
	}
	if err := v.print(out); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "\n%s", v.remedy(owner))
	return err
}

func underEpoch(k api.Conflict) string {
	if k.Epoch == nil {
		return ""
	}
	return fmt.Sprintf(", under epoch %d", *k.Epoch)
}

func decisionText(k api.Conflict) string {
	switch k.Decision {
	case "applied":
		return fmt.Sprintf("applied, the version of %s stands", k.Origin)
	case "kept":
		return fmt.Sprintf("kept, the version of %s stands", k.Site)
	case "logged":
		return "logged only, nothing could be written"
	}
	return plain(k.Decision)
}
