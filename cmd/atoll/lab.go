package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/lab"
)

func (c *cli) lab() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "many sites on this machine: real processes, real databases, paths that can be cut",
		Long: `The lab runs a ticket shop at two sites and a witness on this machine: real processes and real PostgreSQL
clusters, with a path between any two sites that delays, and can be cut. It measures from the databases and the
clients' history. Everything lives in a temporary folder and is gone when the lab ends, however it ends.

` + lab.OrderHelp(),
		Example: `  atoll lab demo                      # load, switches, a cut; report in out/demo.json
  atoll lab up                        # the same sites, kept running
  atoll lab cut a b                   # from another terminal
  atoll lab kill a/agent`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := lab.Tell(cmd.Context(), args)
			if err != nil {
				return err
			}
			return c.said(cmd, map[string]string{"answer": text}, "%s", text)
		},
	}
	cmd.AddCommand(c.labDemo(), c.labUp())
	return cmd
}

func (c *cli) labDemo() *cobra.Command {
	var o lab.DemoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "show all of it: load, users moved between sites, a cut path, and the evidence",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.JSON, o.Stdout, o.Stderr = c.json, os.Stdout, os.Stderr
			if err := labBinaries(&o.Options); err != nil {
				return err
			}
			return lab.Demo(cmd.Context(), o)
		},
	}
	labFlags(cmd, &o.Options)
	cmd.Flags().StringVar(&o.Out, "out", "out", "folder for demo.json, report.txt and history.jsonl")
	cmd.Flags().Float64Var(&o.Rate, "rate", 150, "requests a second")
	cmd.Flags().IntVar(&o.Switches, "switches", 10, "switches at the nominal round trip")
	return cmd
}

func (c *cli) labUp() *cobra.Command {
	var o lab.Options
	cmd := &cobra.Command{
		Use:   "up",
		Short: "build the sites and keep them running until Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := labBinaries(&o); err != nil {
				return err
			}
			return lab.Up(cmd.Context(), o)
		},
	}
	labFlags(cmd, &o)
	return cmd
}

func labFlags(cmd *cobra.Command, o *lab.Options) {
	flags := cmd.Flags()
	flags.StringVar(&o.Atoll, "atoll", "", "the atoll to run (default: this one)")
	flags.StringVar(&o.Tickets, "tickets", "", "the ticket shop to run (default: tickets beside atoll)")
	flags.DurationVar(&o.RTT, "rtt", 30*time.Millisecond, "round trip between any two sites")
	flags.DurationVar(&o.Jitter, "jitter", 0, "largest extra delay, drawn anew for each packet and direction")
	flags.IntVar(&o.Gateways, "gateways", 2, "gateways at each site")
	flags.IntVar(&o.Buckets, "buckets", 256, "buckets of the keyspace users")
}

// labBinaries fills in the binaries that were not named.
func labBinaries(o *lab.Options) error {
	if o.Atoll == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this binary: %w; name it with --atoll", err)
		}
		o.Atoll = self
	}
	if o.Tickets == "" {
		o.Tickets = filepath.Join(filepath.Dir(o.Atoll), "tickets")
	}
	return nil
}
