// Command atoll makes a service live on several sites at once. See README.md; `atoll help` lists what it does.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/internal/spec"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "atoll:", err)
		stop()
		os.Exit(exitStatus(err))
	}
}

// statusError is an error with an exit status of its own; any other ends with 1.
type statusError struct {
	error
	status int
}

func exitStatus(err error) int {
	var e *statusError
	if errors.As(err, &e) {
		return e.status
	}
	return 1
}

// cli holds what every subcommand shares.
type cli struct {
	file      string
	json      bool
	logFormat string
	logLevel  slog.Level
}

func newRoot() *cobra.Command {
	c := &cli{}
	root := &cobra.Command{
		Use:   "atoll",
		Short: "make a service live on several sites at once, and prove it",
		Long: `Atoll takes an HTTP service and its PostgreSQL database from one site to many, one step at a time.
Users are routed to the site that owns their data, the sites' databases are kept in step, users are moved
between sites without an error, and no two sites ever accept a write for the same key.`,
		Example: `  atoll assess estate.yaml                  # is it worth it, and where would it break?
  atoll validate --sample > atoll.yaml      # a commented file to start from
  atoll validate                            # check it
  atoll ca init && atoll ca issue site a    # certificates: everything between sites is mTLS
  atoll apply --site a --dry-run            # what would change in the database of site a
  atoll up --site a                         # run the site's store, agent and gateways
  atoll switch --keyspace users --buckets 0-24 --to b
  atoll failover --site a --dry-run         # could b take over from a now, and what would be lost?
  atoll site add d                          # take a new site in
  atoll lab demo                            # all of it on this machine`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.SetVersionTemplate("atoll {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVarP(&c.file, "file", "f", "atoll.yaml", "the spec")
	flags.BoolVar(&c.json, "json", false, "print JSON")
	flags.StringVar(&c.logFormat, "log-format", "text", "log as text or json, to stderr")
	flags.TextVar(&c.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	root.AddGroup(&cobra.Group{ID: "plan", Title: "Plan:"}, &cobra.Group{ID: "operate", Title: "Operate:"}, &cobra.Group{ID: "run", Title: "Run:"}, &cobra.Group{ID: "try", Title: "Try:"})
	for group, cmds := range map[string][]*cobra.Command{
		"plan":    {c.assess()},
		"operate": {c.validate(), c.ca(), c.apply(), c.remove(), c.status(), c.switchCmd(), c.failover(), c.explain(), c.conflicts(), c.rebuild(), c.site(), c.services(), c.export()},
		"run":     {c.up(), c.store(), c.agent(), c.gateway(), c.dns(), c.register()},
		"try":     {c.lab()},
	} {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	return root
}

// version names the build, and what is planted into it.
func version() string {
	v := "devel"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		v = info.Main.Version
	}
	if planted := plant.Planted(); len(planted) > 0 {
		v += " planted: " + strings.Join(planted, ",")
	}
	return v
}

// load reads the spec that -f names.
func (c *cli) load() (*spec.Spec, error) { return spec.Load(c.file) }

// logger logs to stderr, so that a command's answer on stdout stays clean.
func (c *cli) logger() (*slog.Logger, error) {
	opts := &slog.HandlerOptions{Level: c.logLevel}
	switch c.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", c.logFormat)
}

// printJSON writes v, indented.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
