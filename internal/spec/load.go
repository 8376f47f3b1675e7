package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile bounds what is read: a spec is written by people.
const maxFile = 4 << 20

// Problem is one thing that is wrong in a file, and what to do about it. Line and Column count from 1; 0 is unknown.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (p Problem) String() string {
	s := p.File
	if p.Line > 0 {
		s += fmt.Sprintf(":%d:%d", p.Line, p.Column)
	}
	s += ": " + p.Message
	if p.Hint != "" {
		s += " (" + p.Hint + ")"
	}
	return s
}

// Problems is the error that Load returns for a file that can be read but must not be used.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Load reads, checks and completes (defaults, folders relative to the file) atoll.yaml. What is wrong with the
// content comes back as [Problems].
func Load(path string) (*Spec, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the spec: %w; name it with -f, or see `atoll validate --sample` for one to start from", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the spec: %w", err)
	}
	if len(data) > maxFile {
		return nil, Problems{{File: path, Message: fmt.Sprintf("larger than %d MiB; not a spec", maxFile>>20)}}
	}
	s, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	files := []*string{&s.PKI, &s.State, &s.Policies.JWT.KeysFile, &s.Policies.JWT.KeysCA}
	for _, site := range s.Sites {
		for _, g := range site.Gateways {
			if g.TLS != nil {
				files = append(files, &g.TLS.Cert, &g.TLS.Key, &g.TLS.ClientCA)
				if g.TLS.ACME != nil {
					files = append(files, &g.TLS.ACME.CARoot)
				}
			}
		}
	}
	for _, p := range files {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return s, nil
}

// Parse is Load for data that is at hand; name stands for the file in errors.
func Parse(name string, data []byte) (_ *Spec, err error) {
	// The YAML library panics on some malformed documents (a tag on a missing list); fuzzing found it.
	defer func() {
		if r := recover(); r != nil {
			err = Problems{{File: name, Message: fmt.Sprintf("not well-formed YAML: %v", r), Hint: "are there stray tags (!) or anchors (&)?"}}
		}
	}()
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, Problems{fromYAML(name, err)}
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return nil, Problems{{File: name, Line: 1, Column: 1, Message: "want exactly one YAML document",
			Hint: "`atoll validate --sample` prints one to start from"}}
	}
	pos := positions{file: name, root: file.Docs[0].Body}
	if p, ok := pos.refuseShape(); !ok {
		return nil, Problems{p}
	}
	s := new(Spec)
	if err := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict()).Decode(s); err != nil {
		return nil, Problems{fromYAML(name, err)}
	}
	if problems := check(s, pos); len(problems) > 0 {
		return nil, problems
	}
	s.setDefaults()
	return s, nil
}

func fromYAML(name string, err error) Problem {
	p := Problem{File: name, Message: err.Error()}
	var ye yaml.Error
	if !errors.As(err, &ye) {
		return p
	}
	p.Message = ye.GetMessage()
	if tok := ye.GetToken(); tok != nil {
		p.Line, p.Column = tok.Position.Line, tok.Position.Column
		var unknown *yaml.UnknownFieldError
		if errors.As(err, &unknown) {
			p.Message = fmt.Sprintf("unknown key %q", tok.Value)
			p.Hint = suggest(tok.Value, knownKeys())
		}
	}
	return p
}

// knownKeys lists every key of the spec, from the same structs that decode it.
func knownKeys() []string {
	var keys []string
	seen := map[reflect.Type]bool{}
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || seen[t] {
			return
		}
		seen[t] = true
		for i := range t.NumField() {
			if key := yamlKey(t.Field(i)); key != "" {
				keys = append(keys, key)
			}
			walk(t.Field(i).Type)
		}
	}
	walk(reflect.TypeFor[Spec]())
	return keys
}

