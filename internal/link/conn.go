package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/atollhq/atoll/topo"
)

// linger is how long a side that ends a connection waits for its last words to arrive. Closing at once would reset
// the connection if anything of the peer is still unread, and the words would be lost.
const linger = time.Second

// conn is what both ends have in common: frames on TLS, and an end with a reason.
type conn struct {
	tls     *tls.Conn
	patient *patientConn
	frames  *frameReader
	peer    topo.SiteID
	set     Settings

	ended   chan struct{} // closed by end
	endOnce sync.Once
	endErr  error // readable once ended is closed
}

func newConn(raw net.Conn, set Settings, wrap func(net.Conn) *tls.Conn) (*conn, error) {
	if err := boundTCP(raw, set.Silence); err != nil {
		return nil, fmt.Errorf("link: TCP_USER_TIMEOUT: %w", err)
	}
	patient := &patientConn{Conn: raw, silence: set.Silence}
	c := &conn{tls: wrap(patient), patient: patient, set: set, ended: make(chan struct{})}
	var err error
	c.frames, err = newFrameReader(c.tls, set.MaxFrame)
	return c, err
}

// end makes the connection end for the first reason given; it does not wait.
func (c *conn) end(reason error) {
	c.endOnce.Do(func() {
		c.endErr = reason
		close(c.ended)
		c.patient.hurry(linger)
	})
}

// run reads and writes until the connection ends, says goodbye unless the connection itself is gone, closes it, and
// returns why it ended. write must return soon after c.ended is closed.
func (c *conn) run(ctx context.Context, read, write func() error) error {
	stop := context.AfterFunc(ctx, func() { c.end(fmt.Errorf("%s: %w", c, context.Cause(ctx))) })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { c.end(read()) })
	if err := write(); err != nil {
		c.end(c.explain(err))
	}
	<-c.ended
	c.tell(c.endErr)
	c.close()
	wg.Wait()
	c.frames.close()
	return c.endErr
}

// tell is sayWhy for an error that may be the connection's own, or the peer's words.
func (c *conn) tell(reason error) {
	var lost *lostError
	var said *Refusal
	if !errors.As(reason, &lost) && !(errors.As(reason, &said) && said.Remote) {
		c.sayWhy(reason)
	}
}

// sayWhy tells the peer why the connection ends, and waits for it to hang up.
func (c *conn) sayWhy(reason error) {
	var r *Refusal
	switch {
	case errors.As(reason, &r):
	case errors.Is(reason, context.Canceled):
		r = Refusef(Closing, "the agent is stopping")
	default:
		r = Refusef(Failed, "%v", reason)
	}
	if _, err := c.tls.Write(controlFrame(frameRefusal, r)); err != nil {
		return // the peer learns from the closed connection
	}
	if c.tls.CloseWrite() == nil {
		c.awaitHangUp()
	}
}

// awaitHangUp lets our last words arrive: it ends our direction, and discards what the peer still sends until it hangs
// up too. The read loop may be reading at the same time; both see the end.
func (c *conn) awaitHangUp() {
	c.patient.hurry(linger)
	if c.patient.closeWrite() == nil {
		_, _ = io.Copy(io.Discard, c.patient)
	}
}

// abandon closes a connection that never came to run.
func (c *conn) abandon() {
	c.close()
	c.frames.close()
}

func (c *conn) close() { _ = c.patient.Close() }

// receive reads the next frame; a goodbye of the peer and every failure of the connection come back as an error that
// says what happened.
func (c *conn) receive() (frame, error) {
	f, err := c.frames.next()
	if err != nil {
		return frame{}, c.explain(err)
	}
	if f.kind == frameRefusal {
		r := &Refusal{}
		if err := decodeControl(f, frameRefusal, r); err != nil {
			return frame{}, err
		}
		r.Site, r.Remote = c.peer, true
		return frame{}, r
	}
	return f, nil
}

// explain puts words to an error of the connection.
func (c *conn) explain(err error) error {
	var lost *lostError
	if !errors.As(err, &lost) {
		var r *Refusal
		if errors.As(err, &r) {
			return err
		}
		err = &lostError{err}
	}
	var op *net.OpError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s: nothing came through for %s: the path is cut or the agent there hangs: %w", c, c.set.Silence, err)
	case errors.As(err, &op) && op.Op == "remote error":
		return fmt.Errorf("%s: it refused this site's certificate (%w); its log says why", c, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: it hung up: %w", c, err)
	default:
		return fmt.Errorf("%s: %w", c, err)
	}
}

func (c *conn) String() string {
	if c.peer == "" {
		return "link from " + c.patient.RemoteAddr().String()
	}
	return "link with site " + string(c.peer)
}

func (c *conn) stats() Stats {
	return Stats{BytesSent: c.patient.sent.Load(), BytesReceived: c.patient.received.Load()}
}
