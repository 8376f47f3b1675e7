package assess

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/atollhq/atoll/internal/fault"
)

// Expression says what something needs in order to work: components joined by "and", "or" and "2 of (a, b, c)".
// Its zero value needs nothing.
type Expression struct {
	Text         string
	Line, Column int
	need         *need
}

// need is a node of an expression, in terms of working.
type need struct {
	op   fault.Op // Name, And, Or, AtLeast
	k    int
	name string
	args []*need
	at   int // offset in Text
}

// Names lists every component that the expression speaks of, each once, in order.
func (e Expression) Names() []string {
	var out []string
	seen := map[string]bool{}
	var walk func(n *need)
	walk = func(n *need) {
		if n.op == fault.Name && !seen[n.name] {
			seen[n.name] = true
			out = append(out, n.name)
		}
		for _, a := range n.args {
			walk(a)
		}
	}
	if e.need != nil {
		walk(e.need)
	}
	return out
}

// Empty tells whether nothing is needed.
func (e Expression) Empty() bool { return e.need == nil }

// Fails is the formula of not working: the dual, over the components' failures, whose events are named by event.
func (e Expression) Fails(event func(component string) fault.Formula) fault.Formula {
	if e.need == nil {
		return fault.Formula{Op: fault.False}
	}
	return e.need.fails(event)
}

func (n *need) fails(event func(string) fault.Formula) fault.Formula {
	if n.op == fault.Name {
		return event(n.name)
	}
	args := make([]fault.Formula, len(n.args))
	for i, a := range n.args {
		args[i] = a.fails(event)
	}
	switch n.op {
	case fault.And:
		return fault.AnyOf(args...)
	case fault.Or:
		return fault.AllOf(args...)
	default: // fewer than k of n work: more than n-k fail
		return fault.KOf(len(args)-n.k+1, args...)
	}
}

// Works evaluates the expression.
func (e Expression) Works(up func(component string) bool) bool {
	return e.need == nil || e.need.works(up)
}

func (n *need) works(up func(string) bool) bool {
	if n.op == fault.Name {
		return up(n.name)
	}
	count := 0
	for _, a := range n.args {
		if a.works(up) {
			count++
		}
	}
	switch n.op {
	case fault.And:
		return count == len(n.args)
	case fault.Or:
		return count > 0
	default:
		return count >= n.k
	}
}

// maxNesting bounds what a file can make the parser recurse.
const maxNesting = 100

// parseExpression reads an expression; the error carries an offset into text.
func parseExpression(text string) (Expression, error) {
	p := &expressionParser{text: text}
	p.next()
	if p.word == "" && p.err == nil {
		return Expression{}, &offsetError{0, "the expression is empty; name what is needed, or leave the key out"}
	}
	n := p.anyOf(0)
	if p.err == nil && p.word != "" {
		p.fail(p.at, "%q is not expected here; join names by and, or", p.word)
	}
	if p.err != nil {
		return Expression{}, p.err
	}
	return Expression{Text: text, need: n}, nil
}

type offsetError struct {
	at      int
	message string
}

func (e *offsetError) Error() string { return e.message }

type expressionParser struct {
	text string
	pos  int
	word string // the current token, "" at the end
	at   int
	err  error
}

func (p *expressionParser) fail(at int, format string, args ...any) {
	if p.err == nil {
		p.err = &offsetError{at, fmt.Sprintf(format, args...)}
	}
	p.word = ""
}

func isWord(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_' || r == '.'
}

func (p *expressionParser) next() {
	for p.pos < len(p.text) && (p.text[p.pos] == ' ' || p.text[p.pos] == '\n' || p.text[p.pos] == '\t') {
		p.pos++
	}
	p.at = p.pos
	if p.pos == len(p.text) || p.err != nil {
		p.word = ""
		return
	}
	if strings.ContainsRune("(),", rune(p.text[p.pos])) {
		p.word = p.text[p.pos : p.pos+1]
		p.pos++
		return
	}
	for i, r := range p.text[p.pos:] {
		if !isWord(r) {
			if i == 0 {
				p.fail(p.pos, "%q does not belong into an expression; want names, and, or, of, ( ) and ,", r)
				return
			}
			p.word, p.pos = p.text[p.pos:p.pos+i], p.pos+i
			return
		}
	}
	p.word, p.pos = p.text[p.pos:], len(p.text)
}

func (p *expressionParser) anyOf(depth int) *need {
	return p.joined(depth, "or", fault.Or, p.allOf)
}

func (p *expressionParser) allOf(depth int) *need {
	return p.joined(depth, "and", fault.And, p.one)
}

func (p *expressionParser) joined(depth int, word string, op fault.Op, part func(int) *need) *need {
	at := p.at
	args := []*need{part(depth)}
	for p.word == word {
		p.next()
		args = append(args, part(depth))
	}
	if len(args) == 1 {
		return args[0]
	}
	return &need{op: op, args: args, at: at}
}

func (p *expressionParser) one(depth int) *need {
	at, word := p.at, p.word
	n := &need{op: fault.Name, name: word, at: at}
	switch {
	case depth > maxNesting:
		p.fail(at, "the expression is nested deeper than %d", maxNesting)
	case word == "(":
		p.next()
		n = p.anyOf(depth + 1)
		p.expect(")")
	case word == "" || word == ")" || word == "," || word == "and" || word == "or" || word == "of":
		p.fail(at, "want a name or ( here")
	default:
		p.next()
		if p.word == "of" {
			return p.some(at, word, depth)
		}
	}
	return n
}

// some reads "2 of (a, b, c)" behind the number.
func (p *expressionParser) some(at int, word string, depth int) *need {
	n := &need{op: fault.AtLeast, at: at}
	if _, err := fmt.Sscanf(word, "%d", &n.k); err != nil || fmt.Sprint(n.k) != word {
		p.fail(at, "want a number before \"of\", as in 2 of (a, b, c)")
		return n
	}
	p.next()
	p.expect("(")
	for p.err == nil {
		n.args = append(n.args, p.anyOf(depth+1))
		if p.word != "," {
			break
		}
		p.next()
	}
	p.expect(")")
	if p.err == nil && (n.k < 1 || n.k > len(n.args)) {
		p.fail(at, "%d of %d makes no sense", n.k, len(n.args))
	}
	return n
}

func (p *expressionParser) expect(word string) {
	if p.err != nil {
		return
	}
	if p.word != word {
		p.fail(p.at, "want %q here", word)
		return
	}
	p.next()
}
