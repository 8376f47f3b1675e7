package lab

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// packet is what the router has to know of an IPv4 packet (RFC 791, RFC 9293): where it goes and, of TCP, to which
// connection it belongs. Ports are 0 where there are none to see: other protocols, later fragments.
type packet struct {
	from, to netip.AddrPort
	tcp      bool // the first fragment of a segment: the fields below are of its header
	flags    byte
	seq, ack uint32
	payload  int // bytes of data in the segment
}

const (
	ipHeader  = 20 // bytes, without options
	tcpHeader = 20
	protoTCP  = 6

	flagFIN = 1 << 0
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4
)

var (
	errNotIPv4   = errors.New("not an IPv4 packet")
	errTruncated = errors.New("a packet shorter than its headers say")
)

// parsePacket reads the headers of one packet. It keeps nothing of b.
func parsePacket(b []byte) (packet, error) {
	if len(b) < ipHeader || b[0]>>4 != 4 {
		return packet{}, errNotIPv4
	}
	head, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < ipHeader || total < head || total > len(b) {
		return packet{}, errTruncated
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p := packet{from: netip.AddrPortFrom(src, 0), to: netip.AddrPortFrom(dst, 0)}
	if fragment := binary.BigEndian.Uint16(b[6:]) & 0x1fff; b[9] != protoTCP || fragment != 0 {
		return p, nil
	}
	segment := b[head:total]
	if len(segment) < tcpHeader {
		return packet{}, errTruncated
	}
	offset := int(segment[12]>>4) * 4
	if offset < tcpHeader || offset > len(segment) {
		return packet{}, errTruncated
	}
	p.from = netip.AddrPortFrom(src, binary.BigEndian.Uint16(segment))
	p.to = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(segment[2:]))
	p.tcp, p.flags = true, segment[13]
	p.seq, p.ack = binary.BigEndian.Uint32(segment[4:]), binary.BigEndian.Uint32(segment[8:])
	p.payload = len(segment) - offset
	return p, nil
}

func (p *packet) has(flags byte) bool { return p.flags&flags == flags }

// resetPacket is a TCP reset as the far end of a connection would send it. The receiver believes one whose number is
// exactly what it expects next (RFC 5961).
func resetPacket(from, to netip.AddrPort, seq uint32) []byte {
	b := make([]byte, ipHeader+tcpHeader)
	b[0] = 4<<4 | ipHeader/4
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[8], b[9] = 64, protoTCP
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], onesComplement(sum(0, b[:ipHeader])))
	segment := b[ipHeader:]
	binary.BigEndian.PutUint16(segment, from.Port())
	binary.BigEndian.PutUint16(segment[2:], to.Port())
	binary.BigEndian.PutUint32(segment[4:], seq)
	segment[12], segment[13] = tcpHeader/4<<4, flagRST
	pseudo := sum(protoTCP+tcpHeader, b[12:20])
	binary.BigEndian.PutUint16(segment[16:], onesComplement(sum(pseudo, segment)))
	return b
}

// sum adds up the 16-bit words of b, whose length is even (RFC 1071).
func sum(start uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		start += uint32(binary.BigEndian.Uint16(b))
	}
	return start
}

func onesComplement(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
