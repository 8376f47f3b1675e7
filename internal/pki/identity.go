package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Identity is this process's certificate and the authorities that it trusts. It is safe for concurrent use.
type Identity struct {
	dir, name  string
	deployment string
	self       Peer

	mu struct {
		sync.Mutex
		seen     stamps    // of the files when they were last read, whether or not they loaded
		inUse    *material // the last good ones
		reported string    // why the present files do not load, once said
	}
}

// material is what the files held at one moment; never changed in place.
type material struct {
	cert       tls.Certificate
	roots      *x509.CertPool
	deployment string
	self       Peer
}

// stamps tells whether files have changed since they were read.
type stamps [3]fs.FileInfo

func (s stamps) equal(o stamps) bool {
	for i, a := range s {
		b := o[i]
		if a == nil || b == nil {
			return false
		}
		if !os.SameFile(a, b) || a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime()) {
			return false
		}
	}
	return true
}

// Load opens the identity with the given file name ("site-a", "operator-anna") in dir.
func Load(dir, name string) (*Identity, error) {
	id := &Identity{dir: dir, name: name}
	seen, err := id.stat()
	if err != nil {
		return nil, err
	}
	m, err := id.read()
	if err != nil {
		return nil, err
	}
	if err := m.verify(m.cert.Leaf, m.deployment); err != nil {
		return nil, fmt.Errorf("pki: %s: %w", id.path(name+".crt"), err)
	}
	id.deployment, id.self = m.deployment, m.self
	id.mu.seen, id.mu.inUse = seen, m
	return id, nil
}

// Deployment is the deployment that the identity belongs to.
func (id *Identity) Deployment() string { return id.deployment }

// Self is who this identity speaks for.
func (id *Identity) Self() Peer { return id.self }

// CheckDeployment tells whether the identity belongs to the deployment that the spec names.
func (id *Identity) CheckDeployment(want string) error {
	if id.deployment != want {
		return fmt.Errorf("pki: %s is of deployment %q, but the spec says %q: wrong pki folder?", id.path(id.name+".crt"), id.deployment, want)
	}
	return nil
}

// Files gives the paths of the authority's certificate and of this identity's certificate and key, for libraries that
// read files themselves.
func (id *Identity) Files() (ca, cert, key string) {
	return id.path("ca.crt"), id.path(id.name + ".crt"), id.path(id.name + ".key")
}

// Expires is the moment at which the certificate in use runs out.
func (id *Identity) Expires() time.Time { return id.current().cert.Leaf.NotAfter }

func (id *Identity) path(file string) string { return filepath.Join(id.dir, file) }

// current returns what the files hold, read again if they have changed. Files that do not load are reported once and
// leave the last good ones in use.
func (id *Identity) current() *material {
	id.mu.Lock()
	defer id.mu.Unlock()
	seen, err := id.stat()
	if err == nil && seen.equal(id.mu.seen) {
		return id.mu.inUse
	}
	var m *material
	if err == nil {
		m, err = id.read()
	}
	if err == nil {
		err = m.verify(m.cert.Leaf, id.deployment)
	}
	if err == nil && m.self != id.self {
		err = fmt.Errorf("pki: %s now speaks for %s; this process is %s", id.path(id.name+".crt"), m.self, id.self)
	}
	id.mu.seen = seen
	if err != nil {
		if text := err.Error(); text != id.mu.reported {
			id.mu.reported = text
			slog.Warn("changed certificate files do not load; the last good ones stay in use", "identity", id.name, "error", err)
		}
		return id.mu.inUse
	}
	id.mu.reported, id.mu.inUse = "", m
	return m
}

func (id *Identity) stat() (stamps, error) {
	ca, cert, key := id.Files()
	var out stamps
	for i, path := range []string{ca, cert, key} {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return stamps{}, missing(path)
		}
		if err != nil {
			return stamps{}, fmt.Errorf("pki: %w", err)
		}
		out[i] = info
	}
	return out, nil
}

func (id *Identity) read() (*material, error) {
	ca, cert, key := id.Files()
	authorities, err := readCertificates(ca)
	if err != nil {
		return nil, err
	}
	m := &material{roots: x509.NewCertPool()}
	for _, a := range authorities {
		m.roots.AddCert(a)
	}
	if m.cert, err = tls.LoadX509KeyPair(cert, key); err != nil {
		return nil, fmt.Errorf("pki: %s and its key: %w", cert, err)
	}
	if m.cert.Leaf == nil { // GODEBUG x509keypairleaf=0
		if m.cert.Leaf, err = x509.ParseCertificate(m.cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("pki: %s: %w", cert, err)
		}
	}
	if m.deployment, m.self, err = identityOf(m.cert.Leaf); err != nil {
		return nil, fmt.Errorf("pki: %s: %w", cert, err)
	}
	return m, nil
}

// verify checks that a certificate is in date, of this deployment and below its authority.
func (m *material) verify(leaf *x509.Certificate, deployment string, usage ...x509.ExtKeyUsage) error {
	theirs, p, err := identityOf(leaf)
	if err != nil {
		return err
	}
	if theirs != deployment {
		return fmt.Errorf("certificate of %s is of deployment %q, this is %q", p, theirs, deployment)
	}
	if len(usage) == 0 {
		usage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: m.roots, KeyUsages: usage})
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil && invalid.Cert.IsCA:
		return fmt.Errorf("the authority that issued the certificate of %s is out of date (ca.crt, valid until %s)",
			p, invalid.Cert.NotAfter.UTC().Format(time.DateTime))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && time.Now().After(leaf.NotAfter):
		return fmt.Errorf("certificate of %s ran out on %s; renew it with `atoll ca issue %s %s`",
			p, leaf.NotAfter.UTC().Format(time.DateTime), p.Kind, p.Name)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("certificate of %s is valid only from %s on; check this host's clock",
			p, leaf.NotBefore.UTC().Format(time.DateTime))
	case errors.As(err, &unknown):
		return fmt.Errorf("certificate of %s was not issued by this deployment's authority (ca.crt)", p)
	case err != nil:
		return fmt.Errorf("certificate of %s: %w", p, err)
	}
	return nil
}

// missing says how to get a file that is not there.
func missing(path string) error {
	name := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(path), ".crt"), ".key")
	what := "init"
	if kind, who, ok := strings.Cut(name, "-"); ok {
		what = "issue " + kind + " " + who
	}
	return fmt.Errorf("pki: %s is missing; run `atoll ca %s`: %w", path, what, fs.ErrNotExist)
}
