package main

import (
	"context"
	"encoding/json"
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

func (c *cli) status() *cobra.Command {
	var again, check bool
	var every time.Duration
	var op *operator
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show sites, owners, leases, links and handovers",
		Long: `Shows what an agent knows of the deployment, problems first: sites with their leases and databases, who owns which buckets,
links with their lag, the last switches and failovers, sites that are returning and links that a failover has halted.

Exit status: 0 if an agent answered, whatever it said; 1 if none did, or the command line was wrong; with --check, 2 if it
spoke of a problem.

With --watch it goes on until Ctrl-C, also while no agent answers, and ends with 0: on a terminal in place, elsewhere one
below the other, with --json one document per line.`,
		Example: `  atoll status
  atoll status --watch --every 2s
  atoll status --check > /dev/null || page somebody
  atoll status --json --at b | jq .problems`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			if again && check {
				return errors.New("--watch has no end whose status could tell; use --check without it")
			}
			if again {
				if _, err := op.identity(s); err != nil { // waiting does not heal it
					return err
				}
				f := &follower{op: op, spec: s}
				defer f.close()
				return watch(cmd.Context(), cmd.OutOrStdout(), every, func(w io.Writer) error {
					st, err := f.status(cmd.Context())
					switch {
					case err != nil && c.json:
						return json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
					case err != nil:
						return err
					case c.json:
						return json.NewEncoder(w).Encode(st)
					}
					if !isTerminal(cmd.OutOrStdout()) {
						defer fmt.Fprintln(w)
					}
					return printStatus(w, st)
				})
			}
			client, err := op.client(cmd.Context(), s)
			if err != nil {
				return err
			}
			defer client.Close()
			st, err := client.Status(cmd.Context(), false)
			if err != nil {
				return err
			}
			if c.json {
				err = printJSON(cmd.OutOrStdout(), st)
			} else {
				err = printStatus(cmd.OutOrStdout(), st)
			}
			if err == nil && check && len(st.Problems) > 0 {
				return &statusError{fmt.Errorf("%d problem(s), the first: %s", len(st.Problems), oneLine(st.Problems[0])), 2}
			}
			return err
		},
	}
	op = operatorFlags(cmd)
	cmd.Flags().BoolVar(&again, "watch", false, "show it again and again until Ctrl-C")
	cmd.Flags().DurationVar(&every, "every", time.Second, "how often, with --watch")
	cmd.Flags().BoolVar(&check, "check", false, "exit with 2 if there are problems")
	return cmd
}

// follower asks one agent for as long as it answers, then looks for another.
type follower struct {
	op     *operator
	spec   *spec.Spec
	client *api.Client
}

func (f *follower) status(ctx context.Context) (api.Status, error) {
	if f.client == nil {
		c, err := f.op.client(ctx, f.spec)
		if err != nil {
			return api.Status{}, err
		}
		f.client = c
	}
	try, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	st, err := f.client.Status(try, false)
	if err != nil {
		f.close()
	}
	return st, err
}

func (f *follower) close() {
	if f.client != nil {
		f.client.Close()
		f.client = nil
	}
}

func printStatus(out io.Writer, st api.Status) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "deployment %s, as site %s sees it at %s\n", plain(st.Deployment), st.Site, st.At.Local().Format(time.TimeOnly))
	for _, p := range st.Problems {
		fmt.Fprintf(w, "! %s\n", oneLine(p))
	}
	fmt.Fprintf(w, "\nSITE\tLEASE\tDATABASE\tVIEW\tGATEWAYS\n")
	for _, s := range st.Sites {
		if s.Error != "" {
			fmt.Fprintf(w, "%s\tdoes not answer\n", s.Site)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d (open to %d)\t%s\n", s.Site, leaseText(s.Lease), databaseText(s.Database), s.Version, s.Opened, gatewaysText(s.Gateways))
	}
	if st.Ownership != nil {
		printOwnership(w, *st.Ownership)
	}
	fmt.Fprintf(w, "\nLINK\tSTATE\tLAG\t\n")
	for _, s := range st.Sites {
		for _, l := range s.Links {
			if l.Target == s.Site { // the target knows what it applied
				fmt.Fprintf(w, "%s → %s\t%s\t%s\t%s\n", l.Origin, l.Target, linkText(l), lagText(l.LagMS), oneLine(l.Error))
			}
		}
	}
	if len(st.Handovers) > 0 {
		fmt.Fprintf(w, "\nHANDOVER\tKIND\tBUCKETS\tFROM → TO\tSTATE\tTIME\t\n")
		for _, h := range st.Handovers[:min(len(st.Handovers), 8)] {
			printHandoverRow(w, h)
		}
	}
	return w.Flush()
}

