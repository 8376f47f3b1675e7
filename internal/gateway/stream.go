package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

const (
	// An agent sends a line at least every two seconds; a stream that is silent for longer is given up.
	streamSilence = 6 * time.Second
	// A stream from another site's agent is left after this, to look for the site's own again.
	foreignStream = 5 * time.Second
	streamRetry   = 100 * time.Millisecond // doubled up to streamRetryMax, jittered
	streamRetryTo = 2 * time.Second
	standbyRetry  = 400 * time.Millisecond
	ackEvery      = time.Second
	ackSoonest    = 50 * time.Millisecond
	ackTimeout    = 2 * time.Second
	// maxLine bounds a line of the stream and the view file: a document with every bucket of many keyspaces on its own
	// is smaller.
	maxLine = 32 << 20
)

// agentClient speaks to one agent. HTTP/1.1: a stream that hangs takes its connection with it, and nothing else.
type agentClient struct {
	site   topo.SiteID
	own    bool
	base   string
	name   func() string // of the gateway, as the agent is to know it
	client *http.Client
}

func newAgentClient(a Agent, own bool, name func() string) *agentClient {
	t := &http.Transport{
		TLSClientConfig:       a.TLS,
		TLSHandshakeTimeout:   handshakeTimeout,
		ResponseHeaderTimeout: dialTimeout,
		IdleConnTimeout:       peerIdle,
		DialContext:           dial,
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{}, // no HTTP/2
	}
	return &agentClient{site: a.Site, own: own, base: strings.TrimSuffix(a.URL, "/"), name: name, client: &http.Client{Transport: t}}
}

func (a *agentClient) close() { a.client.CloseIdleConnections() }

// decodeLine reads one line of a view stream. The view is nil on a line without a document; standby is the sender's.
func decodeLine(line []byte) (view *topo.View, opened uint64, standby bool, err error) {
	var u api.ViewUpdate
	if err := json.Unmarshal(line, &u); err != nil {
		return nil, 0, false, fmt.Errorf("view update: %w", err)
	}
	if u.Format > api.ViewFormat {
		return nil, 0, false, fmt.Errorf("view update of format %d: %w", u.Format, topo.ErrNewerFormat)
	}
	if u.Format < 1 {
		return nil, 0, false, errors.New("view update without a format")
	}
	if len(u.Ownership) == 0 || bytes.Equal(u.Ownership, []byte("null")) {
		return nil, u.OpenedVersion, u.Standby, nil
	}
	o, err := topo.DecodeOwnership(u.Ownership)
	if err != nil {
		return nil, 0, false, err
	}
	v, err := topo.NewView(o)
	return v, u.OpenedVersion, u.Standby, err
}

// errRenamed ends a stream so that the next one says another name.
var errRenamed = errors.New("the gateway goes by another name")

// errStandby ends the stream of an agent of this site that is not the active one: it knows nothing of the fence.
var errStandby = errors.New("the agent stands by")

// follow keeps a view stream open: from the site's own active agent, else from another site's. What an agent that
// stands by has to say is taken, and then the next one is asked.
func (g *Gateway) follow(ctx context.Context) error {
	pause := streamRetry
	for ctx.Err() == nil {
		for _, a := range g.agents {
			lines, err := g.stream(ctx, a)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, errStandby) {
				g.log.Debug("view taken from an agent that stands by", "agent", a.base)
				pause = min(pause, standbyRetry) // it may become the active one at any moment
				continue
			}
			g.log.Warn("view stream ended", "agent", a.base, "site", a.site, "lines", lines, "error", err)
			if lines > 0 {
				pause = streamRetry
				break // it was good; the first choice is again the site's own
			}
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, streamRetryTo)
	}
	return ctx.Err()
}

