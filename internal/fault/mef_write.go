package fault

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// WriteMEF writes a model in the Open-PSA model exchange format, so that another tool can check it. Names keep their
// letters and digits; all else becomes '_', and what then clashes is numbered.
func WriteMEF(w io.Writer, m *Model) error {
	if err := m.Check(); err != nil {
		return err
	}
	out := &mefWriter{w: bufio.NewWriter(w), names: map[string]string{}, taken: map[string]bool{}}
	out.line(0, `<?xml version="1.0"?>`)
	out.line(0, "<opsa-mef>")
	out.line(1, `<define-fault-tree name="%s">`, out.name("tree:"+cmpTitle(m.Title)))
	for _, name := range slices.Sorted(maps.Keys(m.Gates)) {
		out.line(2, `<define-gate name="%s">`, out.name(name))
		if out.name(name) != name {
			out.line(3, "<label>%s</label>", escaped(name))
		}
		out.formula(3, m, m.Gates[name])
		out.line(2, "</define-gate>")
	}
	for _, name := range slices.Sorted(maps.Keys(m.House)) {
		out.line(2, `<define-house-event name="%s"><constant value="%t"/></define-house-event>`, out.name(name), m.House[name])
	}
	inGroup := map[string]bool{}
	for _, g := range m.Groups {
		for _, name := range g.Members {
			inGroup[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Events)) {
		if inGroup[name] {
			continue
		}
		out.line(2, `<define-basic-event name="%s">`, out.name(name))
		if label := m.Events[name].Label; label != "" || out.name(name) != name {
			out.line(3, "<label>%s</label>", escaped(strings.TrimSpace(name+" "+label)))
		}
		if !m.Events[name].Unknown {
			out.line(3, `<float value="%s"/>`, number(m.Events[name].Probability))
		}
		out.line(2, "</define-basic-event>")
	}
	out.line(1, "</define-fault-tree>")
	for i := range m.Groups {
		out.group(&m.Groups[i])
	}
	out.line(0, "</opsa-mef>")
	return out.w.Flush()
}

func cmpTitle(title string) string {
	if title == "" {
		return "model"
	}
	return title
}

type mefWriter struct {
	w     *bufio.Writer
	names map[string]string
	taken map[string]bool
}

func (o *mefWriter) line(depth int, format string, args ...any) {
	o.w.WriteString(strings.Repeat("  ", depth)) //nolint:errcheck // Flush tells
	fmt.Fprintf(o.w, format+"\n", args...)
}

func (o *mefWriter) name(name string) string {
	if n, ok := o.names[name]; ok {
		return n
	}
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '-':
			return r
		}
		return '_'
	}, strings.TrimPrefix(name, "tree:"))
	if clean == "" || clean[0] == '-' || clean[0] >= '0' && clean[0] <= '9' {
		clean = "_" + clean
	}
	out := clean
	for i := 2; o.taken[strings.ToLower(out)]; i++ {
		out = clean + "_" + strconv.Itoa(i)
	}
	o.taken[strings.ToLower(out)], o.names[name] = true, out
	return out
}

func (o *mefWriter) formula(depth int, m *Model, f Formula) {
	if f.Op == Name {
		kind := "basic-event"
		if _, gate := m.Gates[f.Name]; gate {
			kind = "gate"
		} else if _, house := m.House[f.Name]; house {
			kind = "house-event"
		}
		o.line(depth, `<%s name="%s"/>`, kind, o.name(f.Name))
		return
	}
	// Other readers want two arguments of and and or, and of atleast a number between.
	if f.Op == AtLeast {
		switch f.K {
		case 0:
			f = Formula{Op: True}
		case 1:
			f.Op = Or
		case len(f.Args):
			f.Op = And
		}
	}
	if len(f.Args) == 1 && (f.Op == And || f.Op == Or) {
		o.formula(depth, m, f.Args[0])
		return
	}
	attrs := ""
	switch f.Op {
	case True, False:
		o.line(depth, `<constant value="%t"/>`, f.Op == True)
		return
	case AtLeast:
		attrs = fmt.Sprintf(` min="%d"`, f.K)
	case Between:
		attrs = fmt.Sprintf(` min="%d" max="%d"`, f.K, f.Max)
	}
	o.line(depth, "<%s%s>", f.Op, attrs)
	for _, a := range f.Args {
		o.formula(depth+1, m, a)
	}
	o.line(depth, "</%s>", f.Op)
}

func (o *mefWriter) group(g *Group) {
	o.line(1, `<define-CCF-group name="%s" model="%s">`, o.name(g.Name), g.Model)
	o.line(2, "<members>")
	for _, name := range g.Members {
		o.line(3, `<basic-event name="%s"/>`, o.name(name))
	}
	o.line(2, "</members>")
	o.line(2, `<distribution><float value="%s"/></distribution>`, number(g.Probability))
	o.line(2, "<factors>")
	for i, v := range g.Factors {
		o.line(3, `<factor level="%d"><float value="%s"/></factor>`, firstLevel(g.Model, len(g.Members))+i, number(v))
	}
	o.line(2, "</factors>")
	o.line(1, "</define-CCF-group>")
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func escaped(text string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(text)); err != nil {
		panic("BUG: a string builder fails: " + err.Error())
	}
	return b.String()
}
