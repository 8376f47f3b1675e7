package assess

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Unit is what a number measures; the constant's comment says in which measure it is kept.
type Unit string

const (
	Duration Unit = "duration" // seconds
	Ratio    Unit = "ratio"    // 0 to 1
	Data     Unit = "data"     // bytes
	DataRate Unit = "rate"     // bytes per second
	Money    Unit = "money"    // the estate's currency
	Count    Unit = "count"    // as it is
)

// Number is an input: one value, or a range with a most likely value (a triangular distribution).
type Number struct {
	Low, Mode, High float64
	Unit            Unit
	Set             bool   // written in the file, or filled in by a default
	Assumed         bool   // not known for sure: written with ~, or filled in
	Source          string // where it comes from, if the file says so
	Path            string // sites.a.fixed_month: names the input in explanations
	Line, Column    int    // 0: filled in
}

// Mean is the expected value.
func (n Number) Mean() float64 {
	if n.Exact() {
		return n.Low // exactly
	}
	return (n.Low + n.Mode + n.High) / 3
}

// Exact tells whether the number is one value.
func (n Number) Exact() bool { return n.Low == n.High }

// At is the value at a quantile u, from 0 to 1, of the triangular distribution.
func (n Number) At(u float64) float64 {
	if n.Exact() {
		return n.Low
	}
	width := n.High - n.Low
	if at := (n.Mode - n.Low) / width; u < at {
		return n.Low + math.Sqrt(u*width*(n.Mode-n.Low))
	}
	return n.High - math.Sqrt((1-u)*width*(n.High-n.Mode))
}

// assumed makes a number that the program fills in.
func assumed(unit Unit, path string, low, mode, high float64) Number {
	return Number{Low: low, Mode: mode, High: high, Unit: unit, Set: true, Assumed: true, Source: "default", Path: path}
}

func (n Number) String() string {
	text := show(n.Mode, n.Unit)
	if !n.Exact() {
		text = show(n.Low, n.Unit) + ".." + text + ".." + show(n.High, n.Unit)
	}
	if n.Assumed {
		text = "~" + text
	}
	return text
}

// parseNumber reads "2h", "~95%", "1h..3h", "1h..2h..6h". The error says what to write.
func parseNumber(text string, unit Unit) (Number, error) {
	n := Number{Unit: unit, Set: true}
	text = strings.TrimSpace(text)
	if rest, ok := strings.CutPrefix(text, "~"); ok {
		n.Assumed, text = true, strings.TrimSpace(rest)
	}
	parts := strings.Split(text, "..")
	values := make([]float64, len(parts))
	for i, part := range parts {
		v, err := parseValue(strings.TrimSpace(part), unit)
		if err != nil {
			return n, err
		}
		values[i] = v
		if i > 0 && v < values[i-1] {
			return n, fmt.Errorf("range %q is reversed; write the lower value first", text)
		}
	}
	switch len(values) {
	case 1:
		n.Low, n.Mode, n.High = values[0], values[0], values[0]
	case 2:
		n.Low, n.Mode, n.High = values[0], (values[0]+values[1])/2, values[1]
	case 3:
		n.Low, n.Mode, n.High = values[0], values[1], values[2]
	default:
		return n, fmt.Errorf("%q has %d values; write one, low..high, or low..likely..high", text, len(values))
	}
	return n, nil
}

type suffix struct {
	text   string
	factor float64
}

// suffixes by unit; the first that fits ends the number, so longer ones stand first.
var suffixes = map[Unit][]suffix{
	Duration: {{"ms", 1e-3}, {"us", 1e-6}, {"min", 60}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}, {"w", 7 * 86400}, {"y", 365 * 86400}},
	Data:     {{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"kB", 1e3}, {"B", 1}},
	DataRate: {{"GB/s", 1e9}, {"MB/s", 1e6}, {"KB/s", 1e3}, {"kB/s", 1e3}, {"B/s", 1}},
	Ratio:    {{"%", .01}, {"", 1}},
	Money:    {{"M", 1e6}, {"k", 1e3}, {"", 1}},
	Count:    {{"M", 1e6}, {"k", 1e3}, {"", 1}},
}

var example = map[Unit]string{
	Duration: "90s, 15m, 2h or 3d", Data: "500GB", DataRate: "2MB/s", Ratio: "95%", Money: "1200 or 1.2k", Count: "8",
}

func parseValue(text string, unit Unit) (float64, error) {
	for _, s := range suffixes[unit] {
		number, ok := strings.CutSuffix(text, s.text)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil {
			continue
		}
		v *= s.factor
		switch {
		case math.IsNaN(v) || math.IsInf(v, 0) || v > 1e18:
			return 0, fmt.Errorf("%q is no number that can be used", text)
		case v < 0:
			return 0, fmt.Errorf("%q is negative", text)
		case unit == Ratio && v > 1:
			return 0, fmt.Errorf("%q is more than 100%%", text)
		}
		return v, nil
	}
	if v, err := strconv.ParseFloat(text, 64); err == nil && v != 0 {
		return 0, fmt.Errorf("%q has no unit; write for example %s", text, example[unit])
	} else if err == nil {
		return 0, nil // zero needs no unit
	}
	return 0, fmt.Errorf("%q is no %s; write for example %s", text, unit, example[unit])
}

// show writes a value in the unit that people would choose.
func show(v float64, unit Unit) string {
	pick := func(scale []suffix) string {
		for _, s := range scale {
			if v >= s.factor {
				return trim(v/s.factor) + s.text
			}
		}
		last := scale[len(scale)-1]
		return trim(v/last.factor) + last.text
	}
	switch unit {
	case Duration:
		return duration(v)
	case Ratio:
		return trim(100*v) + "%"
	case Data:
		return pick([]suffix{{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}})
	case DataRate:
		return pick([]suffix{{"GB/s", 1e9}, {"MB/s", 1e6}, {"kB/s", 1e3}, {"B/s", 1}})
	}
	return trim(v)
}

func duration(seconds float64) string {
	switch {
	case seconds == 0:
		return "0s"
	case seconds < 1:
		return trim(seconds*1e3) + "ms"
	case seconds < 120:
		return trim(seconds) + "s"
	case seconds < 2*3600:
		return trim(seconds/60) + "min"
	case seconds < 2*86400:
		return trim(seconds/3600) + "h"
	default:
		return trim(seconds/86400) + "d"
	}
}

// amount writes money shortly, as reports do: 614, 25.2k, 1.37M.
func amount(v float64) string {
	if v < 0 {
		return "−" + amount(-v)
	}
	text := func(v float64) string { return strconv.FormatFloat(v, 'g', 3, 64) }
	switch {
	case v < .005:
		return "0"
	case v < 999.5:
		return text(v)
	case v < 999_500:
		return text(v/1e3) + "k"
	case v < 999_500_000:
		return text(v/1e6) + "M"
	}
	return trim(v/1e9) + "G"
}

// trim writes at most four significant digits, without an exponent where that is readable.
func trim(v float64) string {
	if v >= 1e4 && v < 1e15 {
		return strconv.FormatFloat(math.Round(v), 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}
