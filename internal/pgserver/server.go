package pgserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/supervise"
)

// Superuser is the role that initdb creates.
const Superuser = "postgres"

// Options say how to start a server.
type Options struct {
	Dir      string            // data folder; made by initdb when it is missing or empty
	Name     string            // cluster_name; shown in process titles and readable with current_setting
	Port     int               // 0: a free one
	Settings map[string]string // override the defaults of this package
	Binaries Binaries          // zero: Find
	Env      []string          // of the server, beside the caller's

	// Start starts the server's process where the caller cannot reach it over loopback, as in a network namespace; the
	// caller then reaches it by its Unix socket in Dir. nil: beside the caller.
	Start func(*exec.Cmd) (*supervise.Process, error)
}

// Server is a running (or stopped) PostgreSQL server. Its methods are for one goroutine at a time.
type Server struct {
	Dir  string
	Port int

	opts  Options
	owner *syscall.Credential // nil when the caller is not root
	proc  *supervise.Process  // nil: stopped
}

// defaults make a server that replicates logically and fits many of them on a small machine. Commits are durable:
// the guarantees that are tested rest on it.
var defaults = map[string]string{
	"listen_addresses":          "127.0.0.1",
	"wal_level":                 "logical",
	"track_commit_timestamp":    "on",
	"max_prepared_transactions": "64",
	"max_replication_slots":     "32",
	"max_wal_senders":           "32",
	"max_connections":           "120",
	"shared_buffers":            "64MB",
	"fsync":                     "on",
	"synchronous_commit":        "on",
	"autovacuum_naptime":        "10s",
	"log_checkpoints":           "off",
	"log_min_messages":          "warning",
	"logging_collector":         "off",
	"timezone":                  "UTC",
}

// Start runs a server and returns when it answers. The caller stops it with Stop or Kill; if the caller dies, the
// server is killed with it.
func Start(ctx context.Context, opts Options) (*Server, error) {
	if opts.Binaries == (Binaries{}) {
		found, err := Find()
		if err != nil {
			return nil, err
		}
		opts.Binaries = found
	}
	s := &Server{Dir: opts.Dir, Port: opts.Port, opts: opts}
	if os.Getuid() == 0 {
		owner, err := unprivileged()
		if err != nil {
			return nil, err
		}
		s.owner = owner
	}
	if s.Port == 0 {
		port, err := loopback.Port()
		if err != nil {
			return nil, err
		}
		s.Port = port
	}
	if err := s.initdb(ctx); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// unprivileged picks whom to run servers as when the caller is root, which PostgreSQL refuses to run as.
func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and neither user postgres nor nobody exists to run it as")
}

func (s *Server) initdb(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(s.Dir, "PG_VERSION")); err == nil {
		return nil
	}
	if err := s.newDir(s.Dir); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, s.opts.Binaries.Path("initdb"), "-D", s.Dir, "-U", Superuser, "--auth=trust",
		"-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb in %s: %w\n%s", s.Dir, err, out)
	}
	return nil
}

func (s *Server) start(ctx context.Context) error {
	settings := maps.Clone(defaults)
	maps.Copy(settings, s.opts.Settings)
	settings["port"] = strconv.Itoa(s.Port)
	settings["unix_socket_directories"] = s.Dir
	if s.opts.Name != "" {
		settings["cluster_name"] = s.opts.Name
	}
	args := []string{"-D", s.Dir}
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", k+"="+settings[k])
	}
	logFile, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.Command(s.opts.Binaries.Path("postgres"), args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if len(s.opts.Env) > 0 {
		cmd.Env = append(os.Environ(), s.opts.Env...)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	start := s.opts.Start
	if start == nil {
		start = supervise.Start
	}
	if s.proc, err = start(cmd); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	if err := s.awaitReady(ctx); err != nil {
		return errors.Join(err, s.Kill())
	}
	return nil
}

// LogFile is where the server writes its log.
func (s *Server) LogFile() string { return strings.TrimSuffix(s.Dir, "/") + ".log" }

func (s *Server) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.CallerDSN(Superuser, "postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-s.proc.Done:
			return fmt.Errorf("postgres ended at start: %s", s.logTail())
		case <-ctx.Done():
			return fmt.Errorf("postgres on port %d does not answer: %w; its log ends: %s", s.Port, err, s.logTail())
		case <-tick.C:
		}
	}
}