// suggest names the known word that is nearest to what was written, if one is near.
func suggest(word string, known []string) string {
	best, bestDistance := "", 3
	for _, k := range known {
		if d := distance(strings.ToLower(word), k); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	if best == "" {
		return "`atoll validate --schema` lists every key"
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// distance is the number of letters to insert, delete or replace to turn a into b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// positions finds where in the file a value stands.
type positions struct {
	file string
	root ast.Node
}

// at returns where the value under the given keys stands, or where the nearest enclosing one does. Keys are map keys
// (string) or list indexes (int).
func (p positions) at(keys ...any) (line, column int) {
	node := p.root
	tok := node.GetToken()
	for _, key := range keys {
		var next ast.Node
		switch key := key.(type) {
		case string:
			for _, kv := range mappings(node) {
				if kv.Key.String() == key || strings.Trim(kv.Key.String(), `"'`) == key {
					next, tok = kv.Value, kv.Key.GetToken()
				}
			}
		case int:
			if seq, ok := node.(*ast.SequenceNode); ok && key < len(seq.Values) {
				next = seq.Values[key]
				tok = next.GetToken()
				if m := mappings(next); len(m) > 0 {
					tok = m[0].Key.GetToken()
				}
			}
		default:
			panic("BUG: a position is named by string or int")
		}
		if next == nil {
			break
		}
		node = next
	}
	return tok.Position.Line, tok.Position.Column
}

func mappings(node ast.Node) []*ast.MappingValueNode {
	switch n := node.(type) {
	case *ast.MappingNode:
		return n.Values
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}
	}
	return nil
}

// refuseShape refuses, with its place, what the decoder would take without a word or refuse without a place: a
// document that is no mapping, and durations that are none.
func (p positions) refuseShape() (Problem, bool) {
	if len(mappings(p.root)) == 0 {
		line, column := p.at()
		return Problem{File: p.file, Line: line, Column: column, Message: "want keys such as deployment: and sites:",
			Hint: "`atoll validate --sample` prints a spec to start from"}, false
	}
	if p, ok := p.refuseDurations(p.root, reflect.TypeFor[Spec]()); !ok {
		return p, false
	}
	return Problem{}, true
}

// refuseDurations finds the first value that is to be a duration and is none, in a node that is to be of a type.
func (p positions) refuseDurations(node ast.Node, t reflect.Type) (Problem, bool) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch value, isScalar := node.(ast.ScalarNode); {
	case t == reflect.TypeFor[time.Duration]():
		if !isScalar {
			return Problem{}, true // the decoder says so
		}
		tok := value.GetToken()
		if _, err := time.ParseDuration(tok.Value); err != nil {
			return Problem{File: p.file, Line: tok.Position.Line, Column: tok.Position.Column,
				Message: fmt.Sprintf("%q is not a duration", tok.Value), Hint: "write for example 500ms, 10s or 1m"}, false
		}
	case t.Kind() == reflect.Slice:
		seq, _ := node.(*ast.SequenceNode)
		for i := range seqLen(seq) {
			if p, ok := p.refuseDurations(seq.Values[i], t.Elem()); !ok {
				return p, false
			}
		}
	case t.Kind() == reflect.Map, t.Kind() == reflect.Struct:
		for _, kv := range mappings(node) {
			under, known := memberType(t, kv.Key.String())
			if !known {
				continue
			}
			if problem, ok := p.refuseDurations(kv.Value, under); !ok {
				if under == reflect.TypeFor[time.Duration]() || under == reflect.TypeFor[*time.Duration]() {
					problem.Message = kv.Key.String() + ": " + problem.Message
				}
				return problem, false
			}
		}
	}
	return Problem{}, true
}

func seqLen(seq *ast.SequenceNode) int {
	if seq == nil {
		return 0
	}
	return len(seq.Values)
}

// memberType is the type of what stands under a key.
func memberType(t reflect.Type, key string) (reflect.Type, bool) {
	if t.Kind() == reflect.Map {
		return t.Elem(), true
	}
	for i := range t.NumField() {
		if yamlKey(t.Field(i)) == key {
			return t.Field(i).Type, true
		}
	}
	return nil, false
}

func yamlKey(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return key
}
