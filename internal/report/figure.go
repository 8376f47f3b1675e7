package report

import (
	"math"
	"strconv"
	"strings"
	"unicode"

	"github.com/atollhq/atoll/internal/assess"
)

const (
	minute = 60.0
	hour   = 3600.0
	day    = 24 * hour
	year   = 365 * day
)

// Numbers are shown with three significant digits: a mean of guesses has no more.

// duration writes seconds in the unit that people would choose.
func duration(seconds float64) string {
	abs := math.Abs(seconds)
	switch {
	case abs == 0:
		return "0"
	case abs < 5e-7:
		return "< 1 µs"
	case abs < .0005:
		return significant(seconds*1e6, 3) + " µs"
	case abs < .9995:
		return significant(seconds*1e3, 3) + " ms"
	case abs < 99.5:
		return significant(seconds, 3) + " s"
	case abs < 99.5*minute:
		return significant(seconds/minute, 3) + " min"
	case abs < 72*hour:
		return significant(seconds/hour, 3) + " h"
	default:
		return significant(seconds/day, 3) + " d"
	}
}

// significant writes v with so many significant digits, no exponent, trailing zeros kept out.
func significant(v float64, digits int) string {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	magnitude := int(math.Floor(math.Log10(math.Abs(v))))
	scale := math.Pow(10, float64(digits-1-magnitude))
	rounded := math.Round(v*scale) / scale
	places := digits - 1 - int(math.Floor(math.Log10(math.Abs(rounded))))
	text := strconv.FormatFloat(rounded, 'f', max(0, places), 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}

// money writes an amount shortly: 614, 25.2k, 1.37M.
func money(v float64) string {
	if v <= -.005 {
		return "−" + money(-v)
	}
	switch abs := math.Abs(v); {
	case abs < .005:
		return "0"
	case abs < 999.5:
		return significant(v, 3)
	case abs < 999_500:
		return significant(v/1e3, 3) + "k"
	case abs < 999_500_000:
		return significant(v/1e6, 3) + "M"
	default:
		return significant(v/1e9, 3) + "G"
	}
}

// signed is money with its sign, always.
func signed(v float64) string {
	switch text := money(v); {
	case text == "0":
		return "0"
	case v > 0:
		return "+" + text
	default:
		return text
	}
}

// share writes a share of time: as many digits as there are nines, and one more.
func share(v float64) string {
	u := 1 - v
	if u <= 0 {
		return "100 %"
	}
	places := 2
	if u < .1 {
		places = min(8, int(math.Ceil(-math.Log10(100*u)-1e-9))+1)
	}
	text := strconv.FormatFloat(100*v, 'f', max(0, places), 64)
	if math.Abs(100-100*v) < .5*math.Pow(10, -float64(places)) {
		return "> " + strings.TrimRight(strconv.FormatFloat(100-math.Pow(10, -float64(places)), 'f', places, 64), "0") + " %"
	}
	return text + " %"
}

// percent writes a ratio that is not about nines.
func percent(v float64) string {
	if v > 0 && v < .0005 {
		return "< 0.1 %"
	}
	if v < .1 {
		return significant(100*v, 2) + " %"
	}
	return strconv.FormatFloat(100*v, 'f', 0, 64) + " %"
}

// figure writes a value of a derivation, with more digits than a table has.
func figure(v float64, unit assess.Unit, currency string) string {
	switch unit {
	case assess.Duration:
		text := duration(v)
		if math.Abs(v) >= 99.5 {
			text += " (" + grouped(v) + " s)"
		}
		return text
	case assess.Ratio:
		if v > 0 && v < 1e-4 {
			return strconv.FormatFloat(v, 'e', 4, 64)
		}
		return strconv.FormatFloat(100*v, 'g', 7, 64) + " %"
	case assess.Money:
		return strings.TrimSpace(grouped(v) + " " + currency)
	case assess.Data, assess.DataRate:
		return strconv.FormatFloat(v, 'g', 5, 64) + " bytes"
	}
	return strconv.FormatFloat(v, 'g', 5, 64)
}

// grouped writes an amount in full, thousands apart.
func grouped(v float64) string {
	if math.Abs(v) < 100 {
		return significant(v, 4)
	}
	digits := strconv.FormatFloat(math.Abs(math.Round(v)), 'f', 0, 64)
	var out strings.Builder
	if v < 0 {
		out.WriteString("−")
	}
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			out.WriteString("\u202f") // a narrow blank that does not break
		}
		out.WriteRune(d)
	}
	return out.String()
}

// plain makes foreign text fit for a terminal: nothing in it moves the cursor, colours, or answers back.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
}

// line is foreign text as one line.
func line(s string) string { return plain(strings.Join(strings.Fields(s), " ")) }

// shorten cuts to n runes.
func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// where is a placement in few words: "warm standby at dc1, cloud1".
func where(p assess.Placement) string {
	return strings.ReplaceAll(string(p.Pattern), "-", " ") + " at " + strings.Join(p.Sites, ", ")
}

// same tells whether two placements are one.
func same(a, b assess.Placement) bool { return where(a) == where(b) && a.Quorum == b.Quorum }

// chosen is the option of a service that its verdict recommends; nil where it recommends today's way.
func chosen(s *assess.ServiceAnswer) *assess.Option {
	for i := range s.Options {
		if s.Answer.Worth && same(s.Options[i].Outcome.Placement, s.Answer.Placement) {
			return &s.Options[i]
		}
	}
	return nil
}

// moves tells whether the roadmap changes how a service runs, or what it gets.
func moves(s *assess.ServiceAnswer) bool { return !same(s.Now.Placement, s.Proposed.Placement) }

// wants are the texts of what is wanted: availability, RTO and RPO; "" where nothing is.
func wants(w assess.Wanted) (out [3]string) {
	if w.Availability != nil {
		out[0] = share(*w.Availability)
	}
	if w.RTO != nil {
		out[1] = duration(*w.RTO)
	}
	if w.RPO != nil {
		out[2] = duration(*w.RPO)
	}
	return out
}

// plural counts things.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
