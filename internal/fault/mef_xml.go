package fault

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
)

// Bounds of what is read, all far above any real model: bytes and elements of all files, files, nesting.
const (
	maxMEF      = 64 << 20
	maxElements = 2_000_000
	maxFiles    = 1000
	maxDepth    = 200
)

// SyntaxError says where a model file is wrong and what to write instead.
type SyntaxError struct {
	File         string // "" where the model is not read from files
	Line, Column int
	Message      string
	Hint         string
}

func (e *SyntaxError) Error() string {
	out := fmt.Sprintf("line %d, column %d: %s", e.Line, e.Column, e.Message)
	if e.File != "" {
		out = e.File + ": " + out
	}
	if e.Hint != "" {
		out += "; " + e.Hint
	}
	return out
}

// element is one XML element with its place.
type element struct {
	name         string
	attrs        []attribute
	children     []*element
	text         string // of a label
	file         string
	line, column int
}

type attribute struct{ name, value string }

// attr is an attribute's value without blanks around it; "" where it is not there.
func (e *element) attr(name string) string {
	for _, a := range e.attrs {
		if a.name == name {
			return strings.TrimSpace(a.value)
		}
	}
	return ""
}

func (e *element) wrong(hint, format string, args ...any) error {
	return &SyntaxError{e.file, e.line, e.column, fmt.Sprintf(format, args...), hint}
}

// content lists the children that are not of the document's looks.
func content(e *element) []*element {
	return slices.DeleteFunc(slices.Clone(e.children), func(c *element) bool { return c.name == "label" || c.name == "attributes" })
}

// Opener opens a file of a model.
type Opener func(name string) (io.ReadCloser, error)

// mefFiles reads files into elements, those that are included too.
type mefFiles struct {
	open            Opener // nil: nothing can be included
	bytes, elements int
	files           int
}

// read opens and parses a file; around are the files that include it.
func (r *mefFiles) read(name string, around []string) (*element, error) {
	f, err := r.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	root, err := r.parse(name, f)
	if err != nil {
		return nil, err
	}
	return root, r.include(root, append(slices.Clone(around), filepath.Clean(name)))
}

// include replaces what includes a file by that file's definitions.
func (r *mefFiles) include(e *element, around []string) error {
	for i := 0; i < len(e.children); i++ {
		c := e.children[i]
		if c.name != "include" {
			if err := r.include(c, around); err != nil {
				return err
			}
			continue
		}
		name := c.attr("href")
		if name == "" {
			name = c.attr("file")
		}
		switch {
		case name == "":
			return c.wrong(`write href="FILE.xml"`, "<include> does not name a file")
		case strings.Contains(name, "://"):
			return c.wrong("name a local file", "%q is not read over a network", name)
		case r.open == nil:
			return c.wrong("read the model from files", "%q cannot be included here", name)
		}
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(around[len(around)-1]), name)
		}
		if slices.Contains(around, filepath.Clean(name)) {
			return c.wrong("take one of the includes out", "%q includes itself, through %s", name, strings.Join(around, ", "))
		}
		inner, err := r.read(name, around)
		var syntax *SyntaxError
		if errors.As(err, &syntax) {
			return err
		}
		if err != nil {
			return c.wrong("correct the name; it counts from the file that includes it", "cannot include: %v", err)
		}
		e.children = slices.Replace(e.children, i, i+1, inner.children...)
		i += len(inner.children) - 1
	}
	return nil
}

