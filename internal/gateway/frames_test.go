package gateway

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
)

// frame makes one of the given opcode.
func frame(opcode byte, payload []byte, masked bool) []byte {
	out := []byte{0x80 | opcode}
	switch n := len(payload); {
	case n < 126:
		out = append(out, byte(n))
	case n < 1<<16:
		out = binary.BigEndian.AppendUint16(append(out, 126), uint16(n))
	default:
		out = binary.BigEndian.AppendUint64(append(out, 127), uint64(n))
	}
	if masked {
		out[1] |= 0x80
		out = append(out, 1, 2, 3, 4)
	}
	return append(out, payload...)
}

// TestFramesLastWord cuts streams of frames into random pieces and says a last word at a random moment: what went out is
// the first frames, whole, and the close frame.
func TestFramesLastWord(t *testing.T) {
	t.Parallel()
	for n := range 500 {
		random := rand.New(rand.NewPCG(1, uint64(n)))
		masked := n%2 == 0
		var sent [][]byte
		var stream []byte
		for range 1 + random.IntN(8) {
			size := []int{0, 1, 125, 126, 127, 300, 65535, 65536, 70000}[random.IntN(9)]
			f := frame(byte(random.IntN(3)), bytes.Repeat([]byte{0x88}, size), masked)
			sent, stream = append(sent, f), append(stream, f...)
		}
		var out bytes.Buffer
		f := &frames{dst: &out, masked: masked}
		at := random.IntN(len(stream) + 1)
		said := 0
		for said < len(stream) {
			if said >= at {
				f.lastWord(1012, "moved")
			}
			size := min(1+random.IntN(1+random.IntN(5000)), len(stream)-said)
			if k, err := f.Write(stream[said : said+size]); err != nil || k != size {
				t.Fatalf("wrote %d, %v", k, err)
			}
			said += size
		}
		f.lastWord(1012, "moved")
		got, whole := out.Bytes(), 0
		for _, each := range sent {
			if !bytes.HasPrefix(got, each) {
				break
			}
			got, whole = got[len(each):], whole+1
		}
		want := closeFrame(1012, "moved", false)
		if len(got) < 2 || got[0] != 0x88 || int(got[1]&0x7f) != len(want)-2 || masked != (got[1]&0x80 != 0) {
			t.Fatalf("run %d: behind %d of %d frames comes % .20x", n, whole, len(sent), got)
		}
		if masked {
			for i := range got[6:] {
				got[6+i] ^= got[2+i%4]
			}
			got = append([]byte{0x88, got[1] & 0x7f}, got[6:]...)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("run %d: the last word is %x, want %x", n, got, want)
		}
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestFramesTellOfABrokenEnd(t *testing.T) {
	t.Parallel()
	if _, err := (&frames{dst: brokenPipe{}}).Write(frame(1, []byte("x"), false)); err == nil {
		t.Error("nothing is told")
	}
}

// FuzzFrames: whatever the ends say passes as it is, however it is cut.
func FuzzFrames(f *testing.F) {
	f.Add(append(frame(1, []byte("hello"), false), frame(2, bytes.Repeat([]byte{1}, 200), true)...), 3)
	f.Add([]byte{0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5}, 1)
	f.Fuzz(func(t *testing.T, stream []byte, size int) {
		var out bytes.Buffer
		f := &frames{dst: &out}
		for rest := stream; len(rest) > 0; {
			n := min(max(size, 1), len(rest))
			if _, err := f.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if !bytes.Equal(out.Bytes(), stream) {
			t.Fatalf("%x went out as %x", stream, out.Bytes())
		}
	})
}
