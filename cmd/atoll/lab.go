package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/lab"
)

func (c *cli) lab() *cobra.Command {
	var o lab.Options
	sites := 2
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "many sites on this machine, with paths that can be cut",
		Long: `Runs sites as real processes on this machine: PostgreSQL servers, stores, agents, gateways and the ticket shop. Every path
between two sites leads through a proxy that can delay it or cut it. All of it listens on loopback, lives in a temporary folder
and is gone when the lab ends. With --netns every site has a network namespace instead, and the lab routes IP packets between them.

` + lab.OrderHelp(),
		Example: `  atoll lab demo                 # load, switches, a cut, a site that dies and comes back; ends in a report
  atoll lab up                   # the same sites, until Ctrl-C
  atoll lab tell cut a b         # in another terminal: to the lab that runs`,
	}
	flags := cmd.PersistentFlags()
	self, err := os.Executable()
	if err != nil {
		self = "bin/atoll"
	}
	flags.StringVar(&o.Atoll, "atoll", self, "the atoll binary to run")
	flags.StringVar(&o.Tickets, "tickets", "bin/tickets", "the ticket shop's binary to run")
	flags.DurationVar(&o.RTT, "rtt", 30*time.Millisecond, "round trip between two sites")
	flags.IntVar(&sites, "sites", 2, "full sites: a, b, c, …; the data are at a first")
	flags.BoolVar(&o.NoWitness, "no-witness", false, "no witness: the full sites vote alone, which takes three")
	cmd.PersistentPreRunE = func(cmd *cobra.Command, args []string) (err error) {
		o.Sites, err = lab.SiteNames(sites)
		return err
	}
	flags.IntVar(&o.Gateways, "gateways", 2, "gateways per site")
	flags.StringVar(&o.Pooler, "pooler", "", "connection pooler between shop and database: pgbouncer, in transaction mode; empty for none")
	cmd.AddCommand(c.labDemo(&o), c.labRandom(&o), c.labPgbench(&o), c.labBenchFence(), c.labBenchSwitch(&o), c.labBenchOverload(&o), c.labBenchHold(&o), c.labUp(&o), labTell())
	return cmd
}

func (c *cli) labDemo(o *lab.Options) *cobra.Command {
	demo := lab.DemoOptions{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "load, switches both ways, a cut between the sites, a site that dies and comes back; exit 0 if every check passes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			demo.Options, demo.JSON = *o, c.json
			demo.Stdout, demo.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return lab.Demo(cmd.Context(), demo)
		},
	}
	netnsFlag(cmd, o)
	cmd.Flags().StringVar(&demo.Out, "out", "out", "folder of the report, demo.json")
	cmd.Flags().Float64Var(&demo.Rate, "rate", 0, "requests a second; 0: 150 at two sites, 100 at three")
	cmd.Flags().StringVar(&demo.Part, "part", "", "switches: lose no site; failover: leave out the switches and the cut between the sites")
	return cmd
}

func (c *cli) labRandom(o *lab.Options) *cobra.Command {
	run := lab.RandomOptions{}
	seeds, schedule := "", false
	cmd := &cobra.Command{
		Use:   "random",
		Short: "random faults and switches from a seed, under load; exit 0 if every check passes after every episode",
		Long: `Plays episodes of half a minute: switches of random buckets to random sites while processes are killed and stopped, paths are cut,
delayed and reset, and whole sites are lost. What an episode does follows from the seed alone (--schedule prints it). Behind each one
everything is healed, and when all stands still the checks look at the databases and the clients' history of that episode.

At any time one failure domain is enough to explain all faults, so that the store keeps its quorum; in episodes that are named doubles
it takes two, and only safety is expected. The first violation ends the run with the evidence kept and names the command that plays
that episode again. Real processes are not deterministic: --runs plays the same seeds several times and gives the rate.`,
		Example: `  atoll lab random --seed 1,2,3                  # one episode of each seed
  atoll lab random --seed 7 --minutes 60         # episode after episode of seed 7
  atoll lab random --seed 7/12 --runs 5          # the twelfth episode of seed 7, five times
  atoll lab random --seed 7/12 --schedule        # what it would do`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			run.Options, run.JSON = *o, c.json
			run.Stdout, run.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if run.Seeds, err = lab.ParseSeeds(seeds); err != nil {
				return err
			}
			if schedule {
				return lab.Schedules(cmd.OutOrStdout(), run)
			}
			return lab.Random(cmd.Context(), run)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&seeds, "seed", "", "seeds, separated by commas; 7/12 is episode 12 of seed 7")
	flags.Float64Var(&run.Minutes, "minutes", 0, "begin episodes for so long; 0: --episodes of each seed")
	flags.IntVar(&run.Episodes, "episodes", 1, "episodes of each seed, without --minutes")
	flags.IntVar(&run.Runs, "runs", 1, "play all of it so often, each time on a new deployment")
	flags.StringSliceVar(&run.Workload, "workload", nil, "tickets (the shop's load), register (registers and lists with strong reads, and sessions that read at any site); default both")
	flags.Float64Var(&run.Rate, "rate", 0, "requests a second of the shop's load; 0: 60 at two sites, 40 at three")
	flags.StringVar(&run.Out, "out", "out", "folder of the report, lab-random.json, and of the evidence")
	netnsFlag(cmd, o)
	flags.BoolVar(&schedule, "schedule", false, "print the schedule and do nothing")
	if err := cmd.MarkFlagRequired("seed"); err != nil {
		panic("BUG: " + err.Error())
	}
	return cmd
}

