package main

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

func initCommand() *cobra.Command {
	var env, grant string
	var schemaOnly bool
	var shape seed.Shape
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create the shop's tables, events, seats and customers",
		Long: `Create the shop's tables, events, seats and customers in an empty database, as the role that shall own them.
It may be repeated: what exists is left as it is.

Only the first site gets rows this way. A further site needs the tables alone (--schema-only); its rows come from
the first one.`,
		Example: "  tickets init --dsn-env SHOP_DSN --seats 20000 --customers 1000\n  tickets init --dsn-env SHOP_B_DSN --schema-only",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := dsn(env)
			if err != nil {
				return err
			}
			config, err := pgx.ParseConfig(text)
			if err != nil {
				return fmt.Errorf("%s: %w", env, err)
			}
			if config.ConnectTimeout == 0 {
				config.ConnectTimeout = 10 * time.Second
			}
			db, err := pgx.ConnectConfig(cmd.Context(), config)
			if err != nil {
				return fmt.Errorf("%s: %w", env, err)
			}
			defer db.Close(cmd.Context())
			if err := seed.Schema(cmd.Context(), db); err != nil {
				return err
			}
			if grant != "" {
				if err := seed.Grant(cmd.Context(), db, grant); err != nil {
					return err
				}
			}
			if schemaOnly {
				return nil
			}
			return seed.Fill(cmd.Context(), db, shape)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&env, "dsn-env", "SHOP_DSN", "environment variable that holds the database's connection string")
	flags.BoolVar(&schemaOnly, "schema-only", false, "create the tables and no rows")
	flags.StringVar(&grant, "grant", "", "also let this role use the tables, where the shop does not run as their owner")
	shapeFlags(cmd, &shape)
	flags.IntVar(&shape.Seats, "seats", 20000, "number of seats, in all")
	return cmd
}

// shapeFlags are the numbers that init and load have to agree on.
func shapeFlags(cmd *cobra.Command, shape *seed.Shape) {
	cmd.Flags().Int64Var(&shape.Seed, "seed", 1, "makes the ids of events, seats and customers; the same for init and load")
	cmd.Flags().IntVar(&shape.Events, "events", 4, "number of events")
	cmd.Flags().IntVar(&shape.Customers, "customers", 1000, "number of customers")
}
