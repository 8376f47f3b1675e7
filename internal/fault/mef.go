package fault

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// maxMEF bounds a file, maxDepth its nesting: both far above any real model.
const (
	maxMEF   = 64 << 20
	maxDepth = 200
)

// SyntaxError says where a model file is wrong and what to write instead.
type SyntaxError struct {
	Line, Column int
	Message      string
	Hint         string
}

func (e *SyntaxError) Error() string {
	out := fmt.Sprintf("line %d, column %d: %s", e.Line, e.Column, e.Message)
	if e.Hint != "" {
		out += "; " + e.Hint
	}
	return out
}

// element is one XML element with its place.
type element struct {
	name         string
	attrs        map[string]string
	children     []*element
	line, column int
}

func (e *element) wrong(hint, format string, args ...any) error {
	return &SyntaxError{e.line, e.column, fmt.Sprintf(format, args...), hint}
}

// parseXML reads a document into elements. Text is of no meaning in the format, besides in labels.
func parseXML(r io.Reader) (*element, map[*element]string, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxMEF+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > maxMEF {
		return nil, nil, fmt.Errorf("the file is larger than %d MiB", maxMEF>>20)
	}
	dec := xml.NewDecoder(bytes.NewReader(data))
	root := &element{}
	stack := []*element{root}
	text := map[*element]string{}
	for {
		line, column := dec.InputPos()
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			line, column := dec.InputPos()
			var syntax *xml.SyntaxError
			message := err.Error()
			if errors.As(err, &syntax) {
				message = syntax.Msg
			}
			return nil, nil, &SyntaxError{line, column, "this is not well-formed XML: " + message, ""}
		}
		top := stack[len(stack)-1]
		switch t := tok.(type) {
		case xml.StartElement:
			e := &element{name: t.Name.Local, attrs: make(map[string]string, len(t.Attr)), line: line, column: column}
			for _, a := range t.Attr {
				e.attrs[a.Name.Local] = a.Value
			}
			if len(stack) > maxDepth {
				return nil, nil, e.wrong("", "elements are nested deeper than %d", maxDepth)
			}
			top.children = append(top.children, e)
			stack = append(stack, e)
		case xml.EndElement:
			stack = stack[:len(stack)-1]
		case xml.CharData:
			if top.name == "label" {
				text[top] += string(t)
			}
		}
	}
	if len(root.children) != 1 || root.children[0].name != "opsa-mef" {
		return nil, nil, &SyntaxError{1, 1, "this is no Open-PSA model", "the outermost element must be one <opsa-mef>"}
	}
	return root.children[0], text, nil
}

// ReadMEF reads a model in the Open-PSA model exchange format: fault trees with components, house events, parameters
// and common-cause groups. Top names the top gate; "" takes the one gate that stands in no other. Distributions of
// uncertainty count with their mean, times to failure at missionTime (0: 8760, a year in hours).
func ReadMEF(r io.Reader, top string, missionTime float64) (*Model, error) {
	root, text, err := parseXML(r)
	if err != nil {
		return nil, err
	}
	if missionTime == 0 {
		missionTime = 8760
	}
	m := &mefReader{labels: text, time: missionTime, parameters: map[string]*definition{}, seen: map[string]*element{},
		model: &Model{Title: root.attrs["name"], Gates: map[string]Formula{}, Events: map[string]Event{}, House: map[string]bool{}}}
	if err := m.container(root, nil); err != nil {
		return nil, err
	}
	if err := m.resolve(); err != nil {
		return nil, err
	}
	if err := m.chooseTop(top); err != nil {
		return nil, err
	}
	if err := m.model.Check(); err != nil {
		return nil, err
	}
	return m.model, nil
}

// definition is a definition whose references wait until every name is known.
type definition struct {
	at     *element
	scope  []string // private components around it, outermost first
	name   string   // full
	label  string
	busy   bool
	value  float64
	valued bool
}

type mefReader struct {
	model      *Model
	labels     map[*element]string
	time       float64
	parameters map[string]*definition
	gates      []*definition
	basics     []*definition
	groups     []*definition
	seen       map[string]*element // every defined gate or event
	undefined  []undefined         // names that are only referred to, as the format allows for basic events of a group
}

type undefined struct {
	at   *element
	name string
}

// container reads the definitions in an element that holds such.
func (m *mefReader) container(e *element, scope []string) error {
	for _, c := range e.children {
		switch c.name {
		case "define-fault-tree", "model-data":
			if err := m.container(c, scope); err != nil {
				return err
			}
		case "define-component":
			inner := scope
			if c.attrs["role"] == "private" {
				name, err := m.nameOf(c)
				if err != nil {
					return err
				}
				inner = append(slices.Clone(scope), name)
			}
			if err := m.container(c, inner); err != nil {
				return err
			}
		case "define-gate", "define-basic-event", "define-house-event", "define-parameter", "define-CCF-group":
			if err := m.define(c, scope); err != nil {
				return err
			}
		case "label", "attributes":
		default:
			return c.wrong("fault trees, components, gates, events, parameters and CCF groups are read", "<%s> is not understood here", c.name)
		}
	}
	return nil
}

