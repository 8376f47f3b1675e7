// Package acme obtains and renews the certificates of a gateway's users' listener from an ACME authority (RFC 8555).
//
// The main type is [Certificates]: TLS is the listener's configuration, Run obtains and renews. The authority is convinced
// within the TLS handshake on that listener (TLS-ALPN-01, RFC 8737), so no other port is needed. Account, keys and certificates
// are kept in a folder; gateways that share it share the work. Certmagic does it all, see there for how it retries.
//
// It guarantees that a certificate in use is given up only for a newer one. It refuses wildcards, which this way to convince
// an authority does not allow.
package acme

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/atollhq/atoll/internal/zaplog"
)

// Config says what is to be obtained, and from whom.
type Config struct {
	Email   string   // of the account; may be ""
	Domains []string // each gets a certificate
	CA      string   // URL of the authority's directory; "": Let's Encrypt
	CARoot  string   // PEM of whom to trust when asking it; "": the system's authorities
	Dir     string   // account, keys, certificates
	Listen  string   // ip:port of the users' listener; the authority must reach it on port 443
	Log     *slog.Logger
}

// Certificates are obtained from an ACME authority. They are safe for concurrent use.
type Certificates struct {
	conf  Config
	magic *certmagic.Config
	cache *certmagic.Cache
}

// Open checks the configuration. Nothing is obtained before Run.
func Open(conf Config) (*Certificates, error) {
	if len(conf.Domains) == 0 {
		return nil, errors.New("acme: no domains")
	}
	for _, d := range conf.Domains {
		if strings.Contains(d, "*") {
			return nil, fmt.Errorf("acme: %s: a wildcard wants a change in DNS, which is not done here; list the names", d)
		}
	}
	host, portText, err := net.SplitHostPort(conf.Listen)
	if err != nil {
		return nil, fmt.Errorf("acme: listen address: %w", err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("acme: listen address: %w", err)
	}
	roots, err := readRoots(conf.CARoot)
	if err != nil {
		return nil, err
	}
	log := zap.New(zaplog.New(conf.Log, "acme: "))
	c := &Certificates{conf: conf}
	c.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return c.magic, nil },
		Logger:           log,
	})
	c.magic = certmagic.New(c.cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: conf.Dir},
		Logger:  log,
		OnEvent: c.tell,
	})
	c.magic.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(c.magic, certmagic.ACMEIssuer{
		CA: cmp.Or(conf.CA, certmagic.LetsEncryptProductionCA), Email: conf.Email, Agreed: true, TrustedRoots: roots,
		DisableHTTPChallenge: true, ListenHost: host, AltTLSALPNPort: port, Logger: log,
	})}
	return c, nil
}

func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("acme: %s has no certificate", path)
	}
	return roots, nil
}

// tell logs what an operator wants to know.
func (c *Certificates) tell(_ context.Context, event string, data map[string]any) error {
	switch event {
	case "cert_obtained":
		c.conf.Log.Info("obtained a certificate", "domain", data["identifier"], "renewal", data["renewal"])
	case "cert_failed":
		c.conf.Log.Error("no certificate was obtained; it is tried again", "domain", data["identifier"], "error", data["error"])
	}
	return nil
}

// TLS is the configuration of the users' listener. A handshake for a name whose certificate is not there yet fails.
func (c *Certificates) TLS() *tls.Config {
	conf := c.magic.TLSConfig()
	conf.MinVersion = tls.VersionTLS12
	conf.NextProtos = append([]string{"h2", "http/1.1"}, conf.NextProtos...)
	return conf
}

// manageAgain is how long it takes until what could not even be begun, a folder that cannot be written, is tried again.
const manageAgain = time.Minute

// Run obtains what is missing, and renews, until ctx ends. The listener must be open.
func (c *Certificates) Run(ctx context.Context) error {
	defer c.cache.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := c.magic.ManageAsync(ctx, c.conf.Domains); err != nil && ctx.Err() == nil {
			c.conf.Log.Error("certificates are not managed; it is tried again", "error", err, "again_in", manageAgain)
			again.Reset(manageAgain)
		}
	}
}
