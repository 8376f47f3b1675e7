package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/api"
)

func (c *cli) status() *cobra.Command {
	var watch bool
	var op *operator
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show sites, owners, leases, links and handovers",
		Example: `  atoll status
  atoll status --watch
  atoll status --json --at b`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			client, err := op.client(cmd.Context(), s)
			if err != nil {
				return err
			}
			defer client.Close()
			for {
				st, err := client.Status(cmd.Context(), false)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if c.json {
					err = printJSON(out, st)
				} else {
					if watch {
						fmt.Fprint(out, "\x1b[H\x1b[2J")
					}
					err = printStatus(out, st)
				}
				if err != nil || !watch {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(time.Second):
				}
			}
		},
	}
	op = operatorFlags(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every second until Ctrl-C")
	return cmd
}

func printStatus(out io.Writer, st api.Status) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "deployment %s, as site %s sees it at %s\n", st.Deployment, st.Site, st.At.Local().Format(time.TimeOnly))
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
		fmt.Fprintf(w, "\nKEYSPACE\tBUCKETS\tOWNER\tHOLDS\tEPOCHS\t\n")
		for _, k := range st.Ownership.Keyspaces {
			for _, o := range k.Owners {
				fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%s\n", k.Keyspace, k.Buckets, o.Site, o.Count, epochsText(o), shorten(o.Buckets, 50))
			}
			for _, m := range k.Moving {
				fmt.Fprintf(w, "%s\t\t%s → %s\t\t\tmoving %s (%s)\n", k.Keyspace, m.From, m.To, shorten(m.Buckets, 50), m.Handover)
			}
		}
	}
	fmt.Fprintf(w, "\nLINK\tSTATE\tLAG\t\n")
	for _, s := range st.Sites {
		for _, l := range s.Links {
			if l.Target == s.Site { // the target knows what it applied
				fmt.Fprintf(w, "%s → %s\t%s\t%s\t%s\n", l.Origin, l.Target, connectedText(l.Connected), lagText(l.LagMS), oneLine(l.Error))
			}
		}
	}
	if len(st.Handovers) > 0 {
		fmt.Fprintf(w, "\nHANDOVER\tBUCKETS\tFROM → TO\tSTATE\tPAUSE\t\n")
		for _, h := range st.Handovers[:min(len(st.Handovers), 8)] {
			printHandoverRow(w, h)
		}
	}
	return w.Flush()
}

func printHandoverRow(w io.Writer, h api.Handover) {
	state, pause := h.Phase, ""
	if h.Over() {
		state = h.Outcome
	}
	if h.Pause != nil {
		pause = h.Pause.String()
	}
	fmt.Fprintf(w, "%s\t%s %s\t%s → %s\t%s\t%s\t%s\n", h.ID, h.Keyspace, shorten(h.Buckets, 30), h.From, h.To, state, pause, oneLine(strings.Join(h.Reasons, "; ")))
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

func connectedText(ok bool) string {
	if ok {
		return "connected"
	}
	return "down"
}

func lagText(ms int64) string {
	if ms < 0 {
		return "unknown"
	}
	return fmt.Sprintf("%d ms", ms)
}

func oneLine(s string) string { return shorten(strings.Join(strings.Fields(s), " "), 160) }

func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n-1] + "…"
}
