package spec

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// withDNS is the sample with a section dns, of the lines that the sample has as a comment and more.
func withDNS(section string) []byte {
	return []byte(strings.Replace(string(Sample()), "\npolicies:\n", "\n"+section+"\npolicies:\n", 1))
}

const dnsSection = `dns:
  zones: [live.shop.example, shop.test]
  names: [live.shop.example, "*.live.shop.example", www.shop.test]
  ttl: 20s
  sites:
    a:
      addresses: [192.0.2.10, "2001:db8::10"]
      gateways: {g1: [192.0.2.11]}
      listen: 192.0.2.53:53
    b:
      addresses: [198.51.100.10]
      weight: 0
      listen: 0.0.0.0:53
      server: ns2.elsewhere.example
  publish:
    rfc2136:
      server: ns.shop.example:53
      key: atoll.
      secret_env: ATOLL_DNS_KEY
`

func TestDNS_Defaults(t *testing.T) {
	t.Parallel()
	s, err := Parse("s.yaml", withDNS(dnsSection))
	if err != nil {
		t.Fatal(err)
	}
	d := s.DNS
	a, b := d.Sites["a"], d.Sites["b"]
	if d.TTL != 20*time.Second || d.Answers != 1 || d.Contact != "hostmaster@live.shop.example" {
		t.Errorf("%+v", d)
	}
	if *a.Weight != 100 || a.Server != "ns-a.live.shop.example" || len(a.ServerAddresses) != 1 || a.ServerAddresses[0] != "192.0.2.53" {
		t.Errorf("a: %+v", a)
	}
	if *b.Weight != 0 || b.Server != "ns2.elsewhere.example" || len(b.ServerAddresses) != 0 {
		t.Errorf("b: %+v", b)
	}
	if got := d.Publish.RFC2136.Algorithm; got != "hmac-sha256" {
		t.Errorf("algorithm %q", got)
	}
	if got := d.ZoneOf("www.shop.test"); got != "shop.test" {
		t.Errorf("zone of www.shop.test: %q", got)
	}
}

func TestDNS_TheSamplesCommentIsASection(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	in := false
	for line := range strings.Lines(string(Sample())) {
		in = in && strings.HasPrefix(line, "#") || strings.HasPrefix(line, "# dns:")
		if in {
			line = strings.TrimPrefix(line, "# ")
		}
		text.WriteString(line)
	}
	s, err := Parse("s.yaml", []byte(text.String()))
	if err != nil || s.DNS == nil {
		t.Fatalf("%v, %+v", err, s)
	}
	if s.DNS.TTL != 30*time.Second {
		t.Errorf("ttl %v", s.DNS.TTL)
	}
}

