package link

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// A frame is a header of eight bytes and a payload:
//
//	version  type  flags  0  length (4 bytes, big-endian)
type frameType byte

const (
	frameHello     frameType = 1 // JSON: Hello
	frameWelcome   frameType = 2 // JSON: Welcome
	frameRefusal   frameType = 3 // JSON: Refusal; the last frame of its sender
	frameHeartbeat frameType = 4 // JSON: Heartbeat
	frameAck       frameType = 5 // JSON: Ack
	frameChanges   frameType = 6 // messages, each a change.Tx behind its length (uvarint)
	frameCopy      frameType = 7 // messages, each a change.Copy behind its length (uvarint)
)

const (
	headerLen = 8
	flagZstd  = 1 << 0

	// maxControl bounds the frames of JSON. A hello carries an epoch for every bucket.
	maxControl = 16 << 20
	// worthPacking is the size below which compression saves no packet.
	worthPacking = 1 << 10
)

func (t frameType) control() bool { return t >= frameHello && t <= frameAck }

// putHeader writes the header of a frame over the first bytes of buf, whose rest is the payload.
func putHeader(buf []byte, t frameType, flags byte) {
	buf[0], buf[1], buf[2], buf[3] = Format, byte(t), flags, 0
	binary.BigEndian.PutUint32(buf[4:], uint32(len(buf)-headerLen))
}

// packer turns payloads into frames. It is used by one goroutine.
type packer struct {
	zstd *zstd.Encoder
	out  []byte
}

func newPacker() (*packer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("link: compression: %w", err)
	}
	return &packer{zstd: enc}, nil
}

// pack makes a frame of buf, whose first headerLen bytes are free for the header. The result is valid until the next
// call or change of buf.
func (p *packer) pack(buf []byte, t frameType) []byte {
	if payload := buf[headerLen:]; len(payload) >= worthPacking {
		p.out = p.zstd.EncodeAll(payload, append(p.out[:0], make([]byte, headerLen)...))
		if len(p.out) < len(buf) {
			putHeader(p.out, t, flagZstd)
			return p.out
		}
	}
	putHeader(buf, t, 0)
	return buf
}

func controlFrame(t frameType, message any) []byte {
	body, err := json.Marshal(message)
	if err != nil {
		panic(fmt.Sprintf("BUG: %T does not marshal: %v", message, err))
	}
	buf := append(make([]byte, headerLen), body...)
	putHeader(buf, t, 0)
	return buf
}

// frame is a received frame, unpacked.
type frame struct {
	kind    frameType
	payload []byte // never changed afterwards: decoded changes point into it
}

// frameReader takes frames off a connection. What it allocates for a frame is bounded by what arrived, and unpacked
// by max, whatever lengths the bytes claim.
type frameReader struct {
	in   *bufio.Reader
	max  int
	zstd *zstd.Decoder
}

func newFrameReader(r io.Reader, max int) (*frameReader, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(max)))
	if err != nil {
		return nil, fmt.Errorf("link: compression: %w", err)
	}
	return &frameReader{in: bufio.NewReaderSize(r, 64<<10), max: max, zstd: dec}, nil
}

func (r *frameReader) close() { r.zstd.Close() }

// lostError is an error of the connection itself, as opposed to one of what came over it.
type lostError struct{ err error }

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

func (r *frameReader) next() (frame, error) {
	var head [headerLen]byte
	if _, err := io.ReadFull(r.in, head[:]); err != nil {
		return frame{}, &lostError{err}
	}
	kind, flags, length := frameType(head[1]), head[2], int64(binary.BigEndian.Uint32(head[4:]))
	switch {
	case head[0] < oldestFormat || head[0] >= ' ': // text: another protocol
		return frame{}, Refusef(Protocol, "what comes is not a link of atoll (it begins with %q): wrong port?", head[:])
	case head[0] > Format:
		return frame{}, Refusef(Newer, "frame of link format %d, this site reads up to %d: %v", head[0], Format, ErrNewerFormat)
	case kind < frameHello || kind > frameCopy:
		return frame{}, Refusef(Protocol, "frame of unknown type %d", kind)
	case flags&^flagZstd != 0 || head[3] != 0:
		return frame{}, Refusef(Protocol, "frame with unknown flags %#x", flags)
	case kind.control() && (flags != 0 || length > maxControl), length > int64(r.max):
		return frame{}, Refusef(Protocol, "frame of type %d with %d bytes is beyond the bound", kind, length)
	}
	payload, err := readExactly(r.in, length)
	if err != nil {
		return frame{}, &lostError{err}
	}
	if flags&flagZstd != 0 {
		if payload, err = r.zstd.DecodeAll(payload, nil); err != nil {
			return frame{}, Refusef(Protocol, "frame of type %d does not unpack: %v", kind, err)
		}
	}
	return frame{kind, payload}, nil
}

// readExactly reads n bytes, with memory growing as they come.
func readExactly(in io.Reader, n int64) ([]byte, error) {
	const atOnce = 1 << 20
	if n <= atOnce {
		buf := make([]byte, n)
		_, err := io.ReadFull(in, buf)
		return buf, noEOF(err)
	}
	var buf bytes.Buffer
	buf.Grow(atOnce)
	_, err := io.CopyN(&buf, in, n)
	return buf.Bytes(), noEOF(err)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// cutMessage takes the first message off the payload of a frame of changes or copies.
func cutMessage(payload []byte) (message, rest []byte, err error) {
	n, used := binary.Uvarint(payload)
	if used <= 0 || n > uint64(len(payload)-used) {
		return nil, nil, Refusef(Protocol, "message ends beyond its frame")
	}
	return payload[used : used+int(n) : used+int(n)], payload[used+int(n):], nil
}

// decodeControl reads the JSON of a control frame. Unknown fields are let pass: a newer peer may say more.
func decodeControl(f frame, want frameType, into any) error {
	if f.kind != want {
		return Refusef(Protocol, "frame of type %d where type %d is expected", f.kind, want)
	}
	if err := json.Unmarshal(f.payload, into); err != nil {
		return Refusef(Protocol, "frame of type %d: %v", f.kind, err)
	}
	return nil
}
