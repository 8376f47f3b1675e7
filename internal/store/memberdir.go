package store

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/atollhq/atoll/topo"
)

// memberFile says whose data a folder holds. etcd itself would start on another member's data, or go on with the
// addresses that it was born with, without a word.
type memberFile struct {
	Format     int                    `json:"format"`
	Deployment string                 `json:"deployment"`
	Site       topo.SiteID            `json:"site"`
	Members    map[topo.SiteID]string `json:"members"`
}

const memberFileName = "member.json"

// claimDir makes the folder this member's, or checks that it is.
func claimDir(cfg MemberConfig) error {
	if cfg.Dir == "" {
		return errors.New("no data folder is configured")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(cfg.Dir, memberFileName)
	want := memberFile{Format: 1, Deployment: cfg.Deployment, Site: cfg.Site, Members: cfg.InitialCluster}
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(cfg.Dir, "etcd")); err == nil {
			return fmt.Errorf("%s holds etcd data but no %s: it is not known whose it is; move it away, or choose another folder", cfg.Dir, memberFileName)
		}
		return writeMemberFile(path, want)
	}
	if err != nil {
		return err
	}
	got, err := parseMemberFile(body)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	case got.Deployment != want.Deployment:
		return fmt.Errorf("%s holds data of deployment %q, this is %q; choose another folder", cfg.Dir, got.Deployment, want.Deployment)
	case got.Site != want.Site:
		return fmt.Errorf("%s holds the data of member %s, this is %s; members never share or exchange folders", cfg.Dir, got.Site, want.Site)
	}
	for site, addr := range got.Members { // members come and go by atoll store add and remove; none moves
		if now, still := want.Members[site]; still && now != addr {
			return fmt.Errorf("%s was made for the members %v, the configuration has %v; restore the old addresses: a member changes its address by atoll store remove and add",
				cfg.Dir, got.Members, want.Members)
		}
	}
	if maps.Equal(got.Members, want.Members) {
		return nil
	}
	return writeMemberFile(path, want)
}

func parseMemberFile(body []byte) (memberFile, error) {
	var probe struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(body, &probe); err != nil {
		return memberFile{}, fmt.Errorf("damaged: %w", err)
	}
	if probe.Format > 1 {
		return memberFile{}, fmt.Errorf("format %d: %w", probe.Format, topo.ErrNewerFormat)
	}
	var f memberFile
	if err := decodeStrict(body, &f); err != nil {
		return memberFile{}, fmt.Errorf("damaged: %w", err)
	}
	return f, nil
}

func writeMemberFile(path string, f memberFile) error {
	body, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(body, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// checkCertificate finds out before etcd does, whose complaints come one by one and late.
func checkCertificate(ca, cert, key string) error {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", cert, key, err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return fmt.Errorf("certificate %s: %w", cert, err)
	}
	if err := leaf.VerifyHostname(SiteServerName); err != nil {
		return fmt.Errorf("certificate %s is not a site's (no DNS name %s in it); issue one with `atoll ca issue site`", cert, SiteServerName)
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return fmt.Errorf("certificate authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("certificate authority %s holds no certificate", ca)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("certificate %s is not good under %s: %w", cert, ca, err)
	}
	return nil
}
