package store

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// connectProxy is an HTTP proxy that knows only CONNECT, and only the given destinations. Each can be cut.
type connectProxy struct {
	l  net.Listener
	to map[string]string // advertised address → real address

	late atomic.Int64 // nanoseconds, one way

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
		p.copy(client, server)
		client.Close()
	}()
	p.copy(server, in)
	server.Close()
	<-done
}

// copy hands on what it reads, late by the way that it stands for.
func (p *connectProxy) copy(to io.Writer, from io.Reader) {
	type parcel struct {
		due  time.Time
		body []byte
	}
	way := make(chan parcel, 1024)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(way)
	wg.Go(func() {
		for p := range way {
			<-time.After(time.Until(p.due))
			to.Write(p.body) // a broken connection is the reader's to find
		}
	})
	for {
		body := make([]byte, 32<<10)
		n, err := from.Read(body)
		if n > 0 {
			way <- parcel{time.Now().Add(time.Duration(p.late.Load())), body[:n]}
		}
		if err != nil {
			return
		}
	}
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
