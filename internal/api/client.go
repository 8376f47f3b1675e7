package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Client calls one agent. It is safe for concurrent use; all calls share one HTTP/2 connection, so that a call in the
// middle of a switch does not wait for a handshake. It retries nothing: the caller knows what may be done twice.
type Client struct {
	base string
	addr string
	http *http.Client
}

// NewClient makes a client of the agent at addr (host:port). dial replaces dialling by TCP where it is not nil.
// Nothing is dialled before the first call.
func NewClient(addr string, conf *tls.Config, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Client {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 10 * time.Second}).DialContext
	}
	t := &http.Transport{
		Proxy:               nil, // agents are reached directly; the environment's proxy is for the web
		DialContext:         dial,
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: 5 * time.Second,
		ForceAttemptHTTP2:   true,
		// A connection over a path that is cut is found out within two seconds.
		HTTP2: &http.HTTP2Config{SendPingTimeout: time.Second, PingTimeout: time.Second},
	}
	scheme := "https"
	if conf == nil {
		scheme = "http"
	}
	return &Client{base: scheme + "://" + addr, addr: addr, http: &http.Client{Transport: t}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks what the agent knows; self leaves the other sites out.
func (c *Client) Status(ctx context.Context, self bool) (Status, error) {
	path := "/v1/status"
	if self {
		path += "?self=1"
	}
	return call[Status](ctx, c, http.MethodGet, path, nil)
}

// ActiveStatus is what a site's active agent knows of its own site; an agent that stands by refuses.
func (c *Client) ActiveStatus(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status?self=1&active=1", nil)
}

// Switch starts a switch, or with DryRun asks whether it would start. A refusal is an *Error with CodeRefused.
func (c *Client) Switch(ctx context.Context, r SwitchRequest) (SwitchAnswer, error) {
	return call[SwitchAnswer](ctx, c, http.MethodPost, "/v1/switches", r)
}

// Handovers lists the newest handovers.
func (c *Client) Handovers(ctx context.Context, limit int) ([]Handover, error) {
	list, err := call[HandoverList](ctx, c, http.MethodGet, "/v1/handovers?limit="+strconv.Itoa(limit), nil)
	return list.Handovers, err
}

// Handover reads one handover. It waits, at most that long, until the handover is over.
func (c *Client) Handover(ctx context.Context, id topo.HandoverID, wait time.Duration) (Handover, error) {
	path := "/v1/handovers/" + url.PathEscape(string(id))
	if wait > 0 {
		path += "?wait=" + wait.String()
	}
	return call[Handover](ctx, c, http.MethodGet, path, nil)
}

// Ready asks a site whether its part in a switch may start.
func (c *Client) Ready(ctx context.Context, r ReadyRequest) (ReadyAnswer, error) {
	return call[ReadyAnswer](ctx, c, http.MethodPost, "/v1/site/ready", r)
}

// Settled waits until the site's gateways act on a version, or the bound passes.
func (c *Client) Settled(ctx context.Context, r SettleRequest) (SettleAnswer, error) {
	return call[SettleAnswer](ctx, c, http.MethodPost, "/v1/site/settled", r)
}

// CloseBuckets closes the site's fence and returns its marker.
func (c *Client) CloseBuckets(ctx context.Context, r CloseRequest) (CloseAnswer, error) {
	return call[CloseAnswer](ctx, c, http.MethodPost, "/v1/site/close", r)
}

// CaughtUp waits until the site has applied a marker.
func (c *Client) CaughtUp(ctx context.Context, r CaughtUpRequest) (CaughtUpAnswer, error) {
	return call[CaughtUpAnswer](ctx, c, http.MethodPost, "/v1/site/caught-up", r)
}

// Open opens the fence at the new owner.
func (c *Client) Open(ctx context.Context, r OpenRequest) (OpenAnswer, error) {
	return call[OpenAnswer](ctx, c, http.MethodPost, "/v1/site/open", r)
}

// Abort opens the fence at the owner that keeps the buckets.
func (c *Client) Abort(ctx context.Context, r OpenRequest) (OpenAnswer, error) {
	return call[OpenAnswer](ctx, c, http.MethodPost, "/v1/site/abort", r)
}

// Halt asks a site to apply nothing more of a lost one.
func (c *Client) Halt(ctx context.Context, r HaltRequest) (HaltAnswer, error) {
	return call[HaltAnswer](ctx, c, http.MethodPost, "/v1/site/halt", r)
}

// Unhalt undoes Halt.
func (c *Client) Unhalt(ctx context.Context, r UnhaltRequest) (UnhaltAnswer, error) {
	return call[UnhaltAnswer](ctx, c, http.MethodPost, "/v1/site/unhalt", r)
}

// Promise asks a site not to take over for a while.
func (c *Client) Promise(ctx context.Context, r PromiseRequest) (PromiseAnswer, error) {
	return call[PromiseAnswer](ctx, c, http.MethodPost, "/v1/site/promise", r)
}

// Ack tells an agent which view a gateway acts on.
func (c *Client) Ack(ctx context.Context, a ViewAck) (LeaseState, error) {
	return call[LeaseState](ctx, c, http.MethodPost, "/v1/view/ack", a)
}

// View follows an agent's view stream until it ends, line by line.
func (c *Client) View(ctx context.Context, gateway string, each func(ViewUpdate) error) error {
	resp, err := c.send(ctx, http.MethodGet, "/v1/view?gateway="+url.QueryEscape(gateway), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var u ViewUpdate
		if err := dec.Decode(&u); err != nil {
			return fmt.Errorf("view stream of agent %s: %w", c.addr, err)
		}
		switch {
		case u.Format > ViewFormat:
			return fmt.Errorf("view stream of agent %s has format %d: %w", c.addr, u.Format, topo.ErrNewerFormat)
		case u.Format < 1:
			return fmt.Errorf("view stream of agent %s has a line without a format", c.addr)
		}
		if err := each(u); err != nil {
			return err
		}
	}
}

func call[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	body, err := readAll(resp.Body)
	if err != nil {
		return out, fmt.Errorf("agent %s: %s %s: %w", c.addr, method, path, err)
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return out, fmt.Errorf("agent %s: %s %s: answer is not as expected: %w", c.addr, method, path, err)
	}
	return out, nil
}

// send returns the response of a 2xx; anything else is an error, an *Error where the agent said so.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("request to agent %s: %w", c.addr, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("request to agent %s: %w", c.addr, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return nil, fmt.Errorf("agent %s does not answer: %w", c.addr, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	data, err := readAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("agent %s: %s %s: %s: %w", c.addr, method, path, resp.Status, err)
	}
	return nil, fmt.Errorf("agent %s: %w", c.addr, decodeError(resp.StatusCode, data))
}

// decodeError reads an error answer; whatever it holds, the result says something.
func decodeError(status int, data []byte) *Error {
	e := &Error{}
	if err := json.Unmarshal(data, e); err != nil || e.Message == "" {
		text := string(bytes.ToValidUTF8(bytes.TrimSpace(data[:min(len(data), 300)]), []byte("?")))
		e = &Error{Code: "unknown", Message: fmt.Sprintf("answered %d: %s", status, text)}
	}
	e.Status = status
	return e
}

func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBody+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxBody {
		return nil, fmt.Errorf("answer is larger than %d bytes", MaxBody)
	}
	return data, nil
}
