package link

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// DialConfig is what the target's end needs.
type DialConfig struct {
	Addr     string
	TLS      *tls.Config        // expects the site that is dialled
	Via      topo.SiteID        // the relay that is dialled; "": the origin itself
	Hello    Hello              // Format, Oldest and Window are filled in
	Settings Settings           // Settings.Connect bounds the whole of Dial
	Vector   func() topo.Vector // this site's, for every acknowledgement; may be nil. It must not block.
}

// Inbound is the target's end of a link. NextTx and NextCopy are for one goroutine.
type Inbound struct {
	*conn
	vector  func() topo.Vector
	decoder change.Decoder
	current []byte // rest of the frame that messages are taken from
	kind    frameType

	arrived chan struct{} // capacity 1: queue is not empty
	poke    chan struct{} // capacity 1: there is something to acknowledge
	drained chan struct{} // closed when nothing more will be queued

	mu struct {
		sync.Mutex
		queue    []frame
		received uint64 // bytes of messages received since the connection began
		taken    uint64 // of those, what NextTx and NextCopy gave out
		told     uint64 // taken, as last told to the origin
		flushed  change.Position
		acked    change.Position // flushed, as last told to the origin
		wants    change.Position // to be told with the next acknowledgement
		urgent   bool            // the origin waits for the next acknowledgement, or somebody here for what it asks for
		beat     Heartbeat
		beatAt   time.Time
		before   Heartbeat // the one before beat
	}
}

// Dial connects to the origin's agent and introduces this site. It returns once the origin has agreed.
func Dial(ctx context.Context, cfg DialConfig) (*Inbound, error) {
	set := cfg.Settings.WithDefaults()
	ctx, cancel := context.WithTimeoutCause(ctx, set.Connect, fmt.Errorf("it took longer than %s", set.Connect))
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("link to site %s at %s: %w", cmp.Or(cfg.Via, cfg.Hello.Origin), cfg.Addr, err)
	}
	return open(ctx, raw, cfg)
}

// open is Dial on a connection that stands.
func open(ctx context.Context, raw net.Conn, cfg DialConfig) (*Inbound, error) {
	c, err := newConn(raw, cfg.Settings.WithDefaults(), func(n net.Conn) *tls.Conn { return tls.Client(n, cfg.TLS) })
	if err != nil {
		raw.Close()
		return nil, err
	}
	c.peer = cmp.Or(cfg.Via, cfg.Hello.Origin)
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	if err := introduce(ctx, c, cfg.Hello); err != nil {
		c.abandon()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("link to site %s: no answer: %w", c.peer, context.Cause(ctx))
		}
		return nil, err
	}
	vector := cfg.Vector
	if vector == nil {
		vector = func() topo.Vector { return nil }
	}
	in := &Inbound{
		conn: c, vector: vector,
		arrived: make(chan struct{}, 1), poke: make(chan struct{}, 1), drained: make(chan struct{}),
	}
	in.mu.flushed = cfg.Hello.Position
	return in, nil
}

func introduce(ctx context.Context, c *conn, hello Hello) error {
	if err := c.tls.HandshakeContext(ctx); err != nil {
		return c.explain(err)
	}
	if hello.Format == 0 {
		hello.Format, hello.Oldest = Format, oldestFormat
	}
	hello.Window = c.set.Window
	// A refused certificate shows only in the first read, and may break this write: its error is not the story.
	_, writeErr := c.tls.Write(controlFrame(frameHello, hello))
	f, err := c.receive()
	if err != nil {
		return err
	}
	if writeErr != nil {
		return c.explain(writeErr)
	}
	var welcome Welcome
	if err := decodeControl(f, frameWelcome, &welcome); err != nil {
		c.tell(err)
		return err
	}
	switch {
	case welcome.Format > hello.Format || welcome.Format < hello.Oldest:
		err = Refusef(Newer, "site %s wants to speak link format %d, this site speaks %d to %d", c.peer, welcome.Format, hello.Oldest, hello.Format)
	case welcome.Deployment != hello.Deployment:
		err = Refusef(Stranger, "site %s is of deployment %q, this is %q", c.peer, welcome.Deployment, hello.Deployment)
	case welcome.Site != c.peer:
		err = Refusef(Stranger, "the agent of site %s answers where site %s is expected", welcome.Site, c.peer)
	}
	if err != nil {
		c.tell(err)
	}
	return err
}