func (s *Server) logTail() string {
	data, err := os.ReadFile(s.LogFile())
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-600):])
}

// CallerDSN is DSN for the process that started the server, also where that stands elsewhere (Options.Start).
func (s *Server) CallerDSN(role, database string) string {
	if s.opts.Start == nil {
		return s.DSN(role, database)
	}
	u := url.URL{Scheme: "postgres", User: url.User(role), Path: "/" + database,
		RawQuery: url.Values{"host": {s.Dir}, "port": {strconv.Itoa(s.Port)}}.Encode()}
	return u.String()
}

// DSN is a connection URL over loopback TCP, for processes beside the server. No password is needed.
func (s *Server) DSN(role, database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(role), Host: "127.0.0.1:" + strconv.Itoa(s.Port), Path: "/" + database,
		RawQuery: "sslmode=disable"}
	return u.String()
}

// CreateDatabase makes an empty database.
func (s *Server) CreateDatabase(ctx context.Context, name string) error {
	return s.exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
}

func (s *Server) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.CallerDSN(Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

// Stop ends the server in an orderly way, breaking connections ("fast").
func (s *Server) Stop() error { return s.end(syscall.SIGINT) }

// Immediate ends the server without a checkpoint; the next start recovers, as after a crash of the host.
func (s *Server) Immediate() error { return s.end(syscall.SIGQUIT) }

// Kill ends the postmaster and all backends at once.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

func (s *Server) end(sig syscall.Signal) error {
	if s.proc == nil {
		return nil
	}
	if sig == syscall.SIGKILL {
		return s.killAll()
	}
	if err := syscall.Kill(s.proc.PID(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal postgres: %w", err)
	}
	select {
	case <-s.proc.Done:
		s.proc = nil
		return nil
	case <-time.After(30 * time.Second):
		return s.killAll()
	}
}

// killAll ends backends too: they leave the postmaster's process group and may go on writing for a moment after it
// died. The postmaster is stopped first, so that it starts no new ones.
func (s *Server) killAll() error {
	if err := s.signalAll(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stop postgres: %w", err)
	}
	all := childrenOf(s.proc.PID())
	if err := s.signalAll(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill postgres: %w", err)
	}
	<-s.proc.Done
	s.proc = nil
	return awaitGone(all)
}

// awaitGone waits until killed backends hold nothing any more: a server that starts before would find the memory of the
// old one in use.
func awaitGone(pids []int) error {
	bound := time.Now().Add(10 * time.Second)
	for _, pid := range pids {
		for !gone(pid) {
			if time.Now().After(bound) {
				return fmt.Errorf("backend %d is still there 10 s after it was killed", pid)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	return nil
}

// gone tells whether a process has ended; whether somebody has collected it does not matter.
func gone(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// Pause stops every process of the server (SIGSTOP); Resume lets them go on.
func (s *Server) Pause() error { return s.signalAll(syscall.SIGSTOP) }

// Resume undoes Pause.
func (s *Server) Resume() error { return s.signalAll(syscall.SIGCONT) }

func (s *Server) signalAll(sig syscall.Signal) error {
	if s.proc == nil {
		return errors.New("the server is not running")
	}
	// The postmaster first: it makes no further children once it is stopped. Backends have process groups of their
	// own, so each is signalled.
	pid := s.proc.PID()
	if sig == syscall.SIGSTOP {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	for _, p := range append(childrenOf(pid), pid) {
		if err := syscall.Kill(p, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

func childrenOf(pid int) []int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil // ended meanwhile
	}
	var out []int
	for f := range strings.FieldsSeq(string(data)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// Restart starts a stopped server again, or restarts a running one in an orderly way, on the same port and folder.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.start(ctx)
}
