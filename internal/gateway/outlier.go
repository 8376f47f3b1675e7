package gateway

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// An attempt that failed after this long, without a byte from the address meanwhile, tells that the address is
	// silent: a living gateway answers pings on its connection within peerPing and a round trip. A refused connection
	// fails at once and costs nothing to try again.
	silence = peerPing + 500*time.Millisecond
	// How long a silent address is left alone before one request probes it.
	firstRest = 500 * time.Millisecond
	longRest  = 2 * time.Second
)

// address is one gateway of another site, with the memory of whether it answers. Without it, every request on a path
// that was cut without a word would wait for a time-out of its own.
type address struct {
	hostPort string
	made     time.Time
	heard    atomic.Int64 // when the last bytes came from there, as time since made

	mu struct {
		sync.Mutex
		silent  int       // verdicts in a row that nothing is heard; 0: nothing is held against it
		judged  time.Time // when the last of them was passed
		probing bool      // a request is finding out
	}
}

func newAddress(hostPort string) *address { return &address{hostPort: hostPort, made: time.Now()} }

// attempt is one request's turn at an address. It ends with answered, failed or dropped.
type attempt struct {
	at    *address
	began time.Time
	probe bool // of an address that is held silent
}

// admit begins an attempt, if one may be made now. At a silent address that has rested it admits one at a time.
func (a *address) admit(now time.Time) (attempt, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.silent == 0 {
		return attempt{a, now, false}, true
	}
	rest := min(firstRest<<min(a.mu.silent-1, 8), longRest)
	if a.mu.probing || now.Sub(a.mu.judged) < rest {
		return attempt{}, false
	}
	a.mu.probing = true
	return attempt{a, now, true}, true
}

// answered takes back whatever is held against the address.
func (t attempt) answered() {
	t.at.mu.Lock()
	defer t.at.mu.Unlock()
	t.at.mu.silent = 0
	t.endLocked()
}

func (t attempt) endLocked() {
	if t.probe {
		t.at.mu.probing = false
	}
}

// dropped ends an attempt that says nothing about the address: its client went away, or it was not made.
func (t attempt) dropped() {
	t.at.mu.Lock()
	defer t.at.mu.Unlock()
	t.endLocked()
}

// failed judges an attempt that ended with an error.
func (t attempt) failed(now time.Time) {
	a := t.at
	heard := a.made.Add(time.Duration(a.heard.Load()))
	a.mu.Lock()
	defer a.mu.Unlock()
	t.endLocked()
	switch {
	case heard.After(t.began):
		a.mu.silent = 0 // it spoke, so it is there
	case now.Sub(t.began) < silence:
		if t.probe {
			a.mu.silent = 0 // it refuses at once now, and nobody waits long for that
		}
	case t.began.Before(a.mu.judged):
		// It was under way when the verdict was passed, and knows nothing newer.
	default:
		a.mu.silent++
		a.mu.judged = now
	}
}

// listen wraps a connection to the address, so that what is heard on it counts.
func (a *address) listen(c net.Conn) net.Conn { return &heardConn{c, a} }

type heardConn struct {
	net.Conn
	from *address
}

func (c *heardConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.from.heard.Store(int64(time.Since(c.from.made)))
	}
	return n, err
}