func netnsFlag(cmd *cobra.Command, o *lab.Options) {
	cmd.Flags().BoolVar(&o.Netns, "netns", false, "every site in a network namespace of its own, and packets that are cut and lost between them; takes root and /dev/net/tun")
}

func (c *cli) labPgbench(o *lab.Options) *cobra.Command {
	bench := lab.PgbenchOptions{}
	cmd := &cobra.Command{
		Use:   "pgbench",
		Short: "pgbench's bank, adopted under its clients and moved while they work; exit 0 if every check passes",
		Long: `Fills a database with pgbench at one site and lets its clients work. Then atoll apply --adopt prepares that database under
them, agents start, and the bank is copied to the second site. A third into the load the bank is switched there. A client that the
fence refuses ends, as pgbench does with any error, and is started again at the site that atoll status names. Two thirds into the
load everything at the bank's site is killed; the other one takes over, and the lost one returns.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bench.Options, bench.JSON = *o, c.json
			bench.Stdout, bench.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return lab.Pgbench(cmd.Context(), bench)
		},
	}
	cmd.Flags().StringVar(&bench.Out, "out", "out", "folder of the report, pgbench.json")
	cmd.Flags().DurationVar(&bench.Duration, "duration", time.Minute, "of the load, once both sites are there")
	cmd.Flags().IntVar(&bench.Clients, "clients", 4, "clients of one connection each")
	cmd.Flags().IntVar(&bench.Rate, "rate", 200, "transactions a second of all clients; -1: as fast as they can, which may be faster than this machine replicates")
	cmd.Flags().IntVar(&bench.Scale, "scale", 5, "pgbench's scale: branches, each with 100000 accounts")
	return cmd
}

func (c *cli) labBenchFence() *cobra.Command {
	bench := lab.FenceBenchOptions{}
	cmd := &cobra.Command{
		Use:   "bench-fence",
		Short: "what the fence costs: transactions and CPU with and without it, in turns; exit 0 if it was measured",
		Long: `Starts a PostgreSQL server, fences one table as atoll apply does and leaves its twin without, and lets clients work on both in
turns: one-row updates, one-row inserts and inserts of 100 rows, with durable commits and with others. Goals are reported, not
asserted.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bench.JSON, bench.Stdout, bench.Stderr = c.json, cmd.OutOrStdout(), cmd.ErrOrStderr()
			return lab.BenchFence(cmd.Context(), bench)
		},
	}
	cmd.Flags().StringVar(&bench.Out, "out", "out", "folder of the report, bench-fence.json")
	cmd.Flags().IntVar(&bench.Rounds, "rounds", 11, "turns with the fence and without, per case")
	cmd.Flags().DurationVar(&bench.Turn, "turn", 600*time.Millisecond, "length of a turn")
	cmd.Flags().IntSliceVar(&bench.Clients, "clients", []int{1, 8}, "numbers of clients")
	return cmd
}

