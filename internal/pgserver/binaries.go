// Package pgserver starts and stops real PostgreSQL servers for tests, the lab and the demo: initdb in a temporary
// folder, a free loopback port, as a non-root user when the caller is root. The main type is [Server].
//
// It guarantees that a server does not outlive the process that started it, also when that process is killed. It
// refuses to run anything that listens beyond loopback; authentication is trust, so it is not for production.
package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNoBinaries is returned when no PostgreSQL server programs are found.
var ErrNoBinaries = errors.New("no PostgreSQL server programs (initdb, postgres) found; install them with: " +
	"apt-get install -y postgresql-15, or set ATOLL_PG_BIN to the folder that holds them")

// Binaries locates PostgreSQL's server programs of one version.
type Binaries struct {
	Dir string // holds initdb, postgres, pg_dump where installed
}

// Find looks in ATOLL_PG_BIN, then on PATH, then in the distribution's usual places (newest first).
func Find() (Binaries, error) {
	if dir := os.Getenv("ATOLL_PG_BIN"); dir != "" {
		if b := (Binaries{dir}); b.complete() {
			return b, nil
		}
		return Binaries{}, fmt.Errorf("ATOLL_PG_BIN=%s holds no initdb and postgres", dir)
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			if b := (Binaries{filepath.Dir(real)}); b.complete() {
				return b, nil
			}
		}
	}
	var dirs []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			panic("BUG: bad pattern " + pattern)
		}
		dirs = append(dirs, found...)
	}
	slices.SortFunc(dirs, func(a, b string) int { return versionIn(b) - versionIn(a) })
	for _, dir := range dirs {
		if b := (Binaries{dir}); b.complete() {
			return b, nil
		}
	}
	return Binaries{}, ErrNoBinaries
}

func versionIn(dir string) int {
	for part := range strings.SplitSeq(dir, "/") {
		if n, err := strconv.Atoi(strings.TrimPrefix(part, "pgsql-")); err == nil {
			return n
		}
	}
	return 0
}

func (b Binaries) complete() bool {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := os.Stat(b.Path(name)); err != nil {
			return false
		}
	}
	return true
}

// Path is the full path of one program, which need not exist (pg_dump is a client package on some systems).
func (b Binaries) Path(name string) string { return filepath.Join(b.Dir, name) }
