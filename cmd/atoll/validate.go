package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/spec"
)

func (c *cli) validate() *cobra.Command {
	var sample, schema bool
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "check the spec; print a sample or its JSON schema",
		Example: `  atoll validate --sample > atoll.yaml
  atoll validate -f atoll.yaml
  atoll validate --schema > atoll.schema.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			switch {
			case sample:
				_, err := out.Write(spec.Sample())
				return err
			case schema:
				_, err := out.Write(spec.Schema())
				return err
			}
			s, err := c.load()
			var problems spec.Problems
			if c.json && (err == nil || errors.As(err, &problems)) {
				if problems == nil {
					problems = spec.Problems{}
				}
				if e := printJSON(out, map[string]any{"ok": err == nil, "problems": problems}); e != nil {
					return e
				}
			}
			if err != nil {
				if n := len(problems); n > 0 {
					return fmt.Errorf("%d problem(s)\n%w", n, err)
				}
				return err
			}
			if !c.json {
				fmt.Fprintf(out, "%s is valid: %d site(s), %d keyspace(s), %d table(s), %d route(s)\n",
					c.file, len(s.Sites), len(s.Keyspaces), len(s.Tables), len(s.Routes))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&sample, "sample", false, "print a commented spec to start from")
	cmd.Flags().BoolVar(&schema, "schema", false, "print the JSON schema of the spec")
	return cmd
}