// parse reads a document into elements. Text is of no meaning in the format, besides in labels.
func (r *mefFiles) parse(name string, in io.Reader) (*element, error) {
	if r.files++; r.files > maxFiles {
		return nil, fmt.Errorf("the model has more than %d files", maxFiles)
	}
	data, err := io.ReadAll(io.LimitReader(in, int64(maxMEF-r.bytes)+1))
	if err != nil {
		return nil, err
	}
	if r.bytes += len(data); r.bytes > maxMEF {
		return nil, fmt.Errorf("the model is larger than %d MiB", maxMEF>>20)
	}
	for _, mark := range []string{"\xff\xfe", "\xfe\xff", "<\x00", "\x00<"} {
		if bytes.HasPrefix(data, []byte(mark)) {
			return nil, &SyntaxError{name, 1, 1, "the file is in UTF-16", "save it in UTF-8"}
		}
	}
	dec := xml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))))
	dec.CharsetReader = charset
	doc := &element{file: name}
	stack := []*element{doc}
	for {
		line, column := dec.InputPos()
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, notWellFormed(name, dec, err)
		}
		top := stack[len(stack)-1]
		switch t := tok.(type) {
		case xml.StartElement:
			e := &element{name: t.Name.Local, file: name, line: line, column: column}
			if len(stack) > maxDepth {
				return nil, e.wrong("", "elements are nested deeper than %d", maxDepth)
			}
			if r.elements++; r.elements > maxElements {
				return nil, e.wrong("", "the model has more than %d elements", maxElements)
			}
			if err := e.start(t); err != nil {
				return nil, err
			}
			top.children = append(top.children, e)
			stack = append(stack, e)
		case xml.EndElement:
			stack = stack[:len(stack)-1]
		case xml.CharData:
			if top.name == "label" {
				top.text += string(t)
			}
		}
	}
	if len(doc.children) != 1 || doc.children[0].name != "opsa-mef" {
		return nil, &SyntaxError{name, 1, 1, "this is no Open-PSA model", "the outermost element must be one <opsa-mef>"}
	}
	return doc.children[0], nil
}

// start takes over an element's attributes, and refuses an element of another vocabulary: what it means is not known.
// Attributes of other vocabularies are left aside.
func (e *element) start(t xml.StartElement) error {
	switch space := t.Name.Space; {
	case space == "", strings.Contains(strings.ToLower(space), "open-psa"), e.name == "include" && strings.HasSuffix(space, "/XInclude"):
	case e.name == "opsa-mef":
		return e.wrong(`write <opsa-mef> without xmlns="…"`, "<opsa-mef> is of the namespace %q", space)
	default:
		return e.wrong("take it out, or write it without a prefix if it belongs to the model", "<%s> is of the namespace %q", e.name, space)
	}
	e.attrs = make([]attribute, 0, len(t.Attr))
	for _, a := range t.Attr {
		if a.Name.Space != "" {
			continue
		}
		if slices.ContainsFunc(e.attrs, func(b attribute) bool { return b.name == a.Name.Local }) {
			return e.wrong("keep one of them", "<%s> has the attribute %q twice", e.name, a.Name.Local)
		}
		e.attrs = append(e.attrs, attribute{a.Name.Local, a.Value})
	}
	return nil
}

func notWellFormed(name string, dec *xml.Decoder, err error) error {
	line, column := dec.InputPos()
	var syntax *xml.SyntaxError
	message, hint := err.Error(), ""
	if errors.As(err, &syntax) {
		message = syntax.Msg
	}
	switch {
	case strings.Contains(message, "unexpected EOF"):
		hint = "the file ends too early: is it whole?"
	case strings.Contains(message, "entity"):
		hint = "only the entities of XML itself are read: write what it stands for"
	case strings.Contains(message, "invalid UTF-8"):
		hint = "save the file in UTF-8"
	}
	return &SyntaxError{name, line, column, "this is not well-formed XML: " + message, hint}
}

// charset reads the encodings of one byte a character that old tools write.
func charset(label string, in io.Reader) (io.Reader, error) {
	switch strings.ToLower(label) {
	case "us-ascii", "ascii", "iso-8859-1", "latin1":
	default:
		return nil, fmt.Errorf("the encoding %q is not read; save the file in UTF-8", label)
	}
	data, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, b := range data {
		out.WriteRune(rune(b))
	}
	return &out, nil
}
