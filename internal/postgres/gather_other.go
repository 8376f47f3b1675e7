//go:build !linux

package postgres

import "net"

func gather(conn net.Conn) net.Conn { return conn }
