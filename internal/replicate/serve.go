package replicate

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

// Serve hands this site's changes to the sites that connect, and what it keeps of other origins' changes to those that
// lack them, over one connection per target and origin: a newer one takes over from the older. The exported fields are
// set before Run.
type Serve struct {
	Site       topo.SiteID
	Deployment string
	Identity   *pki.Identity
	// Open opens this site's database for a target; an error is told to the target. It is closed when the connection
	// ends.
	Open func(ctx context.Context, target topo.SiteID) (Source, error)
	// OpenRelay opens what this site keeps of another origin's changes; nil: it hands none on. Its stream ends by itself
	// where it has no more.
	OpenRelay func(ctx context.Context, target, origin topo.SiteID) (Source, error)
	Applied   *Applied               // learns what the targets have applied; may be nil
	Says      func() link.Statement  // this site's own statement, for every heartbeat; may be nil, must not block
	End       func() change.Position // end of this database's change stream, 0 if not known; may be nil, must not block
	Settings  link.Settings
	Logger    *slog.Logger // default: discards

	mu struct {
		sync.Mutex
		latest map[topo.SiteID]*session // per target, the connection for this site's own changes that came last; kept when it has ended
		relays map[relaying]*session    // the same for other origins' changes
	}
}

// relaying is a target of an origin's kept changes.
type relaying struct{ target, origin topo.SiteID }

// TargetState is what is known of a target of this site's own changes.
type TargetState struct {
	Target    topo.SiteID
	Connected bool
	Since     time.Time // of Connected or of its end
	Start     link.Start
	Flushed   change.Position // durable at the target, as it last said
	Heard     time.Time       // when it last said something
	Traffic   link.Stats
	Err       string // why the last connection ended; "" while connected
}

// State tells about every target that has connected since the start, in order of their names.
func (s *Serve) State() []TargetState {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]TargetState, 0, len(s.mu.latest))
	for _, one := range s.mu.latest {
		out = append(out, one.state())
	}
	slices.SortFunc(out, func(a, b TargetState) int { return cmp.Compare(a.Target, b.Target) })
	return out
}

// Run serves the connections of ln until ctx ends, and closes ln. It returns when every connection has ended.
func (s *Serve) Run(ctx context.Context, ln net.Listener) error {
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	var wg sync.WaitGroup
	defer wg.Wait() // order at the end: no new connections, then cancel those there are, then wait for them
	defer cancel()
	defer stop()
	for failures := 0; ; {
		raw, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("links at %s: %w", ln.Addr(), err)
		case err != nil: // out of file descriptors, or the like: it passes
			failures++
			s.Logger.Warn("cannot accept links for now", "error", err)
			select {
			case <-time.After(cutPath.wait(failures)):
			case <-ctx.Done():
			}
			continue
		}
		failures = 0
		wg.Go(func() { s.serve(ctx, raw) })
	}
}

func (s *Serve) accept(ctx context.Context, raw net.Conn) (*link.Outbound, error) {
	sitesOnly := func(p pki.Peer) error {
		if _, ok := p.Site(); !ok {
			return errors.New("only sites may link")
		}
		return nil
	}
	return link.Accept(ctx, raw, link.AcceptConfig{
		Deployment: s.Deployment, Site: s.Site, Settings: s.Settings, TLS: s.Identity.ServerTLS(sitesOnly),
		Relay: func(topo.SiteID) bool { return s.OpenRelay != nil },
		Peer: func(state tls.ConnectionState) (topo.SiteID, error) {
			p, err := s.Identity.Peer(state)
			if err != nil {
				return "", err
			}
			site, _ := p.Site()
			return site, sitesOnly(p)
		},
		Beat: func() link.Heartbeat {
			var beat link.Heartbeat
			if s.Says != nil {
				beat.Statement = s.Says()
			}
			if s.End != nil {
				beat.End = s.End()
			}
			return beat
		},
	})
}

// serve is the life of one connection.
func (s *Serve) serve(ctx context.Context, raw net.Conn) {
	out, err := s.accept(ctx, raw)
	if err != nil {
		s.Logger.Warn("link refused", "from", raw.RemoteAddr().String(), "error", err)
		return
	}
	one := &session{serve: s, out: out, hello: out.Hello(), since: time.Now(), ended: make(chan struct{})}
	one.mu.flushed = one.hello.Position
	log := s.Logger.With("target", one.hello.Site)
	if one.relays() {
		log = log.With("relayed", one.hello.Origin)
	}
	before := s.register(one)
	// From here on the connection lives, heartbeats included, while this waits for the one before and for the database.
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(out.Run(ctx, one.acked)) })
	if before != nil {
		before.out.End(link.Refusef(link.Replaced, "a newer link of site %s took over", one.hello.Site))
		<-before.ended // also if this connection has ended meanwhile: the next one waits for this one only
	}
	log.Info("link begins", "start", one.hello.Start, "position", one.hello.Position, "from", raw.RemoteAddr().String())
	err = one.stream(ctx)
	if cause := context.Cause(ctx); cause != nil {
		err = cause // the stream ended because the connection did
	}
	out.End(err)
	wg.Wait()
	cancel(nil)
	level := slog.LevelWarn
	var said *link.Refusal
	if errors.Is(err, context.Canceled) || errors.As(err, &said) && said.Reason == link.Closing {
		level = slog.LevelInfo
	}
	log.Log(ctx, level, "link ended", "reason", err)
	one.end(err)
}

