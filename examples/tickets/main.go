// Command tickets is a ticket shop, its data and its load generator: the sample application of Atoll.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "tickets:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "tickets",
		Short: "A ticket shop on PostgreSQL, and load for it",
		Long: `A ticket shop on PostgreSQL, and load for it.

  tickets init    creates the shop's tables, events, seats and customers
  tickets serve   runs the shop
  tickets load    buys tickets, at a rate that does not depend on how fast the shop answers`,
		Example: `  export SHOP_DSN=postgres://shop@127.0.0.1:5432/shop
  tickets init --dsn-env SHOP_DSN --seats 20000 --customers 1000
  tickets serve --dsn-env SHOP_DSN --listen 127.0.0.1:9000 --gateway http://127.0.0.1:8080 --site a`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(initCommand(), serveCommand(), loadCommand())
	return root
}

// dsn reads a connection string from the environment variable that a flag names, so that it is neither in a file nor
// in the process list.
func dsn(env string) (string, error) {
	text := os.Getenv(env)
	if text == "" {
		return "", fmt.Errorf("environment variable %s is empty; set it to the database's connection string, for example postgres://shop@127.0.0.1:5432/shop", env)
	}
	return text, nil
}
