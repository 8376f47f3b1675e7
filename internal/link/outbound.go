package link

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// frameFill is about how many bytes of messages a frame takes. Less would waste compression under load; more would
// keep reading, sending and applying from overlapping.
const frameFill = 256 << 10

// AcceptConfig is what the origin's end needs.
type AcceptConfig struct {
	Deployment string
	Site       topo.SiteID
	TLS        *tls.Config
	Peer       func(tls.ConnectionState) (topo.SiteID, error) // the site that the peer's certificate speaks for
	Settings   Settings
	// Relay tells of whose changes, besides its own, the site hands on what it keeps; nil: of nobody's.
	Relay func(origin topo.SiteID) bool
	// Beat completes a heartbeat with what the link does not know: End and Statement. May be nil. It must not block.
	Beat func() Heartbeat
}

// Outbound is the origin's end of a link. Send and SendCopy are for one goroutine.
type Outbound struct {
	*conn
	hello Hello
	beat  func() Heartbeat

	encoder change.Encoder
	scratch []byte

	pending chan struct{} // capacity 1: segments is not empty
	credit  chan struct{} // capacity 1: taken has grown

	mu struct {
		sync.Mutex
		segments []segment       // encoded, not yet written
		spare    []byte          // a written segment's buffer
		queued   uint64          // bytes of messages encoded since the connection began
		taken    uint64          // of those, what the target took
		sent     change.Position // last position encoded
		urgent   bool            // somebody waits for what is in segments
		wanted   change.Position // the target waits for it; 0: for none in particular
	}
}

// segment becomes one frame; buf begins with room for the header.
type segment struct {
	kind frameType
	buf  []byte
}

// Accept makes the origin's end of a connection that was accepted. It returns once the target's hello is checked and
// answered. On an error the connection is closed, and the target has been told why as far as it is entitled to know.
func Accept(ctx context.Context, raw net.Conn, cfg AcceptConfig) (*Outbound, error) {
	c, err := newConn(raw, cfg.Settings.WithDefaults(), func(n net.Conn) *tls.Conn { return tls.Server(n, cfg.TLS) })
	if err != nil {
		raw.Close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*c.set.Connect) // a stranger may not keep us waiting byte by byte
	defer cancel()
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	o, err := accept(ctx, c, cfg)
	if err != nil {
		c.abandon()
		return nil, err
	}
	return o, nil
}

