package loopback

import (
	"net"
	"testing"
)

func TestPort(t *testing.T) {
	seen := map[int]bool{}
	for range 200 {
		port, err := Port()
		if err != nil {
			t.Fatal(err)
		}
		if port < firstPort || port > lastPort || seen[port] {
			t.Fatalf("port %d, seen %v", port, seen[port])
		}
		seen[port] = true
	}
	// A port with a listener is nobody's.
	given.order, given.ports = nil, map[int]bool{}
	var open []net.Listener
	for range 20 {
		a, err := Addr()
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", a)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, l)
	}
	for _, l := range open {
		l.Close()
	}
}

// What was given long ago may be given again: a process that runs for days does not run out.
func TestPortsDoNotRunOut(t *testing.T) {
	for range remembered + 100 {
		if _, err := Port(); err != nil {
			t.Fatal(err)
		}
	}
	if len(given.ports) != remembered || len(given.order) != remembered {
		t.Errorf("%d ports are remembered, %d in order", len(given.ports), len(given.order))
	}
}
