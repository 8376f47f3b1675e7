package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/examples/tickets/load"
)

func loadCommand() *cobra.Command {
	var gateways, history string
	cfg := load.Config{Progress: os.Stderr}
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Buy, cancel and look at tickets, at a fixed rate",
		Long: `Buy, cancel and look at tickets. Requests start at random moments at the given rate, however slow the answers are,
and latency counts from that moment. Nothing is sent twice.

Each request becomes a JSON line of the history. Progress goes to stderr, a JSON line each second; a summary to
stdout at the end. At SIGTERM it stops sending and waits for what is under way.

With --registers, the last customers of the shop are left alone by all this. Each of them writes its address and reads
it back in turn, one request at a time, and keeps to a gateway until that one fails: then it goes on to the next, of
another site where there is one. With --lists, the customers before those append to their wishes and read them back in the
same way. --per-key says how many clients each of them has.

With --sessions, as many clients carry a session: they send the newest Atoll-Session that they got, to a gateway drawn anew for each
request. In rounds each reads the profiles of four of the customers before those, and appends to the wishes of two of
them first.

failed counts requests that were let down: a 5xx, a broken connection, a time-out. unknown counts those of them that
were writes and may have happened.`,
		Example: "  tickets load --gateways a/g1=http://127.0.0.1:8080,b/g1=http://127.0.0.1:8180 --rate 150 --duration 60s --history out/history.jsonl",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Gateways, err = load.ParseGateways(gateways); err != nil {
				return err
			}
			file, err := os.Create(history)
			if err != nil {
				return fmt.Errorf("history: %w", err)
			}
			defer file.Close()
			cfg.History = file
			summary, err := load.Run(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), summary)
			return file.Close()
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&gateways, "gateways", "", "where to send: NAME=URL, separated by commas")
	flags.StringVar(&history, "history", "history.jsonl", "file for the history")
	flags.Float64Var(&cfg.Rate, "rate", 150, "requests a second")
	flags.DurationVar(&cfg.Duration, "duration", time.Minute, "how long to send; 0: until SIGTERM")
	flags.DurationVar(&cfg.Timeout, "timeout", 20*time.Second, "of one request")
	flags.IntVar(&cfg.Clients, "clients", 32, "number of clients, each with its own connections")
	flags.Float64Var(&cfg.Stick, "stick", 0, "share of a client's requests that goes to its own gateway; the rest goes to any")
	flags.Float64Var(&cfg.Mix.Writes, "writes", 0.4, "share of requests that write")
	flags.Float64Var(&cfg.Mix.Hot, "hot", 0.1, "share of requests that come from hot customers")
	flags.IntVar(&cfg.Mix.HotCustomers, "hot-customers", 10, "number of hot customers")
	flags.Float64Var(&cfg.Mix.Slow, "slow", 0, "share of requests that keep a transaction open (tickets serve --slow-endpoint)")
	flags.IntVar(&cfg.Mix.SlowMillis, "slow-ms", 1500, "how long such a transaction stays open")
	flags.Uint64Var(&cfg.Seed, "draw", 1, "seed of arrivals and choices")
	flags.IntVar(&cfg.Registers, "registers", 0, "number of customers that only write and read back their address")
	flags.IntVar(&cfg.Lists, "lists", 0, "number of customers that only append to their wishes and read them back")
	flags.IntVar(&cfg.PerKey, "per-key", 1, "clients of each register and each list")
	flags.DurationVar(&cfg.RegisterEvery, "register-every", 250*time.Millisecond, "how often each of these clients sends a request")
	flags.DurationVar(&cfg.RegisterTimeout, "register-timeout", time.Second, "of one request of theirs, or of a session's")
	flags.IntVar(&cfg.Sessions, "sessions", 0, "number of clients that carry a session, and of customers whose wishes they append to")
	flags.DurationVar(&cfg.SessionEvery, "session-every", 600*time.Millisecond, "how often each of them sends its round of four requests")
	shapeFlags(cmd, &cfg.Shape)
	if err := cmd.MarkFlagRequired("gateways"); err != nil {
		panic("BUG: " + err.Error())
	}
	return cmd
}
