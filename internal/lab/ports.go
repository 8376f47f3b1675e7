package lab

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports are picked below the range from which the kernel takes the local ports of outgoing connections, so that
// nothing grabs one between its picking and its use.
const firstPort, lastPort = 20000, 31999

// ports hands out loopback ports that were free a moment ago, each once.
type ports struct{ taken map[int]bool }

func (p *ports) next() (int, error) {
	if p.taken == nil {
		p.taken = map[int]bool{}
	}
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if p.taken[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		p.taken[port] = true
		return port, nil
	}
	return 0, fmt.Errorf("lab: no free port between %d and %d on 127.0.0.1", firstPort, lastPort)
}
