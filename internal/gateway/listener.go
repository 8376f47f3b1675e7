package gateway

import (
	"bufio"
	"cmp"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pires/go-proxyproto"
)

// The users' listener: it knows how many are connected, and from where; it learns from balancers whom they connect; and a
// client that takes nothing of what is written to it is let go, whatever was written.

const (
	proxyHeaderWait = 5 * time.Second
	maxProxyHeader  = 4 << 10
	defaultConns    = 20000
)

// refusedConn is why a connection was not kept.
type refusedConn string

const (
	tooMany       refusedConn = "total"        // as many are connected as may be
	tooManyOfOne  refusedConn = "client"       // from this address
	noProxyHeader refusedConn = "proxy-header" // a balancer's connection did not begin with a good PROXY header
)

var refusedConns = []refusedConn{tooMany, tooManyOfOne, noProxyHeader}

// userListener keeps count of its connections.
type userListener struct {
	net.Listener
	conf    Listen
	idle    time.Duration // how long a client may take to accept what is written
	refused func(refusedConn)
	open    atomic.Int64
	mu      struct {
		sync.Mutex
		from map[netip.Prefix]int // only with a cap for each client
	}
}

func newUserListener(l net.Listener, conf Listen, idle time.Duration, refused func(refusedConn)) *userListener {
	conf.MaxConns = cmp.Or(conf.MaxConns, defaultConns)
	u := &userListener{Listener: l, conf: conf, idle: idle, refused: refused}
	u.mu.from = make(map[netip.Prefix]int)
	return u
}

// Accept takes the next connection that may be kept. One too many is closed at once: its client, or the balancer before
// it, learns so, and does not wait in vain.
func (l *userListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &userConn{Conn: raw, l: l}
		if n := l.open.Add(1); n > int64(l.conf.MaxConns) {
			l.refused(tooMany)
			_ = c.Close()
			continue
		}
		peer := addrOfConn(raw.RemoteAddr())
		if contains(l.conf.Balancers, peer) {
			c.proxied, c.buffered = true, bufio.NewReaderSize(raw, maxProxyHeader)
			return c, nil
		}
		if !c.share(peer) {
			_ = c.Close()
			continue
		}
		return c, nil
	}
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func addrOfConn(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// clientOf is what counts as one client: an address, or the network of 64 bits that one IPv6 subscriber has.
func clientOf(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// userConn is one connection of the users' listener.
type userConn struct {
	net.Conn
	l        *userListener
	proxied  bool          // it begins with a PROXY header
	buffered *bufio.Reader // for that header and what came with it; nil when it is empty
	once     sync.Once
	err      error        // why it was refused after all
	remote   net.Addr     // as the balancer says
	client   netip.Prefix // whose share it counts in
	closed   atomic.Bool
	deadline atomic.Int64 // of writes, as the connection has it; Unix time in nanoseconds, 0 for none
}

// share counts the connection among those of its client. false: it is one too many.
func (c *userConn) share(from netip.Addr) bool {
	if c.l.conf.MaxPerClient <= 0 || contains(c.l.conf.Trusted, from) {
		return true
	}
	client := clientOf(from)
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if c.l.mu.from[client] >= c.l.conf.MaxPerClient {
		c.l.refused(tooManyOfOne)
		return false
	}
	c.l.mu.from[client]++
	c.client = client
	return true
}

// begin reads the PROXY header, once. It runs when the server first asks, not in Accept, which would wait for it.
func (c *userConn) begin() {
	if !c.proxied {
		return
	}
	c.once.Do(func() {
		_ = c.Conn.SetReadDeadline(time.Now().Add(proxyHeaderWait))
		header, err := proxyproto.Read(c.buffered)
		_ = c.Conn.SetReadDeadline(time.Time{}) // the server sets its own behind this
		from := c.Conn.RemoteAddr()
		if err == nil && !header.Command.IsLocal() { // local: the balancer itself, looking whether we live
			if source, _, ok := header.TCPAddrs(); ok {
				from, c.remote = source, source
			} else {
				err = errors.New("not of TCP")
			}
		}
		switch {
		case err != nil:
			c.l.refused(noProxyHeader)
			c.err = io.EOF // the server has no answer for it
		case !c.share(addrOfConn(from)):
			c.err = io.EOF
		}
	})
}

func (c *userConn) RemoteAddr() net.Addr {
	if c.begin(); c.remote != nil {
		return c.remote
	}
	return c.Conn.RemoteAddr()
}

func (c *userConn) Read(b []byte) (int, error) {
	if c.begin(); c.err != nil {
		return 0, c.err
	}
	if c.buffered != nil && c.buffered.Buffered() > 0 {
		return c.buffered.Read(b)
	}
	c.buffered = nil
	return c.Conn.Read(b)
}

// Write gives the client some time to take what is written. A deadline that was set and comes sooner stays; one of Write's
// own is set anew only when a quarter of it is gone.
func (c *userConn) Write(b []byte) (int, error) {
	end := time.Now().Add(c.l.idle)
	d := c.deadline.Load()
	if own := d&ourDeadline != 0; d == 0 || d > end.UnixNano() || own && d < end.Add(-c.l.idle/4).UnixNano() {
		_ = c.setWrite(end, ourDeadline)
	}
	return c.Conn.Write(b)
}

// ourDeadline marks deadlines that Write has set by their last bit.
const ourDeadline = 1

func (c *userConn) setWrite(t time.Time, mark int64) error {
	if t.IsZero() {
		c.deadline.Store(0)
	} else {
		c.deadline.Store(t.UnixNano()&^ourDeadline | mark)
	}
	return c.Conn.SetWriteDeadline(t)
}

func (c *userConn) SetWriteDeadline(t time.Time) error { return c.setWrite(t, 0) }

func (c *userConn) SetDeadline(t time.Time) error {
	return errors.Join(c.setWrite(t, 0), c.Conn.SetReadDeadline(t))
}

// CloseWrite ends what is written only: the server does so before it closes, else what the client has not read yet is lost.
func (c *userConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (c *userConn) Close() error {
	err := c.Conn.Close() // first: it ends a wait for the PROXY header
	if c.closed.CompareAndSwap(false, true) {
		c.l.open.Add(-1)
		c.leave()
	}
	return err
}

func (c *userConn) leave() {
	c.once.Do(func() {}) // from now on it belongs to nobody
	if !c.client.IsValid() {
		return
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if c.l.mu.from[c.client]--; c.l.mu.from[c.client] <= 0 {
		delete(c.l.mu.from, c.client)
	}
}