func printOwnership(w io.Writer, o api.OwnershipStatus) {
	fmt.Fprintf(w, "\nKEYSPACE\tBUCKETS\tOWNER\tHOLDS\tEPOCHS\t\n")
	for _, k := range o.Keyspaces {
		for _, o := range k.Owners {
			fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%s\n", k.Keyspace, k.Buckets, o.Site, o.Count, epochsText(o), shorten(o.Buckets, 50))
		}
		for _, m := range k.Moving {
			fmt.Fprintf(w, "%s\t\t%s → %s\t\t\tmoving %s (%s)\n", k.Keyspace, m.From, m.To, shorten(m.Buckets, 50), m.Handover)
		}
	}
	if len(o.Unsettled) > 0 {
		fmt.Fprintf(w, "\nLOST\tTAKEN BY\tBUCKETS\tCUT\tFAILOVER\n")
		for _, u := range o.Unsettled {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", u.Site, u.Owner, u.Buckets, lsn(u.Position), plain(string(u.Handover)))
		}
	}
}

// printHandoverRow shows a handover in one line. The time is how long writes waited: in a switch as held by gateways, in
// a failover from the last renewal of the lost site's lease.
func printHandoverRow(w io.Writer, h api.Handover) {
	state, took := h.Phase, ""
	if h.Over() {
		state = h.Outcome
	}
	if h.Pause != nil {
		took = h.Pause.String()
	}
	notes := h.Reasons
	if f := h.Failover; f != nil {
		if f.OpenMS > 0 {
			took = fmt.Sprintf("open after %.1f s", f.OpenMS/1000)
		}
		notes = append(failoverNotes(*f), notes...)
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s → %s\t%s\t%s\t%s\n", plain(string(h.ID)), h.Kind, bucketsText(h), h.From, h.To, state, took, oneLine(strings.Join(notes, "; ")))
}

func failoverNotes(f api.Failover) []string {
	var notes []string
	if !f.Automatic {
		notes = append(notes, "by an operator")
	}
	switch {
	case f.Return != nil:
		notes = append(notes, fmt.Sprintf("settled: %d stale changes applied, %d kept out", f.Return.Applied, f.Return.Kept))
	case f.LossMS >= 0:
		notes = append(notes, fmt.Sprintf("estimated loss %d ms", f.LossMS))
	}
	return notes
}

// bucketsText is what a handover moves: buckets of one keyspace, or what a failover took of each.
func bucketsText(h api.Handover) string {
	if h.Failover == nil {
		return fmt.Sprintf("%s %s", h.Keyspace, shorten(plain(h.Buckets), 30))
	}
	return takenText(h.Failover.Taken)
}

func takenText(taken []topo.Taken) string {
	var parts []string
	for _, t := range taken {
		n := 0
		for _, e := range t.Buckets {
			n += int(e.Last) - int(e.First) + 1
		}
		parts = append(parts, fmt.Sprintf("%d of %s", n, t.Keyspace))
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, ", ")
}

// lsn is a place in a change stream as PostgreSQL writes it.
func lsn(position uint64) string { return fmt.Sprintf("%X/%X", position>>32, uint32(position)) }

func linkText(l api.LinkStatus) string {
	switch {
	case l.Halted != "":
		return "halted for " + plain(string(l.Halted))
	case l.Connected:
		return "connected"
	}
	return "down"
}

func leaseText(l api.LeaseStatus) string {
	if !l.Live {
		return "none"
	}
	return fmt.Sprintf("%.1f s", float64(l.RemainingMS)/1000)
}

func databaseText(d api.DatabaseStatus) string {
	if d.Connected {
		return "connected"
	}
	return "away" // why is among the problems
}

func gatewaysText(gs []api.GatewayStatus) string {
	var parts []string
	for _, g := range gs {
		text := fmt.Sprintf("%s at %d", g.Gateway, g.Version)
		if !g.Connected {
			text = g.Gateway + " gone"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

func epochsText(o api.OwnerStatus) string {
	if o.MinEpoch == o.MaxEpoch {
		return fmt.Sprint(o.MinEpoch)
	}
	return fmt.Sprintf("%d to %d", o.MinEpoch, o.MaxEpoch)
}

func lagText(ms int64) string {
	if ms < 0 {
		return "unknown"
	}
	return fmt.Sprintf("%d ms", ms)
}
