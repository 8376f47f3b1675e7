package store

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

// connectProxy is an HTTP proxy that knows only CONNECT, and only the given destinations. Each can be cut.
type connectProxy struct {
	l  net.Listener
	to map[string]string // advertised address → real address

	wg sync.WaitGroup
	mu struct {
		sync.Mutex
		seen  map[string]int
		cut   map[string]bool
		conns map[net.Conn]string
	}
}

func newConnectProxy(t testing.TB, to map[string]string) *connectProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &connectProxy{l: l, to: to}
	p.mu.seen, p.mu.cut, p.mu.conns = map[string]int{}, map[string]bool{}, map[net.Conn]string{}
	p.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(conn) })
		}
	})
	return p
}

func (p *connectProxy) addr() string { return p.l.Addr().String() }

func (p *connectProxy) serve(client net.Conn) {
	defer client.Close()
	if !p.track(client, "") {
		return
	}
	defer p.untrack(client)
	in := bufio.NewReader(client)
	req, err := http.ReadRequest(in)
	if err != nil || req.Method != http.MethodConnect || p.to[req.Host] == "" {
		io.WriteString(client, "HTTP/1.1 403 Forbidden\r\n\r\n")
		return
	}
	if !p.track(client, req.Host) {
		return
	}
	server, err := net.Dial("tcp", p.to[req.Host])
	if err != nil {
		io.WriteString(client, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer server.Close()
	io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(client, server)
		client.Close()
	}()
	io.Copy(server, in)
	server.Close()
	<-done
}

// track notes a connection; false if its destination is cut or the proxy is closed.
func (p *connectProxy) track(conn net.Conn, host string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.conns == nil || p.mu.cut[host] {
		return false
	}
	p.mu.conns[conn] = host
	p.mu.seen[host]++
	return true
}

func (p *connectProxy) untrack(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.mu.conns, conn)
}

func (p *connectProxy) seen(host string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.seen[host]
}

// setCut ends the connections to a destination and refuses new ones, or allows them again.
func (p *connectProxy) setCut(host string, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.cut[host] = cut
	for conn, to := range p.mu.conns {
		if cut && to == host {
			conn.Close()
		}
	}
}

func (p *connectProxy) close() {
	p.l.Close()
	p.mu.Lock()
	for conn := range p.mu.conns {
		conn.Close()
	}
	p.mu.conns = nil
	p.mu.Unlock()
	p.wg.Wait()
}
