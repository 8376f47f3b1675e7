package sdk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

const (
	streamSilence = 6 * time.Second // a gateway sends a line at least every second
	streamDial    = 2 * time.Second
	streamRetry   = 100 * time.Millisecond // doubled up to streamRetryTo, jittered
	streamRetryTo = 2 * time.Second
	maxLine       = 32 << 20
)

func newStreamClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                 nil, // gateways are reached directly
		DialContext:           (&net.Dialer{Timeout: streamDial}).DialContext,
		ResponseHeaderTimeout: streamDial,
	}}
}

// Run keeps the view up to date until ctx ends, whose error it returns. Without a gateway it goes on with what it has, and
// asks one address after the other.
func (v *View) Run(ctx context.Context) error {
	defer v.client.CloseIdleConnections()
	pause := streamRetry
	for ctx.Err() == nil {
		for _, from := range v.from {
			lines, err := v.stream(ctx, from)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			v.log.Warn("view stream ended", "gateway", from, "lines", lines, "error", err)
			if lines > 0 {
				pause = streamRetry
				break // the first choice first
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

// stream applies the lines of one gateway until its stream breaks, and counts them.
func (v *View) stream(ctx context.Context, from string) (lines int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(streamSilence, func() { cancel(fmt.Errorf("nothing came for %s", streamSilence)) })
	defer silence.Stop()
	defer func() {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from+"/v1/view", nil)
	if err != nil {
		return 0, err
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return 0, fmt.Errorf("answered %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	scanner := bufio.NewScanner(resp.Body)
	scanner.Buffer(make([]byte, 0, 64<<10), maxLine)
	confirms := false
	for scanner.Scan() {
		silence.Reset(streamSilence)
		u, err := decodeLine(scanner.Bytes(), v.site)
		if err == nil {
			err = v.apply(u, time.Now(), confirms)
		}
		switch {
		case errors.Is(err, errOlderView):
			confirms = false
			v.log.Warn("kept the view in use", "gateway", from, "error", err)
		case err != nil:
			return lines, fmt.Errorf("refused a line: %w", err)
		case len(u.Ownership) > 0:
			confirms = true
		}
		lines++
	}
	return lines, errors.Join(scanner.Err(), errors.New("end of stream"))
}

// decodeLine reads one line of a gateway's stream.
func decodeLine(line []byte, site topo.SiteID) (*api.ViewUpdate, error) {
	var u api.ViewUpdate
	if err := json.Unmarshal(line, &u); err != nil {
		return nil, fmt.Errorf("view update: %w", err)
	}
	switch {
	case u.Format > api.ViewFormat:
		return nil, fmt.Errorf("view update of format %d: %w", u.Format, topo.ErrNewerFormat)
	case u.Format < 1:
		return nil, errors.New("view update without a format")
	case u.Gateway == nil:
		return nil, errors.New("this is no gateway's stream; name the admin address of a gateway")
	case u.Gateway.Site != site:
		return nil, fmt.Errorf("this is a gateway of site %q, and this process runs at %q", u.Gateway.Site, site)
	}
	if bytes.Equal(u.Ownership, []byte("null")) {
		u.Ownership = nil
	}
	return &u, nil
}
