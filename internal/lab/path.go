package lab

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/atollhq/atoll/topo"
)

// windowBytes is how much of one direction of a connection may be under way: what TCP's largest usual window is. A
// sender of more waits, as it would on a long path.
const windowBytes = 4 << 20

const chunkBytes = 64 << 10

var errReset = errors.New("connection reset")

// Path opens a path on which site from reaches target, an endpoint at site to, and returns the address to dial.
func (n *Network) Path(from, to topo.SiteID, kind Kind, target string) (string, error) {
	return n.listen(func(client *net.TCPConn) {
		n.pass(client, client, Way{from, to}, kind, target, nil)
	})
}

// conn is one proxied connection: two flows with a queue of stamped chunks each.
type conn struct {
	net    *Network
	way    Way // from the site that dialled
	kind   Kind
	client *net.TCPConn
	done   chan struct{} // closed by reset
	once   sync.Once

	mu     sync.Mutex
	server *net.TCPConn
}

func (c *conn) between() Way { return c.way }

// reset ends both sides at once with a TCP reset.
func (c *conn) reset() { c.close(true) }

// close ends both sides; what was written before is still sent, unless it is a reset.
func (c *conn) close(reset bool) {
	c.once.Do(func() {
		close(c.done)
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, side := range []*net.TCPConn{c.client, c.server} {
			if side == nil {
				continue
			}
			if reset {
				_ = side.SetLinger(0) // drops what is unsent and sends a reset
			}
			side.Close()
		}
	})
}

// pass carries one connection until both directions have ended. first is where the client's bytes come from (its
// connection, or a reader that holds bytes already read from it); greet goes to the client once the target answers.
func (n *Network) pass(client *net.TCPConn, first io.Reader, way Way, kind Kind, target string, greet []byte) {
	c := &conn{net: n, way: way, kind: kind, client: client, done: make(chan struct{})}
	if !n.add(c) {
		client.Close()
		return
	}
	defer n.remove(c)
	defer c.close(false) // both directions have ended, in order or by a reset before

	there, back := newFlow(c, way), newFlow(c, way.back())
	var running sync.WaitGroup
	defer running.Wait()
	if greet == nil {
		// The client could not have sent before its SYN was answered.
		there.floor = time.Now().Add(there.delay() + back.delay() + there.delay())
	}
	running.Go(func() { there.read(first) })
	server, err := c.dial(there, target)
	if err != nil {
		c.reset()
		there.discard()
		return
	}
	if greet != nil {
		back.push(greet)
	}
	running.Go(func() { back.read(server) })
	running.Go(func() { back.write(client) })
	there.write(server)
}

// dial reaches the target once a SYN and its answer could pass.
func (c *conn) dial(there *flow, target string) (*net.TCPConn, error) {
	due := time.Now().Add(there.delay())
	if !there.passable(due) || !newFlow(c, c.way.back()).passable(due) {
		return nil, errReset
	}
	if there.ended() {
		return nil, errReset // the client gave up while the path was cut: no SYN of its would arrive now
	}
	s, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.server = s.(*net.TCPConn)
	c.mu.Unlock()
	select {
	case <-c.done: // reset while dialling: it did not see the server's side
		s.Close()
		return nil, errReset
	default:
	}
	return s.(*net.TCPConn), nil
}

// parcel is a piece of a flow; end is io.EOF for an orderly end and errReset for a reset, which travel like bytes.
type parcel struct {
	due  time.Time
	data []byte
	end  error
}

// flow is one direction of a connection.
type flow struct {
	c     *conn
	way   Way
	floor time.Time // nothing arrives before it: order is kept when a delay shrinks
	tail  []byte    // what was read last, for traps whose bytes come in two pieces; the reader's alone

	mu      sync.Mutex
	changed *sync.Cond
	queue   []parcel
	bytes   int
	last    bool // the end is in the queue or through
	gone    bool // nobody takes from the queue any more
}

func newFlow(c *conn, way Way) *flow {
	f := &flow{c: c, way: way}
	f.changed = sync.NewCond(&f.mu)
	return f
}

func (f *flow) delay() time.Duration { return f.c.net.condition(f.way, f.c.kind).delay }

// read fills the queue from src until it ends.
func (f *flow) read(src io.Reader) {
	buf := make([]byte, chunkBytes)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			f.push(append([]byte(nil), buf[:n]...))
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			f.end(io.EOF)
			return
		default:
			f.end(errReset)
			return
		}
	}
}

func (f *flow) push(data []byte) {
	due := time.Now().Add(f.delay() + f.trapped(data))
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.bytes > windowBytes && !f.gone {
		f.changed.Wait()
	}
	if f.gone || f.last {
		return
	}
	f.enqueueLocked(parcel{due: due, data: data})
}

func (f *flow) end(how error) {
	due := time.Now().Add(f.delay())
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last {
		return
	}
	f.last = true
	f.enqueueLocked(parcel{due: due, end: how})
}

func (f *flow) enqueueLocked(p parcel) {
	if p.due.Before(f.floor) {
		p.due = f.floor
	}
	f.floor = p.due
	f.queue = append(f.queue, p)
	f.bytes += len(p.data)
	f.changed.Broadcast()
}

func (f *flow) ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// discard lets a reader that waits for space go on to its end.
func (f *flow) discard() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
	f.queue = nil
	f.changed.Broadcast()
}

func (f *flow) next() parcel {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queue) == 0 {
		f.changed.Wait()
	}
	p := f.queue[0]
	f.queue[0] = parcel{}
	f.queue = f.queue[1:]
	return p
}

func (f *flow) taken(p parcel) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes -= len(p.data)
	f.changed.Broadcast()
}

// write empties the queue into dst, each parcel when it is due and the way is not cut. The reader always queues an
// end, also when the connection is reset, so next never waits for ever.
func (f *flow) write(dst *net.TCPConn) {
	defer f.discard()
	for {
		p := f.next()
		if !f.passable(p.due) {
			return
		}
		switch {
		case p.end == io.EOF:
			_ = dst.CloseWrite() // fails where the other side is gone; its own flow tells
			return
		case p.end != nil:
			f.c.reset()
			return
		}
		if _, err := dst.Write(p.data); err != nil {
			// The other side is gone: its reset travels back like any answer.
			if f.passableBack() {
				f.c.reset()
			}
			return
		}
		f.taken(p)
	}
}

func (f *flow) passableBack() bool {
	back := newFlow(f.c, f.way.back())
	return back.passable(time.Now().Add(back.delay()))
}

// passable waits until a parcel that is due at the given time may arrive; false: the connection was reset.
func (f *flow) passable(due time.Time) bool {
	for {
		now := f.c.net.condition(f.way, f.c.kind)
		wait := time.Until(due)
		switch {
		case now.cut:
			select {
			case <-now.changed:
			case <-f.c.done:
				return false
			}
		case wait > 0:
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-f.c.done:
				t.Stop()
				return false
			}
		default:
			select {
			case <-f.c.done:
				return false
			default:
				return true
			}
		}
	}
}
