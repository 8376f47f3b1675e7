package publish

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/libdns/alidns"
	"github.com/libdns/cloudflare"
	"github.com/libdns/libdns"
	"github.com/libdns/route53"
	"github.com/libdns/tencentcloud"

	"github.com/atollhq/atoll/internal/dns"
	"github.com/atollhq/atoll/internal/spec"
)

// library is what is needed of a provider's libdns module.
type library interface {
	libdns.RecordGetter
	libdns.RecordAppender
	libdns.RecordSetter
	libdns.RecordDeleter
}

// provider is a company's zones. What the modules write differs in detail (some add to a set what others replace it with),
// so that nothing is believed: what the zone has is read before and after.
type provider struct {
	library
	name string
	// replaces: a set is written as a whole, since the module's Append replaces a set of several and its Set one of one.
	replaces bool
}

// openProvider reads the credentials and makes the provider.
func openProvider(p *spec.DNSProvider) (Zones, error) {
	have := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(p.Env)) {
		v, err := variable(key, p.Env[key])
		if err != nil {
			return nil, err
		}
		have[key] = v
	}
	switch p.Name {
	case "alidns":
		return provider{library: &alidns.Provider{CredentialInfo: alidns.CredentialInfo{AccessKeyID: have["access_key_id"], AccessKeySecret: have["access_key_secret"],
			RegionID: have["region_id"], SecurityToken: have["security_token"]}}, name: p.Name}, nil
	case "cloudflare":
		return provider{library: &cloudflare.Provider{APIToken: have["api_token"], ZoneToken: have["zone_token"]}, name: p.Name}, nil
	case "route53":
		region := have["region"]
		if region == "" {
			region = "us-east-1" // the service is global; requests are signed for a region all the same
		}
		return provider{library: &route53.Provider{AccessKeyId: have["access_key_id"], SecretAccessKey: have["secret_access_key"], SessionToken: have["session_token"],
			Region: region, HostedZoneID: have["hosted_zone_id"]}, name: p.Name, replaces: true}, nil
	case "tencentcloud":
		return provider{library: &tencentcloud.Provider{SecretId: have["secret_id"], SecretKey: have["secret_key"], SessionToken: have["session_token"], Region: have["region"]}, name: p.Name}, nil
	}
	return nil, fmt.Errorf("no module for provider %q is in this build", p.Name)
}

// Set writes what is missing, takes away what is too much, and fails unless the zone then has what it should. A TTL alone
// is not changed: providers round it as they like, and would be written to for ever.
func (p provider) Set(ctx context.Context, zone string, sets []dns.RecordSet) (changed int, err error) {
	fqdn := zone + "."
	have, err := p.read(ctx, fqdn)
	if err != nil {
		return 0, err
	}
	for _, set := range sets {
		was := have.of(set)
		if slices.Equal(was.values(), set.Values) {
			continue
		}
		changed++
		if err := p.write(ctx, fqdn, set, was); err != nil {
			return changed, fmt.Errorf("%s: %s of %s: %w", p.name, set.Type, set.Name, err)
		}
	}
	if changed == 0 {
		return 0, nil
	}
	if have, err = p.read(ctx, fqdn); err != nil {
		return changed, err
	}
	for _, set := range sets {
		extra := have.of(set).without(set.Values)
		if len(extra) == 0 {
			continue
		}
		if _, err := p.DeleteRecords(ctx, fqdn, extra.list()); err != nil {
			return changed, fmt.Errorf("%s: %s of %s: %w", p.name, set.Type, set.Name, err)
		}
	}
	if have, err = p.read(ctx, fqdn); err != nil {
		return changed, err
	}
	for _, set := range sets {
		if got := have.of(set).values(); !slices.Equal(got, set.Values) {
			return changed, fmt.Errorf("%s has %v as %s of %s; want %v", p.name, got, set.Type, set.Name, set.Values)
		}
	}
	return changed, nil
}

// write adds what a set lacks; what it has too much of is taken away when that is there.
func (p provider) write(ctx context.Context, fqdn string, set dns.RecordSet, was held) error {
	var add []libdns.Record
	for _, v := range set.Values {
		if !p.replaces && slices.Contains(was.values(), v) {
			continue
		}
		ip, err := netip.ParseAddr(v)
		if err != nil {
			return err
		}
		add = append(add, libdns.Address{Name: libdns.RelativeName(set.Name+".", fqdn), TTL: time.Duration(set.TTL) * time.Second, IP: ip})
	}
	var err error
	switch {
	case len(add) == 0:
	case p.replaces && len(add) == 1:
		_, err = p.SetRecords(ctx, fqdn, add)
	default:
		_, err = p.AppendRecords(ctx, fqdn, add)
	}
	return err
}

// held are records of a zone, as the provider's module gave them: deleting wants those, they may carry ids.
type held []libdns.Record

func (p provider) read(ctx context.Context, fqdn string) (zone, error) {
	list, err := p.GetRecords(ctx, fqdn)
	if err != nil {
		return zone{}, fmt.Errorf("%s: %w", p.name, err)
	}
	return zone{strings.TrimSuffix(fqdn, "."), list}, nil
}

// zone is what a provider has of a zone.
type zone struct {
	name string
	held
}

// of is what a zone has of a record set.
func (z zone) of(set dns.RecordSet) held {
	var out held
	for _, r := range z.held {
		if rr := r.RR(); rr.Type == set.Type && z.absolute(rr.Name) == set.Name {
			out = append(out, r)
		}
	}
	return out
}

// absolute is the whole name of what modules call www, www.zone or www.zone., or @.
func (z zone) absolute(name string) string {
	name = strings.ToLower(strings.TrimSuffix(strings.ReplaceAll(name, `\052`, "*"), "."))
	switch {
	case name == "@" || name == "" || name == z.name:
		return z.name
	case strings.HasSuffix(name, "."+z.name):
		return name
	}
	return name + "." + z.name
}

// values are the addresses, sorted.
func (h held) values() []string {
	out := []string{}
	for _, r := range h {
		v := r.RR().Data
		if ip, err := netip.ParseAddr(v); err == nil {
			v = ip.String()
		}
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

func (h held) without(values []string) held {
	var out held
	for _, r := range h {
		if !slices.Contains(values, held{r}.values()[0]) {
			out = append(out, r)
		}
	}
	return out
}

func (h held) list() []libdns.Record { return h }
