package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A new process takes over from the running one without a connection refused: it asks on a socket in the state folder, and
// gets the listening sockets themselves, so that whoever is waiting to be accepted is accepted by either. It says when it can
// serve; only then the old one stops accepting, and lets its connections go one by one, each behind an answer.
//
// While both run they acknowledge views under two names, because the agent counts what is in flight by name. When the old
// one has ended, the new one goes on under the name that both share.

const (
	takeoverFormat = 1
	takeoverWait   = 15 * time.Second // for a view, and for the other's word
	maxFDs         = 8
)

// offer is what the running gateway tells along with its sockets.
type offer struct {
	Format  int             `json:"format"`
	Name    string          `json:"name"`    // under which it acknowledges views
	Sockets []offeredSocket `json:"sockets"` // in the order of the descriptors
}

type offeredSocket struct {
	Role string `json:"role"`
	Addr string `json:"addr"` // as configured
}

// ready is what the new one says when it serves.
const ready = "ready\n"

// inherited is what a new process got.
type inherited struct {
	conn      *net.UnixConn // to the old one, until that has ended
	name      string        // of the old one
	listeners map[offeredSocket]net.Listener
}

func (g *Gateway) takeoverPath() string {
	return filepath.Join(g.conf.StateDir, fmt.Sprintf("takeover-%s-%s.sock", g.conf.Site, g.conf.Name))
}

// shortly calls do with a short name of a path's folder: the address of a socket has 107 bytes.
func shortly(path string, do func(path string) error) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	raw, err := dir.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) { err = do(fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path))) })
	return errors.Join(controlErr, err)
}

// inherit asks the running gateway for its sockets; nil: none is running.
func (g *Gateway) inherit() (*inherited, error) {
	if g.conf.StateDir == "" {
		return nil, errors.New("a gateway without a state folder cannot be taken over")
	}
	var conn *net.UnixConn
	err := shortly(g.takeoverPath(), func(path string) (err error) {
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("takeover: %w", err)
	}
	in, err := receive(conn)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("takeover: %w", err)
	}
	return in, nil
}

// receive reads an offer and its descriptors.
func receive(conn *net.UnixConn) (*inherited, error) {
	_ = conn.SetReadDeadline(time.Now().Add(takeoverWait))
	text, oob := make([]byte, 4<<10), make([]byte, unix.CmsgSpace(4*maxFDs))
	n, oobn, _, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, fmt.Errorf("the running gateway made no offer: %w", err)
	}
	fds, err := descriptors(oob[:oobn])
	if err != nil {
		return nil, err
	}
	in := &inherited{conn: conn, listeners: make(map[offeredSocket]net.Listener)}
	var o offer
	if err = json.Unmarshal(text[:n], &o); err == nil && (o.Format != takeoverFormat || len(o.Sockets) != len(fds)) {
		err = fmt.Errorf("the running gateway's offer is of format %d with %d sockets and %d descriptors", o.Format, len(o.Sockets), len(fds))
	}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "inherited listener")
		if err == nil {
			var l net.Listener
			if l, err = net.FileListener(f); err == nil {
				in.listeners[o.Sockets[i]] = l
			}
		}
		_ = f.Close() // the listener has a copy of its own
	}
	if err != nil {
		in.drop()
		return nil, err
	}
	in.name = o.Name
	return in, conn.SetReadDeadline(time.Time{})
}

func descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
		}
		out = append(out, fds...)
	}
	return out, nil
}

// take is the inherited listener of a role and configured address, nil if there is none.
func (in *inherited) take(role, addr string) net.Listener {
	if in == nil {
		return nil
	}
	key := offeredSocket{role, addr}
	l := in.listeners[key]
	delete(in.listeners, key)
	return l
}

// drop closes what nobody took: sockets of addresses that are configured no longer.
func (in *inherited) drop() {
	for _, l := range in.listeners {
		_ = l.Close()
	}
}

// successorName is the name that a successor goes under while both run.
func successorName(shared, before string) string {
	n := 1
	if _, suffix, ok := strings.Cut(before, "~"); ok {
		n, _ = strconv.Atoi(suffix)
	}
	return shared + "~" + strconv.Itoa(n+1)
}

// arrive says that this gateway serves, and waits for the end of the one before it.
func (g *Gateway) arrive(ctx context.Context) {
	conn := g.inherited.conn
	if _, err := io.WriteString(conn, ready); err != nil {
		g.log.Info("the gateway before has gone by itself", "error", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_, _ = io.Copy(io.Discard, conn) // it says nothing more; the end is its process's
	_ = conn.Close()
	if ctx.Err() == nil {
		g.log.Info("the gateway before has ended")
		g.rename(g.name)
	}
}

// awaitView waits until this gateway could serve: what cannot must not take over.
func (g *Gateway) awaitView(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, takeoverWait)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for g.views.load().site == nil || !g.lease.live() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			if g.views.load().site != nil {
				return nil // the agent is away, or the lease: that is no better for the gateway before
			}
			return fmt.Errorf("takeover: no view within %s; the running gateway goes on", takeoverWait)
		}
	}
	return nil
}

