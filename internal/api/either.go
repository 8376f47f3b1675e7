package api

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
)

// HeaderStandby is set in the 503 of an agent that stands by: the site's other agent may serve the request.
const HeaderStandby = "Atoll-Standby"

// either sends a request to the agent that answered last, of those that a site has; if that one is not reached, or
// stands by, to the others. What no agent took is answered by the last that said why.
type either struct {
	next  http.RoundTripper
	addrs []string // host:port, the first choice first
	last  atomic.Int64
}

func (e *either) RoundTrip(req *http.Request) (*http.Response, error) {
	first := int(e.last.Load())
	var refusal *http.Response
	var failure error
	for i := range e.addrs {
		n := (first + i) % len(e.addrs)
		try, err := at(req, e.addrs[n])
		if err != nil {
			return nil, err
		}
		resp, err := e.next.RoundTrip(try)
		if err == nil && resp.Header.Get(HeaderStandby) == "" {
			discard(refusal)
			e.last.Store(int64(n))
			return resp, nil
		}
		if err == nil {
			discard(refusal)
			refusal = resp
		} else {
			failure = err
		}
		if req.Context().Err() != nil {
			break
		}
	}
	if refusal != nil {
		return refusal, nil
	}
	return nil, failure
}

// at is the request for another address, with a body of its own.
func at(req *http.Request, addr string) (*http.Request, error) {
	out := req.Clone(req.Context())
	out.URL.Host, out.Host = addr, ""
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		out.Body = body
	}
	return out, nil
}

func discard(resp *http.Response) {
	if resp != nil {
		_ = resp.Body.Close() // it said nothing that the caller will see
	}
}

// NewSiteClient makes a client of a site whose agents are at addrs, one of them active: every call goes to the one that
// took the last, else to the other. A call may be carried out twice only if an agent took it and died before it
// answered.
func NewSiteClient(addrs []string, conf *tls.Config, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Client {
	c := NewClient(addrs[0], conf, dial)
	if len(addrs) > 1 {
		c.http.Transport = &either{next: c.http.Transport, addrs: slices.Clone(addrs)}
	}
	return c
}

// CloseIdleConnections makes Client.Close reach the connections.
func (e *either) CloseIdleConnections() {
	if c, ok := e.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
