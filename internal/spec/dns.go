package spec

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

// DNS says under which names users find the sites. Each site may have a server of its own that answers for the zones, and
// where others run the zones, the addresses are published there. Either is advice: gateways forward what comes to them.
type DNS struct {
	Zones   []string                 `yaml:"zones" json:"zones"`                         // what the sites' servers answer for, or what is updated where others run it
	Names   []string                 `yaml:"names" json:"names"`                         // of the service, each in one of the zones; *.ZONE stands for what has no name of its own
	TTL     time.Duration            `yaml:"ttl,omitempty" json:"ttl,omitempty"`         // of addresses, and of "there is no such name"; default 30s
	Answers int                      `yaml:"answers,omitempty" json:"answers,omitempty"` // sites in one answer of a site's server; default 1: then weights hold however resolvers order addresses
	Contact string                   `yaml:"contact,omitempty" json:"contact,omitempty"` // mail address in SOA records; default hostmaster@ the first zone
	Sites   map[topo.SiteID]*DNSSite `yaml:"sites" json:"sites"`
	Publish *DNSPublish              `yaml:"publish,omitempty" json:"publish,omitempty"`
}

// DNSSite is where users reach a site, and its server.
type DNSSite struct {
	Addresses []string            `yaml:"addresses,omitempty" json:"addresses,omitempty"` // in answers while the site is well: a load balancer's, for example
	Gateways  map[string][]string `yaml:"gateways,omitempty" json:"gateways,omitempty"`   // of single gateways, in answers while those are connected
	Weight    *int                `yaml:"weight,omitempty" json:"weight,omitempty"`       // share of the users, default 100; 0: only while no site with a weight is well

	Listen          string   `yaml:"listen,omitempty" json:"listen,omitempty"`                     // ip:port of the site's server, UDP and TCP; none: no server here
	Server          string   `yaml:"server,omitempty" json:"server,omitempty"`                     // the server's name in NS records; default ns-SITE. and the first zone
	ServerAddresses []string `yaml:"server_addresses,omitempty" json:"server_addresses,omitempty"` // the server's public addresses; default: the one in listen
}

// DNSPublish says how the addresses get into zones that others run. Exactly one of the three.
type DNSPublish struct {
	RFC2136  *DNSUpdate   `yaml:"rfc2136,omitempty" json:"rfc2136,omitempty"`
	Hook     *DNSHook     `yaml:"hook,omitempty" json:"hook,omitempty"`
	Provider *DNSProvider `yaml:"provider,omitempty" json:"provider,omitempty"`
}

// DNSUpdate is a server that takes dynamic updates, signed by TSIG.
type DNSUpdate struct {
	Server    string `yaml:"server" json:"server"`                           // host:port
	Key       string `yaml:"key" json:"key"`                                 // name of the TSIG key
	Algorithm string `yaml:"algorithm,omitempty" json:"algorithm,omitempty"` // hmac-sha256 (default), hmac-sha384 or hmac-sha512
	SecretEnv string `yaml:"secret_env" json:"secret_env"`                   // the environment variable with the key, in base64
}

// DNSHook is a command that gets what is to be published as one JSON document on its standard input.
type DNSHook struct {
	Command []string      `yaml:"command" json:"command"`                     // path and arguments; no shell
	Timeout time.Duration `yaml:"timeout,omitempty" json:"timeout,omitempty"` // default 30s
}

// DNSProvider is a company that runs the zones.
type DNSProvider struct {
	Name string            `yaml:"name" json:"name"` // see DNSCredentials
	Env  map[string]string `yaml:"env" json:"env"`   // credential → the environment variable that holds it
}

// Credential is what a provider wants to know.
type Credential struct {
	Name     string
	Optional bool
}

// DNSCredentials lists the providers, and what each wants under env.
var DNSCredentials = map[string][]Credential{
	"alidns":       {{Name: "access_key_id"}, {Name: "access_key_secret"}, {Name: "region_id", Optional: true}, {Name: "security_token", Optional: true}},
	"cloudflare":   {{Name: "api_token"}, {Name: "zone_token", Optional: true}},
	"route53":      {{Name: "access_key_id"}, {Name: "secret_access_key"}, {Name: "session_token", Optional: true}, {Name: "region", Optional: true}, {Name: "hosted_zone_id", Optional: true}},
	"tencentcloud": {{Name: "secret_id"}, {Name: "secret_key"}, {Name: "session_token", Optional: true}, {Name: "region", Optional: true}},
}

// DNSAlgorithms are the TSIG algorithms; the first is the default.
var DNSAlgorithms = []string{"hmac-sha256", "hmac-sha384", "hmac-sha512"}

const defaultWeight = 100

func (d *DNS) setDefaults() {
	orDefault(&d.TTL, 30*time.Second)
	orDefault(&d.Answers, 1)
	orDefault(&d.Contact, "hostmaster@"+d.Zones[0])
	for id, s := range d.Sites {
		if s.Weight == nil {
			weight := defaultWeight
			s.Weight = &weight
		}
		if s.Listen == "" {
			continue
		}
		orDefault(&s.Server, d.serverName(id, s))
		if bound, err := netip.ParseAddrPort(s.Listen); err == nil && len(s.ServerAddresses) == 0 && !bound.Addr().IsUnspecified() {
			s.ServerAddresses = []string{bound.Addr().String()}
		}
	}
	if p := d.Publish; p != nil {
		if p.RFC2136 != nil {
			orDefault(&p.RFC2136.Algorithm, DNSAlgorithms[0])
		}
		if p.Hook != nil {
			orDefault(&p.Hook.Timeout, 30*time.Second)
		}
	}
}

func (d *DNS) serverName(id topo.SiteID, s *DNSSite) string {
	if s.Server != "" {
		return s.Server
	}
	return "ns-" + string(id) + "." + d.Zones[0]
}

// ZoneOf is the longest of the zones that a name is in; "" if it is in none.
func (d *DNS) ZoneOf(name string) string {
	zone := ""
	for _, z := range d.Zones {
		if (name == z || strings.HasSuffix(name, "."+z)) && len(z) > len(zone) {
			zone = z
		}
	}
	return zone
}

// DNSServer is what the spec says of a site's DNS server; nil: the site has none.
func (s *Spec) DNSServer(site topo.SiteID) *DNSSite {
	if s.DNS == nil || s.DNS.Sites[site] == nil || s.DNS.Sites[site].Listen == "" {
		return nil
	}
	return s.DNS.Sites[site]
}

// SiteIDs lists the sites that the section speaks of, in order of name.
func (d *DNS) SiteIDs() []topo.SiteID { return slices.Sorted(maps.Keys(d.Sites)) }
