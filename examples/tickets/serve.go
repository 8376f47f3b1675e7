package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/examples/tickets/shop"
	"github.com/atollhq/atoll/sdk"
	"github.com/atollhq/atoll/topo"
)

func serveCommand() *cobra.Command {
	var env, listen string
	var cfg shop.Config
	var connections int32
	var instance sdk.RegistrarConfig
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the shop",
		Long: `Run the shop at one site: its page, its API, and the worker of its outbox. It stops cleanly at SIGTERM: requests
that are under way are answered first. With --register it registers itself at the site's agents, whose gateways then find it
(discover: {register: 30s} of the upstream), and leaves before it stops.`,
		Example: `  tickets serve --dsn-env SHOP_DSN --listen 127.0.0.1:9000 --gateway http://127.0.0.1:8080 --site a
  tickets serve --dsn-env SHOP_DSN --listen 10.0.0.5:9000 --site a --register 10.0.0.5:9000 --agent a.agent.example:7400 --pki pki`,
		Args: cobra.NoArgs,
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
			var registrar *sdk.Registrar
			if instance.Address != "" {
				instance.Site, instance.Log = topo.SiteID(cfg.Site), cfg.Log
				if registrar, err = sdk.NewRegistrar(instance); err != nil {
					return fmt.Errorf("--register: %w", err)
				}
			}
			listener, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("%w; choose another address with --listen", err)
			}
			cfg.Log.Info("the shop is open", "addr", listener.Addr().String(), "gateway", cfg.Gateway)
			defer cfg.Log.Info("the shop is closed")
			if registrar == nil {
				return s.Serve(cmd.Context(), listener)
			}
			return serveRegistered(cmd.Context(), registrar, func(ctx context.Context) error { return s.Serve(ctx, listener) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&env, "dsn-env", "SHOP_DSN", "environment variable that holds the database's connection string")
	flags.StringVar(&listen, "listen", "127.0.0.1:9000", "address to serve on")
	flags.StringVar(&cfg.Gateway, "gateway", "http://127.0.0.1:8080", "base URL of this site's gateway")
	flags.StringVar(&cfg.Site, "site", "a", "this site's name, shown on the page")
	flags.Int32Var(&connections, "connections", 20, "largest number of database connections")
	flags.StringVar(&instance.Address, "register", "", "host:port under which this site's gateways reach the shop: it registers itself there (default: it does not)")
	flags.StringSliceVar(&instance.Agents, "agent", nil, "host:port of the API of each of this site's agents, with --register")
	flags.StringVar(&instance.PKI, "pki", "pki", "folder with ca.crt and the service's certificate, with --register")
	flags.StringVar(&instance.Service, "service", "shop", "name of the upstream in atoll.yaml, with --register")
	flags.StringVar(&instance.Zone, "zone", "", "gateways of the same zone prefer this instance, with --register")
	flags.BoolVar(&cfg.Slow, "slow-endpoint", false, "also serve POST /orders/bulk-note, whose transaction stays open for as long as the request says")
	return cmd
}

// serveRegistered serves until ctx ends, and then for as long as it takes gateways to hear that it goes.
func serveRegistered(ctx context.Context, registrar *sdk.Registrar, serve func(context.Context) error) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	registering, leave := context.WithCancel(ctx)
	left := make(chan struct{})
	go func() { // joined below
		defer close(left)
		defer stop()
		_ = registrar.Run(registering) // it ends with its context, and has logged what was refused
	}()
	defer func() { leave(); <-left }() // where it cannot serve any more
	return serve(serving)
}
