package lab

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Destination is where a host name of a CONNECT proxy really is.
type Destination struct {
	Site topo.SiteID
	Addr string
}

// ConnectProxy opens an HTTP CONNECT proxy for the processes of site from. Each host:port of hosts leads over the
// path to its site. Store members need it: they know one another by one advertised name each, the same for all, so
// that a path per source is possible only on the way out.
func (n *Network) ConnectProxy(from topo.SiteID, kind Kind, hosts map[string]Destination) (string, error) {
	return n.listen(func(client *net.TCPConn) {
		_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
		in := bufio.NewReader(client)
		to, err := connectTarget(in, hosts)
		if err != nil {
			fmt.Fprintf(client, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\nX-Lab: %q\r\n\r\n", err)
			client.Close()
			return
		}
		_ = client.SetReadDeadline(time.Time{})
		n.pass(client, in, Way{from, to.Site}, kind, to.Addr, []byte("HTTP/1.1 200 Connection established\r\n\r\n"))
	})
}

func connectTarget(in *bufio.Reader, hosts map[string]Destination) (Destination, error) {
	req, err := http.ReadRequest(in)
	if err != nil {
		return Destination{}, fmt.Errorf("lab: not a CONNECT request: %w", err)
	}
	if req.Method != http.MethodConnect {
		return Destination{}, fmt.Errorf("lab: method %s where CONNECT is expected", req.Method)
	}
	to, ok := hosts[req.Host]
	if !ok {
		return Destination{}, fmt.Errorf("lab: no site is called %q", req.Host)
	}
	return to, nil
}
