package load

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

// maxAnswer bounds what is read of an answer; the shop's are far smaller.
const maxAnswer = 1 << 20

// client is one user's device: its own connections, kept alive.
type client struct {
	number int
	home   Gateway
	http   *http.Client
}

func newClient(number int, home Gateway) *client {
	return &client{number: number, home: home, http: &http.Client{
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     5 * time.Second, // less than a site is away: a host that is back resets what was open before
			DisableCompression:  true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// send performs the operation and fills in what came back.
func (c *client) send(to Gateway, op operation, timeout time.Duration, rec *Record) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var sent atomic.Bool // perhaps: from the moment there is a connection to send on
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, op.method, to.URL+op.path, nil)
	if err != nil {
		rec.Outcome, rec.Error = Fail, err.Error()
		return
	}
	// The standard transport sends a request again on another connection when one breaks and there is no body, or one
	// that can be had again (GetBody). Set like this, even an empty body cannot, so nothing is sent twice.
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(op.body)), int64(len(op.body))
	if op.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if op.key != "" {
		req.Header.Set("X-Customer", op.key)
	}
	if op.session != "" {
		req.Header.Set("Atoll-Session", cmp.Or(op.token, "new"))
	}
	if op.write && !op.isList() { // the shop takes a wish twice if it comes twice: nobody may send it again
		req.Header.Set("Idempotency-Key", op.id)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		rec.broken(err, sent.Load() && op.write)
		return
	}
	defer resp.Body.Close()
	rec.readHeader(resp)
	if op.session != "" {
		rec.Lost = resp.Header.Get("Atoll-Session-Lost")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		rec.Status, rec.Lost = 0, "" // what arrived of the answer does not count
		rec.broken(err, op.write)
		return
	}
	if op.session != "" {
		rec.token = resp.Header.Get("Atoll-Session")
		rec.TokenBytes = len(rec.token)
	}
	rec.judge()
	switch {
	case op.isRegister():
		rec.judgeRegister(op, body)
		return
	case op.isList():
		rec.judgeList(op, body)
		return
	}
	if rec.Status >= 300 {
		rec.Error = string(body[:min(len(body), 200)])
		return
	}
	if op.name == "buy" || op.name == "cancel" {
		var o Order
		if err := json.Unmarshal(body, &o); err != nil || o.ID == "" {
			rec.Outcome, rec.Error = Unknown, "the answer holds no order"
			return
		}
		rec.Order = &o
	}
}

// broken records a request that was not answered.
func (r *Record) broken(err error, perhaps bool) {
	r.Outcome, r.Error = Fail, err.Error()
	if perhaps {
		r.Outcome = Unknown
	}
}

func (r *Record) readHeader(resp *http.Response) {
	h := resp.Header
	r.Status = resp.StatusCode
	r.Gateway, r.Site, r.View, r.Reason = h.Get("Atoll-Gateway"), h.Get("Atoll-Site"), h.Get("Atoll-View"), h.Get("Atoll-Reason")
	r.Epoch, _ = strconv.ParseUint(h.Get("Atoll-Epoch"), 10, 64) // absent without a key
	r.HeldMS, _ = strconv.ParseInt(h.Get("Atoll-Held"), 10, 64)  // absent if not held
}

// notExecuted are a gateway's reasons for a 5xx that say that the write has not happened.
var notExecuted = []string{
	"no-route", "bad-path", "no-key", "duplicate-key", "malformed-key", "unknown-keyspace", "hops", // never passed on
	"no-view", "behind", "moving", "pending-open", "hold-timeout", "hold-full", "stopping", "lease", "moved",
	"no-peer", "peer-unreachable", "upstream-unreachable", // no connection to pass it on
	"fenced", // rolled back
}

// judge tells what an answered request's status says. A 4xx is an ordinary answer. The shop's own 503 says that nothing
// was written; any other 5xx to a write leaves that open, unless the gateway's reason rules it out.
func (r *Record) judge() {
	switch {
	case r.Status < 500:
		r.Outcome = OK
	case !r.Write, r.Status == http.StatusServiceUnavailable && r.Reason == "", slices.Contains(notExecuted, r.Reason):
		r.Outcome = Fail
	default:
		r.Outcome = Unknown
	}
}
