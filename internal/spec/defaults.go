package spec

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

const defaultBuckets = 1024

func (s *Spec) setDefaults() {
	if s.PKI == "" {
		s.PKI = "pki"
	}
	if s.State == "" {
		s.State = "state"
	}
	for _, site := range s.Sites {
		if site.Store != nil {
			orDefault(&site.Store.ListenClient, site.Store.Client)
			orDefault(&site.Store.ListenPeer, site.Store.Peer)
		}
	}
	for _, k := range s.Keyspaces {
		orDefault(&k.Buckets, defaultBuckets)
		orDefault(&k.Hash, topo.HashMD5)
		orDefault(&k.Key, topo.TextKey)
	}
	for _, r := range s.Routes {
		if r.Keyspace != "" {
			orDefault(&r.WithoutKey, topo.HomeKeyless) // one bucket: everything is at home; more: validated as present
		}
	}
	if s.DNS != nil {
		s.DNS.setDefaults()
	}
	s.setPolicyDefaults()
}

func (s *Spec) setPolicyDefaults() {
	p := &s.Policies
	orDefault(&p.Lease.Duration, 10*time.Second)
	orDefault(&p.Lease.W, 2*time.Second)
	orDefault(&p.Lease.Margin, p.Lease.Duration/10)
	orDefault(&p.Switch.MaxLag, 5*time.Second)
	orDefault(&p.Switch.DrainBound, time.Second)
	orDefault(&p.Switch.FenceBound, 5*time.Second)
	orDefault(&p.Switch.CatchBound, 10*time.Second)
	orDefault(&p.Failover.Mode, FailoverObserve)
	if p.Failover.QuietTime == nil {
		quiet := 10 * time.Minute
		p.Failover.QuietTime = &quiet
	}
	orDefault(&p.Failover.MaxLoss, 30*time.Second)
	orDefault(&p.Failover.PerHour, 3)
	orDefault(&p.Failover.OnQuorumLoss, QuorumStop)
	orDefault(&p.Failover.VetoBound, 3*p.Lease.Duration)
	orDefault(&p.Hold.MaxTime, 15*time.Second)
	orDefault(&p.Hold.MaxPerBucket, 1000)
	orDefault(&p.Hold.MaxRequests, 10000)
	orDefault(&p.JWT.Refresh, 10*time.Minute)
	orDefault(&p.JWT.Leeway, 30*time.Second)
	orDefault(&p.Store.Heartbeat, 50*time.Millisecond)
	orDefault(&p.Store.Election, 500*time.Millisecond)
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// FullSites lists the sites that serve users, in order of name.
func (s *Spec) FullSites() []topo.SiteID {
	var out []topo.SiteID
	for _, id := range s.SiteIDs() {
		if site := s.Sites[id]; site != nil && !site.Witness {
			out = append(out, id)
		}
	}
	return out
}

// DSN reads the agent's connection string; AdminDSN reads the one that apply and remove use. Neither is logged.
func (d *Database) DSN() (string, error) { return secret("dsn", d.DSNEnv, d.DSNFile) }

// AdminDSN is the connection string for apply and remove; the agent's if none is declared.
func (d *Database) AdminDSN() (string, error) {
	if d.AdminDSNEnv == "" && d.AdminDSNFile == "" {
		return d.DSN()
	}
	return secret("admin_dsn", d.AdminDSNEnv, d.AdminDSNFile)
}

func secret(what, env, file string) (string, error) {
	if env != "" {
		v := os.Getenv(env)
		if v == "" {
			return "", fmt.Errorf("%s_env: environment variable %s is not set; put the connection string there", what, env)
		}
		return v, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s_file: %w", what, err)
	}
	v := strings.TrimSpace(string(data))
	if v == "" {
		return "", fmt.Errorf("%s_file: %s is empty; put the connection string there", what, file)
	}
	return v, nil
}
