package compare

import (
	"fmt"
	"strings"
)

// Pointer is a JSON pointer (RFC 6901) as its tokens; * takes any one token.
type Pointer []string

// ParsePointer reads a pointer that begins with a slash. The pointer to all of a document is refused: to ignore that is to
// compare nothing.
func ParsePointer(text string) (Pointer, error) {
	if !strings.HasPrefix(text, "/") {
		return nil, fmt.Errorf("%q does not begin with /", text)
	}
	out := strings.Split(text[1:], "/")
	for i, token := range out {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(token), "~") {
			return nil, fmt.Errorf("%q has a ~ that is neither ~0 (a tilde) nor ~1 (a slash)", text)
		}
		out[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
	}
	return out, nil
}

// covers tells whether a place is the pointer's, or below it.
func (p Pointer) covers(at []string) bool {
	if len(at) < len(p) {
		return false
	}
	for i, token := range p {
		if token != "*" && token != at[i] {
			return false
		}
	}
	return true
}

// Longest names in objects that are shown, and most digits in them: what has more is an identifier of something.
const (
	maxName   = 40
	maxDigits = 4
)

// shown is a name in an object as it stands in a report: * where it looks like data.
func shown(name string) string {
	digits := 0
	for _, c := range name {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c == '-', c == '.', c == '$':
		default:
			return "*"
		}
	}
	if name == "" || len(name) > maxName || digits > maxDigits || digits == len(name) {
		return "*"
	}
	return name
}
