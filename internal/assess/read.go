package assess

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

const (
	// Format is the newest form of an estate's file that this build reads.
	Format = 1

	maxFile  = 4 << 20
	maxNodes = 200_000
)

// Load reads a file, checks it, and fills in defaults. What is wrong with its content comes back as [Problems].
func Load(path string) (*Estate, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the estate: %w; `atoll assess new` writes one to start from", err)
	}
	defer f.Close()
	return Read(path, f)
}

// Read is Load for a file that is open; name stands for it in errors.
func Read(name string, r io.Reader) (*Estate, error) {
	body, err := document(name, r, "an estate", "`atoll assess new` writes one to start from")
	if err != nil {
		return nil, err
	}
	e := &Estate{File: name}
	d := &decoder{file: name, where: places{}, budget: maxNodes}
	d.value(body, reflect.ValueOf(e).Elem(), "", "")
	e.where = d.where
	if len(d.problems) == 0 {
		d.problems = e.check()
	}
	if len(d.problems) > 0 {
		return nil, d.problems
	}
	e.fill()
	return e, nil
}

// document reads the one YAML document that a file holds.
func document(name string, r io.Reader, what, hint string) (ast.Node, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	if len(data) > maxFile {
		return nil, Problems{{name, 1, 1, fmt.Sprintf("larger than %d MiB; not %s", maxFile>>20, what), ""}}
	}
	file, problem := parse(name, data)
	if problem != nil {
		return nil, Problems{*problem}
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return nil, Problems{{name, 1, 1, "want exactly one YAML document", hint}}
	}
	return file.Docs[0].Body, nil
}

// parse makes the tree. The library panics on some malformed documents, which fuzzing found.
func parse(name string, data []byte) (file *ast.File, problem *Problem) {
	defer func() {
		if r := recover(); r != nil {
			problem = &Problem{name, 1, 1, fmt.Sprintf("not well-formed YAML: %v", r), ""}
		}
	}()
	file, err := parser.ParseBytes(data, 0)
	if err == nil {
		return file, nil
	}
	problem = &Problem{File: name, Line: 1, Column: 1, Message: err.Error()}
	var broken yaml.Error
	if errors.As(err, &broken) {
		problem.Message = broken.GetMessage()
		at := placeOf(broken.GetToken())
		problem.Line, problem.Column = at.line, at.column
	}
	return nil, problem
}
