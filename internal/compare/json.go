package compare

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxValues is how many values of a JSON body are read, and maxDepth how deep; a body with more is compared as bytes.
const (
	MaxValues = 50_000
	maxDepth  = 64
)

type valueType uint8

const (
	null valueType = iota
	boolean
	number
	text
	array
	object
)

func (t valueType) String() string {
	return [...]string{"null", "boolean", "number", "text", "array", "object"}[t]
}

// value is a JSON value.
type value struct {
	kind  valueType
	text  string   // of a number, as it was written; of a text; true or false
	names []string // of an object, in order
	items []value  // of an array; of an object, beside names
}

// parser reads one document. It refuses what readers may take in different ways: names that occur twice, broken UTF-8.
type parser struct {
	d    *json.Decoder
	left int // values that may still come
}

func parse(body []byte) (value, bool) {
	if !utf8.Valid(body) || !json.Valid(body) {
		return value{}, false
	}
	p := &parser{d: json.NewDecoder(bytes.NewReader(body)), left: MaxValues}
	p.d.UseNumber()
	return p.value(0)
}

func (p *parser) value(depth int) (v value, ok bool) {
	token, err := p.d.Token()
	p.left--
	if err != nil || p.left < 0 || depth > maxDepth {
		return value{}, false
	}
	switch t := token.(type) {
	case bool:
		return value{kind: boolean, text: strconv.FormatBool(t)}, true
	case json.Number:
		return value{kind: number, text: string(t)}, true
	case string:
		return value{kind: text, text: t}, true
	case json.Delim:
		if t == '[' {
			return p.array(depth)
		}
		return p.object(depth)
	}
	return value{kind: null}, true
}

func (p *parser) array(depth int) (v value, ok bool) {
	v.kind = array
	for p.d.More() {
		item, ok := p.value(depth + 1)
		if !ok {
			return v, false
		}
		v.items = append(v.items, item)
	}
	_, err := p.d.Token()
	return v, err == nil
}

func (p *parser) object(depth int) (v value, ok bool) {
	type member struct {
		name string
		value
	}
	var members []member
	for p.d.More() {
		token, err := p.d.Token()
		name, isText := token.(string)
		if err != nil || !isText {
			return v, false
		}
		item, ok := p.value(depth + 1)
		if !ok {
			return v, false
		}
		members = append(members, member{name, item})
	}
	if _, err := p.d.Token(); err != nil {
		return v, false
	}
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	v = value{kind: object, names: make([]string, len(members)), items: make([]value, len(members))}
	for i, m := range members {
		if i > 0 && members[i-1].name == m.name {
			return v, false
		}
		v.names[i], v.items[i] = m.name, m.value
	}
	return v, true
}

// walk goes through two answers side by side.
type walk struct {
	rules *Rules
	at    []string // where it is, in names and indexes
	shown []string // the same as reports show it
	seen  map[place]bool
	found []Difference
}

// place is where something differs, and how.
type place struct {
	field string
	kind  Kind
}

func (w *walk) add(d Difference) {
	p := place{d.Field, d.Kind}
	if w.seen[p] || len(w.found) >= maxDifferences {
		return
	}
	w.seen[p] = true
	w.found = append(w.found, d)
}

// differs notes a difference where the walk is, unless it is to be ignored.
func (w *walk) differs(kind Kind, primary, candidate string) {
	for _, p := range w.rules.Ignore {
		if p.covers(w.at) {
			return
		}
	}
	field := "body"
	if len(w.shown) > 0 {
		field = "/" + strings.Join(w.shown, "/")
	}
	w.add(Difference{field, kind, primary, candidate})
}

func (w *walk) into(name, shown string, then func()) {
	w.at, w.shown = append(w.at, name), append(w.shown, shown)
	then()
	w.at, w.shown = w.at[:len(w.at)-1], w.shown[:len(w.shown)-1]
}

func (w *walk) values(a, b value) {
	switch {
	case a.kind != b.kind:
		w.differs(OtherType, w.describe(a), w.describe(b))
	case a.kind == array:
		w.arrays(a, b)
	case a.kind == object:
		w.objects(a, b)
	case a.kind == number && sameNumber(a.text, b.text), a.kind != number && a.text == b.text:
	default:
		w.differs(OtherValue, w.describe(a), w.describe(b))
	}
}

// arrays are compared by index.
func (w *walk) arrays(a, b value) {
	for i := range max(len(a.items), len(b.items)) {
		w.into(strconv.Itoa(i), "*", func() {
			switch {
			case i >= len(b.items):
				w.differs(Missing, w.describe(a.items[i]), "")
			case i >= len(a.items):
				w.differs(Extra, "", w.describe(b.items[i]))
			default:
				w.values(a.items[i], b.items[i])
			}
		})
	}
}

// objects are compared by name; both are in order.
func (w *walk) objects(a, b value) {
	for i, j := 0, 0; i < len(a.names) || j < len(b.names); {
		switch {
		case j == len(b.names) || i < len(a.names) && a.names[i] < b.names[j]:
			w.into(a.names[i], shown(a.names[i]), func() { w.differs(Missing, w.describe(a.items[i]), "") })
			i++
		case i == len(a.names) || b.names[j] < a.names[i]:
			w.into(b.names[j], shown(b.names[j]), func() { w.differs(Extra, "", w.describe(b.items[j])) })
			j++
		default:
			w.into(a.names[i], shown(a.names[i]), func() { w.values(a.items[i], b.items[j]) })
			i, j = i+1, j+1
		}
	}
}

func (w *walk) describe(v value) string {
	switch v.kind {
	case boolean, number, text:
		return w.rules.text(v.kind.String(), v.text)
	}
	return v.kind.String()
}

// sameNumber compares two JSON numbers by what they are, exactly: 1.0 is 1e0, and 9007199254740993 is not 9007199254740992.
func sameNumber(a, b string) bool {
	if a == b {
		return true
	}
	x, okX := decimalOf(a)
	y, okY := decimalOf(b)
	return okX && okY && x == y
}

// decimal is digits × 10^exponent, the digits without zeros at either end.
type decimal struct {
	negative bool
	digits   string
	exponent int64
}

// decimalOf reads a JSON number. Not ok: its exponent is out of all reason.
func decimalOf(s string) (d decimal, ok bool) {
	s, d.negative = strings.CutPrefix(s, "-")
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		e, err := strconv.ParseInt(s[i+1:], 10, 32)
		if err != nil {
			return d, false
		}
		s, d.exponent = s[:i], e
	}
	whole, fraction, _ := strings.Cut(s, ".")
	d.exponent -= int64(len(fraction))
	digits := strings.TrimLeft(whole+fraction, "0")
	d.digits = strings.TrimRight(digits, "0")
	d.exponent += int64(len(digits) - len(d.digits))
	if d.digits == "" {
		return decimal{}, true
	}
	return d, true
}
