package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

func (c *cli) switchCmd() *cobra.Command {
	var req api.SwitchRequest
	var keyspace, to string
	var noWait bool
	var op *operator
	cmd := &cobra.Command{
		Use:   "switch",
		Short: "move buckets to another site, losing nothing",
		Long: `Moves buckets of a keyspace to another site: gateways hold their writes, the old owner's fence closes, the new owner
applies the last change of the old one, the store is told, the new owner's fence opens, gateways let go. Either it is done or it
is aborted and the old owner goes on; it is never half done, and another agent finishes it if this one dies. The new owner's agent
drives it where it answers, unless --at names another site.`,
		Example: `  atoll switch --keyspace users --buckets 0-24 --to b --dry-run
  atoll switch --keyspace users --buckets 0-24 --to b --why "maintenance of a"
  atoll switch --keyspace catalog --buckets all --to b`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			req.Keyspace, req.To = topo.KeyspaceID(keyspace), topo.SiteID(to)
			// The new owner's agent drives: that it has caught up, and that its fence is open, then needs no round trip.
			client, err := op.clientNear(cmd.Context(), s, req.To)
			if err != nil {
				return err
			}
			defer client.Close()
			answer, err := client.Switch(cmd.Context(), req)
			if err != nil {
				return err
			}
			h := answer.Handover
			if !req.DryRun && !noWait {
				for !h.Over() {
					if h, err = client.Handover(cmd.Context(), answer.ID, 20*time.Second); err != nil {
						return fmt.Errorf("switch %s is under way, but how it ends is not known here: %w", answer.ID, err)
					}
				}
			}
			return c.reportSwitch(cmd, h, req.DryRun)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&keyspace, "keyspace", "", "keyspace of the buckets")
	flags.StringVar(&req.Buckets, "buckets", "", "which buckets: 0-24,30 or all")
	flags.StringVar(&to, "to", "", "the new owner")
	flags.StringVar(&req.Why, "why", "", "reason, for the record")
	flags.BoolVar(&req.DryRun, "dry-run", false, "check whether it could start; change nothing")
	flags.BoolVar(&noWait, "no-wait", false, "do not wait for the end")
	for _, name := range []string{"keyspace", "buckets", "to"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic("BUG: " + err.Error())
		}
	}
	op = operatorFlags(cmd)
	return cmd
}

func (c *cli) reportSwitch(cmd *cobra.Command, h api.Handover, dryRun bool) error {
	out := cmd.OutOrStdout()
	switch {
	case c.json:
		if err := printJSON(out, h); err != nil {
			return err
		}
	case dryRun:
		fmt.Fprintf(out, "ready: %d bucket(s) of %s would move from %s to %s\n", h.Count, h.Keyspace, h.From, h.To)
	case !h.Over():
		fmt.Fprintf(out, "switch %s is under way\n", h.ID)
	default:
		fmt.Fprintf(out, "switch %s is %s: %d bucket(s) of %s from %s to %s\n", h.ID, h.Outcome, h.Count, h.Keyspace, h.From, h.To)
		if h.Pause != nil {
			fmt.Fprintf(out, "writes of these buckets: %s\n", h.Pause)
		}
	}
	if h.Outcome == "aborted" || h.Outcome == "refused" {
		err := fmt.Errorf("switch %s is %s; the buckets stay at %s", h.ID, h.Outcome, h.From)
		for _, r := range h.Reasons {
			err = errors.Join(err, errors.New(r))
		}
		return err
	}
	return nil
}
