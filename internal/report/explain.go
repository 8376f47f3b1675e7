package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

// IDs writes what can be explained, by what it belongs to.
func IDs(w io.Writer, r *assess.Report) error {
	var b strings.Builder
	group := ""
	for _, id := range slices.Sorted(maps.Keys(r.Book)) {
		if g, _, _ := strings.Cut(id, "."); g != group {
			group = g
			b.WriteString("\n")
		}
		d := r.Book[id]
		fmt.Fprintf(&b, "%s %s  %s\n", left(line(id), max(36, runes(line(id)))), right(short(d.Value, d.Unit), 9), line(d.What))
	}
	_, err := io.WriteString(w, strings.TrimPrefix(b.String(), "\n"))
	return err
}

// short writes a value as tables have it.
func short(v float64, unit assess.Unit) string {
	switch unit {
	case assess.Duration:
		return duration(v)
	case assess.Money:
		return money(v)
	case assess.Ratio:
		if v > .9 && v < 1 {
			return share(v)
		}
		if v > 0 && v < .0005 {
			return fmt.Sprintf("%.3g", v)
		}
		return percent(v)
	}
	return significant(v, 3)
}

// deepest is how far a derivation is followed into its parts.
const deepest = 4

// Explain writes how one number came about: its method, what it is made of, and the inputs with the lines where they
// stand, the assumed ones marked with how far they may be wrong. The error names ids that are near.
func Explain(w io.Writer, r *assess.Report, id string, color bool) error {
	if _, ok := r.Book[id]; !ok {
		return fmt.Errorf("nothing is called %q; %s", line(id), nearestIDs(r.Book, id))
	}
	t := &writer{color: color}
	x := &explainer{t, r, map[string]bool{}, map[string]assess.Doubt{}}
	for _, d := range r.Doubts {
		x.doubts[d.Input.Path] = d
	}
	x.derivation(id, 0)
	_, err := io.WriteString(w, t.b.String())
	return err
}

type explainer struct {
	*writer
	r      *assess.Report
	told   map[string]bool
	doubts map[string]assess.Doubt
}

func (x *explainer) derivation(id string, depth int) {
	d := x.r.Book[id]
	x.told[id] = true
	in := strings.Repeat("    ", depth)
	x.line("%s%s = %s", in, x.in(bold, line(d.ID)), x.in(bold, line(figure(d.Value, d.Unit, x.r.Currency))))
	x.wrapped(in+"  ", in+"  ", d.What)
	x.wrapped(in+"  how: ", in+"       ", d.Method)
	if len(d.Parts) > 0 {
		x.line("%s  made of:", in)
		for _, p := range d.Parts {
			name := line(p.Name)
			value := line(figure(p.Value, p.Unit, x.r.Currency))
			if room := width - len(in) - 4 - runes(value) - 2; runes(name) <= room {
				name = left(name, room)
			}
			x.line("%s    %s  %s", in, name, value)
		}
	}
	x.inputs(d.Inputs, in)
	for _, p := range d.Parts {
		if _, known := x.r.Book[p.ID]; !known || x.told[p.ID] || depth+1 >= deepest {
			continue
		}
		x.line("")
		x.derivation(p.ID, depth+1)
	}
}

func (x *explainer) inputs(list []assess.Input, in string) {
	if len(list) == 0 {
		return
	}
	x.line("%s  inputs of %s (~ marks what is assumed):", in, line(x.r.File))
	for _, i := range list {
		at := "        –"
		if i.Line > 0 {
			at = right(fmt.Sprintf("line %d", i.Line), 9)
		}
		text := line(i.Text)
		if i.Assumed && !strings.HasPrefix(text, "~") {
			text = "~" + text
		}
		if i.Source != "" {
			text += ", " + line(i.Source)
		}
		if i.Assumed {
			text = x.in(yellow, text)
		}
		x.line("%s  %s  %s  %s", in, at, left(line(i.Path), max(34, min(46, runes(line(i.Path))))), text)
		if d, ok := x.doubts[i.Path]; ok && i.Assumed {
			note := "may be wrong tenfold either way: no verdict changes"
			if d.Factor > 0 {
				note = fmt.Sprintf("at × %s the verdict on %s flips", significant(d.Factor, 3), line(d.Service))
			}
			x.line("%s             %s", in, x.in(faint, note))
		}
	}
}

// nearestIDs suggests ids that begin alike.
func nearestIDs(book assess.Book, id string) string {
	group, _, _ := strings.Cut(id, ".")
	var near []string
	for _, known := range slices.Sorted(maps.Keys(book)) {
		if g, _, _ := strings.Cut(known, "."); g == group {
			near = append(near, line(known))
		}
	}
	if len(near) == 0 {
		return "--explain without an id lists what can be asked"
	}
	return "there are " + listed(near, 24)
}
