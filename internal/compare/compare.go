// Package compare finds where two answers to one request differ: the one that a user got, and the one of a candidate that is to
// take over. [Rules.Compare] lists the differences between two answers, and a [Report] adds up those of many.
//
// Noise. Some of an answer differs every time: times, random numbers, an order that nobody promised. As in Twitter's Diffy, the
// primary is asked a second time now and then, and a field that differs from itself about as often as from the candidate's is noise.
//
// What differs is named by where it is ("status", "header Content-Type", "body", or a JSON pointer, RFC 6901, with * for any index of an
// array) and by how; values are kept only where [Rules] say so: they are users' data. Names in objects that look like data themselves
// (numbers, addresses, identifiers) stand as * too.
//
// It guarantees that memory is bounded: bodies are the caller's, what is read of them as JSON is bounded by [MaxValues], and a report
// keeps [MaxFields] fields. It takes any bytes: what is not JSON, or too much of it, is compared as bytes.
//
// Everything here is pure: no clock, no goroutines. A Report is not safe for concurrent use.
package compare

import (
	"bytes"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
)

// Answer is what is compared of an answer.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte // all of it, without content encoding
	// Unread: the body is too long, or in an encoding that cannot be read. It is not compared.
	Unread bool
}

// Rules say what is looked at.
type Rules struct {
	Headers []string  // these headers
	Ignore  []Pointer // nothing at or below these places of a JSON body
	Values  bool      // keep values, cut short, not only their types
}

// Kind is how a field differs.
type Kind string

const (
	// Missing: only the primary's answer has it.
	Missing Kind = "missing"
	// Extra: only the candidate's answer has it.
	Extra Kind = "extra"
	// OtherType: one is a text and the other one a number, for example.
	OtherType Kind = "type"
	// OtherValue: of the same type.
	OtherValue Kind = "value"
)

// Difference is one field that differs, in one way. A field that differs at several indexes of an array is one difference.
type Difference struct {
	Field string
	Kind  Kind
	// Primary and Candidate are what there is: a type, or with Rules.Values a value. "": nothing.
	Primary, Candidate string
}

// maxDifferences bounds what is listed of two answers: who differs in so many fields is another answer.
const maxDifferences = 100

// Compare lists where the candidate's answer differs from the primary's, each field once for each kind.
func (r *Rules) Compare(primary, candidate Answer) []Difference {
	w := &walk{rules: r, seen: make(map[place]bool)}
	if primary.Status != candidate.Status {
		// Not users' data, and the first thing that one wants to know.
		w.add(Difference{"status", OtherValue, fmt.Sprint(primary.Status), fmt.Sprint(candidate.Status)})
	}
	for _, name := range r.Headers {
		r.header(w, name, primary.Header, candidate.Header)
	}
	if primary.Unread || candidate.Unread || bytes.Equal(primary.Body, candidate.Body) {
		return w.found
	}
	if isJSON(primary.Header) && isJSON(candidate.Header) {
		a, okA := parse(primary.Body)
		b, okB := parse(candidate.Body)
		if okA && okB {
			w.values(a, b)
			return w.found
		}
	}
	w.add(Difference{"body", OtherValue, r.text("bytes", string(primary.Body)), r.text("bytes", string(candidate.Body))})
	return w.found
}

func (r *Rules) header(w *walk, name string, primary, candidate http.Header) {
	a, b := primary.Values(name), candidate.Values(name)
	field := "header " + http.CanonicalHeaderKey(name)
	switch {
	case slices.EqualFunc(a, b, func(a, b string) bool { return sameHeader(name, a, b) }):
	case len(b) == 0:
		w.add(Difference{field, Missing, r.text("text", strings.Join(a, ", ")), ""})
	case len(a) == 0:
		w.add(Difference{field, Extra, "", r.text("text", strings.Join(b, ", "))})
	default:
		w.add(Difference{field, OtherValue, r.text("text", strings.Join(a, ", ")), r.text("text", strings.Join(b, ", "))})
	}
}

// sameHeader takes media types that only look different for the same.
func sameHeader(name, a, b string) bool {
	if a == b {
		return true
	}
	if !strings.EqualFold(name, "Content-Type") {
		return false
	}
	kindA, paramsA, errA := mime.ParseMediaType(a)
	kindB, paramsB, errB := mime.ParseMediaType(b)
	if errA != nil || errB != nil || kindA != kindB || len(paramsA) != len(paramsB) {
		return false
	}
	for k, v := range paramsA {
		other, ok := paramsB[k]
		if !ok || v != other && !(k == "charset" && strings.EqualFold(v, other)) {
			return false
		}
	}
	return true
}

func isJSON(h http.Header) bool {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && (kind == "application/json" || strings.HasSuffix(kind, "+json"))
}

// maxText is how much of a value is kept.
const maxText = 64

// text is what is kept of a value.
func (r *Rules) text(kind, value string) string {
	if !r.Values {
		return kind
	}
	if len(value) > maxText {
		return strings.ToValidUTF8(value[:maxText], "") + "…"
	}
	return strings.ToValidUTF8(value, "\uFFFD")
}