// Close ends a connection for which Run was not called.
func (in *Inbound) Close() { in.abandon() }

// End makes Run end for a reason that the origin is told. It does not wait.
func (in *Inbound) End(reason error) { in.end(reason) }

// Stats counts what has passed so far.
func (in *Inbound) Stats() Stats {
	s := in.stats()
	in.mu.Lock()
	defer in.mu.Unlock()
	s.Unpacked = in.mu.received
	return s
}

// Heard is the origin's last heartbeat and when it came, on this site's clock; the zero time before the first.
func (in *Inbound) Heard() (Heartbeat, time.Time) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.mu.beat, in.mu.beatAt
}

// Before is the heartbeat before the last; its time is zero before the second.
func (in *Inbound) Before() Heartbeat {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.mu.before
}

// Run keeps the connection until it ends, and returns why. What was received before can still be taken afterwards.
func (in *Inbound) Run(ctx context.Context) error {
	defer close(in.drained)
	return in.run(ctx, in.read, in.write)
}

// Ack notes that everything up to a position is durably applied; the origin is told soon.
func (in *Inbound) Ack(flushed change.Position) {
	in.mu.Lock()
	in.mu.flushed = max(in.mu.flushed, flushed)
	in.mu.Unlock()
	in.wake(in.poke)
}

// Want tells the origin, once, that somebody here waits for a position.
func (in *Inbound) Want(pos change.Position) {
	in.mu.Lock()
	in.mu.wants, in.mu.urgent = max(in.mu.wants, pos), true
	in.mu.Unlock()
	in.wake(in.poke)
}

func (in *Inbound) wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// NextTx gives the next transaction or part of one. When the connection has ended, it first gives what had arrived,
// then why it ended.
func (in *Inbound) NextTx(ctx context.Context) (change.Tx, error) {
	message, err := in.next(ctx, frameChanges)
	if err != nil {
		return change.Tx{}, err
	}
	tx, err := in.decoder.Tx(message)
	if err != nil {
		return change.Tx{}, Refusef(Protocol, "changes of site %s: %v", in.peer, err)
	}
	return tx, nil
}

// NextCopy gives the next piece of an initial copy, as NextTx does.
func (in *Inbound) NextCopy(ctx context.Context) (change.Copy, error) {
	message, err := in.next(ctx, frameCopy)
	if err != nil {
		return change.Copy{}, err
	}
	c, err := in.decoder.Copy(message)
	if err != nil {
		return change.Copy{}, Refusef(Protocol, "copy of site %s: %v", in.peer, err)
	}
	return c, nil
}

// Ready tells whether the next message is here already.
func (in *Inbound) Ready() bool {
	if len(in.current) > 0 {
		return true
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.mu.queue) > 0
}

func (in *Inbound) next(ctx context.Context, want frameType) ([]byte, error) {
	for len(in.current) == 0 {
		f, ok := in.pop()
		if ok {
			in.current, in.kind = f.payload, f.kind
			continue
		}
		select {
		case <-in.arrived:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-in.drained:
			if f, ok = in.pop(); !ok {
				return nil, in.endErr
			}
			in.current, in.kind = f.payload, f.kind
		}
	}
	if in.kind != want {
		return nil, Refusef(Protocol, "site %s sends frames of type %d where type %d is expected", in.peer, in.kind, want)
	}
	message, rest, err := cutMessage(in.current)
	if err != nil {
		return nil, err
	}
	in.current = rest
	in.mu.Lock()
	in.mu.taken += uint64(len(message))
	// Telling of every message would double the packets; a quarter of the window keeps the origin from waiting.
	tell := in.mu.taken-in.mu.told >= uint64(in.set.Window/4)
	in.mu.urgent = in.mu.urgent || tell
	in.mu.Unlock()
	if tell {
		in.wake(in.poke)
	}
	return message, nil
}