// Each case changes the section in one place; want stands in the error together with the place.
func TestDNS_RefusesWithPlaceAndHint(t *testing.T) {
	t.Parallel()
	key := "      key: atoll.\n"
	provider := func(lines string) string { return "    provider:\n" + lines }
	update := dnsSection[strings.Index(dnsSection, "    rfc2136:"):]
	for name, c := range map[string]struct{ old, new, want string }{
		"no zone":                    {"zones: [live.shop.example, shop.test]", "zones: []", "dns names no zone (add for example zones: [live.shop.example])"},
		"no name":                    {`names: [live.shop.example, "*.live.shop.example", www.shop.test]`, "names: []", "dns names no name (add names:"},
		"zone with a dot":            {"shop.test]\n  names", "shop.test.]\n  names", `zone "shop.test." ends with a dot (write for example`},
		"zone twice":                 {"shop.test]\n  names", "live.shop.example]\n  names", `zone "live.shop.example" stands there twice`},
		"capitals":                   {"www.shop.test]", "WWW.shop.test]", `name "WWW.shop.test" is not in lower case`},
		"name elsewhere":             {"www.shop.test]", "www.shop.com]", `name "www.shop.com" is in none of the zones (write the whole name`},
		"name twice":                 {"www.shop.test]", "live.shop.example]", `name "live.shop.example" stands there twice`},
		"no domain name":             {"www.shop.test]", "w w.shop.test]", `name "w w.shop.test" is not a domain name`},
		"star inside":                {`"*.live.shop.example"`, `"www.*.live.shop.example"`, "is not a domain name"},
		"bad ttl":                    {"ttl: 20s", "ttl: soon", `:108:8: ttl: "soon" is not a duration`},
		"half a second":              {"ttl: 20s", "ttl: 1500ms", "ttl 1.5s; want whole seconds up to 24h (the default is 30s"},
		"negative answers":           {"ttl: 20s", "ttl: 20s\n  answers: -1", "answers is negative"},
		"contact":                    {"ttl: 20s", "ttl: 20s\n  contact: anna", `contact "anna" is not a mail address (write for example`},
		"unknown site":               {"    b:\n      addresses", "    c:\n      addresses", `dns names "c", which is not a site`},
		"witness":                    {"    b:\n      addresses", "    w:\n      addresses", "w is a witness, it serves no users"},
		"empty site":                 {"  publish:", "    w: ~\n  publish:", "w is a witness"},
		"not an address":             {"addresses: [192.0.2.10,", "addresses: [192.0.2,", `"192.0.2" is not the IP address of a host (write for example 192.0.2.10`},
		"unspecified":                {"[192.0.2.11]", "[0.0.0.0]", `"0.0.0.0" is not the IP address of a host`},
		"unknown gateway":            {"{g1: [192.0.2.11]}", "{g2: [192.0.2.11]}", `site a has no gateway "g2" (did you mean "g1"?)`},
		"gateway without an address": {"{g1: [192.0.2.11]}", "{g1: []}", "gateway g1 has no address"},
		"weight":                     {"weight: 0", "weight: -3", "weight -3; want 0 to 1000000 (the default is 100;"},
		"listens on a name":          {"listen: 0.0.0.0:53", "listen: dns.example:53", "wants an IP address to listen on (write IP:PORT"},
		"server without listen":      {"      listen: 0.0.0.0:53\n", "", "dns names a server of site b that listens nowhere"},
		"server without address":     {"      server: ns2.elsewhere.example\n", "", "nobody finds ns-b.live.shop.example: it is in one of the zones and has no address (add server_addresses:"},
		"server is the service":      {"server: ns2.elsewhere.example", "server: live.shop.example", "is one of the names of the service"},
		"one name, two servers":      {"server: ns2.elsewhere.example", "server: ns-a.live.shop.example", "the servers of a and b have the same name"},
		"two ways":                   {"    rfc2136:", "    hook: {command: [/bin/true]}\n    rfc2136:", "publish says 2 ways (want exactly one of rfc2136, hook and provider)"},
		"no server":                  {"      server: ns.shop.example:53\n", "", "server is missing (write HOST:PORT)"},
		"no key":                     {key, "", `key "" is empty`},
		"algorithm":                  {key, key + "      algorithm: hmac-md5\n", `unknown algorithm "hmac-md5" (want hmac-sha256, hmac-sha384, hmac-sha512)`},
		"secret in the file":         {"secret_env: ATOLL_DNS_KEY", "secret_env: c2VjcmV0c2VjcmV0Cg==", "secret_env is not the name of an environment variable (put the secret"},
		"relative hook":              {update, "    hook: {command: [publish-dns]}\n", "is not the full path of a program (write for example [/usr"},
		"slow hook":                  {update, "    hook: {command: [/bin/true], timeout: 1h}\n", "timeout 1h0m0s; want 1s to 10m"},
		"bad timeout":                {update, "    hook: {command: [/bin/true], timeout: long}\n", `timeout: "long" is not a duration`},
		"unknown provider":           {update, provider("      name: godaddy\n      env: {}\n"), `unknown provider "godaddy" (want one of [alidns cloudflare route53 tencentcloud]; hook: reaches`},
		"tencentcloud at the top":    {update, provider("      name: tencentcloud\n      env: {secret_id: A, secret_key: B}\n"), "tencentcloud's module cannot take records of the zone live.shop.example itself away (name the service www."},
		"provider without token":     {update, provider("      name: cloudflare\n      env: {}\n"), "cloudflare wants api_token (add it under env:"},
		"unknown credential":         {update, provider("      name: cloudflare\n      env: {api_token: CF, password: CF}\n"), `cloudflare knows no credential "password" (it wants [api_token zone_token])`},
		"token in the file":          {update, provider("      name: cloudflare\n      env: {api_token: a-b-c}\n"), "api_token is not the name of an environment variable"},
		"nobody answers":             {"a:\n      addresses: [192.0.2.10, \"2001:db8::10\"]\n      gateways: {g1: [192.0.2.11]}\n      listen: 192.0.2.53:53\n    b:\n      addresses: [198.51.100.10]\n      weight: 0\n      listen: 0.0.0.0:53\n      server: ns2.elsewhere.example\n  publish:\n" + update, "a:\n      addresses: [192.0.2.10]\n", "nobody would answer with these addresses (give sites a listen:"},
		"no address":                 {dnsSection[strings.Index(dnsSection, "    a:"):strings.Index(dnsSection, "  publish:")], "    a: {listen: 192.0.2.53:53}\n", "no site has an address for users (add sites:"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			section := strings.Replace(dnsSection, c.old, c.new, 1)
			if section == dnsSection {
				t.Fatalf("the section has no %q", c.old)
			}
			_, err := Parse("s.yaml", withDNS(section))
			var problems Problems
			if !errors.As(err, &problems) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got: %v\nwant: %s", err, c.want)
			}
			if problems[0].Line == 0 || problems[0].Column == 0 {
				t.Errorf("%v has no place", problems[0])
			}
			if strings.Contains(err.Error(), "c2VjcmV0") || strings.Contains(err.Error(), "a-b-c") {
				t.Errorf("the error repeats the secret: %v", err)
			}
		})
	}
}

// TestDNS_TheDocumentsExamples: what docs/dns.md shows is taken.
func TestDNS_TheDocumentsExamples(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/dns.md")
	if err != nil {
		t.Fatal(err)
	}
	var section string
	for i, part := range strings.Split(string(text), "```yaml\n")[1:] {
		example, _, _ := strings.Cut(part, "```")
		if i == 0 {
			section = example
			example = ""
		}
		if _, err := Parse("dns.md", withDNS(section+example)); err != nil {
			t.Errorf("example %d: %v", i+1, err)
		}
	}
}