// stream applies the lines of one agent's stream until it breaks, and tells how many were good.
func (g *Gateway) stream(ctx context.Context, a *agentClient) (lines int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(streamSilence, func() { cancel(fmt.Errorf("nothing came for %s", streamSilence)) })
	defer silence.Stop()
	if !a.own {
		leave := time.AfterFunc(foreignStream, func() { cancel(errors.New("looking for the site's own agent again")) })
		defer leave.Stop()
	}
	over := make(chan struct{})
	defer close(over)
	go func() { // ends with the stream
		select {
		case <-g.renamed:
			cancel(errRenamed)
		case <-over:
		}
	}()
	body, err := a.open(ctx)
	if err != nil {
		return 0, cmpCause(ctx, err)
	}
	defer body.Close()
	g.metrics.streams.Inc()
	scanner := bufio.NewScanner(body)
	scanner.Buffer(make([]byte, 0, 64<<10), maxLine)
	for scanner.Scan() {
		silence.Reset(streamSilence)
		view, opened, standby, err := decodeLine(scanner.Bytes())
		if err == nil {
			err = g.views.apply(view, opened, a.own && !standby)
		}
		switch {
		case errors.Is(err, errOlderView):
			g.metrics.badLines.Inc() // that agent is behind; its next document may be newer
			g.log.Warn("kept the view in use", "agent", a.base, "error", err)
		case err != nil:
			g.metrics.badLines.Inc()
			return lines, fmt.Errorf("refused a view update: %w", err)
		}
		lines++
		g.heard.now()
		if standby && a.own {
			return lines, errStandby
		}
	}
	return lines, cmpCause(ctx, errors.Join(scanner.Err(), errors.New("end of stream")))
}

// cmpCause prefers why the stream was given up to how that looked.
func cmpCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (a *agentClient) open(ctx context.Context) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+"/v1/view?gateway="+url.QueryEscape(a.name()), nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		_ = resp.Body.Close()
		return nil, fmt.Errorf("agent answered %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return resp.Body, nil
}

// post sends one question to the agent.
func (a *agentClient) post(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, api.MaxBody))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("agent answered %s: %.300s", resp.Status, bytes.TrimSpace(text))
	}
	return json.Unmarshal(text, out)
}

// acknowledge tells the site's own agent which view is in use and which writes and strong reads are under way: at each change, when a
// moving bucket's last one is answered, and at least every second. The answers carry the lease: what is left of it is asked for
// again at half time, else a renewal that came late (the store had to find a leader) would come too late for the copy.
func (g *Gateway) acknowledge(ctx context.Context) error {
	var own []*agentClient
	for _, a := range g.agents {
		if a.own {
			own = append(own, a)
		}
	}
	if len(own) == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	next := time.NewTimer(ackEvery)
	defer next.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.ack:
		case <-next.C:
		}
		if err := g.sendAck(ctx, own[n%len(own)]); err != nil && ctx.Err() == nil {
			g.log.Debug("acknowledgement failed", "agent", own[n%len(own)].base, "error", err)
			n++ // if there are two agents, the other one may be the active one now
		}
		next.Reset(untilAck(g.lease.remaining()))
	}
}

// untilAck is how long the next acknowledgement may wait, by what is left of the lease.
func untilAck(remaining time.Duration) time.Duration {
	if remaining <= 0 {
		return ackEvery / 4
	}
	return min(max(remaining/2, ackSoonest), ackEvery)
}

func (g *Gateway) sendAck(ctx context.Context, a *agentClient) error {
	snap := g.views.load() // before the counts are read
	if snap.site == nil {
		return nil
	}
	v := snap.version()
	ack := api.ViewAck{Gateway: g.ackName(), Generation: v.generation, Version: v.version, InFlight: g.flights.moving(snap)}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	sent := time.Now()
	var state api.LeaseState
	if err := a.post(ctx, "/v1/view/ack", ack, &state); err != nil {
		return fmt.Errorf("lease state: %w", err)
	}
	g.readers.told(sent, state.StaleMS)
	if state.RemainingMS > maxLease.Milliseconds() {
		return fmt.Errorf("lease state: %d ms remain; no lease is that long", state.RemainingMS)
	}
	g.lease.set(sent.Add(time.Duration(max(state.RemainingMS, 0))*time.Millisecond), viewVersion{state.Generation, state.Version})
	return nil
}

// maxLease bounds what an answer may claim.
const maxLease = time.Hour
