package link

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// patientConn gives every read and write its own deadline, so that any progress counts as a sign of life and none
// for the length of silence is an error. It counts bytes.
type patientConn struct {
	net.Conn
	silence        time.Duration
	sent, received atomic.Uint64

	mu struct {
		sync.Mutex
		last time.Time // set by hurry: nothing may take longer
	}
}

func (c *patientConn) Read(b []byte) (int, error) {
	if err := c.arm(c.Conn.SetReadDeadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	c.received.Add(uint64(n))
	return n, err
}

func (c *patientConn) Write(b []byte) (int, error) {
	if err := c.arm(c.Conn.SetWriteDeadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	c.sent.Add(uint64(n))
	return n, err
}

func (c *patientConn) arm(set func(time.Time) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.last.IsZero() {
		return set(c.mu.last)
	}
	return set(time.Now().Add(c.silence))
}

// hurry ends every read and write, running ones too, after at most d.
func (c *patientConn) hurry(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last := time.Now().Add(d); c.mu.last.IsZero() || last.Before(c.mu.last) {
		c.mu.last = last
	}
	_ = c.Conn.SetDeadline(c.mu.last) // fails on a closed connection only, where nothing runs
}

// SetDeadline and its kin are crypto/tls's way to bound its goodbye; the deadlines here are tighter.
func (c *patientConn) SetDeadline(time.Time) error      { return nil }
func (c *patientConn) SetReadDeadline(time.Time) error  { return nil }
func (c *patientConn) SetWriteDeadline(time.Time) error { return nil }

// closeWrite ends our direction only, so that the peer still reads what is on its way.
func (c *patientConn) closeWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}
