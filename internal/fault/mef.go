package fault

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// ReadOptions say how a model is read.
type ReadOptions struct {
	Top         string  // the top gate; "": the one gate that stands in no other
	MissionTime float64 // for times to failure, in the unit of the model's rates; 0: 8760, a year in hours
}

// ReadMEF reads a model in the Open-PSA model exchange format: fault trees with components, house events, parameters
// and common-cause groups. Distributions of uncertainty count with their mean, times to failure at the mission time.
// Event trees are refused, unless the top gate is named: then they are left aside.
func ReadMEF(r io.Reader, o ReadOptions) (*Model, error) {
	root, err := (&mefFiles{}).parse("", r)
	if err != nil {
		return nil, err
	}
	if err := (&mefFiles{}).include(root, nil); err != nil {
		return nil, err
	}
	return readRoots([]*element{root}, o)
}

// ReadMEFFiles reads a model that is spread over files; what they include is read too.
func ReadMEFFiles(names []string, open Opener, o ReadOptions) (*Model, error) {
	files := &mefFiles{open: open}
	var roots []*element
	for _, name := range names {
		root, err := files.read(name, nil)
		if err != nil {
			return nil, err
		}
		roots = append(roots, root)
	}
	return readRoots(roots, o)
}

func readRoots(roots []*element, o ReadOptions) (*Model, error) {
	if o.MissionTime == 0 {
		o.MissionTime = 8760
	}
	m := &mefReader{ReadOptions: o, entities: names{}, parameters: names{}, groupNames: names{}, components: names{},
		model: &Model{Gates: map[string]Formula{}, Events: map[string]Event{}, House: map[string]bool{}}}
	for _, root := range roots {
		if m.model.Title == "" {
			m.model.Title = root.attr("name")
		}
		if err := m.container(root, place{}); err != nil {
			return nil, err
		}
	}
	if err := m.resolve(); err != nil {
		return nil, err
	}
	if err := m.chooseTop(o.Top); err != nil {
		return nil, err
	}
	err := m.model.Check()
	var circle *circleError
	if errors.As(err, &circle) {
		return nil, m.entities[circle.path[0]].at.wrong("take one of them out of another", "%v", err)
	}
	if err != nil {
		return nil, err
	}
	return m.model, nil
}

// place is where a definition stands: in which fault tree and components, and whether what is private stays there.
type place struct {
	path    []string
	private bool
}

func (p place) full(name string) string { return strings.Join(append(slices.Clone(p.path), name), ".") }

// inside is the place within a container.
func (p place) inside(name string, private bool) place {
	return place{append(slices.Clone(p.path), name), private}
}

// definition is a definition whose references wait until every name is known.
type definition struct {
	at     *element
	place  place
	name   string // one of its own: of a private definition, its path
	label  string
	busy   bool
	value  float64
	valued bool
}

// names finds definitions by their path, and public ones by their name alone.
type names map[string]*definition

// find resolves a name from the innermost place outwards.
func (n names) find(name string, from place) *definition {
	for depth := len(from.path); depth > 0; depth-- {
		if d := n[place{path: from.path[:depth]}.full(name)]; d != nil {
			return d
		}
	}
	return n[name]
}

func (n names) add(d *definition) error {
	path := d.place.full(d.at.attr("name"))
	for _, key := range []string{d.name, path} {
		if before := n[key]; before != nil && before != d {
			return d.at.wrong("rename one of them", "%q is defined twice, first in line %d", d.name, before.at.line)
		}
		n[key] = d
	}
	return nil
}

type mefReader struct {
	ReadOptions
	model      *Model
	parameters names
	entities   names // gates and events
	groupNames names
	components names // and fault trees
	gates      []*definition
	basics     []*definition
	groups     []*definition
	undefined  []undefined // names that are only referred to, as the format allows for basic events of a group
	nesting    int         // of parameters that are computed
}

type undefined struct {
	at   *element
	name string
}

