// Package pki is the certificate authority of a small deployment and the TLS side of everything that crosses a host:
// links, the agents' API, gateways among themselves, the store's clients and members.
//
// [Init] makes an authority, [Issue] a certificate for a site, an operator or a service, and [Load] opens one as an [Identity],
// whose ServerTLS and ClientTLS give ready configurations.
//
// Guarantees: TLS 1.3 and a certificate on both sides, always. A peer is who its SAN URI says, atoll://DEPLOYMENT/site/NAME
// (operator/NAME, service/NAME), below the deployment's own authority; host names are never looked at, because
// addresses lead through proxies and balancers. Certificates are read again when their files change, so that a
// rotation needs no restart; files that do not load leave the last good ones in use.
//
// It refuses to overwrite an authority, and any peer of another deployment, of another authority or out of date.
//
// Files of a folder: ca.crt ca.key site-NAME.crt site-NAME.key, and the same for operator-NAME and service-NAME. ca.key is
// needed to issue only, and belongs on no site. A ca.crt may hold several certificates, while an authority is replaced.
package pki

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"github.com/atollhq/atoll/topo"
)

// Kind tells what a certificate speaks for.
type Kind string

const (
	// Site certificates are for the processes of a site, as server and as client.
	Site Kind = "site"
	// Operator certificates are for people and their tools, as client only.
	Operator Kind = "operator"
	// Service certificates are for the instances of an application, as client only: they register themselves with them, and
	// may do nothing else.
	Service Kind = "service"
)

// SiteServerName stands as a DNS name in every site certificate, for TLS stacks that insist on checking a host name
// and let it be chosen (etcd among its members).
const SiteServerName = "site.atoll.internal"

// Role is what a certificate is to be issued for.
type Role struct {
	Kind  Kind
	Name  string
	Hosts []string // host names and IP addresses for tools that check them, such as curl; Atoll itself does not
}

// File is the base name of the role's files: "site-a" for site a.
func (r Role) File() string { return string(r.Kind) + "-" + r.Name }

func (r Role) check() error {
	switch r.Kind {
	case Site, Operator, Service:
	default:
		return fmt.Errorf("certificates are issued for a %q, an %q or a %q, not for %q", Site, Operator, Service, r.Kind)
	}
	if err := topo.CheckName(r.Name); err != nil {
		return fmt.Errorf("%s: %w", r.Kind, err)
	}
	return nil
}

// Peer is who stands at the other end of a connection.
type Peer struct {
	Kind Kind
	Name string
}

// Site returns the peer's site; ok is false for an operator or a service.
func (p Peer) Site() (site topo.SiteID, ok bool) { return topo.SiteID(p.Name), p.Kind == Site }

func (p Peer) String() string { return string(p.Kind) + " " + p.Name }

const uriScheme = "atoll"

func peerURI(deployment string, p Peer) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: deployment, Path: "/" + string(p.Kind) + "/" + p.Name}
}

func authorityURI(deployment string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: deployment, Path: "/ca"}
}

// identityOf reads deployment and peer out of a certificate; it verifies nothing.
func identityOf(cert *x509.Certificate) (deployment string, p Peer, err error) {
	for _, u := range cert.URIs {
		if u.Scheme == uriScheme {
			return parsePeer(u)
		}
	}
	return "", Peer{}, fmt.Errorf("certificate of %q is not one of atoll's: it carries no %s:// URI", cert.Subject.CommonName, uriScheme)
}

func parsePeer(u *url.URL) (deployment string, p Peer, err error) {
	kind, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	role := Role{Kind: Kind(kind), Name: name}
	if !ok || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", Peer{}, fmt.Errorf("certificate names %q; want %s://DEPLOYMENT/site/NAME, …/operator/NAME or …/service/NAME", u, uriScheme)
	}
	if err := topo.CheckName(u.Host); err != nil {
		return "", Peer{}, fmt.Errorf("certificate names %q: deployment: %w", u, err)
	}
	if err := role.check(); err != nil {
		return "", Peer{}, fmt.Errorf("certificate names %q: %w", u, err)
	}
	return u.Host, Peer{Kind: role.Kind, Name: role.Name}, nil
}
