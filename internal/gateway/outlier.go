package gateway

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// An attempt that failed after this long, without a byte from the address meanwhile, tells that the address is
	// silent: a living gateway answers pings on its connection within peerPing and a round trip. A refused connection
	// fails at once and costs nothing to try again.
	silence = peerPing + 500*time.Millisecond
	// How long a silent address is left alone between two knocks.
	knockEvery = 500 * time.Millisecond
)

// address is one gateway of another site, with the memory of whether it answers. Without it, every request on a path
// that was cut without a word would wait for a time-out of its own.
//
// Requests only find out that an address is silent. That it answers again is found out by knocking, whether or not
// anybody wants to go there meanwhile: users who are moved back to a site must not be the ones who try it.
type address struct {
	hostPort string
	made     time.Time
	heard    atomic.Int64                    // when the last bytes came from there, as time since made
	knock    func(ctx context.Context) error // makes a connection and closes it
	seekers  *seekers

	mu struct {
		sync.Mutex
		silent bool      // somebody knocks
		judged time.Time // when it was last found silent
	}
}

func newAddress(hostPort string, s *seekers, knock func(ctx context.Context) error) *address {
	return &address{hostPort: hostPort, made: time.Now(), knock: knock, seekers: s}
}

// seekers knock at silent addresses until they are stopped.
type seekers struct {
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
}

func newSeekers() *seekers {
	s := &seekers{}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// close stops and joins them. No attempt may end any more.
func (s *seekers) close() {
	s.stop()
	s.wg.Wait()
}

// attempt is one request's turn at an address. One that fails is judged; what else becomes of it says nothing.
type attempt struct {
	at    *address
	began time.Time
}

// admit begins an attempt, if the address is believed to answer.
func (a *address) admit(now time.Time) (attempt, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return attempt{a, now}, !a.mu.silent
}

// failed judges an attempt that ended with an error.
func (t attempt) failed(now time.Time) {
	a := t.at
	heard := a.made.Add(time.Duration(a.heard.Load()))
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case heard.After(t.began), now.Sub(t.began) < silence:
		// It spoke, or it refused at once, and nobody waits long for that.
	case a.mu.silent, t.began.Before(a.mu.judged):
		// It was under way when the verdict was passed, and knows nothing newer.
	case a.seekers.ctx.Err() == nil:
		a.mu.silent, a.mu.judged = true, now
		a.seekers.wg.Go(func() { a.seek(a.seekers.ctx) })
	}
}

// seek knocks at a silent address until somebody is there.
func (a *address) seek(ctx context.Context) {
	rest := time.NewTicker(knockEvery)
	defer rest.Stop()
	for {
		select {
		case <-rest.C:
		case <-ctx.Done():
			return
		}
		// Each knock is a connection of its own: one that was begun while the path was cut is tried again by the
		// kernel ever more seldom.
		bounded, cancel := context.WithTimeout(ctx, silence)
		err := a.knock(bounded)
		cancel()
		if err == nil || !tookTooLong(err) && ctx.Err() == nil { // it refuses at once: the machine is back, its gateway not yet
			a.mu.Lock()
			a.mu.silent = false
			a.mu.Unlock()
			return
		}
	}
}

func tookTooLong(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
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
