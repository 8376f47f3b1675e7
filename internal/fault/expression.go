package fault

import (
	"math"
	"strconv"
)

// value computes an expression of the exchange format. Random deviates count with their mean.
func (m *mefReader) value(e *element, scope []string) (float64, error) {
	switch e.name {
	case "float", "int":
		v, err := strconv.ParseFloat(e.attrs["value"], 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return 0, e.wrong(`write value="0.01" or the like`, "%s %q is no number", e.name, e.attrs["value"])
		}
		return v, nil
	case "bool":
		on, err := strconv.ParseBool(e.attrs["value"])
		if err != nil {
			return 0, e.wrong(`write value="true" or value="false"`, "bool %q", e.attrs["value"])
		}
		if on {
			return 1, nil
		}
		return 0, nil
	case "parameter":
		return m.parameter(e, scope)
	case "system-mission-time":
		return m.time, nil
	case "pi":
		return math.Pi, nil
	}
	args := make([]float64, 0, len(e.children))
	for _, c := range content(e) {
		v, err := m.value(c, scope)
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

// parameter computes a parameter once; one that needs itself is refused.
func (m *mefReader) parameter(e *element, scope []string) (float64, error) {
	name, err := m.nameOf(e)
	if err != nil {
		return 0, err
	}
	var d *definition
	for n := len(scope); n >= 0 && d == nil; n-- {
		d = m.parameters[full(scope[:n], name)]
	}
	switch {
	case d == nil:
		return 0, e.wrong("define it, or correct the name", "parameter %q does not exist", name)
	case d.busy:
		return 0, e.wrong("", "parameter %q is defined by itself", name)
	case d.valued:
		return d.value, nil
	}
	body := content(d.at)
	if len(body) != 1 {
		return 0, d.at.wrong("", "parameter %q holds %d expressions; want one", name, len(body))
	}
	d.busy = true
	defer func() { d.busy = false }()
	v, err := m.value(body[0], d.scope)
	if err == nil {
		d.value, d.valued = v, true
	}
	return v, err
}

type function struct {
	least, most int
	of          func([]float64) float64
}

const many = 1 << 20

func fold(f func(a, b float64) float64) func([]float64) float64 {
	return func(args []float64) float64 {
		out := args[0]
		for _, a := range args[1:] {
			out = f(out, a)
		}
		return out
	}
}

var functions = map[string]function{
	"neg": {1, 1, func(a []float64) float64 { return -a[0] }},
	"add": {1, many, fold(func(a, b float64) float64 { return a + b })},
	"sub": {1, many, fold(func(a, b float64) float64 { return a - b })},
	"mul": {1, many, fold(func(a, b float64) float64 { return a * b })},
	"div": {2, many, fold(func(a, b float64) float64 { return a / b })},
	"pow": {2, 2, func(a []float64) float64 { return math.Pow(a[0], a[1]) }},
	"exp": {1, 1, func(a []float64) float64 { return math.Exp(a[0]) }},
	"log": {1, 1, func(a []float64) float64 { return math.Log(a[0]) }},
	"min": {1, many, fold(math.Min)},
	"max": {1, many, fold(math.Max)},
	// failure rate, time
	"exponential": {2, 2, func(a []float64) float64 { return -math.Expm1(-a[0] * a[1]) }},
	// probability of failure on demand, failure rate, repair rate, time
	"GLM": {4, 4, func(a []float64) float64 {
		g, l, m, t := a[0], a[1], a[2], a[3]
		if l+m == 0 {
			return g
		}
		return (l - (l-g*(l+m))*math.Exp(-(l+m)*t)) / (l + m)
	}},
	// scale, shape, time shift, time
	"Weibull": {4, 4, func(a []float64) float64 {
		if a[3] <= a[2] {
			return 0
		}
		return -math.Expm1(-math.Pow((a[3]-a[2])/a[0], a[1]))
	}},
	"uniform-deviate": {2, 2, func(a []float64) float64 { return (a[0] + a[1]) / 2 }},
	"normal-deviate":  {2, 2, func(a []float64) float64 { return a[0] }},
	"lognormal-deviate": {2, 3, func(a []float64) float64 {
		if len(a) == 3 { // mean, error factor, level
			return a[0]
		}
		return math.Exp(a[0] + a[1]*a[1]/2) // of the logarithm: mean, deviation
	}},
	"gamma-deviate": {2, 2, func(a []float64) float64 { return a[0] * a[1] }},
	"beta-deviate":  {2, 2, func(a []float64) float64 { return a[0] / (a[0] + a[1]) }},
}
