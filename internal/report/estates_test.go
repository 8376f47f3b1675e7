package report

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/assess"
)

const estates = "../../examples/estates/"

// estatesPage reads the README of the examples and asks for everything again that it says.
type estatesPage struct {
	t       *testing.T
	reports map[string]*assess.Report
	file    string // of the section
	figures int
	lines   int
}

func (p *estatesPage) report(name string) *assess.Report {
	r := p.reports[name]
	if r == nil {
		e, err := assess.Load(estates + name + ".yaml")
		if err != nil {
			p.t.Fatal(err)
		}
		e.File = "examples/estates/" + name + ".yaml"
		if r, err = assess.Assess(e, assess.Options{Simulate: true}); err != nil {
			p.t.Fatal(err)
		}
		p.reports[name] = r
	}
	return r
}

// figured is a figure in bold and the id that it has, of the section's estate or of one that is named.
var figured = regexp.MustCompile("\\*\\*([^*]+)\\*\\* \\(`(?:([a-z-]+): )?([a-z0-9.-]+)`\\)")

// prose checks a line outside of blocks: its figures are those of the report, and it has no other digit.
func (p *estatesPage) prose(n int, text string) {
	for _, m := range figured.FindAllStringSubmatch(text, -1) {
		name, id := m[2], m[3]
		if name == "" {
			name = p.file
		}
		p.figures++
		d, ok := p.report(name).Book[id]
		if is := short(d.Value, d.Unit); !ok || is != m[1] {
			p.t.Errorf("line %d: %s of %s is %q, the page says %q", n, id, name, is, m[1])
		}
	}
	rest := figured.ReplaceAllString(text, "")
	rest = regexp.MustCompile("`[^`]*`|\\]\\([^)]*\\)|\\bP9[59]\\b").ReplaceAllString(rest, "")
	if regexp.MustCompile(`[0-9]`).MatchString(rest) {
		p.t.Errorf("line %d has a figure that nothing checks: %s", n, text)
	}
}

// output is what a command of a block prints.
func (p *estatesPage) output(n int, command string) string {
	words := strings.Fields(command)
	if len(words) < 4 || words[1] != "atoll" || words[2] != "assess" {
		p.t.Fatalf("line %d: what is %q?", n, command)
	}
	name := strings.TrimSuffix(strings.TrimPrefix(words[3], "examples/estates/"), ".yaml")
	r := *p.report(name)
	var out bytes.Buffer
	var err error
	switch {
	case len(words) == 4:
		err = Text(&out, &r, false)
	case len(words) == 5 && words[4] == "--simulate":
		err = Text(&out, &r, false)
	case len(words) == 6 && words[4] == "--explain":
		err = Explain(&out, &r, words[5], false)
	default:
		p.t.Fatalf("line %d: %q is not understood here", n, command)
	}
	if err != nil {
		p.t.Fatalf("line %d: %v", n, err)
	}
	return spaced(out.String())
}

// spaced makes every run of blanks one, line by line.
func spaced(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = strings.Join(strings.Fields(l), " ")
	}
	return "\n" + strings.Join(lines, "\n") + "\n"
}

// Every figure of the examples' page is what the commands that it names print, and so is every line that it quotes.
func TestExamplesPageIsTrue(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(estates + "README.md")
	if err != nil {
		t.Fatal(err)
	}
	p := &estatesPage{t: t, reports: map[string]*assess.Report{}}
	section := regexp.MustCompile("^`([a-z-]+)\\.yaml`:")
	block, output := false, ""
	for i, l := range strings.Split(string(text), "\n") {
		switch {
		case strings.HasPrefix(l, "```"):
			block, output = !block, ""
		case block && strings.HasPrefix(l, "$ "):
			output = p.output(i+1, l)
		case block && output != "":
			p.lines++
			if !strings.Contains(output, "\n"+strings.Join(strings.Fields(l), " ")+"\n") {
				t.Errorf("line %d: the command prints no line %q", i+1, l)
			}
		case !block:
			if m := section.FindStringSubmatch(l); m != nil {
				p.file = m[1]
			}
			p.prose(i+1, l)
		}
	}
	t.Logf("%d figures and %d quoted lines asked for again", p.figures, p.lines)
	if len(p.reports) < 4 || p.figures < 30 || p.lines < 15 {
		t.Errorf("%d estates, %d figures, %d quoted lines: the page says too little, or is not understood", len(p.reports), p.figures, p.lines)
	}
}
