package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/assess"
	"github.com/atollhq/atoll/internal/reload"
	"github.com/atollhq/atoll/internal/report"
)

// gateFailed is the exit status for a build: what was asked for is not so. 1 is for errors.
const gateFailed = 2

// listIDs is --explain without an id.
const listIDs = "?"

type assessing struct {
	simulate bool
	years    float64
	html     string
	explain  string
	gates    []string
}

func (c *cli) assess() *cobra.Command {
	o := &assessing{}
	cmd := &cobra.Command{
		Use:   "assess FILE [--explain [ID]]",
		Short: "say where it would break, what a second site is worth, and in which order",
		Long: `Reads an estate (sites with power, cooling and carriers; services with calls, demand and revenue; prices) and says which services
deserve another site, which do not, what to mend first, and in which steps to go. Probabilities are exact; --simulate lets a second
engine check them. Every number can be asked where it comes from.

Gates, for builds (--gate may be given more than once):
` + report.GateHelp + `

Exit status: 0 fine; 1 error, such as a file that is wrong; 2 a gate failed.`,
		Example: `  atoll assess new estate.yaml                      # a commented estate to start from
  atoll assess estate.yaml
  atoll assess estate.yaml --simulate --html report.html
  atoll assess estate.yaml --explain                # what can be asked
  atoll assess estate.yaml --explain checkout.downtime
  atoll assess estate.yaml --gate wants --gate 'total.today.loss<=250k'
  git show main:estate.yaml | atoll assess diff - estate.yaml
  atoll assess export --mef estate.yaml --service checkout > tree.xml
  atoll assess fta tree.xml --json`,
		Args: cobra.RangeArgs(0, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, id, err := o.named(args)
			if err != nil {
				return err
			}
			o.explain = id
			return c.assessFile(cmd, o, file)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.simulate, "simulate", false, "let the second engine, a simulation, look at every service too")
	f.Float64Var(&o.years, "years", 0, "with the simulation, live through so many years of failures and recoveries for each service")
	f.StringVar(&o.html, "html", "", "write the report as one page to this file")
	f.StringVar(&o.explain, "explain", "", "say where the number `ID` comes from; without one: list them")
	f.Lookup("explain").NoOptDefVal = listIDs
	f.StringArrayVar(&o.gates, "gate", nil, "end with status 2 unless this holds; see above")
	cmd.AddCommand(c.assessNew(), c.assessDiff(), c.assessExport(), c.assessFaults(), c.assessNetwork())
	return cmd
}

// named tells the file from the id behind --explain.
func (o *assessing) named(args []string) (file, id string, err error) {
	id = o.explain
	switch {
	case len(args) == 0:
		return "", "", errors.New("name the estate's file: atoll assess estate.yaml; `atoll assess new estate.yaml` writes one to start from")
	case len(args) == 1:
		return args[0], id, nil
	case id != listIDs:
		return "", "", fmt.Errorf("got %q besides %q; want one file", args[1], args[0])
	}
	if _, err := os.Stat(args[0]); err != nil { // --explain ID FILE
		return args[1], args[0], nil
	}
	return args[0], args[1], nil
}

func (c *cli) assessFile(cmd *cobra.Command, o *assessing, file string) error {
	var gates []report.Gate
	for _, text := range o.gates {
		g, err := report.ParseGate(text)
		if err != nil {
			return err
		}
		gates = append(gates, g)
	}
	r, err := assessed(cmd.ErrOrStderr(), file, assess.Options{Simulate: o.simulate || o.years > 0, Years: o.years})
	if err != nil {
		return err
	}
	if o.html != "" {
		if err := writeFile(o.html, func(w io.Writer) error { return report.HTML(w, r) }); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s\n", o.html)
	}
	if err := c.show(cmd.OutOrStdout(), r, o.explain); err != nil {
		return err
	}
	failed, err := report.CheckAll(r, gates)
	if err != nil {
		return err
	}
	return gated(cmd.ErrOrStderr(), failed)
}

func (c *cli) show(out io.Writer, r *assess.Report, explain string) error {
	switch {
	case explain == listIDs && !c.json:
		return report.IDs(out, r)
	case explain == listIDs:
		return printJSON(out, r.Book)
	case explain != "" && c.json:
		d, ok := r.Book[explain]
		if !ok {
			return report.Explain(io.Discard, r, explain, false)
		}
		return printJSON(out, d)
	case explain != "":
		return report.Explain(out, r, explain, isTerminal(out))
	case c.json:
		return printJSON(out, r)
	}
	return report.Text(out, r, isTerminal(out))
}

// assessed reads a file and assesses it. What takes long says so on log, in place if that is a terminal.
func assessed(log io.Writer, file string, o assess.Options) (*assess.Report, error) {
	e, err := assess.Load(file)
	if err != nil {
		return nil, wrong(err)
	}
	what := fmt.Sprintf("assessing %d services at %d sites", len(e.Services), len(e.Sites))
	if o.Simulate {
		what += ", with simulation"
	}
	stop := progress(log, what)
	debug.SetGCPercent(400) // short-lived, and small beside what it throws away
	r, err := assess.Assess(e, o)
	stop()
	if err != nil {
		return nil, fmt.Errorf("assess %s: %w", file, err)
	}
	return r, nil
}

// wrong counts the problems of a file before they are listed.
func wrong(err error) error {
	var problems assess.Problems
	if errors.As(err, &problems) {
		return fmt.Errorf("%d problem(s)\n%w", len(problems), err)
	}
	return err
}

// progress says what is being done once it takes more than a second, and for how long on a terminal. Stop ends it.
func progress(log io.Writer, what string) (stop func()) {
	began, ended, gone := time.Now(), make(chan struct{}), make(chan struct{})
	inPlace := isTerminal(log)
	go func() {
		defer close(gone)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		told := false
		for {
			select {
			case <-ended:
				if told && inPlace {
					fmt.Fprint(log, "\r\x1b[K")
				}
				return
			case <-tick.C:
				if inPlace {
					fmt.Fprintf(log, "\r%s … %s\x1b[K", what, time.Since(began).Round(time.Second))
				} else if !told {
					fmt.Fprintf(log, "%s …\n", what)
				}
				told = true
			}
		}
	}()
	return func() { close(ended); <-gone }
}

// writeFile writes a file whole or not at all.
func writeFile(path string, write func(io.Writer) error) error {
	var b bytes.Buffer
	err := write(&b)
	if err == nil {
		err = reload.Replace(path, 0o644, b.Bytes())
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
