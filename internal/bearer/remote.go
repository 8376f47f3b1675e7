package bearer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/internal/reload"
)

const (
	defaultRefresh = 10 * time.Minute
	fetchTimeout   = 10 * time.Second
	firstRetry     = time.Second // after a failure, doubled up to the refresh interval
	unknownEvery   = 10 * time.Second
	unknownWait    = 2 * time.Second // of a request whose key is not known, for a fetch
)

// remote are the keys that a URL publishes. What was fetched last and was good stays in use, also over a restart.
type remote struct {
	conf   Config
	client *http.Client
	inUse  atomic.Pointer[keySet]
	kick   chan struct{}
	mu     struct {
		sync.Mutex
		asked   time.Time     // when a token's unknown key last asked for a fetch
		pending bool          // a fetch is under way, or asked for
		done    chan struct{} // closed by the next fetch that ends
	}
}

func newRemote(conf Config) (*remote, error) {
	if u, err := url.Parse(conf.KeysURL); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("keys URL %q; want https://…", conf.KeysURL)
	}
	if conf.Refresh <= 0 {
		conf.Refresh = defaultRefresh
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: fetchTimeout, DisableKeepAlives: true}
	if conf.KeysCA != "" {
		text, err := os.ReadFile(conf.KeysCA)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("keys CA %s has no certificate", conf.KeysCA)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	r := &remote{conf: conf, kick: make(chan struct{}, 1)}
	r.mu.done = make(chan struct{})
	r.client = &http.Client{Transport: transport, Timeout: fetchTimeout, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if req.URL.Scheme != "https" || len(via) > 3 {
			return errors.New("redirected too often, or away from https")
		}
		return nil
	}}
	r.inUse.Store(new(keySet))
	r.restore()
	return r, nil
}

func (r *remote) current() keySet { return *r.inUse.Load() }

// restore takes the keys that an earlier run fetched.
func (r *remote) restore() {
	if r.conf.KeepIn == "" {
		return
	}
	data, err := os.ReadFile(r.conf.KeepIn)
	if err != nil {
		return // an earlier run, if there was one, fetched none
	}
	set, err := parseKeys(data, false)
	if err != nil {
		r.conf.Log.Warn("refused the saved keys of tokens", "file", r.conf.KeepIn, "error", err)
		return
	}
	r.inUse.Store(&set)
}

// run fetches now, after each refresh interval, and when somebody asks.
func (r *remote) run(ctx context.Context) error {
	retry := firstRetry
	for {
		wait := r.conf.Refresh
		r.mu.Lock()
		r.mu.pending = true
		r.mu.Unlock()
		if err := r.fetch(ctx); err != nil && ctx.Err() == nil {
			r.conf.Log.Warn("the keys of tokens could not be fetched; the last good ones stay in use", "url", r.conf.KeysURL, "known", len(r.current()), "error", err)
			wait = min(retry, wait)
			retry = min(2*retry, r.conf.Refresh)
		} else {
			retry = firstRetry
		}
		r.mu.Lock()
		close(r.mu.done)
		r.mu.pending = false
		r.mu.done = make(chan struct{})
		r.mu.Unlock()
		timer := time.NewTimer(wait - rand.N(wait/10+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-r.kick:
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (r *remote) fetch(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.conf.KeysURL, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxKeys+1))
	if err != nil {
		return err
	}
	set, err := parseKeys(data, false)
	if err != nil {
		return err
	}
	r.inUse.Store(&set)
	if err := r.save(data); err != nil {
		r.conf.Log.Warn("the keys of tokens are not saved; a restart needs their URL", "error", err)
	}
	return nil
}

func (r *remote) save(data []byte) error {
	if r.conf.KeepIn == "" {
		return nil
	}
	return reload.Replace(r.conf.KeepIn, 0o600, data)
}

// again asks for a fetch, because a token names a key that is not known, and waits for its end. Such tokens can be made
// up by anybody, so it asks once in a while only.
func (r *remote) again(ctx context.Context) {
	r.mu.Lock()
	now := time.Now()
	ask := r.mu.asked.IsZero() || now.Sub(r.mu.asked) >= unknownEvery
	if ask {
		r.mu.asked, r.mu.pending = now, true
	}
	wait, done := r.mu.pending || len(r.current()) == 0, r.mu.done
	r.mu.Unlock()
	if ask {
		select {
		case r.kick <- struct{}{}:
		default:
		}
	}
	if !wait {
		return
	}
	bound := time.NewTimer(unknownWait)
	defer bound.Stop()
	select {
	case <-done:
	case <-bound.C:
	case <-ctx.Done():
	}
}
