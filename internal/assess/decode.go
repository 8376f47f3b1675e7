package assess

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// Problem is one thing that is wrong in a file, and what to write instead. Line and Column count from 1.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (p Problem) String() string {
	out := fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Message)
	if p.Hint != "" {
		out += " (" + p.Hint + ")"
	}
	return out
}

// Problems is the error for a file that can be read but not used.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// place is where something was written.
type place struct{ line, column int }

// places knows, by path ("sites.a.needs"), where everything was written.
type places map[string]place

// of returns the place of a path, or of the nearest thing around it.
func (p places) of(path string) place {
	for {
		if at, ok := p[path]; ok {
			return at
		}
		cut := strings.LastIndexByte(path, '.')
		if cut < 0 {
			return place{1, 1}
		}
		path = path[:cut]
	}
}

// decoder fills structs from a YAML tree by their tags, and notes where each value stands. Every unknown key, wrong
// unit and wrong shape is a problem; it goes on, so that one run shows them all.
type decoder struct {
	file     string
	where    places
	problems Problems
	budget   int // nodes still to be visited: aliases could make a small file a huge tree
}

var (
	numberType     = reflect.TypeFor[Number]()
	expressionType = reflect.TypeFor[Expression]()
)

func (d *decoder) problem(at place, hint, format string, args ...any) {
	d.problems = append(d.problems, Problem{d.file, at.line, at.column, fmt.Sprintf(format, args...), hint})
}

func placeOf(tok *token.Token) place {
	if tok == nil || tok.Position == nil {
		return place{1, 1}
	}
	return place{tok.Position.Line, tok.Position.Column}
}

// value fills into from node.
func (d *decoder) value(node ast.Node, into reflect.Value, path string, unit Unit) {
	at := placeOf(node.GetToken())
	if _, noted := d.where[path]; !noted {
		d.where[path] = at
	}
	if d.budget--; d.budget < 0 {
		if d.budget == -1 {
			d.problem(at, "", "the file holds too much")
		}
		return
	}
	switch n := node.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.problem(at, "write the value out", "anchors, aliases and tags are not read")
		return
	case *ast.NullNode:
		_ = n
		d.problem(at, "leave the key out, or give it a value", "%s is empty", last(path))
		return
	}
	switch {
	case into.Type() == numberType:
		d.number(node, into, path, unit)
	case into.Type() == expressionType:
		d.expression(node, into)
	case into.Kind() == reflect.Pointer:
		if into.IsNil() {
			into.Set(reflect.New(into.Type().Elem()))
		}
		d.value(node, into.Elem(), path, unit)
	case into.Kind() == reflect.Struct:
		d.structure(node, into, path)
	case into.Kind() == reflect.Map:
		d.mapping(node, into, path, unit)
	case into.Kind() == reflect.Slice:
		d.list(node, into, path, unit)
	default:
		d.scalar(node, into, path)
	}
}

