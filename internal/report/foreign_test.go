package report

import (
	"bytes"
	"encoding/xml"
	"io"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/atollhq/atoll/internal/assess"
	"github.com/atollhq/atoll/internal/fault"
)

// hostile is what a file could hold to break out of a page, a chart, an attribute, or to command a terminal.
const hostile = "</title></svg></style><script>alert(1)</script><img src=x onerror=alert(2)>\" onload=\"alert(3) ' x='{{.}}\x1b]0;owned\x07\x1b[2J\u202e\u2028\x00"

// poisoned is a report in which every text that there is ends in something hostile.
func poisoned(t *testing.T) *assess.Report {
	t.Helper()
	r := *assessed(t, "../assess/testdata/small.yaml")
	out := poison(reflect.ValueOf(r)).Interface().(assess.Report)
	return &out
}

// poison copies a value and appends to its strings, but for units, which the program writes, not a file.
func poison(v reflect.Value) reflect.Value {
	out := reflect.New(v.Type()).Elem()
	switch v.Kind() {
	case reflect.String:
		if v.Type() == reflect.TypeFor[assess.Unit]() {
			return v
		}
		out.SetString(v.String() + hostile)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				out.Field(i).Set(poison(v.Field(i)))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			out = reflect.Append(out, poison(v.Index(i)))
		}
	case reflect.Map:
		out = reflect.MakeMap(v.Type())
		for _, k := range v.MapKeys() {
			out.SetMapIndex(poison(k), poison(v.MapIndex(k)))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			out = reflect.New(v.Type().Elem())
			out.Elem().Set(poison(v.Elem()))
		}
	default:
		return v
	}
	return out
}

var (
	tags       = regexp.MustCompile(`<([a-zA-Z!/][^>]*)>`)
	attributes = regexp.MustCompile(`^/?[a-zA-Z0-9!]+(\s+[a-zA-Z][a-zA-Z0-9-]*(=("[^"<>]*"|[a-z0-9]+))?)*\s*/?$`)
)

// TestPage_HoldsOnlyItsOwnMarkup: whatever stands in a file, a page's elements are those of its template and charts.
func TestPage_HoldsOnlyItsOwnMarkup(t *testing.T) {
	t.Parallel()
	var page bytes.Buffer
	if err := HTML(&page, poisoned(t)); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	for _, tag := range tags.FindAllStringSubmatch(text, -1) {
		name := strings.Fields(strings.TrimLeft(tag[1], "/"))[0]
		switch {
		case name == "script" || name == "img":
			t.Fatalf("an element that is not ours: <%s>", tag[1])
		case !attributes.MatchString(tag[1]):
			t.Fatalf("a tag that is broken up: <%s>", tag[1])
		}
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' || r == '\u202e' }); i >= 0 {
		t.Errorf("a control character: %q", text[max(0, i-300):i+10])
	}
	if !strings.Contains(text, "&lt;script&gt;alert(1)") {
		t.Error("the test poisons nothing")
	}
	for _, chart := range regexp.MustCompile(`(?s)<svg class="chart.*?</svg>`).FindAllString(text, -1) {
		dec := xml.NewDecoder(strings.NewReader(chart))
		for {
			if _, err := dec.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("a chart is not well-formed: %v", err)
			}
		}
	}
}

// TestTerminal_ObeysNothing: text for terminals holds no control character but line ends, and with colours only ours.
func TestTerminal_ObeysNothing(t *testing.T) {
	t.Parallel()
	r := poisoned(t)
	m := &fault.Model{Top: hostile, Gates: map[string]fault.Formula{hostile: fault.AnyOf(fault.Ref(hostile + "e"))}, Events: map[string]fault.Event{hostile + "e": {Probability: .1}}}
	res, err := fault.Analyse(m, fault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	faults := Faults(m, res)
	gate := Gate{Text: hostile, id: hostile, at: hostile}
	for name, write := range map[string]func(w io.Writer, color bool) error{
		"report": func(w io.Writer, color bool) error { return Text(w, r, color) },
		"ids":    func(w io.Writer, _ bool) error { return IDs(w, r) },
		"every derivation": func(w io.Writer, color bool) error {
			for id := range r.Book {
				if err := Explain(w, r, id, color); err != nil {
					return err
				}
			}
			return nil
		},
		"fault tree": faults.Text,
		"network": func(w io.Writer, color bool) error {
			return ConnectionsText(w, []Connection{{From: hostile, To: hostile, CutSets: CutSets{MostProbable: []CutSet{{Events: []string{hostile}}}}}}, color)
		},
		"refusals": func(w io.Writer, _ bool) error {
			_, err := gate.Check(r)
			_, io1 := io.WriteString(w, err.Error())
			_, err = ParseGate(hostile)
			_, io2 := io.WriteString(w, err.Error())
			if err := Explain(io.Discard, r, hostile, false); err != nil {
				io.WriteString(w, err.Error())
			}
			return firstOf(io1, io2)
		},
	} {
		for _, color := range []bool{false, true} {
			var out bytes.Buffer
			if err := write(&out, color); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			text := out.String()
			if color {
				text = regexp.MustCompile("\x1b\\[[0-9]+m").ReplaceAllString(text, "")
			}
			if i := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Cf, r) }); i >= 0 {
				t.Errorf("%s, colours %v: %q", name, color, text[max(0, i-60):i+10])
			}
		}
	}
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
