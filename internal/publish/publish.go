// Package publish puts the sites' addresses into zones that others run: by dynamic updates ([Update], RFC 2136 with
// TSIG), by the API of a provider (libdns), or by a command of the operator's ([Command]).
//
// Every way is one method, [Zones.Set]: the record sets of a zone are made what the document says. It looks first and
// writes only what differs, so that to publish twice is to publish once. What is added comes before what is taken away: a
// name is never without an address in between.
//
// Secrets come from the environment variables that the spec names.
package publish

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/atollhq/atoll/internal/dns"
	"github.com/atollhq/atoll/internal/spec"
)

// Zones are zones that somebody else runs.
type Zones interface {
	// Set makes record sets of a zone what they should be, those without values absent, and tells how many it had to
	// change. Other names and types of the zone are left alone.
	Set(ctx context.Context, zone string, sets []dns.RecordSet) (changed int, err error)
}

// Open makes the zones that the spec publishes to; a hook has none, it is a Command.
func Open(p *spec.DNSPublish) (Zones, error) {
	switch {
	case p == nil:
		return nil, fmt.Errorf("the spec publishes nowhere; add dns.publish")
	case p.RFC2136 != nil:
		secret, err := variable("secret_env", p.RFC2136.SecretEnv)
		if err != nil {
			return nil, err
		}
		return NewUpdate(p.RFC2136.Server, p.RFC2136.Key, p.RFC2136.Algorithm, secret)
	case p.Provider != nil:
		return openProvider(p.Provider)
	}
	return nil, fmt.Errorf("the spec publishes by a hook, which has no zones to set")
}

func variable(what, name string) (string, error) {
	v := os.Getenv(name)
	if v == "" {
		return "", fmt.Errorf("%s: environment variable %s is not set; put the secret there", what, name)
	}
	return v, nil
}

// Document sets every zone of a document, and tells how many record sets changed.
func Document(ctx context.Context, z Zones, doc dns.Document) (changed int, err error) {
	var zones []string
	sets := map[string][]dns.RecordSet{}
	for _, r := range doc.Records {
		if sets[r.Zone] == nil {
			zones = append(zones, r.Zone)
		}
		sets[r.Zone] = append(sets[r.Zone], r)
	}
	slices.Sort(zones)
	for _, zone := range zones {
		n, err := z.Set(ctx, zone, sets[zone])
		changed += n
		if err != nil {
			return changed, fmt.Errorf("zone %s: %w", zone, err)
		}
	}
	return changed, nil
}
