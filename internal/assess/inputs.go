package assess

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/atollhq/atoll/internal/fault"
)

// Entry is one thing that an estate's file says, or that was filled in because it does not.
type Entry struct {
	Path    string    `json:"path"`           // services.shop.calls.stock.times: members of lists go by their names
	Kind    string    `json:"kind,omitempty"` // service, site, component, link, cause, curve: what it belongs to
	Name    string    `json:"name,omitempty"` // which of them
	Line    int       `json:"line,omitempty"` // 0: not in the file
	Text    string    `json:"text"`           // "~2h", "feed and chiller"; "" where nothing is said
	Unit    Unit      `json:"unit,omitempty"` // of a number
	Values  []float64 `json:"values,omitempty"`
	Assumed bool      `json:"assumed,omitempty"`
	Source  string    `json:"source,omitempty"`
}

// Entries lists all that an estate says, by path. How the file is laid out, its comments, and the order of what has no
// order, are not in it.
func (e *Estate) Entries() []Entry {
	l := &lister{where: e.where}
	l.structure(reflect.ValueOf(e).Elem(), at{})
	slices.SortStableFunc(l.out, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return l.out
}

// at is a place in an estate: as the decoder names it, and as people do.
type at struct{ raw, path, kind, name string }

func (a at) in(raw, key string) at {
	return at{join(a.raw, raw), join(a.path, key), a.kind, a.name}
}

// kinds are what the members of an estate's collections are called.
var kinds = map[string]string{"components": "component", "sites": "site", "links": "link", "shared": "cause", "services": "service", "curves": "curve"}

type lister struct {
	where places
	out   []Entry
}

func (l *lister) add(a at, e Entry) {
	e.Path, e.Kind, e.Name = a.path, a.kind, a.name
	if e.Line == 0 {
		e.Line = l.where[a.raw].line
	}
	l.out = append(l.out, e)
}

func (l *lister) structure(v reflect.Value, a at) {
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("yaml")
		if key == "" || key == "-" {
			continue
		}
		here := a.in(key, key)
		if list, ok := v.Field(i).Interface().([]string); ok {
			if v.Type() != reflect.TypeFor[Placement]() { // there the first site is another than the rest
				list = slices.Compact(slices.Sorted(slices.Values(list)))
			}
			l.add(here, Entry{Text: strings.Join(list, ", ")})
			continue
		}
		l.value(v.Field(i), here)
	}
}

func (l *lister) value(v reflect.Value, a at) {
	switch x := v.Interface().(type) {
	case Number:
		l.number(x, a)
		return
	case Expression:
		text := ""
		if x.need != nil {
			text = x.need.text(false)
		}
		l.add(a, Entry{Text: text, Line: x.Line})
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			l.value(v.Elem(), a)
		}
	case reflect.Struct:
		l.structure(v, a)
	case reflect.Map:
		keys := map[string]reflect.Value{}
		for _, k := range v.MapKeys() {
			keys[k.String()] = k
		}
		for _, name := range slices.Sorted(maps.Keys(keys)) {
			l.value(v.MapIndex(keys[name]), a.member(name, name))
		}
	case reflect.Slice:
		l.list(v, a)
	case reflect.Float64:
		l.add(a, Entry{Text: trim(v.Float()), Unit: Ratio, Values: []float64{v.Float()}})
	default:
		l.scalar(v, a)
	}
}

func (a at) member(raw, name string) at {
	out := a.in(raw, name)
	if kind := kinds[a.path]; kind != "" {
		out.kind, out.name = kind, name
	}
	return out
}

// list names members by what they are, so that a new one in front does not seem to change all.
func (l *lister) list(v reflect.Value, a at) {
	seen := map[string]int{}
	var words []string
	for i := range v.Len() {
		raw := strconv.Itoa(i)
		name := raw
		switch x := v.Index(i).Interface().(type) {
		case *Call:
			name = x.To
		case *Shared:
			name = x.Name
		case *Link:
			name = x.Name
			if _, written := l.where[join(a.raw, raw)+".name"]; !written {
				name = min(x.Between[0], x.Between[1]) + "-" + max(x.Between[0], x.Between[1])
			}
		case Pattern:
			words = append(words, string(x))
			continue
		}
		if seen[name]++; seen[name] > 1 {
			name = fmt.Sprintf("%s (%d)", name, seen[name])
		}
		l.value(v.Index(i), a.member(raw, name))
	}
	if v.Type().Elem() == reflect.TypeFor[Pattern]() {
		l.add(a, Entry{Text: strings.Join(slices.Compact(slices.Sorted(slices.Values(words))), ", ")})
	}
}

// number leaves out what is another input in other words: how often follows from how much.
func (l *lister) number(n Number, a at) {
	switch {
	case !n.Set:
		l.add(a, Entry{Unit: n.Unit})
	case n.Path == a.raw:
		e := Entry{Line: n.Line, Text: n.String(), Unit: n.Unit, Values: []float64{n.Mode}, Assumed: n.Assumed, Source: n.Source}
		if !n.Exact() {
			e.Values = []float64{n.Low, n.Mode, n.High}
		}
		l.add(a, e)
	}
}

// scalar is a word, a whole number or a yes. What is filled in by the names of files and neighbours is not said.
func (l *lister) scalar(v reflect.Value, a at) {
	text := fmt.Sprint(v.Interface())
	if _, written := l.where[a.raw]; !written && v.Kind() == reflect.String {
		text = ""
	}
	l.add(a, Entry{Text: text})
}

// text is a need as an expression, always in the same words.
func (n *need) text(inside bool) string {
	word := ", "
	switch n.op {
	case fault.Name:
		return n.name
	case fault.And:
		word = " and "
	case fault.Or:
		word = " or "
	}
	args := make([]string, len(n.args))
	for i, a := range n.args {
		args[i] = a.text(n.op != fault.AtLeast)
	}
	text := strings.Join(args, word)
	switch {
	case n.op == fault.AtLeast:
		return fmt.Sprintf("%d of (%s)", n.k, text)
	case inside:
		return "(" + text + ")"
	}
	return text
}
