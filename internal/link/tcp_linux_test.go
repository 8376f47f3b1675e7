package link

import (
	"net"
	"syscall"
	"testing"
	"time"
)

func TestKernelGivesUnacknowledgedDataUp(t *testing.T) {
	t.Parallel()
	a, b := loopback(t)
	defer a.Close()
	defer b.Close()
	if err := boundTCP(a, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	raw, err := a.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if got, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout); err != nil || got != 5000 {
			t.Errorf("TCP_USER_TIMEOUT is %d ms, %v", got, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
