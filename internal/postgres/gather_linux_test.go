package postgres

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

// gatheringPipe is a loopback connection whose reading end gathers.
func gatheringPipe(t testing.TB) (from net.Conn, to net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if from, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Close(); to.Close() })
	return from, gather(to)
}

// Whatever the sizes and the pauses, all bytes come, in order, and then the end.
func TestGatherLosesNothing(t *testing.T) {
	t.Parallel()
	from, to := gatheringPipe(t)
	var sent bytes.Buffer
	done := make(chan struct{})
	go func() {
		random := rand.New(rand.NewPCG(1, 2))
		defer close(done)
		defer from.Close()
		for range 2000 {
			b := make([]byte, 1+random.IntN(1<<random.IntN(17)))
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			sent.Write(b)
			if _, err := from.Write(b); err != nil {
				t.Error(err)
				return
			}
			if random.IntN(20) == 0 {
				<-time.After(time.Duration(random.IntN(3)) * time.Millisecond)
			}
		}
	}()
	random := rand.New(rand.NewPCG(3, 4))
	var got bytes.Buffer
	buf := make([]byte, 8<<10)
	for {
		n, err := to.Read(buf[:1+random.IntN(len(buf))])
		got.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || n == 0 {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	<-done
	if !bytes.Equal(got.Bytes(), sent.Bytes()) {
		t.Errorf("%d bytes came of %d, or others", got.Len(), sent.Len())
	}
}

// A burst of small messages comes as few pieces, a lone one by itself, and a deadline ends the wait.
func TestGatherTakesABurstTogether(t *testing.T) {
	t.Parallel()
	from, to := gatheringPipe(t)
	buf := make([]byte, 8<<10)
	reads := 0
	for range 20 {
		go func() {
			for range 30 {
				from.Write([]byte("row"))
			}
		}()
		for got := 0; got < 90; reads++ {
			n, err := to.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	}
	if reads > 200 { // 600 messages; mostly one read a burst
		t.Errorf("%d reads for 20 bursts", reads)
	}
	from.Write([]byte("alone"))
	if n, err := to.Read(buf); err != nil || string(buf[:n]) != "alone" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	to.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := to.Read(buf); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v", n, err)
	}
}
