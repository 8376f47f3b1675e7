package replicate

import (
	"net"
	"sync"
	"testing"
)

// path is a network path that a test can stall, cut and reset: a proxy on loopback.
type path struct {
	t      testing.TB
	ln     net.Listener
	target string
	wg     sync.WaitGroup
	mu     struct {
		sync.Mutex
		conns   map[net.Conn]bool
		flowing chan struct{} // closed while bytes flow
		closed  bool
		budget  int // when positive: after so many bytes more, the connection that carries them is cut
	}
}

func newPath(t testing.TB, target string) *path {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &path{t: t, ln: ln, target: target}
	p.mu.conns = make(map[net.Conn]bool)
	p.mu.flowing = make(chan struct{})
	close(p.mu.flowing)
	p.wg.Go(p.run)
	t.Cleanup(p.close)
	return p
}

func (p *path) addr() string { return p.ln.Addr().String() }

func (p *path) run() {
	for {
		near, err := p.ln.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", p.target)
		if err != nil {
			near.Close()
			continue
		}
		p.mu.Lock()
		if p.mu.closed {
			near.Close()
			far.Close()
		}
		p.mu.conns[near], p.mu.conns[far] = true, true
		p.mu.Unlock()
		p.wg.Go(func() { p.pump(near, far) })
		p.wg.Go(func() { p.pump(far, near) })
	}
}

// pump passes bytes one way until either side is closed.
func (p *path) pump(from, to net.Conn) {
	defer p.forget(from)
	defer p.forget(to)
	buf := make([]byte, 8<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		flowing := p.mu.flowing
		p.mu.Unlock()
		<-flowing // neither bytes nor an end come through a stalled path
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil || p.spend(n) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// spend tells whether the bytes used the budget up.
func (p *path) spend(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.budget <= 0 {
		return false
	}
	p.mu.budget -= n
	return p.mu.budget <= 0
}

// limit cuts the connection that is there when so many bytes have passed.
func (p *path) limit(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.budget = bytes
}

func (p *path) spent() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.budget <= 0
}

func (p *path) forget(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.mu.conns, c)
}

// cut closes every connection; with reset, as a router that forgot them would.
func (p *path) cut(reset bool) (connections int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.mu.conns {
		if reset {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		c.Close()
	}
	return len(p.mu.conns)
}

// stall lets nothing through, and nobody know.
func (p *path) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.flowing = make(chan struct{})
}

func (p *path) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.mu.flowing:
	default:
		close(p.mu.flowing)
	}
}

func (p *path) close() {
	p.ln.Close()
	p.mu.Lock()
	p.mu.closed = true
	p.mu.Unlock()
	p.heal()
	p.cut(false)
	p.wg.Wait()
}