func (m *mefReader) nameOf(e *element) (string, error) {
	name := e.attrs["name"]
	if name == "" || strings.ContainsAny(name, " \t\n") {
		return "", e.wrong(`write name="…" without blanks`, "<%s> has name %q", e.name, name)
	}
	return name, nil
}

func full(scope []string, name string) string {
	return strings.Join(append(slices.Clone(scope), name), ".")
}

func (m *mefReader) define(e *element, scope []string) error {
	name, err := m.nameOf(e)
	if err != nil {
		return err
	}
	d := &definition{at: e, scope: scope, name: full(scope, name)}
	if e.attrs["role"] == "private" && len(scope) == 0 {
		d.name = name // private to its fault tree: names of one file are told apart anyway
	}
	for _, c := range e.children {
		if c.name == "label" {
			d.label = strings.TrimSpace(m.labels[c])
		}
	}
	if e.name == "define-parameter" {
		if m.parameters[d.name] != nil {
			return e.wrong("", "parameter %q is defined twice", d.name)
		}
		m.parameters[d.name] = d
		return nil
	}
	if e.name != "define-CCF-group" {
		if before := m.seen[d.name]; before != nil {
			return e.wrong("", "%q is defined twice, first in line %d", d.name, before.line)
		}
		m.seen[d.name] = e
	}
	switch e.name {
	case "define-gate":
		m.gates = append(m.gates, d)
	case "define-basic-event":
		m.basics = append(m.basics, d)
	case "define-house-event":
		return m.house(d)
	case "define-CCF-group":
		m.groups = append(m.groups, d)
	}
	return nil
}

// content lists the children that are not of the document's looks.
func content(e *element) []*element {
	return slices.DeleteFunc(slices.Clone(e.children), func(c *element) bool { return c.name == "label" || c.name == "attributes" })
}

func (m *mefReader) house(d *definition) error {
	m.model.House[d.name] = false
	switch body := content(d.at); {
	case len(body) == 0:
	case len(body) == 1 && body[0].name == "constant":
		on, err := strconv.ParseBool(body[0].attrs["value"])
		if err != nil {
			return body[0].wrong(`write value="true" or value="false"`, "constant %q", body[0].attrs["value"])
		}
		m.model.House[d.name] = on
	default:
		return d.at.wrong("", "a house event holds one <constant>")
	}
	return nil
}

// resolve reads what refers to names.
func (m *mefReader) resolve() error {
	for _, d := range m.basics {
		body := content(d.at)
		switch len(body) {
		case 0:
			m.model.Events[d.name] = Event{Label: d.label} // without a probability: cut sets only
			continue
		case 1:
		default:
			return d.at.wrong("write one expression", "event %q has %d expressions", d.name, len(body))
		}
		p, err := m.value(body[0], d.scope)
		if err != nil {
			return err
		}
		if !(p >= 0 && p <= 1) {
			return body[0].wrong("", "event %q has probability %v; want 0 to 1", d.name, p)
		}
		m.model.Events[d.name] = Event{Probability: p, Label: d.label}
	}
	for _, d := range m.groups {
		if err := m.group(d); err != nil {
			return err
		}
	}
	for _, d := range m.gates {
		body := content(d.at)
		if len(body) != 1 {
			return d.at.wrong("a gate holds one formula", "gate %q holds %d", d.name, len(body))
		}
		f, err := m.formula(body[0], d.scope)
		if err != nil {
			return err
		}
		m.model.Gates[d.name] = f
	}
	for _, u := range m.undefined {
		if _, member := m.model.Events[u.name]; !member {
			return u.at.wrong("define it, or correct the name", "%q is neither a gate nor an event", u.name)
		}
	}
	return nil
}

// lookUp resolves a name from the innermost scope outwards.
func (m *mefReader) lookUp(name string, scope []string) (string, bool) {
	for n := len(scope); n >= 0; n-- {
		if at := full(scope[:n], name); m.seen[at] != nil {
			return at, true
		}
	}
	return name, false
}

