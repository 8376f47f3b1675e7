package report

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// canvas draws one chart as SVG. Everything foreign goes through text or title, which escape.
type canvas struct {
	b                        strings.Builder
	w, h                     float64
	left, right, top, bottom float64 // of the plot
}

// letter is about how wide a letter of a chart's text is.
const letter = 6.3

func textWidth(s string) float64 {
	return letter * (float64(runes(s)) + .7*float64(strings.Count(s, "M"))) // the one wide letter of amounts
}

func newCanvas(w, h, left, right, top, bottom float64) *canvas {
	return &canvas{w: w, h: h, left: left, right: w - right, top: top, bottom: h - bottom}
}

// done wraps what was drawn. The name is read out to who does not see it.
func (c *canvas) done(class, name string) template.HTML {
	return template.HTML(fmt.Sprintf(`<svg class="chart %s" viewBox="0 0 %s %s" role="img" aria-label="%s">%s</svg>`, //nolint:gosec // all that is foreign was escaped
		class, coordinate(c.w), coordinate(c.h), html.EscapeString(name), c.b.String()))
}

func coordinate(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

// px is a coordinate.
type px float64

func (p px) String() string { return coordinate(float64(p)) }

// put writes markup of our own; coordinates and classes only.
func (c *canvas) put(format string, args ...any) { fmt.Fprintf(&c.b, format, args...) }

func clean(s string) string { return html.EscapeString(line(s)) }

func (c *canvas) text(x, y float64, class, anchor, text string) {
	c.put(`<text x="%v" y="%v" class="%s" text-anchor="%s">`, px(x), px(y), class, anchor)
	c.b.WriteString(clean(text) + "</text>")
}

func (c *canvas) line(x1, y1, x2, y2 float64, class string) {
	c.put(`<line x1="%v" y1="%v" x2="%v" y2="%v" class="%s"/>`, px(x1), px(y1), px(x2), px(y2), class)
}

// rect has a title that the pointer shows.
func (c *canvas) rect(x, y, w, h float64, class, title string) {
	c.put(`<rect x="%v" y="%v" width="%v" height="%v" class="%s"><title>`, px(x), px(y), px(max(w, 0)), px(h), class)
	c.b.WriteString(clean(title) + "</title></rect>")
}

func (c *canvas) dot(x, y, r float64, class, title string) {
	c.put(`<circle cx="%v" cy="%v" r="%v" class="%s"><title>`, px(x), px(y), px(r), class)
	c.b.WriteString(clean(title) + "</title></circle>")
}

type point struct{ x, y float64 }

func (c *canvas) path(points []point, class string, closed bool) {
	if len(points) == 0 {
		return
	}
	c.put(`<path class="%s" d="`, class)
	for i, p := range points {
		letter := "L"
		if i == 0 {
			letter = "M"
		}
		c.put("%s%v %v", letter, px(p.x), px(p.y))
	}
	if closed {
		c.put("Z")
	}
	c.put(`"/>`)
}

// scale maps values to pixels.
type scale struct {
	from, to float64 // values
	a, b     float64 // pixels
	log      bool
	ticks    []float64
}

func (s *scale) at(v float64) float64 {
	if s.log {
		v = math.Log(max(v, s.from) / s.from)
		return s.a + (s.b-s.a)*v/math.Log(s.to/s.from)
	}
	return s.a + (s.b-s.a)*(v-s.from)/(s.to-s.from)
}

// linear is a scale from low to high, widened to round ticks, about n of them.
func linear(low, high, a, b float64, n int) *scale {
	if high <= low {
		high = low + max(1, math.Abs(low)*.1)
	}
	step := round(float64(high-low) / float64(n))
	s := &scale{from: math.Floor(low/step+1e-9) * step, to: math.Ceil(high/step-1e-9) * step, a: a, b: b}
	for v := s.from; v <= s.to+step/2; v += step {
		s.ticks = append(s.ticks, math.Round(v/step)*step)
	}
	return s
}

// round makes a step of 1, 2 or 5 times a power of ten, not below it.
func round(step float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(step)))
	for _, m := range []float64{1, 2, 5} {
		if step <= m*power*(1+1e-9) {
			return m * power
		}
	}
	return 10 * power
}

// logarithmic is a scale whose ticks are 1, 2, 5 times powers of ten, or less where those are too many.
func logarithmic(low, high, a, b float64, n int) *scale {
	for _, steps := range [][]float64{{1, 2, 5}, {1, 3}, {1}} {
		s := &scale{a: a, b: b, log: true}
		for power := math.Pow(10, math.Floor(math.Log10(low))-1); power <= high*10; power *= 10 {
			for _, m := range steps {
				s.ticks = append(s.ticks, m*power)
			}
		}
		first, last := 0, len(s.ticks)-1
		for first+1 < len(s.ticks) && s.ticks[first+1] <= low {
			first++
		}
		for last > first+1 && s.ticks[last-1] >= high {
			last--
		}
		s.ticks = s.ticks[first : last+1]
		s.from, s.to = s.ticks[0], s.ticks[len(s.ticks)-1]
		if len(s.ticks) <= n+2 || len(steps) == 1 {
			return s
		}
	}
	panic("BUG: no steps")
}

// below draws an axis at the bottom: grid, ticks, and what it measures with its unit.
func (c *canvas) below(s *scale, show func(float64) string, label string) {
	for i, v := range s.ticks {
		x := s.at(v)
		c.line(x, c.top, x, c.bottom, "grid")
		anchor := "middle"
		if text := show(v); i == len(s.ticks)-1 && x+textWidth(text)/2 > c.w {
			anchor = "end"
		} else if i == 0 && x-textWidth(text)/2 < 0 {
			anchor = "start"
		}
		c.text(x, c.bottom+16, "tick", anchor, show(v))
	}
	c.line(c.left, c.bottom, c.right, c.bottom, "axis")
	c.text((c.left+c.right)/2, c.bottom+35, "axis-label", "middle", label)
}

// beside draws an axis at the left; its label stands above it, upright.
func (c *canvas) beside(s *scale, show func(float64) string, label string) {
	for _, v := range s.ticks {
		y := s.at(v)
		c.line(c.left, y, c.right, y, "grid")
		c.text(c.left-7, y+4, "tick", "end", show(v))
	}
	c.text(0, 12, "axis-label", "start", label)
}

// figurePair is one chart drawn twice: for wide screens and paper, and for a phone.
type figurePair struct{ Wide, Narrow template.HTML }

const (
	wideChart   = 490.0
	narrowChart = 316.0
)

func both(draw func(w float64, class string) template.HTML) figurePair {
	return figurePair{draw(wideChart, "wide"), draw(narrowChart, "narrow")}
}