func (in *Inbound) pop() (frame, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.mu.queue) == 0 {
		return frame{}, false
	}
	f := in.mu.queue[0]
	in.mu.queue[0] = frame{}
	in.mu.queue = in.mu.queue[1:]
	return f, true
}

// read takes frames off the connection whatever the taker does, so that heartbeats are always heard.
func (in *Inbound) read() error {
	for {
		f, err := in.receive()
		if err != nil {
			return err
		}
		switch f.kind {
		case frameHeartbeat:
			var beat Heartbeat
			if err := decodeControl(f, frameHeartbeat, &beat); err != nil {
				return err
			}
			in.mu.Lock()
			in.mu.before, in.mu.beat, in.mu.beatAt = in.mu.beat, beat, time.Now()
			in.mu.Unlock()
		case frameChanges, frameCopy:
			if err := in.enqueue(f); err != nil {
				return err
			}
		default:
			return Refusef(Protocol, "site %s sends a frame of type %d in the middle of its stream", in.peer, f.kind)
		}
	}
}

// enqueue checks a frame's messages against the window and keeps it for the taker.
func (in *Inbound) enqueue(f frame) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for rest := f.payload; len(rest) > 0; {
		if in.mu.received-in.mu.taken >= uint64(in.set.Window) {
			return Refusef(Protocol, "site %s overran the window of %d bytes", in.peer, in.set.Window)
		}
		message, after, err := cutMessage(rest)
		if err != nil {
			return err
		}
		in.mu.received += uint64(len(message))
		rest = after
	}
	if len(f.payload) == 0 {
		return Refusef(Protocol, "site %s sends an empty frame", in.peer)
	}
	in.mu.queue = append(in.mu.queue, f)
	in.wake(in.arrived)
	return nil
}

// acksPerPace is how many paces of the changes lie between acknowledgements that nobody waits for: each goes through both
// ends and on to the origin's database, and nobody's request depends on it.
const acksPerPace = 5

// write acknowledges: when there is news, at once if somebody waits for it, and as a heartbeat.
func (in *Inbound) write() error {
	beat := time.NewTicker(in.set.Heartbeat)
	defer beat.Stop()
	pace := time.NewTimer(0)
	defer pace.Stop()
	for {
		in.mu.Lock()
		in.mu.urgent = false
		ack := Ack{Flushed: in.mu.flushed, Taken: in.mu.taken}
		if in.mu.wants > in.mu.flushed {
			ack.Wants = in.mu.wants
		}
		in.mu.wants = 0
		in.mu.told, in.mu.acked = ack.Taken, ack.Flushed
		in.mu.Unlock()
		ack.Vector = in.vector()
		if _, err := in.tls.Write(controlFrame(frameAck, ack)); err != nil {
			return err
		}
		if !in.awaitNews(time.Now(), beat.C, pace) {
			return nil
		}
	}
}

// awaitNews waits for when to acknowledge next; it is false when the connection has ended.
func (in *Inbound) awaitNews(last time.Time, beat <-chan time.Time, pace *time.Timer) bool {
	for {
		select {
		case <-in.ended:
			return false
		case <-beat:
			return true
		case <-in.poke:
		case <-pace.C:
		}
		in.mu.Lock()
		urgent, news := in.mu.urgent, in.mu.flushed > in.mu.acked
		in.mu.Unlock()
		wait := acksPerPace*in.set.Pace - time.Since(last)
		if urgent || news && wait <= 0 {
			return true
		}
		if news {
			pace.Reset(wait)
		}
	}
}
