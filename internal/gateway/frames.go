package gateway

import (
	"crypto/rand"
	"encoding/binary"
	"io"
	"sync"
)

// Status codes of a close frame (RFC 6455, section 7.4.1, and the IANA registry).
const (
	closeGoingAway      = 1001
	closeServiceRestart = 1012
)

// frames follows one direction of a WebSocket, to know where a frame ends: there a close frame can be put in. What it is
// given goes out as it came; behind a last word of its own, or of the speaker, nothing does. It keeps no payload.
type frames struct {
	dst    io.Writer
	masked bool // a client's frames are (RFC 6455, section 5.3)

	mu struct {
		sync.Mutex
		head    []byte // of a frame whose head is not whole yet
		left    uint64 // bytes of the payload of the frame that goes out
		pending []byte // the last word, until a frame ends
		closed  bool   // it was said
	}
}

// Write passes on what was said.
func (f *frames) Write(said []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.closed {
		return len(said), nil // nobody listens any more
	}
	rest := said
	for len(rest) > 0 {
		if f.mu.left == 0 && len(f.mu.head) == 0 && f.mu.pending != nil {
			break
		}
		rest = rest[f.followLocked(rest):]
	}
	if _, err := f.dst.Write(said[:len(said)-len(rest)]); err != nil {
		return 0, err
	}
	return len(said), f.sayLocked()
}

// followLocked takes bytes of one frame's head or payload, and returns how many.
func (f *frames) followLocked(b []byte) int {
	if f.mu.left > 0 {
		n := min(uint64(len(b)), f.mu.left)
		f.mu.left -= n
		return int(n)
	}
	n := 0
	for n < len(b) && len(f.mu.head) < headSize(f.mu.head) {
		f.mu.head = append(f.mu.head, b[n])
		n++
	}
	if len(f.mu.head) == headSize(f.mu.head) {
		f.mu.left = payloadSize(f.mu.head)
		f.mu.head = f.mu.head[:0]
	}
	return n
}

// headSize is the size of a frame's head, as far as its first bytes tell (RFC 6455, section 5.2).
func headSize(head []byte) int {
	if len(head) < 2 {
		return 2
	}
	size := 2
	switch head[1] & 0x7f {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	if head[1]&0x80 != 0 {
		size += 4
	}
	return size
}

func payloadSize(head []byte) uint64 {
	switch n := head[1] & 0x7f; n {
	case 126:
		return uint64(binary.BigEndian.Uint16(head[2:]))
	case 127:
		return binary.BigEndian.Uint64(head[2:])
	default:
		return uint64(n)
	}
}

// lastWord has a close frame said as soon as no frame is under way.
func (f *frames) lastWord(code uint16, why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.pending != nil || f.mu.closed {
		return
	}
	f.mu.pending = closeFrame(code, why, f.masked)
	_ = f.sayLocked() // whoever copies here finds out
}

func (f *frames) sayLocked() error {
	if f.mu.pending == nil || f.mu.closed || f.mu.left > 0 || len(f.mu.head) > 0 {
		return nil
	}
	f.mu.closed = true
	_, err := f.dst.Write(f.mu.pending)
	return err
}

// closeFrame makes a close frame; why has at most 123 bytes.
func closeFrame(code uint16, why string, masked bool) []byte {
	payload := append(binary.BigEndian.AppendUint16(nil, code), why...)
	out := []byte{0x88, byte(len(payload))} // final, opcode 8
	if !masked {
		return append(out, payload...)
	}
	var key [4]byte
	_, _ = rand.Read(key[:])
	out[1] |= 0x80
	out = append(out, key[:]...)
	for i, b := range payload {
		out = append(out, b^key[i%4])
	}
	return out
}
