package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/examples/tickets/shop"
)

func serveCommand() *cobra.Command {
	var env, listen string
	var cfg shop.Config
	var connections int32
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the shop",
		Long: `Run the shop at one site: its page, its API, and the worker of its outbox. It stops cleanly at SIGTERM: requests
that are under way are answered first.`,
		Example: "  tickets serve --dsn-env SHOP_DSN --listen 127.0.0.1:9000 --gateway http://127.0.0.1:8080 --site a",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := dsn(env)
			if err != nil {
				return err
			}
			pool, err := pgxpool.ParseConfig(text)
			if err != nil {
				return fmt.Errorf("%s: %w", env, err)
			}
			pool.MaxConns = connections
			pool.MinIdleConns = min(2, connections)
			pool.ConnConfig.ConnectTimeout = 5 * time.Second
			// A transaction of a shop that hangs must not keep rows locked for ever.
			pool.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "20s"
			pool.ConnConfig.RuntimeParams["application_name"] = "tickets"
			if cfg.DB, err = pgxpool.NewWithConfig(cmd.Context(), pool); err != nil {
				return fmt.Errorf("%s: %w", env, err)
			}
			defer cfg.DB.Close()
			cfg.Log = slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("site", cfg.Site)
			s, err := shop.New(cfg)
			if err != nil {
				return err
			}
			listener, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("%w; choose another address with --listen", err)
			}
			cfg.Log.Info("the shop is open", "addr", listener.Addr().String(), "gateway", cfg.Gateway)
			defer cfg.Log.Info("the shop is closed")
			return s.Serve(cmd.Context(), listener)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&env, "dsn-env", "SHOP_DSN", "environment variable that holds the database's connection string")
	flags.StringVar(&listen, "listen", "127.0.0.1:9000", "address to serve on")
	flags.StringVar(&cfg.Gateway, "gateway", "http://127.0.0.1:8080", "base URL of this site's gateway")
	flags.StringVar(&cfg.Site, "site", "a", "this site's name, shown on the page")
	flags.Int32Var(&connections, "connections", 20, "largest number of database connections")
	flags.BoolVar(&cfg.Slow, "slow-endpoint", false, "also serve POST /orders/bulk-note, whose transaction stays open for as long as the request says")
	return cmd
}