// register makes a connection its target's latest and returns the one before.
func (s *Serve) register(one *session) (before *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.latest == nil {
		s.mu.latest, s.mu.relays = make(map[topo.SiteID]*session), make(map[relaying]*session)
	}
	if one.relays() {
		key := relaying{one.hello.Site, one.hello.Origin}
		before, s.mu.relays[key] = s.mu.relays[key], one
		return before
	}
	before, s.mu.latest[one.hello.Site] = s.mu.latest[one.hello.Site], one
	return before
}

// Renew ends every connection and waits for their ends: what a target said before is not heard any more behind it. The
// targets connect again.
func (s *Serve) Renew(ctx context.Context) error {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.mu.latest))
	all = slices.AppendSeq(all, maps.Values(s.mu.relays))
	s.mu.Unlock()
	for _, one := range all {
		one.out.End(link.Refusef(link.Closing, "site %s begins anew with what it knows of other sites", s.Site))
	}
	for _, one := range all {
		select {
		case <-one.ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// session is one connection of a target.
type session struct {
	serve *Serve
	out   *link.Outbound
	hello link.Hello
	since time.Time
	ended chan struct{} // closed when neither connection nor source are in use any more

	mu struct {
		sync.Mutex
		source  Source // while it streams
		flushed change.Position
		heard   time.Time
		endedAt time.Time
		err     error
	}
}

// stream serves the target from its database until something ends it.
func (o *session) stream(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	source, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	if o.hello.Start != link.StartResume {
		if err := o.begin(ctx, source); err != nil {
			return err
		}
		<-ctx.Done() // the target hangs up when it has that on disk, and comes back for what follows
		return context.Cause(ctx)
	}
	o.confirmTo(source)
	defer o.confirmTo(nil)
	if err := source.Run(ctx, o.hello.Position, o.hello.Epochs, o.out.Send); err != nil {
		return err
	}
	if o.relays() {
		return link.Refusef(link.Closing, "site %s has handed on what it has of site %s's changes for now; the origin itself may be there again", o.serve.Site, o.hello.Origin)
	}
	return errors.New("the source's stream ended by itself")
}

// relays tells whether the target is served another site's changes.
func (o *session) relays() bool { return o.hello.Origin != o.serve.Site }

func (o *session) open(ctx context.Context) (Source, error) {
	if !o.relays() {
		return o.serve.Open(ctx, o.hello.Site)
	}
	// What every site had once is not kept; one that has gone back would be given a stream with a gap.
	if had := o.serve.Applied.said(o.hello.Site, o.hello.Origin); had > o.hello.Position {
		return nil, fmt.Errorf("site %s asks for the changes of site %s from position %d on, and has had them up to %d", o.hello.Site, o.hello.Origin, o.hello.Position, had)
	}
	return o.serve.OpenRelay(ctx, o.hello.Site, o.hello.Origin)
}

// begin gives a target its place in the stream, with a copy of the tables if it asks for one.
func (o *session) begin(ctx context.Context, source Source) error {
	if o.hello.Start == link.StartCopy || o.hello.Start == link.StartRebuild {
		return source.Copy(ctx, o.hello.Start == link.StartRebuild, o.out.SendCopy)
	}
	if err := source.Create(ctx); err != nil {
		return err
	}
	from, exists, err := source.Confirmed(ctx)
	if err != nil {
		return err
	}
	if !exists {
		return fmt.Errorf("the place of site %s in the stream of site %s vanished while it was made", o.hello.Site, o.serve.Site)
	}
	return o.out.SendCopy(ctx, change.Copy{Done: true, Position: from})
}

func (o *session) confirmTo(source Source) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.source = source
}

// acked takes an acknowledgement of the target.
func (o *session) acked(ack link.Ack) {
	if o.serve.Applied != nil {
		o.serve.Applied.heard(o.hello.Site, ack.Vector)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.heard = time.Now()
	if ack.Wants > ack.Flushed && o.mu.source != nil {
		o.mu.source.Reach(ack.Wants)
	}
	if ack.Flushed > o.mu.flushed {
		o.mu.flushed = ack.Flushed
		if o.mu.source != nil {
			o.mu.source.Confirm(ack.Flushed)
		}
	}
}

func (o *session) end(err error) {
	o.mu.Lock()
	o.mu.endedAt, o.mu.err = time.Now(), err
	o.mu.Unlock()
	close(o.ended)
}

func (o *session) state() TargetState {
	o.mu.Lock()
	defer o.mu.Unlock()
	st := TargetState{Target: o.hello.Site, Connected: o.mu.endedAt.IsZero(), Since: o.since, Start: o.hello.Start,
		Flushed: o.mu.flushed, Heard: o.mu.heard, Traffic: o.out.Stats()}
	if !st.Connected {
		st.Since = o.mu.endedAt
		st.Err = o.mu.err.Error()
	}
	return st
}
