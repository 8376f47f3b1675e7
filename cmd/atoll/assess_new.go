package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/assess"
)

func (c *cli) assessNew() *cobra.Command {
	var plainly bool
	cmd := &cobra.Command{
		Use:   "new [FILE]",
		Short: "write an estate to start from; on a terminal it asks a few questions first",
		Long: `Writes a commented estate that assesses as it stands, to FILE or to standard output. A file that exists is left alone. Where FILE is named
and standard input is a terminal, it asks for sites, cities, services and revenue first and fills them in; --no-questions does not.`,
		Example: `  atoll assess new estate.yaml
  atoll assess new > estate.yaml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			draft := assess.NewDraft()
			if len(args) == 1 {
				if _, err := os.Stat(args[0]); err == nil {
					return fmt.Errorf("%s exists already; name another file, or remove it first", args[0])
				}
				if !plainly && isTerminal(cmd.InOrStdin()) {
					if err := askFor(draft, cmd.InOrStdin(), cmd.ErrOrStderr()); err != nil {
						return err
					}
				}
			}
			text, err := draft.Text()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				_, err := io.WriteString(cmd.OutOrStdout(), text)
				return err
			}
			if err := writeFile(args[0], func(w io.Writer) error { _, err := io.WriteString(w, text); return err }); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s; next: atoll assess %s\n", args[0], args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&plainly, "no-questions", false, "ask nothing, also on a terminal")
	return cmd
}

// questions are put one by one; an empty answer takes what stands in brackets.
type questions struct {
	in  *bufio.Scanner
	out io.Writer
	end error
}

// ask puts a question until check is content with its answer. What is wrong is said.
func (q *questions) ask(question, usual string, check func(string) error) string {
	for q.end == nil {
		fmt.Fprintf(q.out, "%s [%s] ", question, usual)
		if !q.in.Scan() {
			q.end = cmp.Or(q.in.Err(), errors.New("the answers ended; nothing was written"))
			return usual
		}
		answer := cmp.Or(strings.TrimSpace(q.in.Text()), usual)
		if err := check(answer); err != nil {
			fmt.Fprintf(q.out, "  %s\n", oneLine(err.Error()))
			continue
		}
		return answer
	}
	return usual
}

func anything(string) error { return nil }

// words are separated by commas or blanks.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
}

// askFor fills a draft in with answers.
func askFor(d *assess.Draft, in io.Reader, out io.Writer) error {
	q := &questions{in: bufio.NewScanner(in), out: out}
	fmt.Fprintln(out, "A few questions; press enter for what stands in brackets. Everything can be changed in the file.")
	d.Title = q.ask("What is it called?", d.Title, anything)
	d.Currency = q.ask("In which currency?", d.Currency, anything)
	named := func(make func(name string) assess.Draft) func(string) error {
		return func(answer string) error {
			if len(words(answer)) == 0 {
				return errors.New("name at least one")
			}
			for _, name := range words(answer) {
				probe := make(name)
				if err := probe.Check(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	sites := q.ask("Which sites are there, or could be? The first is where all runs today.", "dc1, cloud1", named(func(name string) assess.Draft {
		return assess.Draft{Sites: []assess.DraftSite{{Name: name, Kind: assess.Own}}, Services: []assess.DraftService{{Name: "x"}}}
	}))
	d.Sites = nil
	for _, name := range words(sites) {
		usual := "own"
		if strings.Contains(strings.ToLower(name), "cloud") {
			usual = "cloud"
		}
		kind := q.ask("  "+name+": your own, or a public cloud's?", usual, func(answer string) error {
			if answer != "own" && answer != "cloud" {
				return errors.New("write own or cloud")
			}
			return nil
		})
		city := q.ask("  "+name+": in which city?", name+"-city", anything)
		d.Sites = append(d.Sites, assess.DraftSite{Name: name, City: city, Kind: assess.SiteKind(kind)})
	}
	services := q.ask("Which services? The one that earns most first.", "shop, stock", named(func(name string) assess.Draft {
		return assess.Draft{Sites: []assess.DraftSite{{Name: "x", Kind: assess.Own}}, Services: []assess.DraftService{{Name: name}}}
	}))
	d.Services = nil
	for _, name := range words(services) {
		revenue := q.ask("  "+name+": revenue of an average minute (a range or ~guess will do)?", "0", func(answer string) error {
			_, err := assess.ParseNumber(answer, assess.Money)
			return err
		})
		d.Services = append(d.Services, assess.DraftService{Name: name, Minute: revenue})
	}
	if q.end != nil {
		return q.end
	}
	return d.Check()
}
