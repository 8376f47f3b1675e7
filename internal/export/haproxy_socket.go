package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const (
	socketTimeout = 5 * time.Second
	maxReply      = 64 << 20
	// A command with its payload has to fit into one of HAProxy's buffers (tune.bufsize, 16 KiB unless set).
	maxPayload = 8 << 10
)

// Runtime is the runtime API of a running HAProxy: its stats socket at level admin.
type Runtime struct {
	addr string // path of a Unix socket, or host:port
	file string // the map, as its configuration names it
}

// NewRuntime speaks to a socket (a path, or host:port) of a map that the configuration names like this.
func NewRuntime(socket, file string) Runtime { return Runtime{socket, file} }

// call sends one command. HAProxy answers, and closes the connection.
func (r Runtime) call(ctx context.Context, command string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	network := "tcp"
	if strings.Contains(r.addr, "/") {
		network = "unix"
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, r.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return nil, err
	}
	reply, err := io.ReadAll(io.LimitReader(conn, maxReply))
	if err == nil && len(reply) == maxReply {
		err = errors.New("the answer has no end")
	}
	return bytes.TrimSpace(reply), err
}

// do sends a command that has nothing to say where it succeeds.
func (r Runtime) do(ctx context.Context, command string) error {
	reply, err := r.call(ctx, command)
	if err == nil && len(reply) > 0 {
		err = errors.New(string(reply))
	}
	if err != nil {
		first, _, _ := strings.Cut(command, " <<")
		return fmt.Errorf("haproxy: %.80s: %w", first, err)
	}
	return nil
}

// Version is that of the view in the map in use.
func (r Runtime) Version(ctx context.Context) (Version, error) {
	reply, err := r.call(ctx, "get map "+r.file+" "+viewKey)
	if err != nil {
		return Version{}, fmt.Errorf("haproxy: get map: %w", err)
	}
	if !bytes.Contains(reply, []byte("found=")) {
		return Version{}, fmt.Errorf("haproxy: get map: %.200s (is %s the map's name in the configuration?)", reply, r.file)
	}
	_, after, _ := strings.Cut(string(reply), `value="`)
	value, _, _ := strings.Cut(after, `"`)
	return Map{viewKey: value}.Version(), nil
}

// Read reads the map in use.
func (r Runtime) Read(ctx context.Context) (Map, error) {
	reply, err := r.call(ctx, "show map "+r.file)
	if err != nil {
		return nil, fmt.Errorf("haproxy: show map: %w", err)
	}
	m, err := parseLines(reply, 1) // an address stands before the key
	if err != nil {
		return nil, fmt.Errorf("haproxy: show map: %w", err)
	}
	return m, nil
}

// Swap replaces the map: a new version is filled beside the one in use and takes its place at once, for all threads. Then it is read
// again and compared. An error may come before the swap or after it; a later Swap mends both.
func (r Runtime) Swap(ctx context.Context, m Map) error {
	reply, err := r.call(ctx, "prepare map "+r.file)
	if err != nil {
		return fmt.Errorf("haproxy: prepare map: %w", err)
	}
	var n uint64
	if _, err := fmt.Sscanf(string(reply), "New version created: %d", &n); err != nil {
		return fmt.Errorf("haproxy: prepare map: %.200s (is %s the map's name in the configuration, and the socket's level admin?)", reply, r.file)
	}
	if err := r.fill(ctx, n, m); err != nil {
		ctx := context.WithoutCancel(ctx)
		return errors.Join(err, r.do(ctx, fmt.Sprintf("clear map @%d %s", n, r.file)))
	}
	if err := r.do(ctx, fmt.Sprintf("commit map @%d %s", n, r.file)); err != nil {
		return err
	}
	got, err := r.Read(ctx)
	if err != nil {
		return err
	}
	if where := m.differs(got); where != "" {
		return fmt.Errorf("haproxy: the map is not what was put in: %s", where)
	}
	return nil
}

func (r Runtime) fill(ctx context.Context, version uint64, m Map) error {
	var payload strings.Builder
	send := func() error {
		if payload.Len() == 0 {
			return nil
		}
		defer payload.Reset()
		return r.do(ctx, fmt.Sprintf("add map @%d %s <<\n%s", version, r.file, payload.String()))
	}
	for _, line := range m.lines() {
		if payload.Len()+len(line) > maxPayload {
			if err := send(); err != nil {
				return err
			}
		}
		payload.WriteString(line + "\n")
	}
	return send()
}
