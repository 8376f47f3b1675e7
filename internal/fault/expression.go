package fault

import (
	"math"
	"strconv"
)

// value computes an expression of the exchange format. Random deviates count with their mean.
func (m *mefReader) value(e *element, at place) (float64, error) {
	switch e.name {
	case "float", "int":
		v, err := strconv.ParseFloat(e.attr("value"), 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return 0, e.wrong(`write value="0.01" or the like`, "%s %q is no number", e.name, e.attr("value"))
		}
		return v, nil
	case "bool":
		on, err := constant(e)
		return truth(on), err
	case "parameter":
		return m.parameter(e, at)
	case "system-mission-time":
		return m.MissionTime, nil
	case "pi":
		return math.Pi, nil
	case "switch":
		return m.choose(e, at)
	case "histogram":
		return m.histogram(e, at)
	}
	args := make([]float64, 0, len(e.children))
	for _, c := range content(e) {
		v, err := m.value(c, at)
		if err != nil {
			return 0, err
		}
		args = append(args, v)
	}
	f, ok := functions[e.name]
	if !ok {
		return 0, e.wrong("float, int, bool, parameter, arithmetic, exponential, GLM, Weibull and the deviates' means are computed", "<%s> is no expression that is understood", e.name)
	}
	if len(args) < f.least || len(args) > f.most {
		return 0, e.wrong("", "<%s> has %d arguments", e.name, len(args))
	}
	v := f.of(args)
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, e.wrong("", "<%s> of %v is %v", e.name, args, v)
	}
	return v, nil
}

// maxChain bounds how many parameters need each other in a row.
const maxChain = 10_000

// parameter computes a parameter once; one that needs itself is refused.
func (m *mefReader) parameter(e *element, at place) (float64, error) {
	name, err := nameOf(e)
	if err != nil {
		return 0, err
	}
	d := m.parameters.find(name, at)
	switch {
	case d == nil:
		return 0, e.wrong("define it, or correct the name", "parameter %q does not exist", name)
	case d.busy:
		return 0, e.wrong("write a number instead", "parameter %q is defined by itself", name)
	case d.valued:
		return d.value, nil
	case m.nesting == maxChain:
		return 0, e.wrong("", "more than %d parameters need each other in a row", maxChain)
	}
	m.nesting++
	defer func() { m.nesting-- }()
	body := content(d.at)
	if len(body) != 1 {
		return 0, d.at.wrong("", "parameter %q holds %d expressions; want one", name, len(body))
	}
	d.busy = true
	defer func() { d.busy = false }()
	v, err := m.value(body[0], d.place)
	if err == nil {
		d.value, d.valued = v, true
	}
	return v, err
}

// choose is the value of the first case whose condition holds, else the last one's.
func (m *mefReader) choose(e *element, at place) (float64, error) {
	list := content(e)
	for i, c := range list {
		if i == len(list)-1 && c.name != "case" {
			return m.value(c, at)
		}
		pair := content(c)
		if c.name != "case" || len(pair) != 2 {
			break
		}
		condition, err := m.value(pair[0], at)
		if err != nil {
			return 0, err
		}
		if condition != 0 {
			return m.value(pair[1], at)
		}
	}
	return 0, e.wrong("write <case>condition value</case>… and a last value", "<switch> holds something else")
}

// histogram is its mean: a lower bound, then bins of an upper bound and a weight.
func (m *mefReader) histogram(e *element, at place) (float64, error) {
	list := content(e)
	if len(list) < 2 {
		return 0, e.wrong("write its lower bound and one <bin> or more", "<histogram> holds too little")
	}
	from, err := m.value(list[0], at)
	if err != nil {
		return 0, err
	}
	sum, weights := 0.0, 0.0
	for _, bin := range list[1:] {
		pair := content(bin)
		if bin.name != "bin" || len(pair) != 2 {
			return 0, bin.wrong("write <bin>upper bound, weight</bin>", "<%s> in a histogram", bin.name)
		}
		to, err := m.value(pair[0], at)
		if err != nil {
			return 0, err
		}
		weight, err := m.value(pair[1], at)
		switch {
		case err != nil:
			return 0, err
		case to <= from || weight < 0:
			return 0, bin.wrong("bounds grow, weights are 0 or more", "bin up to %v of weight %v behind %v", to, weight, from)
		}
		sum, weights, from = sum+weight*(from+to)/2, weights+weight, to
	}
	if weights == 0 {
		return 0, e.wrong("", "every weight of the histogram is 0")
	}
	return sum / weights, nil
}
