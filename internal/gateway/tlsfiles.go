package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/atollhq/atoll/internal/reload"
)

// TLSFiles are what the users' listener shows, and whom it asks for certificates.
type TLSFiles struct {
	Cert, Key string // PEM
	ClientCA  string // PEM of the authorities of users' certificates; "": users are not asked for any
}

// protocols are those that a users' listener speaks within TLS.
var protocols = []string{"h2", "http/1.1"}

// FileTLS makes the configuration of a users' listener from files, which are read again when they change. A user without a
// certificate is let in; a certificate that is shown must be good.
func FileTLS(files TLSFiles, log *slog.Logger) (*tls.Config, error) {
	paths := []string{files.Cert, files.Key}
	if files.ClientCA != "" {
		paths = append(paths, files.ClientCA)
	}
	v, err := reload.Open(files.load, reporter(files.Cert, log), paths...)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return v.Get(), nil },
		GetCertificate:     func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &v.Get().Certificates[0], nil },
	}, nil
}

func reporter(file string, log *slog.Logger) func(error) {
	return func(err error) {
		if err != nil {
			log.Error("the changed TLS files do not load; the last good ones stay in use", "file", file, "error", err)
			return
		}
		log.Info("read the TLS files again", "file", file)
	}
}

func (f TLSFiles) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("%s and its key: %w", f.Cert, err)
	}
	if leaf := cert.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) {
		return nil, fmt.Errorf("%s ran out on %s", f.Cert, leaf.NotAfter.UTC().Format(time.DateTime))
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: protocols}
	return conf, f.askClients(conf)
}

// ClientTLSFrom makes a configuration whose certificates come from elsewhere ask users for theirs; the file is read again when
// it changes.
func ClientTLSFrom(base *tls.Config, clientCA string, log *slog.Logger) (*tls.Config, error) {
	if clientCA == "" {
		return base, nil
	}
	load := func() (*tls.Config, error) {
		conf := base.Clone()
		return conf, TLSFiles{ClientCA: clientCA}.askClients(conf)
	}
	v, err := reload.Open(load, reporter(clientCA, log), clientCA)
	if err != nil {
		return nil, err
	}
	out := base.Clone()
	out.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acmeProtocol {
			return nil, nil // the authority, which has no certificate of ours, and asks for none
		}
		return v.Get(), nil
	}
	return out, nil
}

// acmeProtocol is how an ACME authority looks whether a name is served here (RFC 8737).
const acmeProtocol = "acme-tls/1"

// askClients lets a configuration ask users for certificates, and verify those that they show.
func (f TLSFiles) askClients(conf *tls.Config) error {
	if f.ClientCA == "" {
		return nil
	}
	text, err := os.ReadFile(f.ClientCA)
	if err != nil {
		return err
	}
	conf.ClientCAs = x509.NewCertPool()
	if !conf.ClientCAs.AppendCertsFromPEM(text) {
		return fmt.Errorf("%s has no certificate", f.ClientCA)
	}
	conf.ClientAuth = tls.VerifyClientCertIfGiven
	conf.SessionTicketsDisabled = true // a resumed session would outlive an authority that was taken away
	return nil
}
