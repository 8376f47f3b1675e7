package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/assess"
	"github.com/atollhq/atoll/internal/report"
)

// standardInput stands for a file that comes in by a pipe.
const standardInput = "-"

func (c *cli) assessDiff() *cobra.Command {
	var asked []string
	var markdown bool
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "say what another version of an estate changes: verdicts, totals, single points of failure, roadmap, inputs",
		Long: `Assesses A, as it was, and B, as it would be, and says what differs, the most important first. - reads one of them from standard
input. Layout and comments do not count; numbers that differ by less than a millionth are the same.

Gates, for builds (--gate may be given more than once):
` + report.DiffGateHelp + `

Exit status: 0 fine, whether anything differs or not; 1 error, such as a file that is wrong or another currency; 2 a gate failed.`,
		Example: `  atoll assess diff old.yaml estate.yaml
  git show main:estate.yaml | atoll assess diff - estate.yaml
  git show main:estate.yaml | atoll assess diff - estate.yaml --markdown > comment.md
  atoll assess diff old.yaml estate.yaml --gate no-worse --gate no-new-singles
  atoll assess diff old.yaml estate.yaml --gate 'total.proposed.loss<=+5%' --gate possible
  atoll assess diff old.yaml estate.yaml --json | jq '.verdicts[] | {service, change}'`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if markdown && c.json {
				return errors.New("--json and --markdown: choose one")
			}
			var gates []report.DiffGate
			for _, text := range asked {
				g, err := report.ParseDiffGate(text)
				if err != nil {
					return err
				}
				gates = append(gates, g)
			}
			compared, err := compared(cmd, args[0], args[1])
			if err != nil {
				return err
			}
			if err := c.showDiff(cmd.OutOrStdout(), compared.Difference, markdown); err != nil {
				return err
			}
			failed, err := report.CheckDiff(compared, gates)
			if err != nil {
				return err
			}
			return gated(cmd.ErrOrStderr(), failed)
		},
	}
	cmd.Flags().StringArrayVar(&asked, "gate", nil, "end with status 2 unless this holds; see above")
	cmd.Flags().BoolVar(&markdown, "markdown", false, "write Markdown, for a comment on a pull request")
	return cmd
}

// gated ends with a status of its own where a gate failed.
func gated(log io.Writer, failed []string) error {
	for _, why := range failed {
		fmt.Fprintln(log, "gate", why)
	}
	if len(failed) > 0 {
		return &statusError{errors.New("a gate failed"), gateFailed}
	}
	return nil
}

func (c *cli) showDiff(out io.Writer, d *assess.Difference, markdown bool) error {
	switch {
	case c.json:
		return printJSON(out, d)
	case markdown:
		return report.DiffMarkdown(out, d)
	}
	return report.DiffText(out, d, isTerminal(out))
}

// compared reads and assesses both versions. What is wrong in either is said of both at once.
func compared(cmd *cobra.Command, a, b string) (*report.Compared, error) {
	if a == standardInput && b == standardInput {
		return nil, errors.New("both A and B are -; standard input holds one of them")
	}
	var estates [2]*assess.Estate
	var errs []error
	for i, file := range []string{a, b} {
		e, err := readEstate(cmd.InOrStdin(), file)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", []string{"A, as it was", "B, as it would be"}[i], wrong(err)))
		}
		estates[i] = e
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	stop := progress(cmd.ErrOrStderr(), fmt.Sprintf("assessing %d and %d services", len(estates[0].Services), len(estates[1].Services)))
	defer stop()
	var reports [2]*assess.Report
	for i, e := range estates {
		r, err := assess.Assess(e, assess.Options{})
		if err != nil {
			return nil, fmt.Errorf("assess %s: %w", e.File, err)
		}
		reports[i] = r
	}
	d, err := assess.Diff(reports[0], reports[1])
	if err != nil {
		return nil, fmt.Errorf("compare %s and %s: %w", estates[0].File, estates[1].File, err)
	}
	return &report.Compared{Before: reports[0], After: reports[1], Difference: d}, nil
}

func readEstate(in io.Reader, file string) (*assess.Estate, error) {
	if file == standardInput {
		return assess.Read("standard input", in)
	}
	return assess.Load(file)
}
