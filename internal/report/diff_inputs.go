package report

import (
	"fmt"
	"slices"

	"github.com/atollhq/atoll/internal/assess"
)

// sorted tells the inputs that were changed by hand from those that follow, and counts those that came and went with what
// they belong to, which is named elsewhere.
func sorted(d *assess.Difference) (written, filled []assess.InputChange, along int) {
	whole := map[assess.Thing]bool{}
	for _, t := range slices.Concat(d.Added, d.Removed) {
		whole[t] = true
	}
	for _, i := range d.Inputs {
		switch e := entry(i); {
		case i.Filled:
			filled = append(filled, i)
		case (i.Before == nil || i.After == nil) && whole[assess.Thing{Kind: e.Kind, Name: e.Name}]:
			along++
		default:
			written = append(written, i)
		}
	}
	return written, filled, along
}

func entry(i assess.InputChange) *assess.Entry {
	if i.After != nil {
		return i.After
	}
	return i.Before
}

// said is what a file says, with the source that it names.
func said(e *assess.Entry) string {
	switch {
	case e == nil || e.Text == "":
		return "–"
	case e.Source != "" && e.Line > 0:
		return e.Text + " (" + e.Source + ")"
	case e.Line == 0 && e.Assumed:
		return e.Text + " (filled in)"
	}
	return e.Text
}

// lines says where both files say it.
func lines(i assess.InputChange) string {
	at := func(e *assess.Entry) string {
		if e == nil || e.Line == 0 {
			return "–"
		}
		return fmt.Sprint(e.Line)
	}
	return at(i.Before) + " → " + at(i.After)
}

// surer says where an input became known, or was one and is assumed.
func surer(i assess.InputChange) string {
	switch {
	case i.Before == nil || i.After == nil || len(i.Before.Values) == 0 || len(i.After.Values) == 0 || i.Before.Assumed == i.After.Assumed:
		return ""
	case i.After.Assumed:
		return "given → assumed"
	}
	return "assumed → given"
}

func (t *writer) inputChanges(d *assess.Difference) {
	written, filled, along := sorted(d)
	if len(d.Inputs) == 0 {
		return
	}
	t.title("Inputs that differ (~ marks what is assumed)")
	for n, i := range written {
		if n == shownInputs {
			t.more(len(written) - n)
			break
		}
		t.line("  %s%s", left(line(i.Path), 58), t.in(faint, right("line "+lines(i), 18)))
		text := said(i.Before) + " → " + said(i.After)
		if s := surer(i); s != "" {
			text += ", " + s
		}
		t.wrapped("    ", "    ", text)
	}
	if along > 0 {
		t.line("  %s", t.in(faint, fmt.Sprintf("%s with what was added or removed (--json)", plural(along, "line came or went", "lines came or went"))))
	}
	if len(filled) > 0 {
		var texts []string
		for _, i := range filled {
			texts = append(texts, fmt.Sprintf("%s %s → %s", i.Path, i.Before.Text, i.After.Text))
		}
		t.wrapped("  ", "  ", "filled in, so they follow: "+listed(texts, 6))
	}
}
