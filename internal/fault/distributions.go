package fault

import "math"

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

func one64(f func(float64) float64) func([]float64) float64 {
	return func(a []float64) float64 { return f(a[0]) }
}

func truth(on bool) float64 {
	if on {
		return 1
	}
	return 0
}

// periodicTest is how likely something is down that fails unseen and is tested now and then. Four arguments: failure
// rate, time between tests, time to the first, time; a test mends at once. Five: failure rate, repair rate, time
// between tests, time to the first, time; a test finds, and the repair takes its time. Source: the Open-PSA model
// exchange format, section on built-in expressions.
func periodicTest(a []float64) float64 {
	rate, repair, every, first, at := a[0], math.Inf(1), a[len(a)-3], a[len(a)-2], a[len(a)-1]
	if len(a) == 5 {
		repair = a[1]
	}
	fails := func(t float64) float64 { return -math.Expm1(-rate * t) }
	if at <= first {
		return fails(at)
	}
	tests, rest := math.Floor((at-first)/every), 0.0
	if rest = at - first - tests*every; rest == 0 && math.IsInf(repair, 1) {
		rest = every // just before the test, the worst moment
	}
	if math.IsInf(repair, 1) {
		return fails(rest)
	}
	// stays is how likely what a test found down is down at t behind the test: not mended, or mended and down again.
	stays := func(t float64) float64 {
		mended := 0.0 // and up at t
		if rate == repair {
			mended = rate * t * math.Exp(-rate*t)
		} else {
			mended = repair * (math.Exp(-repair*t) - math.Exp(-rate*t)) / (rate - repair)
		}
		return 1 - mended
	}
	// From test to test, down' = down·stays + (1−down)·fails: a straight line, so its steps add up in closed form.
	slope, step := stays(every)-fails(every), fails(every)
	down := fails(first)
	if tests > 0 {
		power := math.Pow(slope, tests)
		down = down*power + step*(1-power)/(1-slope)
	}
	return down*stays(rest) + (1-down)*fails(rest)
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
	"mean": {1, many, func(a []float64) float64 {
		return fold(func(a, b float64) float64 { return a + b })(a) / float64(len(a))
	}},
	"mod":   {2, 2, func(a []float64) float64 { return math.Mod(math.Trunc(a[0]), math.Trunc(a[1])) }},
	"abs":   {1, 1, one64(math.Abs)},
	"sqrt":  {1, 1, one64(math.Sqrt)},
	"log10": {1, 1, one64(math.Log10)},
	"ceil":  {1, 1, one64(math.Ceil)},
	"floor": {1, 1, one64(math.Floor)},
	"sin":   {1, 1, one64(math.Sin)},
	"cos":   {1, 1, one64(math.Cos)},
	"tan":   {1, 1, one64(math.Tan)},
	"asin":  {1, 1, one64(math.Asin)},
	"acos":  {1, 1, one64(math.Acos)},
	"atan":  {1, 1, one64(math.Atan)},
	"sinh":  {1, 1, one64(math.Sinh)},
	"cosh":  {1, 1, one64(math.Cosh)},
	"tanh":  {1, 1, one64(math.Tanh)},
	"not":   {1, 1, func(a []float64) float64 { return truth(a[0] == 0) }},
	"and":   {1, many, fold(func(a, b float64) float64 { return truth(a != 0 && b != 0) })},
	"or":    {1, many, fold(func(a, b float64) float64 { return truth(a != 0 || b != 0) })},
	"eq":    {2, 2, func(a []float64) float64 { return truth(a[0] == a[1]) }},
	"df":    {2, 2, func(a []float64) float64 { return truth(a[0] != a[1]) }},
	"lt":    {2, 2, func(a []float64) float64 { return truth(a[0] < a[1]) }},
	"gt":    {2, 2, func(a []float64) float64 { return truth(a[0] > a[1]) }},
	"leq":   {2, 2, func(a []float64) float64 { return truth(a[0] <= a[1]) }},
	"geq":   {2, 2, func(a []float64) float64 { return truth(a[0] >= a[1]) }},
	"ite": {3, 3, func(a []float64) float64 {
		if a[0] != 0 {
			return a[1]
		}
		return a[2]
	}},
	// failure rate, time
	"exponential":   {2, 2, func(a []float64) float64 { return -math.Expm1(-a[0] * a[1]) }},
	"periodic-test": {4, 5, periodicTest},
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
