package link

import (
	"bytes"
	"crypto/tls"
	"io"
	"sync"
	"testing"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// rude is the other end of a link under the control of a test: it speaks TLS and sends what it is told.
func rude(t *testing.T, dc DialConfig) (*Outbound, *tls.Conn, chan error) {
	t.Helper()
	a, b := loopback(t)
	peer := tls.Client(b, dc.TLS)
	t.Cleanup(func() { peer.Close() })
	accepted := make(chan *Outbound, 1)
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { b.Close() })
	wg.Go(func() {
		out, err := Accept(t.Context(), a, acceptConfig(t, Settings{}))
		accepted <- out
		if err == nil {
			err = out.Run(t.Context(), func(Ack) {})
		}
		ended <- err
	})
	hello := dc.Hello
	hello.Format, hello.Oldest, hello.Window = Format, Format, 1<<20
	if _, err := peer.Write(controlFrame(frameHello, hello)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(peer, make([]byte, headerLen)); err != nil {
		t.Fatal(err)
	}
	return <-accepted, peer, ended
}

func TestRudeTargets(t *testing.T) {
	t.Parallel()
	raw := func(kind frameType, version byte, body string) []byte {
		buf := append(make([]byte, headerLen), body...)
		putHeader(buf, kind, 0)
		buf[0] = version
		return buf
	}
	for name, c := range map[string]struct {
		frames [][]byte
		want   string
	}{
		"newer frame": {[][]byte{raw(frameAck, Format+1, "{}")}, "upgrade this site"},
		"no frame":    {[][]byte{[]byte("GET / HTTP/1.1\r\n\r\n")}, "wrong port?"},
		"acknowledges what was never sent": {[][]byte{controlFrame(frameAck, Ack{Flushed: 5000})},
			"acknowledges position 5000"},
		"takes what was never sent": {[][]byte{controlFrame(frameAck, Ack{Flushed: 100, Taken: 1})},
			"and 1 bytes; sent are 100 and 0"},
		"takes back": {[][]byte{controlFrame(frameAck, Ack{Flushed: 100}), controlFrame(frameAck, Ack{Flushed: 99})},
			"takes back"},
		"sends changes": {[][]byte{raw(frameChanges, Format, "\x00")}, "where type 5 is expected"},
		"garbage":       {[][]byte{raw(frameAck, Format, "garbage")}, "invalid character"},
		"huge control":  {[][]byte{{Format, byte(frameAck), 0, 0, 0xff, 0xff, 0xff, 0xff}}, "beyond the bound"},
		"packed control": {[][]byte{{Format, byte(frameAck), flagZstd, 0, 0, 0, 0, 0}},
			"beyond the bound"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, peer, ended := rude(t, dialConfig(t, Settings{}))
			for _, f := range c.frames {
				if _, err := peer.Write(f); err != nil {
					t.Fatal(err)
				}
			}
			_, _ = io.Copy(io.Discard, peer)
			peer.Close()
			wantError(t, <-ended, c.want)
		})
	}
}

func TestRudeOrigins(t *testing.T) {
	t.Parallel()
	message := func(n int) []byte {
		body := append([]byte{0x80 | byte(n&0x7f), byte(n >> 7)}, make([]byte, n)...)
		buf := append(make([]byte, headerLen), body...)
		putHeader(buf, frameChanges, 0)
		return buf
	}
	bomb := func() []byte {
		p, err := newPacker()
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Clone(p.pack(make([]byte, 64<<20), frameChanges))
	}
	for name, c := range map[string]struct {
		frames [][]byte
		want   string
	}{
		"overruns the window":   {[][]byte{message(9000), message(9000)}, "overran the window of 5000"},
		"unpacks to too much":   {[][]byte{bomb()}, "does not unpack"},
		"ends beyond its frame": {[][]byte{{Format, byte(frameChanges), 0, 0, 0, 0, 0, 2, 0x7f, 0}}, "ends beyond its frame"},
		"is empty":              {[][]byte{{Format, byte(frameChanges), 0, 0, 0, 0, 0, 0}}, "empty frame"},
		"is newer":              {[][]byte{{Format + 1, byte(frameChanges), 0, 0, 0, 0, 0, 0}}, "upgrade this site"},
		"welcomes twice":        {[][]byte{controlFrame(frameWelcome, Welcome{})}, "in the middle of its stream"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := loopback(t)
			peer := tls.Server(a, identity(t, "a").ServerTLS(nil))
			done := make(chan struct{})
			go func() {
				defer close(done)
				if _, err := io.ReadFull(peer, make([]byte, headerLen)); err != nil {
					t.Error(err)
				}
				frames := append([][]byte{controlFrame(frameWelcome, Welcome{Format: Format, Deployment: "shop", Site: "a"})}, c.frames...)
				for _, f := range frames {
					_, _ = peer.Write(f) // the target may hang up in between
				}
				_, _ = io.Copy(io.Discard, peer)
				peer.Close()
			}()
			in, err := open(t.Context(), b, dialConfig(t, Settings{Window: 5000, MaxFrame: 1 << 20}))
			if err != nil {
				t.Fatal(err)
			}
			wantError(t, in.Run(t.Context()), c.want)
			<-done
		})
	}
}

func FuzzFrameReader(f *testing.F) {
	p, err := newPacker()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(controlFrame(frameAck, Ack{Flushed: 5, Vector: topo.Vector{"a": 1}}))
	f.Add(bytes.Clone(p.pack(append(make([]byte, headerLen), bytes.Repeat([]byte{3, 'a', 'b', 'c'}, 1000)...), frameChanges)))
	f.Add([]byte{Format, byte(frameCopy), 0, 0, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{Format + 1, 1, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		const max = 1 << 20
		r, err := newFrameReader(bytes.NewReader(data), max)
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		for {
			fr, err := r.next()
			if err != nil {
				return
			}
			if len(fr.payload) > max && !fr.kind.control() {
				t.Fatalf("frame of %d bytes", len(fr.payload))
			}
			for rest := fr.payload; len(rest) > 0; {
				var message []byte
				if message, rest, err = cutMessage(rest); err != nil {
					break
				}
				_, _ = new(change.Decoder).Tx(message)
			}
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(string(controlFrame(frameHello, Hello{Format: 1, Oldest: 1, Deployment: "shop", Site: "b", Origin: "a", Start: StartResume,
		Epochs: change.Epochs{"users": {1: 2}}, Vector: topo.Vector{"c": 1}, Window: 1})[headerLen:]))
	f.Add(`{"format":9,"oldest":8}`)
	f.Add(`{"epochs":{"users":{"70000":1}}}`)
	f.Fuzz(func(t *testing.T, body string) {
		var h Hello
		if decodeControl(frame{frameHello, []byte(body)}, frameHello, &h) != nil {
			return
		}
		if format, err := h.agree(); err == nil && (format < h.Oldest || format > h.Format || format > Format) {
			t.Fatalf("agreed on %d for %+v", format, h)
		}
		_ = h.check(Settings{}.WithDefaults())
	})
}