// heirs waits for a successor, and returns what ends when one serves. Without a state folder nobody can come.
func (g *Gateway) heirs() (succeeded <-chan struct{}, end func()) {
	never := make(chan struct{})
	if g.conf.StateDir == "" {
		return never, func() {}
	}
	l, err := listenUnix(g.takeoverPath())
	if err != nil {
		g.log.Warn("a restart will refuse connections: no new process can take over from this one", "error", err)
		return never, func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, gone := make(chan struct{}), make(chan struct{})
	var heir *net.UnixConn
	go func() { // ends with ctx, or when a successor serves
		defer close(gone)
		heir = g.awaitHeir(ctx, l)
		if heir != nil {
			close(done)
		}
	}()
	return done, func() {
		cancel()
		<-gone
		if heir != nil {
			_ = heir.Close() // says that this one has ended
		}
		// The socket's name stays, it may be another one's already. Nobody answers there, which says enough.
	}
}

// awaitHeir offers the sockets to whoever asks, and returns the connection to the one that serves; nil when ctx ends.
func (g *Gateway) awaitHeir(ctx context.Context, l *net.UnixListener) *net.UnixConn {
	mine, _ := os.Lstat(g.takeoverPath())
	for {
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		conn, err := l.AcceptUnix()
		if err == nil {
			if err = g.handOver(ctx, conn); err == nil {
				stop()
				_ = l.Close()
				return conn
			}
			_ = conn.Close()
		}
		stop()
		if ctx.Err() != nil {
			_ = l.Close()
			return nil
		}
		g.log.Warn("a successor did not take over", "error", err)
		if conn == nil {
			pause := time.NewTimer(time.Second)
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
			}
			continue
		}
		if now, err := os.Lstat(g.takeoverPath()); err == nil && mine != nil && os.SameFile(now, mine) {
			continue
		}
		// It has come as far as to wait for its own successors at the same place.
		again, err := listenUnix(g.takeoverPath())
		if err != nil {
			g.log.Warn("a restart will refuse connections: no new process can take over from this one", "error", err)
			continue
		}
		_ = l.Close()
		l = again
		mine, _ = os.Lstat(g.takeoverPath())
	}
}

// listenUnix replaces what stands at the path: the socket of a gateway that has ended, or of the one before.
func listenUnix(path string) (*net.UnixListener, error) {
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	_ = os.Remove(tmp)
	var l *net.UnixListener
	err := shortly(tmp, func(short string) (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(tmp, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(tmp)
		return nil, err
	}
	return l, nil
}

// handOver offers the sockets to a process of the same user, and waits until it serves.
func (g *Gateway) handOver(ctx context.Context, conn *net.UnixConn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := sameUser(conn); err != nil {
		return err
	}
	o := offer{Format: takeoverFormat, Name: g.ackName()}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, s := range []struct {
		role, addr string
		l          net.Listener
	}{{"users", g.conf.Listen.Users, g.listeners.users.Listener}, {"peer", g.conf.Listen.Peer, g.listeners.peer}, {"admin", g.conf.Listen.Admin, g.listeners.admin}} {
		if s.l == nil {
			continue
		}
		fd, err := duplicate(s.l)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
		o.Sockets = append(o.Sockets, offeredSocket{s.role, s.addr})
	}
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(2 * takeoverWait))
	if _, _, err := conn.WriteMsgUnix(text, unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	word, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && word != ready {
		err = fmt.Errorf("it said %q", word)
	}
	return err
}

// duplicate copies a listener's descriptor. (Its File would make the socket a blocking one, for both processes.)
func duplicate(l net.Listener) (fd int, err error) {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return 0, fmt.Errorf("a %T cannot be handed over", l)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(controlErr, err)
}

func sameUser(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(controlErr, err); err != nil {
		return err
	}
	if int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d is of user %d", peer.Pid, peer.Uid)
	}
	return nil
}

// bequeath stops accepting, which the successor does now, and lets connections go: each with its next answer, those that
// have none for a while in the stop that follows. A connection that is closed while its client writes to it is a request
// lost, so there is no hurry.
func (g *Gateway) bequeath(ctx context.Context) {
	g.log.Info("another process has taken over")
	g.leaving.Store(true)
	g.closeListeners()
	g.streams.tell(func() time.Duration { return rand.N(max(g.conf.Grace/2, 1)) })
	linger := time.NewTimer(g.conf.Linger)
	defer linger.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for g.listeners.users.open.Load() > 0 {
		select {
		case <-look.C:
		case <-linger.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// rename goes on under another name towards the agent.
func (g *Gateway) rename(name string) {
	g.known.Store(&name)
	kick(g.renamed)
	g.kickAck()
}

// ackName is the name under which the agent knows this process.
func (g *Gateway) ackName() string { return *g.known.Load() }
