package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/assess"
	"github.com/atollhq/atoll/internal/fault"
	"github.com/atollhq/atoll/internal/report"
)

// listedSets is how many cut sets an answer lists.
const listedSets = 100

func (c *cli) assessFaults() *cobra.Command {
	var top string
	var order int
	var mission float64
	cmd := &cobra.Command{
		Use:   "fta FILE.xml...",
		Short: "analyse a fault tree in the Open-PSA format: exact probability, minimal cut sets, importance",
		Long: `Reads a fault tree in the Open-PSA model exchange format (gates and, or, atleast, not, xor, …; basic and house events; parameters;
common-cause groups: beta factor, MGL, alpha factor, phi factor) and answers exactly, by a binary decision diagram. A model may be spread over
files: name all of them, or let one <include href="…"/> the others. Without probabilities cut sets are still found.

With --max-order cut sets of more events are left out: of the counts, the list and rare_event_sum. The probability stays exact. JSON:
probability, rare_event_sum, upper_bound, cut_sets {total, by_order, max_order, most_probable}, importance.`,
		Example: `  atoll assess fta tree.xml
  atoll assess fta tree.xml --json | jq .probability
  atoll assess fta gates.xml events.xml
  atoll assess fta plant.xml --top core-damage --max-order 4 --mission-time 24`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if order < 0 || mission < 0 {
				return errors.New("--max-order and --mission-time cannot be negative")
			}
			m, err := loadTree(args, fault.ReadOptions{Top: top, MissionTime: mission})
			if err != nil {
				return err
			}
			stop := progress(cmd.ErrOrStderr(), fmt.Sprintf("analysing %d gates and %d events", len(m.Gates), len(m.Events)))
			r, err := fault.Analyse(m, fault.Options{MaxOrder: order, MaxSets: listedSets})
			stop()
			if errors.Is(err, fault.ErrTooLarge) {
				return fmt.Errorf("analyse %s: %w; a truncation may still find its small cut sets: %s", args[0], err, truncation(order))
			}
			if err != nil {
				return fmt.Errorf("analyse %s: %w", args[0], err)
			}
			a := report.Faults(m, r)
			if c.json {
				return printJSON(cmd.OutOrStdout(), a)
			}
			return a.Text(cmd.OutOrStdout(), isTerminal(cmd.OutOrStdout()))
		},
	}
	f := cmd.Flags()
	f.StringVar(&top, "top", "", "the top `gate` (default: the one that stands in no other)")
	f.IntVar(&order, "max-order", 0, "leave out cut sets of more events than this (default: none)")
	f.Float64Var(&mission, "mission-time", 0, "for times to failure, in the unit of the model's rates (default: 8760)")
	return cmd
}

// truncation says which one to ask for.
func truncation(tried int) string {
	if tried > 1 {
		return fmt.Sprintf("--max-order %d", tried-1)
	}
	return "--max-order 3"
}

func loadTree(paths []string, o fault.ReadOptions) (*fault.Model, error) {
	m, err := fault.ReadMEFFiles(paths, func(name string) (io.ReadCloser, error) { return os.Open(name) }, o)
	var syntax *fault.SyntaxError
	var file *os.PathError
	switch {
	case errors.As(err, &syntax):
		hint := ""
		if syntax.Hint != "" {
			hint = " (" + plain(syntax.Hint) + ")"
		}
		return nil, fmt.Errorf("%s:%d:%d: %s%s", syntax.File, syntax.Line, syntax.Column, plain(syntax.Message), hint)
	case errors.As(err, &file):
		return nil, fmt.Errorf("read the fault tree: %w", err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", paths[0], err)
	}
	return m, nil
}

func (c *cli) assessNetwork() *cobra.Command {
	return &cobra.Command{
		Use:   "network FILE",
		Short: "say how available the connection of every pair of nodes is, exactly, and what cuts it",
		Long: `Reads nodes and edges with their availabilities and answers for every pair: the probability that both ends and some path between
them work, and the minimal sets of nodes and edges that cut it. The file:

  network: 1
  nodes:
    - {name: a}                        # available: 100 % where it is left out
    - {name: b, available: 99.9%}
  edges:
    - {between: [a, b], available: 99.5%}
    - {between: [a, b], available: ~99%, name: second, one_way: true}`,
		Example: `  atoll assess network backbone.yaml
  atoll assess network backbone.yaml --json | jq '.pairs[] | select(.availability < 0.999)'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := assess.LoadNetwork(args[0])
			if err != nil {
				return wrong(err)
			}
			stop := progress(cmd.ErrOrStderr(), fmt.Sprintf("analysing every pair of %d nodes", len(n.Nodes)))
			pairs, err := n.Pairs(fault.Options{MaxSets: listedSets})
			stop()
			if err != nil {
				return fmt.Errorf("analyse %s: %w", args[0], err)
			}
			list := report.Connections(pairs)
			if c.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"pairs": list})
			}
			return report.ConnectionsText(cmd.OutOrStdout(), list, isTerminal(cmd.OutOrStdout()))
		},
	}
}

func (c *cli) assessExport() *cobra.Command {
	var service string
	var mef bool
	cmd := &cobra.Command{
		Use:   "export --mef FILE",
		Short: "write an estate's fault trees for another tool (Open-PSA model exchange format)",
		Long: `Writes the fault tree of a service as it runs today, or one tree of all services, in the Open-PSA model exchange format, so that another
tool can check it. Names become letters, digits, - and _; labels keep what they were.`,
		Example: `  atoll assess export --mef estate.yaml > trees.xml
  atoll assess export --mef estate.yaml --service checkout > checkout.xml
  atoll assess fta checkout.xml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !mef {
				return errors.New("say which format: --mef")
			}
			e, err := assess.Load(args[0])
			if err != nil {
				return wrong(err)
			}
			var services []string
			if service != "" {
				services = []string{service}
			}
			m, err := e.Tree(e.Today(), services...)
			if err != nil {
				return fmt.Errorf("--service: %w", err)
			}
			return fault.WriteMEF(cmd.OutOrStdout(), m)
		},
	}
	cmd.Flags().BoolVar(&mef, "mef", false, "as Open-PSA MEF, the one format so far")
	cmd.Flags().StringVar(&service, "service", "", "only this service's tree (default: one tree of all)")
	return cmd
}
