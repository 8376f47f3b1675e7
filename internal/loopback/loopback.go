// Package loopback picks ports of 127.0.0.1 for servers whose address must be known before they listen: in a spec, in
// a store's list of members, in a connection string.
//
// Asking the kernel for port 0 and closing the listener is not enough: it answers from the range that outgoing
// connections take their local ports from, and on a busy machine one of those has the port when the server wants it.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports are picked below the range from which Linux takes the local ports of outgoing connections.
const firstPort, lastPort = 20000, 31999

// remembered is how many ports are not handed out twice; by then the first of them listen, or are done with.
const remembered = (lastPort - firstPort + 1) / 2

var given = struct {
	sync.Mutex
	ports map[int]bool
	order []int
}{ports: map[int]bool{}}

// Port is a port on which nobody listened a moment ago, and which this process was not given before.
func Port() (int, error) {
	given.Lock()
	defer given.Unlock()
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if given.ports[port] {
			continue
		}
		l, err := net.Listen("tcp", addr(port))
		if err != nil {
			continue
		}
		l.Close()
		given.ports[port] = true
		if given.order = append(given.order, port); len(given.order) > remembered {
			delete(given.ports, given.order[0])
			given.order = given.order[1:]
		}
		return port, nil
	}
	return 0, fmt.Errorf("no free port between %d and %d on 127.0.0.1", firstPort, lastPort)
}

// Addr is such a port with its host: "127.0.0.1:23456".
func Addr() (string, error) {
	port, err := Port()
	if err != nil {
		return "", err
	}
	return addr(port), nil
}

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
