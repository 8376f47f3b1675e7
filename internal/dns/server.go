package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"
)

const (
	maxConns   = 512             // TCP connections at a time; more wait in the listen queue
	idle       = 5 * time.Second // a TCP connection without a request
	maxQueries = 64              // in one TCP connection
	ioBound    = 2 * time.Second // for one message to come or go over TCP
	lingering  = time.Second     // for answers under way when the server ends
)

// Server answers for the zones, over UDP and TCP at one address. It has no state but the choice that it was given last.
type Server struct {
	answers *answerer
	choice  atomic.Pointer[Choice]
	log     *slog.Logger
}

// NewServer makes a server that sends users where the choice says, until Set says otherwise. A nil log discards.
func NewServer(conf Config, first Choice, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{answers: newAnswerer(conf, rand.IntN), log: log}
	s.choice.Store(&first)
	return s
}

// Set says where users are sent from now on.
func (s *Server) Set(c Choice) { s.choice.Store(&c) }

// Listen binds an address for UDP and TCP.
func Listen(ctx context.Context, addr string) (net.PacketConn, net.Listener, error) {
	var conf net.ListenConfig
	ln, err := conf.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, fmt.Errorf("dns on %s: %w; does another program have the port, or are rights missing for a port below 1024?", addr, err)
	}
	pc, err := conf.ListenPacket(ctx, "udp", addr)
	if err != nil {
		_ = ln.Close()
		return nil, nil, fmt.Errorf("dns on %s, UDP: %w; does another program have the port?", addr, err)
	}
	return pc, ln, nil
}

// Serve answers until ctx ends, or a socket fails. It closes both.
func (s *Server) Serve(ctx context.Context, pc net.PacketConn, ln net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, srv := range []*wire.Server{{PacketConn: pc}, {Listener: &limited{Listener: ln, room: make(chan struct{}, maxConns)}}} {
		srv.Handler = wire.HandlerFunc(s.handle)
		srv.UDPSize = wire.DefaultMsgSize
		srv.ReadTimeout, srv.WriteTimeout, srv.MaxTCPQueries = ioBound, ioBound, maxQueries
		srv.IdleTimeout = func() time.Duration { return idle }
		srv.MsgAcceptFunc = accept
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		ended := make(chan struct{})
		wg.Go(func() {
			defer close(ended)
			cancel(srv.ActivateAndServe())
		})
		wg.Go(func() {
			<-ctx.Done()
			select {
			case <-started: // else there is nothing to shut down
			case <-ended:
				return
			}
			grace, stop := context.WithTimeout(context.Background(), lingering)
			defer stop()
			_ = srv.ShutdownContext(grace) // what is still open is broken off with the process
		})
	}
	wg.Wait()
	_, _ = pc.Close(), ln.Close() // of a server that did not start
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return fmt.Errorf("dns on %s: %w", pc.LocalAddr(), err)
	}
	return context.Canceled
}

// accept lets everything in that is a request: what is wrong with it, answer says.
func accept(h wire.Header) wire.MsgAcceptAction {
	const response = 1 << 15
	if h.Bits&response != 0 {
		return wire.MsgIgnore
	}
	if h.Qdcount != 1 { // before the library reads it: a request may say that it has 65535 questions
		return wire.MsgReject
	}
	if opcode := int(h.Bits>>11) & 0xF; opcode != wire.OpcodeQuery {
		return wire.MsgRejectNotImplemented
	}
	return wire.MsgAccept
}

func (s *Server) handle(w wire.ResponseWriter, req *wire.Msg) {
	resp := s.answers.answer(req, *s.choice.Load(), w.LocalAddr().Network() == "udp")
	if resp == nil {
		return
	}
	if err := w.WriteMsg(resp); err != nil {
		s.log.Debug("answer not sent", "to", w.RemoteAddr(), "error", err)
	}
}

// limited is a listener that has room for so many connections at a time.
type limited struct {
	net.Listener
	room chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	l.room <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &counted{Conn: c, leave: sync.OnceFunc(func() { <-l.room })}, nil
}

type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
