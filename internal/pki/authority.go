package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/atollhq/atoll/internal/reload"
	"github.com/atollhq/atoll/topo"
)

const (
	authorityLife   = 10 * 365 * 24 * time.Hour
	certificateLife = 2 * 365 * 24 * time.Hour
	// backdated tolerates sites whose clocks are behind the issuer's.
	backdated = time.Hour
)

// Init makes the certificate authority of a deployment in dir. It refuses to replace one.
func Init(dir, deployment string) error {
	return initAt(dir, deployment, time.Now())
}

func initAt(dir, deployment string, now time.Time) error {
	if err := topo.CheckName(deployment); err != nil {
		return fmt.Errorf("pki: deployment: %w", err)
	}
	for _, name := range []string{"ca.crt", "ca.key"} {
		path := filepath.Join(dir, name)
		switch _, err := os.Lstat(path); {
		case err == nil:
			return fmt.Errorf("pki: %s exists already; every certificate in use was issued by it, so it is not overwritten (remove it first if you mean to start anew)", path)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("pki: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pki: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("pki: generate key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "atoll " + deployment + " authority"},
		URIs:                  []*url.URL{authorityURI(deployment)},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	return sign(template, template, key, key, filepath.Join(dir, "ca"))
}

// Issue makes a certificate and key for a role with the authority in dir. An existing one is replaced; processes that
// use it take the new one up by themselves.
func Issue(dir string, role Role) error {
	return issueAt(dir, role, time.Now())
}

func issueAt(dir string, role Role, now time.Time) error {
	if err := role.check(); err != nil {
		return fmt.Errorf("pki: %w", err)
	}
	ca, caKey, deployment, err := openAuthority(dir)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("pki: generate key: %w", err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: role.File()},
		URIs:        []*url.URL{peerURI(deployment, Peer{Kind: role.Kind, Name: role.Name})},
		NotBefore:   now.Add(-backdated),
		NotAfter:    now.Add(certificateLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if role.Kind == Site {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		template.DNSNames = append(template.DNSNames, SiteServerName)
	}
	for _, host := range role.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return sign(template, ca, key, caKey, filepath.Join(dir, role.File()))
}

// openAuthority reads ca.crt and ca.key, and the deployment out of the certificate.
func openAuthority(dir string) (*x509.Certificate, *ecdsa.PrivateKey, string, error) {
	certs, err := readCertificates(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, nil, "", err
	}
	keyPath := filepath.Join(dir, "ca.key")
	body, err := os.ReadFile(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, "", fmt.Errorf("pki: %s is missing: certificates are issued where the authority's key is kept", keyPath)
	}
	if err != nil {
		return nil, nil, "", fmt.Errorf("pki: %w", err)
	}
	block, _ := pem.Decode(body)
	if block == nil {
		return nil, nil, "", fmt.Errorf("pki: %s holds no PEM block", keyPath)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, "", fmt.Errorf("pki: %s: %w", keyPath, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, "", fmt.Errorf("pki: %s is not an ECDSA key", keyPath)
	}
	for _, ca := range certs {
		if !key.PublicKey.Equal(ca.PublicKey) {
			continue
		}
		for _, u := range ca.URIs {
			if u.Scheme == uriScheme && u.Path == "/ca" && topo.CheckName(u.Host) == nil {
				return ca, key, u.Host, nil
			}
		}
		return nil, nil, "", fmt.Errorf("pki: %s names no deployment: it was not made by `atoll ca init`", filepath.Join(dir, "ca.crt"))
	}
	return nil, nil, "", fmt.Errorf("pki: %s does not belong to ca.crt beside it", keyPath)
}

// sign writes base.key and base.crt. The key goes first: a reader that finds a pair that does not match keeps its old
// one and looks again.
func sign(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey, base string) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fmt.Errorf("pki: serial number: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return fmt.Errorf("pki: sign %s: %w", filepath.Base(base), err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("pki: encode key: %w", err)
	}
	if err := replaceFile(base+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})); err != nil {
		return err
	}
	return replaceFile(base+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// replaceFile writes a file of mode 0600 whole or not at all.
func replaceFile(path string, body []byte) error {
	if err := reload.Replace(path, 0o600, body); err != nil {
		return fmt.Errorf("pki: write %s: %w", path, err)
	}
	return nil
}

// readCertificates reads every certificate of a PEM file.
func readCertificates(path string) ([]*x509.Certificate, error) {
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing(path)
	}
	if err != nil {
		return nil, fmt.Errorf("pki: %w", err)
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, body = pem.Decode(body); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("pki: %s holds a %s where a certificate is expected", path, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("pki: %s: %w", path, err)
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("pki: %s holds no certificate", path)
	}
	return out, nil
}