func (m *mefReader) formula(e *element, scope []string) (Formula, error) {
	switch e.name {
	case "event", "gate", "basic-event", "house-event":
		name, err := m.nameOf(e)
		if err != nil {
			return Formula{}, err
		}
		at, known := m.lookUp(name, scope)
		if !known {
			m.undefined = append(m.undefined, undefined{e, at})
		}
		return Ref(at), nil
	case "constant":
		on, err := strconv.ParseBool(e.attrs["value"])
		if err != nil {
			return Formula{}, e.wrong(`write value="true" or value="false"`, "constant %q", e.attrs["value"])
		}
		if on {
			return Formula{Op: True}, nil
		}
		return Formula{Op: False}, nil
	}
	ops := map[string]Op{"and": And, "or": Or, "atleast": AtLeast, "not": Not, "xor": Xor, "nand": Nand, "nor": Nor, "iff": Iff, "imply": Imply, "cardinality": Between}
	op, ok := ops[e.name]
	if !ok {
		return Formula{}, e.wrong("and, or, atleast, cardinality, not, xor, nand, nor, iff, imply, constant, gate, basic-event, house-event or event", "<%s> is no formula", e.name)
	}
	f := Formula{Op: op}
	for _, c := range content(e) {
		a, err := m.formula(c, scope)
		if err != nil {
			return f, err
		}
		f.Args = append(f.Args, a)
	}
	var err error
	if op == AtLeast || op == Between {
		if f.K, err = strconv.Atoi(e.attrs["min"]); err != nil {
			return f, e.wrong(`write min="2" or the like`, "min of <%s> is %q", e.name, e.attrs["min"])
		}
	}
	if op == Between {
		if f.Max, err = strconv.Atoi(e.attrs["max"]); err != nil {
			return f, e.wrong(`write max="3" or the like`, "max of <%s> is %q", e.name, e.attrs["max"])
		}
	}
	shallow := Formula{Op: f.Op, K: f.K, Max: f.Max, Args: make([]Formula, len(f.Args))}
	for i := range shallow.Args {
		shallow.Args[i] = Formula{Op: True}
	}
	if err := m.model.checkFormula(shallow); err != nil {
		return f, e.wrong("", "%v", err)
	}
	return f, nil
}

// group reads a common-cause group.
func (m *mefReader) group(d *definition) error {
	g := Group{Name: d.name, Model: GroupModel(d.at.attrs["model"])}
	factors := map[int]float64{}
	for _, c := range content(d.at) {
		switch c.name {
		case "members":
			for _, member := range content(c) {
				name, err := m.nameOf(member)
				if err != nil {
					return err
				}
				at, _ := m.lookUp(name, d.scope)
				g.Members = append(g.Members, at)
			}
		case "distribution":
			body := content(c)
			if len(body) != 1 {
				return c.wrong("", "a distribution holds one expression")
			}
			var err error
			if g.Probability, err = m.value(body[0], d.scope); err != nil {
				return err
			}
		case "factor", "factors":
			list := []*element{c}
			if c.name == "factors" {
				list = content(c)
			}
			for _, f := range list {
				if err := m.factor(f, d, &g, factors); err != nil {
					return err
				}
			}
		default:
			return c.wrong("members, distribution and factors are read", "<%s> is not understood in a CCF group", c.name)
		}
	}
	for _, level := range slices.Sorted(maps.Keys(factors)) {
		g.Factors = append(g.Factors, factors[level])
	}
	for i, level := range slices.Sorted(maps.Keys(factors)) {
		if first := firstLevel(g.Model, len(g.Members)); level != first+i {
			return d.at.wrong("", "the factors of group %q begin at level %d or leave one out; model %s wants them from level %d on", g.Name, level, g.Model, first)
		}
	}
	for _, name := range g.Members {
		if _, known := m.model.Events[name]; !known {
			m.model.Events[name] = Event{}
		}
	}
	if err := g.check(m.model); err != nil {
		return d.at.wrong("", "%v", err)
	}
	m.model.Groups = append(m.model.Groups, g)
	return nil
}

// firstLevel is that of a group's first factor: how many members it takes.
func firstLevel(model GroupModel, members int) int {
	switch model {
	case BetaFactor:
		return members
	case MGL:
		return 2
	}
	return 1
}

// factor reads one; without a level it is the one behind the highest so far.
func (m *mefReader) factor(e *element, d *definition, g *Group, factors map[int]float64) error {
	body := content(e)
	if e.name != "factor" || len(body) != 1 {
		return e.wrong("", "want a <factor> with one expression")
	}
	level := firstLevel(g.Model, len(g.Members))
	for l := range factors {
		level = max(level, l+1)
	}
	if text := e.attrs["level"]; text != "" {
		var err error
		if level, err = strconv.Atoi(text); err != nil || level < 1 {
			return e.wrong("", "level %q of a factor; want a number from 1", text)
		}
	}
	if _, twice := factors[level]; twice {
		return e.wrong("", "the factor of level %d is there twice", level)
	}
	v, err := m.value(body[0], d.scope)
	factors[level] = v
	return err
}

// chooseTop takes the gate that is asked for, or the only one that stands in no other.
func (m *mefReader) chooseTop(top string) error {
	if top != "" {
		if _, ok := m.model.Gates[top]; !ok {
			return fmt.Errorf("the model has no gate %q", top)
		}
		m.model.Top = top
		return nil
	}
	used := map[string]bool{}
	var note func(Formula)
	note = func(f Formula) {
		if f.Op == Name {
			used[f.Name] = true
		}
		for _, a := range f.Args {
			note(a)
		}
	}
	for _, f := range m.model.Gates {
		note(f)
	}
	var tops []string
	for _, d := range m.gates {
		if !used[d.name] {
			tops = append(tops, d.name)
		}
	}
	switch len(tops) {
	case 0:
		return errors.New("the model has no top event: every gate stands in another one")
	case 1:
		m.model.Top = tops[0]
		return nil
	}
	return fmt.Errorf("the model has several top events (%s): name one", strings.Join(tops, ", "))
}
