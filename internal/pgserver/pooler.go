package pgserver

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/atollhq/atoll/internal/loopback"
)

// ErrNoPooler is returned when pgbouncer is not installed.
var ErrNoPooler = errors.New("no pgbouncer found; install it with: apt-get install -y --no-install-recommends pgbouncer")

// PoolerOptions say how to run a pgbouncer in front of a server.
type PoolerOptions struct {
	Dir      string   // existing folder for its configuration
	Name     string   // of its configuration file, so that several can share a folder
	Port     int      // it listens on; 0: a free one
	Server   int      // the server's port
	Roles    []string // who may connect
	PoolSize int      // server connections per role and database, default 20
}

// Pooler is a pgbouncer in transaction mode that is ready to be started: a server connection belongs to a client for
// one transaction. As at a service that a company runs for its applications, parameters that it does not track are
// ignored at connect.
type Pooler struct {
	Port int
	Path string
	Args []string
	As   *syscall.Credential // whom to run it as; nil: the caller. It refuses to run as root.
}

// NewPooler finds pgbouncer and writes its configuration.
func NewPooler(o PoolerOptions) (*Pooler, error) {
	path, err := findPooler()
	if err != nil {
		return nil, err
	}
	p := &Pooler{Port: o.Port, Path: path}
	if os.Getuid() == 0 {
		if p.As, err = unprivileged(); err != nil {
			return nil, err
		}
	}
	if p.Port == 0 {
		if p.Port, err = loopback.Port(); err != nil {
			return nil, err
		}
	}
	var users strings.Builder
	for _, role := range o.Roles {
		fmt.Fprintf(&users, "%q \"\"\n", role)
	}
	base := filepath.Join(o.Dir, cmp.Or(o.Name, "pgbouncer"))
	ini := fmt.Sprintf(`[databases]
* = host=127.0.0.1 port=%d

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = trust
auth_file = %s.users
pool_mode = transaction
default_pool_size = %d
max_client_conn = 500
server_login_retry = 1
ignore_startup_parameters = extra_float_digits,idle_in_transaction_session_timeout
log_connections = 0
log_disconnections = 0
log_stats = 0
`, o.Server, p.Port, base, cmp.Or(o.PoolSize, 20))
	for name, text := range map[string]string{".ini": ini, ".users": users.String()} {
		if err := os.WriteFile(base+name, []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("pgbouncer's configuration: %w", err)
		}
	}
	p.Args = []string{base + ".ini"}
	return p, nil
}

// findPooler looks on PATH and where Debian puts it, which is not on every PATH.
func findPooler() (string, error) {
	if p, err := exec.LookPath("pgbouncer"); err == nil {
		return p, nil
	}
	const debian = "/usr/sbin/pgbouncer"
	if _, err := os.Stat(debian); err == nil {
		return debian, nil
	}
	return "", ErrNoPooler
}

// DSN is a connection URL through the pooler for a pgx client. Named prepared statements do not survive a pooler in
// transaction mode (before pgbouncer 1.21), so the client is told to use the extended protocol without them.
func (p *Pooler) DSN(role, database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(role), Host: "127.0.0.1:" + strconv.Itoa(p.Port), Path: "/" + database,
		RawQuery: "sslmode=disable&default_query_exec_mode=exec"}
	return u.String()
}