// container reads the definitions in an element that holds such.
func (m *mefReader) container(e *element, at place) error {
	for _, c := range e.children {
		switch c.name {
		case "model-data":
			if err := m.container(c, at); err != nil {
				return err
			}
		case "define-fault-tree", "define-component":
			d, err := m.definition(c, at)
			if err != nil {
				return err
			}
			if err := m.components.add(d); err != nil {
				return err
			}
			if err := m.container(c, at.inside(c.attr("name"), m.private(c, at))); err != nil {
				return err
			}
		case "define-gate", "define-basic-event", "define-house-event", "define-parameter", "define-CCF-group":
			if err := m.define(c, at); err != nil {
				return err
			}
		case "label", "attributes":
		default:
			if err := m.foreign(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// foreign refuses what is not of fault trees. Event trees may stand beside one that is asked for by its top.
func (m *mefReader) foreign(c *element) error {
	switch c.name {
	case "define-event-tree", "define-initiating-event", "define-rule", "define-functional-event", "define-sequence":
		if m.Top != "" {
			return nil
		}
		return c.wrong("name the top gate of a fault tree (--top), and they are left aside", "<%s>: event trees are not analysed", c.name)
	case "define-alignment", "define-phase":
		return c.wrong("take them out, and set the house events of one phase", "<%s>: phases of a mission are not analysed", c.name)
	case "define-substitution":
		return c.wrong("write what is meant into the gates", "<%s>: substitutions are not analysed", c.name)
	case "define-extern-library", "define-extern-function":
		return c.wrong("write the numbers that they would give", "<%s>: no other program's code is run", c.name)
	}
	return c.wrong("fault trees, components, gates, events, parameters and CCF groups are read", "<%s> is not understood here", c.name)
}

func nameOf(e *element) (string, error) {
	name := e.attr("name")
	if name == "" || strings.ContainsAny(name, " \t\n") {
		return "", e.wrong(`write name="…" without blanks`, "<%s> has name %q", e.name, name)
	}
	return name, nil
}

// private tells whether a definition is known by its path only; what does not say so is like what it stands in.
func (m *mefReader) private(e *element, at place) bool {
	switch e.attr("role") {
	case "private":
		return len(at.path) > 0
	case "public":
		return false
	}
	return at.private
}

func (m *mefReader) definition(e *element, at place) (*definition, error) {
	name, err := nameOf(e)
	if err != nil {
		return nil, err
	}
	d := &definition{at: e, place: at, name: name}
	if m.private(e, at) || e.name == "define-component" {
		d.name = at.full(name)
	}
	for _, c := range e.children {
		if c.name == "label" {
			d.label = strings.TrimSpace(c.text)
		}
	}
	return d, nil
}

func (m *mefReader) define(e *element, at place) error {
	d, err := m.definition(e, at)
	if err != nil {
		return err
	}
	switch e.name {
	case "define-parameter":
		return m.parameters.add(d)
	case "define-CCF-group":
		m.groups = append(m.groups, d)
		return m.groupNames.add(d)
	case "define-gate":
		m.gates = append(m.gates, d)
	case "define-basic-event":
		m.basics = append(m.basics, d)
	}
	if err := m.entities.add(d); err != nil {
		return err
	}
	if e.name == "define-house-event" {
		return m.house(d)
	}
	return nil
}

func (m *mefReader) house(d *definition) error {
	m.model.House[d.name] = false
	switch body := content(d.at); {
	case len(body) == 0:
	case len(body) == 1 && body[0].name == "constant":
		on, err := constant(body[0])
		m.model.House[d.name] = on
		return err
	default:
		return d.at.wrong(`write <constant value="true"/> or false`, "house event %q holds something else than one <constant>", d.name)
	}
	return nil
}

func constant(e *element) (bool, error) {
	on, err := strconv.ParseBool(e.attr("value"))
	if err != nil {
		return false, e.wrong(`write value="true" or value="false"`, "%s %q", e.name, e.attr("value"))
	}
	return on, nil
}

// resolve reads what refers to names.
func (m *mefReader) resolve() error {
	for _, d := range m.basics {
		body := content(d.at)
		switch len(body) {
		case 0:
			m.model.Events[d.name] = Event{Label: d.label, Unknown: true}
			continue
		case 1:
		default:
			return d.at.wrong("write one expression", "event %q has %d expressions", d.name, len(body))
		}
		p, err := m.value(body[0], d.place)
		if err != nil {
			return err
		}
		if !(p >= 0 && p <= 1) {
			return body[0].wrong("a rate becomes a probability in <exponential> or <GLM>", "event %q has probability %v; want 0 to 1", d.name, p)
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
		f, err := m.formula(body[0], d.place)
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

// chooseTop takes the gate that is asked for, or the only one that stands in no other.
func (m *mefReader) chooseTop(top string) error {
	if top != "" {
		d := m.entities[top]
		if d == nil || d.at.name != "define-gate" {
			return fmt.Errorf("the model has no gate %q; its gates: %s", top, some(slices.Sorted(maps.Keys(m.model.Gates))))
		}
		m.model.Top = d.name
		return nil
	}
	if len(m.gates) == 0 {
		return errors.New("the model has no gate, so no top event; if its gates are in another file, name all files")
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
	return fmt.Errorf("the model has several top events (%s): name one (--top)", some(tops))
}

// some lists the first of many names.
func some(names []string) string {
	if len(names) > 10 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:10], ", "), len(names)-10)
	}
	return strings.Join(names, ", ")
}