func (c *cli) labBenchOverload(o *lab.Options) *cobra.Command {
	bench := lab.OverloadBenchOptions{}
	cmd := &cobra.Command{
		Use:   "bench-overload",
		Short: "what a gateway does where more comes than a service can do, and where a neighbour is slow; exit 0 if the bounds are kept",
		Long: `Starts a gateway in a process of its own before services of known capacity. One of them gets a multiple of what it can do, from clients
that do not wait for each other; then one of three instances gets slow, and one of three services. No database takes part.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bench.Atoll, bench.JSON, bench.Stdout, bench.Stderr = o.Atoll, c.json, cmd.OutOrStdout(), cmd.ErrOrStderr()
			return lab.BenchOverload(cmd.Context(), bench)
		},
	}
	cmd.Flags().StringVar(&bench.Out, "out", "out", "folder of the report, bench-overload.json")
	cmd.Flags().DurationVar(&bench.Length, "length", time.Minute, "of the overload")
	cmd.Flags().Float64Var(&bench.Times, "times", 5, "what the service can do, is sent")
	return cmd
}

func (c *cli) labBenchHold(o *lab.Options) *cobra.Command {
	bench := lab.HoldBenchOptions{}
	cmd := &cobra.Command{
		Use:   "bench-hold",
		Short: "what it costs to hold requests while their data move: memory, and how they are let go; exit 0 if the bounds are kept",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bench.Atoll, bench.JSON, bench.Stdout, bench.Stderr = o.Atoll, c.json, cmd.OutOrStdout(), cmd.ErrOrStderr()
			return lab.BenchHold(cmd.Context(), bench)
		},
	}
	cmd.Flags().StringVar(&bench.Out, "out", "out", "folder of the report, bench-hold.json")
	cmd.Flags().IntVar(&bench.Requests, "requests", 10_000, "that are held, each on a connection of its own")
	cmd.Flags().IntVar(&bench.Keys, "keys", 1000, "of which they are")
	return cmd
}

func (c *cli) labBenchSwitch(o *lab.Options) *cobra.Command {
	bench := lab.SwitchBenchOptions{}
	cmd := &cobra.Command{
		Use:   "bench-switch",
		Short: "what handovers cost: pauses of switches, RTO and RPO of failovers; exit 0 if the bounds are kept and every check passes",
		Long: `Measures under the demonstration's load, in parts that each have a deployment of their own: random ranges of buckets switched between
random owners; then, with a lease of 3 s and with one of 10 s, everything at a random owner killed at a random moment of its lease,
taken over, started again, settled, and home again. Behind each part the lab's checks look at all of it.

A part leaves its report in bench-switch/PART.json in the folder of the report, and may be played again alone; bench-switch.json is what
the parts say together. Three sites vote alone, without a witness.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			bench.Options, bench.JSON = *o, c.json
			if !cmd.Flags().Changed("sites") {
				if bench.Sites, err = lab.SiteNames(3); err != nil {
					return err
				}
			}
			bench.NoWitness = bench.NoWitness || len(bench.Sites)%2 == 1
			bench.Stdout, bench.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return lab.SwitchBench(cmd.Context(), bench)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&bench.Out, "out", "out", "folder of the report, bench-switch.json")
	flags.IntVar(&bench.Switches, "switches", 200, "switches that have to be done")
	flags.IntVar(&bench.Failovers, "failovers", 15, "losses of a site, with each lease")
	flags.Uint64Var(&bench.Seed, "seed", 1, "which buckets go where, which site dies, and when")
	flags.StringVar(&bench.Part, "part", "", "one part alone: switches, failovers-3, failovers-10")
	flags.Float64Var(&bench.Rate, "rate", 0, "requests a second; 0: 150 at two sites, 100 at three")
	flags.StringVar(&bench.Commit, "commit", "", "of what is measured, for the report")
	return cmd
}

func (c *cli) labUp(o *lab.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "the demo's sites without its script, until Ctrl-C",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return lab.Up(cmd.Context(), *o) },
	}
	netnsFlag(cmd, o)
	return cmd
}

func labTell() *cobra.Command {
	return &cobra.Command{
		Use:     "tell ORDER [WORDS]",
		Short:   "give an order to the lab that runs",
		Long:    lab.OrderHelp(),
		Example: "  atoll lab tell cut a b\n  atoll lab tell pause b/agent\n  atoll lab tell delay a b 200ms link",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			said, err := lab.Tell(cmd.Context(), args)
			if said = strings.TrimSpace(said); said != "" {
				fmt.Fprintln(cmd.OutOrStdout(), said)
			}
			return err
		},
	}
}
