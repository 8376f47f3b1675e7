package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/atollhq/atoll/topo"
)

// ServerTLS is the configuration of a listener: it wants a certificate of this deployment, and of a peer that allow
// lets in. A nil allow lets everybody of the deployment in.
func (id *Identity) ServerTLS(allow func(Peer) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Verified below against the authorities of the moment: ClientCAs cannot be exchanged without a second
		// configuration, which would lose what net/http adds to this one.
		ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &id.current().cert, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			p, err := id.verifyPeer(state, x509.ExtKeyUsageClientAuth)
			if err != nil || allow == nil {
				return err
			}
			if err := allow(p); err != nil {
				return fmt.Errorf("pki: %s is refused: %w", p, err)
			}
			return nil
		},
		SessionTicketsDisabled: true, // a resumed session would outlive a rotation
	}
}

// ClientTLS is the configuration for dialling a site; an empty name accepts any site of the deployment.
func (id *Identity) ClientTLS(expect topo.SiteID) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: SiteServerName,
		// The ordinary verification is by host name. Ours, by authority and SAN URI, is in VerifyConnection.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &id.current().cert, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			p, err := id.verifyPeer(state, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			site, ok := p.Site()
			switch {
			case !ok:
				return fmt.Errorf("pki: the server is %s; want a site", p)
			case expect != "" && site != expect:
				return fmt.Errorf("pki: the server is site %s; want site %s: wrong address?", site, expect)
			}
			return nil
		},
	}
}

// Peer tells who is at the other end of a connection that was made with ServerTLS or ClientTLS: those have verified
// the certificate.
func (id *Identity) Peer(state tls.ConnectionState) (Peer, error) {
	if !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return Peer{}, errors.New("pki: the peer has shown no certificate")
	}
	deployment, p, err := identityOf(state.PeerCertificates[0])
	if err != nil {
		return Peer{}, fmt.Errorf("pki: %w", err)
	}
	if deployment != id.deployment {
		return Peer{}, fmt.Errorf("pki: %s is of deployment %q, this is %q", p, deployment, id.deployment)
	}
	return p, nil
}

func (id *Identity) verifyPeer(state tls.ConnectionState, usage x509.ExtKeyUsage) (Peer, error) {
	if len(state.PeerCertificates) == 0 {
		return Peer{}, errors.New("pki: the peer has shown no certificate")
	}
	leaf := state.PeerCertificates[0]
	if err := id.current().verify(leaf, id.deployment, usage); err != nil {
		return Peer{}, fmt.Errorf("pki: %w", err)
	}
	_, p, err := identityOf(leaf)
	return p, err
}
