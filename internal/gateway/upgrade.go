package gateway

import (
	"bufio"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/topo"
)

// A WebSocket is passed on as it is: what both ends say is copied, frame by frame, so that the gateway can say the last
// word between two frames. It belongs to a bucket like the request that began it. When the bucket's owner becomes
// another one, both ends are told to go, each at a moment of its own, and the client finds the new owner when it comes back.

// closeLinger is how long the ends of a WebSocket that was told to go may take to say their last word.
const closeLinger = 2 * time.Second

// upgrades tells whether the request wants to go on as a WebSocket (RFC 6455, section 4.1).
func upgrades(r *http.Request) bool {
	return r.ProtoMajor == 1 && r.Method == http.MethodGet && strings.EqualFold(r.Header.Get("Upgrade"), "websocket") && named(r.Header["Connection"], "upgrade")
}

// named tells whether a list header has an item, in any case.
func named(fields []string, item string) bool {
	for _, field := range fields {
		for each := range strings.SplitSeq(field, ",") {
			if strings.EqualFold(strings.TrimSpace(each), item) {
				return true
			}
		}
	}
	return false
}

// upgraded hands the connection over to the two ends, and returns when it is over.
func (x *exchange) upgraded(resp *http.Response, site topo.SiteID, epoch topo.Epoch) {
	far, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") {
		_ = resp.Body.Close()
		x.refuse(reasonUpgrade)
		return
	}
	defer far.Close()
	near, buffered, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		x.refuse(reasonUpgrade)
		return
	}
	defer near.Close()
	_ = near.SetDeadline(time.Time{}) // both ends may be silent for as long as they like; TCP keeps alive
	x.status = http.StatusSwitchingProtocols
	header := make(http.Header)
	stripHop(resp.Header, nil)
	maps.Copy(header, resp.Header)
	header["Connection"], header["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	x.mark(header, site, epoch)
	head := &http.Response{StatusCode: http.StatusSwitchingProtocols, ProtoMajor: 1, ProtoMinor: 1, Header: header}
	if err := errors.Join(head.Write(buffered.Writer), buffered.Flush()); err != nil {
		x.g.metrics.clientGone.Inc()
		return
	}
	x.seat.lasts()
	s := newSocket(near, far)
	ended := x.g.streams.add(x.target, site, x.from == nil, s.leave)
	defer ended()
	s.run(buffered.Reader)
}

// socket is one WebSocket between a client and an application, or another gateway on either side.
type socket struct {
	near, far   io.ReadWriteCloser
	toNear      *frames // what the application says
	toFar       *frames // what the client says
	gone        chan struct{}
	leaveOnce   sync.Once
	lingerTimer *time.Timer
}

func newSocket(near net.Conn, far io.ReadWriteCloser) *socket {
	return &socket{near: near, far: far, toNear: &frames{dst: near}, toFar: &frames{dst: far, masked: true}, gone: make(chan struct{})}
}

// run copies until one end is done, then lets the other one finish what is under way.
func (s *socket) run(client *bufio.Reader) {
	var wg sync.WaitGroup
	pump := func(to *frames, from io.Reader, closing io.Closer) {
		_, _ = io.Copy(to, from)
		_ = closing.Close() // whoever reads there sees the end; a half-open WebSocket is none
	}
	wg.Go(func() { pump(s.toFar, client, s.far) })
	wg.Go(func() { pump(s.toNear, s.far, s.near) })
	wg.Wait()
	if s.leaveOnce.Do(func() {}); s.lingerTimer != nil {
		s.lingerTimer.Stop()
	}
}

// leave tells both ends to go: the client may come back at once, and finds the owner then.
func (s *socket) leave() {
	s.leaveOnce.Do(func() {
		s.toNear.lastWord(closeServiceRestart, "the data has moved; connect again")
		s.toFar.lastWord(closeGoingAway, "the data has moved")
		s.lingerTimer = time.AfterFunc(closeLinger, func() { _, _ = s.near.Close(), s.far.Close() })
	})
}
