package fault

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// reference resolves the name of a gate or an event, which must be of the kind that the reference says.
func (m *mefReader) reference(e *element, from place) (string, error) {
	name, err := nameOf(e)
	if err != nil {
		return "", err
	}
	kind := e.name
	if kind == "event" {
		kind = e.attr("type") // the old way to say it
	}
	d := m.entities.find(name, from)
	switch {
	case d == nil:
		m.undefined = append(m.undefined, undefined{e, name})
		return name, nil
	case kind != "" && d.at.name != "define-"+kind:
		is := strings.TrimPrefix(d.at.name, "define-")
		return "", e.wrong(fmt.Sprintf("write <%s name=%q/>", is, name), "%q is a %s, not a %s", name, is, kind)
	}
	return d.name, nil
}

func (m *mefReader) formula(e *element, at place) (Formula, error) {
	switch e.name {
	case "event", "gate", "basic-event", "house-event":
		name, err := m.reference(e, at)
		return Ref(name), err
	case "constant":
		on, err := constant(e)
		if on {
			return Formula{Op: True}, err
		}
		return Formula{Op: False}, err
	}
	ops := map[string]Op{"and": And, "or": Or, "atleast": AtLeast, "not": Not, "xor": Xor, "nand": Nand, "nor": Nor, "iff": Iff, "imply": Imply, "cardinality": Between}
	op, ok := ops[e.name]
	if !ok {
		return Formula{}, e.wrong("and, or, atleast, cardinality, not, xor, nand, nor, iff, imply, constant, gate, basic-event, house-event or event", "<%s> is no formula", e.name)
	}
	f := Formula{Op: op}
	for _, c := range content(e) {
		a, err := m.formula(c, at)
		if err != nil {
			return f, err
		}
		f.Args = append(f.Args, a)
	}
	var err error
	if op == AtLeast || op == Between {
		if f.K, err = strconv.Atoi(e.attr("min")); err != nil {
			return f, e.wrong(`write min="2" or the like`, "min of <%s> is %q", e.name, e.attr("min"))
		}
	}
	if op == Between {
		if f.Max, err = strconv.Atoi(e.attr("max")); err != nil {
			return f, e.wrong(`write max="3" or the like`, "max of <%s> is %q", e.name, e.attr("max"))
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
	g := Group{Name: d.name, Model: GroupModel(d.at.attr("model"))}
	factors := map[int]float64{}
	for _, c := range content(d.at) {
		switch c.name {
		case "members":
			for _, member := range content(c) {
				name, err := m.reference(member, d.place)
				if err != nil {
					return err
				}
				g.Members = append(g.Members, name)
			}
		case "distribution":
			body := content(c)
			if len(body) != 1 {
				return c.wrong("", "a distribution holds one expression")
			}
			var err error
			if g.Probability, err = m.value(body[0], d.place); err != nil {
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
	if text := e.attr("level"); text != "" {
		var err error
		if level, err = strconv.Atoi(text); err != nil || level < 1 {
			return e.wrong("", "level %q of a factor; want a number from 1", text)
		}
	}
	if _, twice := factors[level]; twice {
		return e.wrong("", "the factor of level %d is there twice", level)
	}
	v, err := m.value(body[0], d.place)
	factors[level] = v
	return err
}