func last(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

func entries(node ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := node.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

// keyed visits the keys of a mapping; false if node is none.
func (d *decoder) keyed(node ast.Node, path string, visit func(key string, at place, value ast.Node)) bool {
	values, ok := entries(node)
	if !ok {
		d.problem(placeOf(node.GetToken()), "", "%s wants keys, as in key: value", last(path))
		return false
	}
	seen := map[string]bool{}
	for _, kv := range values {
		tok := kv.Key.GetToken()
		key := tok.Value
		at := placeOf(tok)
		if seen[key] {
			d.problem(at, "", "%s is there twice", key)
			continue
		}
		seen[key] = true
		if kv.Value == nil {
			d.problem(at, "leave the key out, or give it a value", "%s is empty", key)
			continue
		}
		visit(key, at, kv.Value)
	}
	return true
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (d *decoder) structure(node ast.Node, into reflect.Value, path string) {
	fields := map[string]int{}
	for i := range into.NumField() {
		if key := into.Type().Field(i).Tag.Get("yaml"); key != "" && key != "-" {
			fields[key] = i
		}
	}
	d.keyed(node, path, func(key string, at place, value ast.Node) {
		i, known := fields[key]
		if !known {
			d.problem(at, nearest(key, slices.Sorted(maps.Keys(fields))), "unknown key %q", key)
			return
		}
		d.where[join(path, key)] = at
		d.value(value, into.Field(i), join(path, key), Unit(into.Type().Field(i).Tag.Get("unit")))
	})
}

func (d *decoder) mapping(node ast.Node, into reflect.Value, path string, unit Unit) {
	if into.IsNil() {
		into.Set(reflect.MakeMap(into.Type()))
	}
	d.keyed(node, path, func(key string, at place, value ast.Node) {
		if !validName(key) {
			d.problem(at, "want letters, digits, - and _", "name %q", key)
			return
		}
		d.where[join(path, key)] = at
		v := reflect.New(into.Type().Elem()).Elem()
		d.value(value, v, join(path, key), unit)
		into.SetMapIndex(reflect.ValueOf(key).Convert(into.Type().Key()), v)
	})
}

// validName keeps names usable in expressions.
func validName(s string) bool {
	if s == "" || len(s) > 64 || s == "and" || s == "or" || s == "of" || s == "all" {
		return false
	}
	for i, r := range s {
		if !isWord(r) || r == '.' || i == 0 && (r == '-' || r >= '0' && r <= '9') {
			return false
		}
	}
	return true
}

func (d *decoder) list(node ast.Node, into reflect.Value, path string, unit Unit) {
	seq, ok := node.(*ast.SequenceNode)
	if !ok {
		d.problem(placeOf(node.GetToken()), "write [one, two] or lines that begin with -", "%s wants a list", last(path))
		return
	}
	for i, item := range seq.Values {
		v := reflect.New(into.Type().Elem()).Elem()
		if item == nil {
			continue
		}
		d.value(item, v, join(path, strconv.Itoa(i)), unit)
		into.Set(reflect.Append(into, v))
	}
}

// text returns the text of a scalar.
func (d *decoder) text(node ast.Node) (string, bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return node.GetToken().Value, true
	}
	return "", false
}

func (d *decoder) scalar(node ast.Node, into reflect.Value, path string) {
	at := placeOf(node.GetToken())
	text, ok := d.text(node)
	if !ok {
		d.problem(at, "", "%s wants one value", last(path))
		return
	}
	switch into.Kind() {
	case reflect.String:
		into.SetString(text)
	case reflect.Bool:
		v, err := strconv.ParseBool(text)
		if err != nil {
			d.problem(at, "write true or false", "%s is %q", last(path), text)
		}
		into.SetBool(v)
	case reflect.Int:
		v, err := strconv.Atoi(text)
		if err != nil {
			d.problem(at, "write a whole number", "%s is %q", last(path), text)
		}
		into.SetInt(int64(v))
	case reflect.Float64:
		n, err := parseNumber(text, Ratio)
		if err != nil {
			d.problem(at, "", "%s: %v", last(path), err)
		}
		into.SetFloat(n.Mean())
	default:
		panic("BUG: the model has a field of kind " + into.Kind().String())
	}
}

// number reads "2h", or {value: 2h, assumed: true, source: a survey}.
func (d *decoder) number(node ast.Node, into reflect.Value, path string, unit Unit) {
	at := placeOf(node.GetToken())
	var source string
	isAssumed := false
	if _, ok := entries(node); ok {
		var value ast.Node
		d.keyed(node, path, func(key string, at place, v ast.Node) {
			switch key {
			case "value":
				value = v
			case "source":
				source, _ = d.text(v)
			case "assumed":
				text, _ := d.text(v)
				isAssumed = text == "true"
				if text != "true" && text != "false" {
					d.problem(at, "write true or false", "assumed is %q", text)
				}
			default:
				d.problem(at, nearest(key, []string{"assumed", "source", "value"}), "unknown key %q", key)
			}
		})
		if value == nil {
			d.problem(at, "write {value: 2h, source: …}", "%s has no value", last(path))
			return
		}
		node = value
	}
	text, ok := d.text(node)
	if !ok {
		d.problem(at, "write for example "+example[unit], "%s wants one value", last(path))
		return
	}
	n, err := parseNumber(text, unit)
	if err != nil {
		d.problem(placeOf(node.GetToken()), "", "%s: %v", last(path), err)
		return
	}
	n.Source, n.Path, n.Assumed = source, path, n.Assumed || isAssumed
	n.Line, n.Column = at.line, at.column
	into.Set(reflect.ValueOf(n))
}

func (d *decoder) expression(node ast.Node, into reflect.Value) {
	at := placeOf(node.GetToken())
	text, ok := d.text(node)
	if !ok {
		d.problem(at, "write for example: feed-a and (ups-1 or ups-2)", "want an expression")
		return
	}
	e, err := parseExpression(text)
	if err != nil {
		if o, ok := err.(*offsetError); ok && !strings.Contains(text, "\n") {
			at.column += o.at
		}
		d.problem(at, "", "%v", err)
		return
	}
	e.Line, e.Column = at.line, at.column
	into.Set(reflect.ValueOf(e))
}

// nearest suggests the known word that was probably meant.
func nearest(word string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if n := edits(strings.ToLower(word), k); n < distance {
			best, distance = k, n
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	case len(known) == 0:
		return ""
	}
	return "known: " + strings.Join(known, ", ")
}

// edits is the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
