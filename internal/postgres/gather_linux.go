package postgres

import (
	"errors"
	"net"
	"syscall"
	"time"
)

const (
	// gatherFor is how long a stream waits for what follows the first byte of a burst.
	gatherFor = time.Millisecond
	// enough wakes a reader that gathers before its time: a stream at work is not held up.
	enough = 32 << 10
)

// gather makes the reads of a connection wait a moment for what follows. A walsender sends every row of a transaction by
// itself, so a reader would be woken for each of them, and the walsender put aside for it: some ten times per transaction.
// A connection that is no TCP connection is left as it is.
func gather(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	return &gathering{TCPConn: tcp, raw: raw}
}

type gathering struct {
	*net.TCPConn
	raw syscall.RawConn
}

func (g *gathering) Read(b []byte) (int, error) {
	if n := g.here(b); n > 0 || len(b) == 0 {
		return n, nil
	}
	n, err := g.TCPConn.Read(b) // waits for the first byte
	if err != nil || n == len(b) || n >= enough {
		return n, err
	}
	// Below the low-water mark nothing that arrives wakes anybody. What is short of it is here when the time is over.
	if g.lowWater(enough) {
		time.Sleep(gatherFor)
		if !g.lowWater(1) {
			return n, errors.New("the connection's low-water mark cannot be set back: a reader would wait for more than there is")
		}
	}
	return n + g.here(b[n:]), nil
}

// here reads what has arrived, without waiting. Errors and the end are left to the next read that waits.
func (g *gathering) here(b []byte) (n int) {
	if len(b) == 0 {
		return 0
	}
	_ = g.raw.Read(func(fd uintptr) bool {
		for {
			got, err := syscall.Read(int(fd), b)
			if err == syscall.EINTR {
				continue
			}
			n = max(got, 0)
			return true
		}
	})
	return n
}

func (g *gathering) lowWater(bytes int) (done bool) {
	err := g.raw.Control(func(fd uintptr) {
		done = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, bytes) == nil
	})
	return done && err == nil
}
