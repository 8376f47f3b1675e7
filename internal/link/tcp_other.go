//go:build !linux

package link

import (
	"net"
	"time"
)

// boundTCP has no equivalent here; the deadlines of patientConn remain.
func boundTCP(net.Conn, time.Duration) error { return nil }