func accept(ctx context.Context, c *conn, cfg AcceptConfig) (*Outbound, error) {
	if err := c.tls.HandshakeContext(ctx); err != nil {
		c.awaitHangUp()
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	var err error
	if c.peer, err = cfg.Peer(c.tls.ConnectionState()); err != nil {
		c.sayWhy(Refusef(Stranger, "%v", err))
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	f, err := c.receive()
	if err != nil {
		c.tell(err)
		return nil, err
	}
	var hello Hello
	if err := decodeControl(f, frameHello, &hello); err != nil {
		c.tell(err)
		return nil, err
	}
	format, err := cfg.examine(hello, c)
	if err != nil {
		c.tell(err)
		return nil, err
	}
	if _, err := c.tls.Write(controlFrame(frameWelcome, Welcome{Format: format, Deployment: cfg.Deployment, Site: cfg.Site})); err != nil {
		return nil, c.explain(err)
	}
	beat := cfg.Beat
	if beat == nil {
		beat = func() Heartbeat { return Heartbeat{} }
	}
	if hello.Origin != cfg.Site { // what this site says of itself is no word of the origin's
		beat = func() Heartbeat { return Heartbeat{} }
	}
	o := &Outbound{conn: c, hello: hello, beat: beat, pending: make(chan struct{}, 1), credit: make(chan struct{}, 1)}
	o.mu.sent = hello.Position
	return o, nil
}

func (cfg AcceptConfig) examine(h Hello, c *conn) (format int, err error) {
	if format, err = h.agree(); err != nil {
		return 0, err
	}
	if err := h.check(c.set); err != nil {
		return 0, err
	}
	switch {
	case h.Deployment != cfg.Deployment:
		return 0, Refusef(Stranger, "deployment %q asks, this is %q", h.Deployment, cfg.Deployment)
	case h.Site != c.peer:
		return 0, Refusef(Stranger, "site %q asks with the certificate of site %q", h.Site, c.peer)
	case h.Origin != cfg.Site && (cfg.Relay == nil || !cfg.Relay(h.Origin)):
		return 0, Refusef(Stranger, "asked for changes of site %q, this is site %q", h.Origin, cfg.Site)
	case h.Site == h.Origin || h.Site == cfg.Site:
		return 0, Refusef(Stranger, "site %q asks for its own changes", h.Site)
	case h.Origin != cfg.Site && h.Start != StartResume:
		return 0, Refusef(Protocol, "site %q asks for a beginning (%s) of site %q's changes; a relay has none", h.Site, h.Start, h.Origin)
	}
	return format, nil
}

// Hello is what the target asked for.
func (o *Outbound) Hello() Hello { return o.hello }

// Close ends a connection for which Run was not called.
func (o *Outbound) Close() { o.abandon() }

// End makes Run end for a reason that the target is told. It does not wait.
func (o *Outbound) End(reason error) { o.end(reason) }

// Stats counts what has passed so far.
func (o *Outbound) Stats() Stats {
	s := o.stats()
	o.mu.Lock()
	defer o.mu.Unlock()
	s.Unpacked = o.mu.queued
	return s
}

// Run keeps the connection until it ends, and returns why. acked is called for every acknowledgement, in order, from
// one goroutine; what it acknowledges has been checked against what was sent. It should not block for long: the
// target's credit comes the same way.
func (o *Outbound) Run(ctx context.Context, acked func(Ack)) error {
	defer o.forget()
	return o.run(ctx, func() error { return o.readAcks(acked) }, o.write)
}

// forget drops what was not written: an ended connection may be remembered for its state.
func (o *Outbound) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.segments, o.mu.spare = nil, nil
}

// Send queues a transaction or a part of one. It blocks while the target's window is full, and returns why when the
// connection has ended.
func (o *Outbound) Send(ctx context.Context, tx change.Tx) error {
	o.scratch = o.encoder.AppendTx(o.scratch[:0], &tx)
	return o.queue(ctx, frameChanges, tx.Position, len(tx.Markers) > 0)
}

func (o *Outbound) wake() {
	select {
	case o.pending <- struct{}{}:
	default:
	}
}

// SendCopy queues a piece of an initial copy, as Send does.
func (o *Outbound) SendCopy(ctx context.Context, c change.Copy) error {
	o.scratch = o.encoder.AppendCopy(o.scratch[:0], &c)
	return o.queue(ctx, frameCopy, c.Position, true)
}

// queue appends the message in scratch to the last segment that still has room.
func (o *Outbound) queue(ctx context.Context, kind frameType, pos change.Position, urgent bool) error {
	size := len(o.scratch) + binary.MaxVarintLen32
	if size > o.set.MaxFrame {
		return Refusef(Failed, "a piece of %d bytes at position %d is beyond the link's bound of %d: a row is too large to be sent", size, pos, o.set.MaxFrame)
	}
	for {
		select {
		case <-o.ended:
			return o.endErr
		default:
		}
		if o.append(kind, pos, urgent) {
			break
		}
		select {
		case <-o.credit:
		case <-o.ended:
			return o.endErr
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	o.wake()
	return nil
}

// append takes the message in scratch if the window has any room: a message larger than the window must pass too.
func (o *Outbound) append(kind frameType, pos change.Position, urgent bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.queued-o.mu.taken >= uint64(o.hello.Window) {
		return false
	}
	n := len(o.mu.segments)
	need := len(o.scratch) + binary.MaxVarintLen32
	if n == 0 || o.mu.segments[n-1].kind != kind || len(o.mu.segments[n-1].buf)+need > frameFill {
		buf := o.mu.spare
		o.mu.spare = nil
		o.mu.segments = append(o.mu.segments, segment{kind, append(buf[:0], make([]byte, headerLen)...)})
		n++
	}
	s := &o.mu.segments[n-1]
	s.buf = binary.AppendUvarint(s.buf, uint64(len(o.scratch)))
	s.buf = append(s.buf, o.scratch...)
	o.mu.queued += uint64(len(o.scratch))
	o.mu.sent = max(o.mu.sent, pos)
	o.mu.urgent = o.mu.urgent || urgent || o.mu.wanted > 0 && pos >= o.mu.wanted
	if cap(o.scratch) > 4*frameFill {
		o.scratch = nil // one huge row should not be remembered for ever
	}
	return true
}

// write sends segments, and heartbeats. A segment goes at once if the one before went longer than a pace ago, and a pace
// behind that otherwise, with all that was committed meanwhile: each costs every target a commit, two where it keeps
// changes for others, and both ends their ways through the system. What somebody waits for, and what fills a frame,
// does not wait.
func (o *Outbound) write() error {
	pack, err := newPacker()
	if err != nil {
		return err
	}
	beat := time.NewTicker(o.set.Heartbeat)
	defer beat.Stop()
	if err := o.sendHeartbeat(); err != nil {
		return err
	}
	var last time.Time // a segment was sent
	pace := time.NewTimer(0)
	defer pace.Stop()
	for {
		select {
		case <-o.ended:
			return nil
		case <-beat.C: // also between frames under load: neither branch starves the other
			if err := o.sendHeartbeat(); err != nil {
				return err
			}
			continue
		case <-o.pending:
		case <-pace.C:
		}
		if wait := o.set.Pace - time.Since(last); wait > 0 && o.mayWait() {
			pace.Reset(wait)
			continue
		}
		sent, err := o.sendSegment(pack)
		if err != nil {
			return err
		}
		if sent {
			last = time.Now()
		}
	}
}

// mayWait tells whether what is there to send may wait for more.
func (o *Outbound) mayWait() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.mu.urgent && (len(o.mu.segments) == 0 || len(o.mu.segments) == 1 && len(o.mu.segments[0].buf) < frameFill/2)
}

// sendSegment writes the oldest segment, if there is one, and makes itself run again if there are more.
func (o *Outbound) sendSegment(pack *packer) (sent bool, err error) {
	o.mu.Lock()
	if len(o.mu.segments) == 0 {
		o.mu.Unlock()
		return false, nil
	}
	s := o.mu.segments[0]
	o.mu.segments = o.mu.segments[1:]
	more := len(o.mu.segments) > 0
	if !more {
		o.mu.urgent = false
		if o.mu.wanted <= o.mu.sent {
			o.mu.wanted = 0
		}
	}
	o.mu.Unlock()
	if more {
		o.wake()
	}
	if _, err := o.tls.Write(pack.pack(s.buf, s.kind)); err != nil {
		return false, err
	}
	o.mu.Lock()
	if o.mu.spare == nil && cap(s.buf) <= 4*frameFill {
		o.mu.spare = s.buf
	}
	o.mu.Unlock()
	return true, nil
}

func (o *Outbound) sendHeartbeat() error {
	beat := o.beat()
	beat.Time = time.Now()
	o.mu.Lock()
	beat.Sent = o.mu.sent
	o.mu.Unlock()
	_, err := o.tls.Write(controlFrame(frameHeartbeat, beat))
	return err
}

// readAcks takes acknowledgements until the connection ends. One that claims what was never sent ends it: the slot
// would be confirmed beyond what the target has, and the rest would be lost.
func (o *Outbound) readAcks(acked func(Ack)) error {
	var last Ack
	for {
		f, err := o.receive()
		if err != nil {
			return err
		}
		var ack Ack
		if err := decodeControl(f, frameAck, &ack); err != nil {
			return err
		}
		o.mu.Lock()
		sent, queued := o.mu.sent, o.mu.queued
		o.mu.taken = max(o.mu.taken, min(ack.Taken, queued))
		if ack.Wants > ack.Flushed {
			o.mu.wanted = max(o.mu.wanted, ack.Wants)
			o.mu.urgent = o.mu.urgent || len(o.mu.segments) > 0 && sent >= o.mu.wanted
		}
		urgent := o.mu.urgent
		o.mu.Unlock()
		if urgent {
			o.wake()
		}
		switch {
		case ack.Flushed > sent || ack.Taken > queued:
			return Refusef(Protocol, "site %s acknowledges position %d and %d bytes; sent are %d and %d", o.peer, ack.Flushed, ack.Taken, sent, queued)
		case ack.Flushed < last.Flushed || ack.Taken < last.Taken:
			return Refusef(Protocol, "site %s takes back an acknowledgement: position %d after %d", o.peer, ack.Flushed, last.Flushed)
		}
		last = ack
		select {
		case o.credit <- struct{}{}:
		default:
		}
		acked(ack)
	}
}
