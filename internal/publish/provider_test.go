package publish

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/atollhq/atoll/internal/dns"
	"github.com/atollhq/atoll/internal/spec"
)

const testZone = "live.shop.example"

// cloud is a zone at a provider, behind the provider's API as its module uses it. It refuses what the provider refuses, and
// reports a moment at which a name that had addresses has none.
type cloud struct {
	t  *testing.T
	mu struct {
		sync.Mutex
		records []entry
		next    int
		writes  int
	}
}

type entry struct {
	id         string
	name, kind string // the whole name, without a dot
	value      string
	ttl        int
}

func newCloud(t *testing.T) *cloud {
	c := &cloud{t: t}
	for _, e := range []entry{{name: testZone, kind: "TXT", value: "not ours"}, {name: "www2." + testZone, kind: "A", value: "192.0.2.1"}, {name: "www2." + testZone, kind: "A", value: "192.0.2.10"}} {
		c.add(e)
	}
	return c
}

// add, remove and replace are the writes; each checks that no name is left without an address.
func (c *cloud) add(e entry) (entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, have := range c.mu.records {
		if have.name == e.name && have.kind == e.kind && have.value == e.value {
			return have, false
		}
	}
	c.mu.next++
	c.mu.writes++
	e.id = strconv.Itoa(c.mu.next)
	c.mu.records = append(c.mu.records, e)
	return e, true
}

func (c *cloud) remove(which func(entry) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := len(c.mu.records)
	had := c.addressedLocked()
	c.mu.records = slices.DeleteFunc(c.mu.records, which)
	c.mu.writes++
	for name := range had {
		if !c.addressedLocked()[name] {
			c.t.Errorf("for a moment %s has no address", name)
		}
	}
	return len(c.mu.records) < before
}

func (c *cloud) replace(name, kind string, with []entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.writes++
	c.mu.records = slices.DeleteFunc(c.mu.records, func(e entry) bool { return e.name == name && e.kind == kind })
	c.mu.records = append(c.mu.records, with...)
}

func (c *cloud) addressedLocked() map[string]bool {
	out := map[string]bool{}
	for _, e := range c.mu.records {
		if e.kind != "TXT" {
			out[e.name] = true
		}
	}
	return out
}

func (c *cloud) list(which func(entry) bool) []entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []entry
	for _, e := range c.mu.records {
		if which(e) {
			out = append(out, e)
		}
	}
	return out
}

// has is what the zone has: "name kind value", sorted.
func (c *cloud) has() string {
	var out []string
	for _, e := range c.list(func(entry) bool { return true }) {
		out = append(out, fmt.Sprintf("%s %s %s", strings.TrimSuffix(strings.TrimSuffix(e.name, testZone), "."), e.kind, e.value))
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func full(name string) string {
	name = strings.TrimSuffix(name, ".")
	switch {
	case name == "" || name == "@" || name == testZone:
		return testZone
	case strings.HasSuffix(name, "."+testZone):
		return name
	}
	return name + "." + testZone
}

func relative(name string) string {
	if name == testZone {
		return "@"
	}
	return strings.TrimSuffix(name, "."+testZone)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// cloudflare: names are whole, a record that is there already is an error, deleting answers with the id alone.
func (c *cloud) cloudflare(w http.ResponseWriter, r *http.Request) {
	type record struct {
		ID      string `json:"id"`
		Type    string `json:"type"`
		Name    string `json:"name"`
		Content string `json:"content"`
		TTL     int    `json:"ttl"`
	}
	form := func(e entry) record { return record{e.id, e.kind, e.name, e.value, e.ttl} }
	ok := func(result any) { answer(w, 200, map[string]any{"success": true, "result": result}) }
	if r.Header.Get("Authorization") != "Bearer token" {
		answer(w, 403, map[string]any{"errors": []any{map[string]any{"code": 9109, "message": "Invalid access token"}}})
		return
	}
	q := r.URL.Query()
	switch path := strings.TrimPrefix(r.URL.Path, "/client/v4/zones"); {
	case path == "":
		if strings.TrimSuffix(q.Get("name"), ".") != testZone {
			ok([]any{})
			return
		}
		ok([]any{map[string]any{"id": "z1", "name": testZone}})
	case path == "/z1/dns_records" && r.Method == http.MethodGet:
		list := []record{}
		for _, e := range c.list(func(e entry) bool {
			return (q.Get("type") == "" || q.Get("type") == e.kind) && (q.Get("name") == "" || full(q.Get("name")) == e.name) && (q.Get("content") == "" || q.Get("content") == e.value)
		}) {
			list = append(list, form(e))
		}
		ok(list)
	case path == "/z1/dns_records":
		var in record
		_ = json.NewDecoder(r.Body).Decode(&in)
		e, added := c.add(entry{name: full(in.Name), kind: in.Type, value: in.Content, ttl: in.TTL})
		if !added {
			answer(w, 400, map[string]any{"errors": []any{map[string]any{"code": 81058, "message": "An identical record already exists."}}})
			return
		}
		ok(form(e))
	case r.Method == http.MethodDelete:
		id := strings.TrimPrefix(path, "/z1/dns_records/")
		c.remove(func(e entry) bool { return e.id == id })
		ok(map[string]any{"id": id})
	default:
		c.t.Errorf("cloudflare: %s %s", r.Method, r.URL)
		answer(w, 404, map[string]any{})
	}
}

// tencentcloud: one path, the action in a header; names are relative; errors come with status 200.
func (c *cloud) tencentcloud(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Domain, SubDomain, Subdomain, RecordType, Value string
		TTL                                             int
		RecordId                                        uint64
	}
	_ = json.NewDecoder(r.Body).Decode(&in)
	out := map[string]any{}
	switch r.Header.Get("X-TC-Action") {
	case "DescribeRecordList":
		list := []any{}
		for _, e := range c.list(func(e entry) bool { return in.RecordType == "" || in.RecordType == e.kind }) {
			id, _ := strconv.Atoi(e.id)
			list = append(list, map[string]any{"RecordId": id, "Type": e.kind, "Name": relative(e.name), "Value": e.value, "TTL": e.ttl})
		}
		out["RecordList"] = list
	case "CreateRecord":
		e, added := c.add(entry{name: full(in.SubDomain), kind: in.RecordType, value: in.Value, ttl: in.TTL})
		if added {
			id, _ := strconv.Atoi(e.id)
			out["RecordId"] = id
		} else {
			out["Error"] = map[string]any{"Code": "InvalidParameter.DomainRecordExist", "Message": "exists"}
		}
	case "DeleteRecord":
		c.remove(func(e entry) bool { return e.id == strconv.FormatUint(in.RecordId, 10) })
	default:
		c.t.Errorf("tencentcloud: %s", r.Header.Get("X-TC-Action"))
	}
	answer(w, 200, map[string]any{"Response": out})
}

// alidns: a form; what it looks for it finds by parts of words.
func (c *cloud) alidns(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	f := r.Form
	action := f.Get("Action")
	if action == "" {
		action = r.Header.Get("x-acs-action")
	}
	switch action {
	case "DescribeDomains":
		answer(w, 200, map[string]any{"Domains": map[string]any{"Domain": []any{map[string]any{"DomainName": testZone, "VersionCode": "mianfei"}}}})
	case "DescribeDomainRecords":
		list := []any{}
		for _, e := range c.list(func(e entry) bool {
			return strings.Contains(relative(e.name), f.Get("RRKeyWord")) && strings.Contains(e.kind, f.Get("TypeKeyWord")) && strings.Contains(e.value, f.Get("ValueKeyWord"))
		}) {
			list = append(list, map[string]any{"RecordId": e.id, "DomainName": testZone, "RR": relative(e.name), "Type": e.kind, "Value": e.value, "TTL": e.ttl})
		}
		answer(w, 200, map[string]any{"DomainRecords": map[string]any{"Record": list}})
	case "AddDomainRecord":
		ttl, _ := strconv.Atoi(f.Get("TTL"))
		e, added := c.add(entry{name: full(f.Get("RR")), kind: f.Get("Type"), value: f.Get("Value"), ttl: ttl})
		if !added {
			answer(w, 400, map[string]any{"Code": "DomainRecordDuplicate", "Message": "The DNS record already exists."})
			return
		}
		answer(w, 200, map[string]any{"RecordId": e.id})
	case "DeleteDomainRecord":
		c.remove(func(e entry) bool { return e.id == f.Get("RecordId") })
		answer(w, 200, map[string]any{"RecordId": f.Get("RecordId")})
	default:
		c.t.Errorf("alidns: %s %v", action, f)
		answer(w, 400, map[string]any{})
	}
}

// route53: sets, not records; CREATE fails where there is a set, DELETE wants it exactly; a star comes back as \052.
func (c *cloud) route53(w http.ResponseWriter, r *http.Request) {
	type value struct {
		Value string
	}
	type set struct {
		Name   string
		Type   string
		TTL    int
		Values []value `xml:"ResourceRecords>ResourceRecord"`
	}
	path := strings.TrimPrefix(r.URL.Path, "/2013-04-01/")
	w.Header().Set("Content-Type", "text/xml")
	switch {
	case path == "hostedzonesbyname":
		fmt.Fprintf(w, `<ListHostedZonesByNameResponse><HostedZones><HostedZone><Id>/hostedzone/Z1</Id><Name>%s.</Name><CallerReference>x</CallerReference><Config><PrivateZone>false</PrivateZone></Config></HostedZone></HostedZones><IsTruncated>false</IsTruncated><MaxItems>1</MaxItems></ListHostedZonesByNameResponse>`, testZone)
	case r.Method == http.MethodGet:
		var sets []set
		for _, e := range c.list(func(entry) bool { return true }) {
			name := strings.ReplaceAll(e.name, "*", `\052`) + "."
			i := slices.IndexFunc(sets, func(s set) bool { return s.Name == name && s.Type == e.kind })
			if i < 0 {
				i, sets = len(sets), append(sets, set{Name: name, Type: e.kind, TTL: e.ttl})
			}
			v := e.value
			if e.kind == "TXT" {
				v = strconv.Quote(v)
			}
			sets[i].Values = append(sets[i].Values, value{v})
		}
		out, _ := xml.Marshal(struct {
			XMLName     xml.Name `xml:"ListResourceRecordSetsResponse"`
			Sets        []set    `xml:"ResourceRecordSets>ResourceRecordSet"`
			IsTruncated bool
			MaxItems    int
		}{Sets: sets, MaxItems: 1000})
		_, _ = w.Write(out)
	default:
		var in struct {
			Changes []struct {
				Action string
				Set    set `xml:"ResourceRecordSet"`
			} `xml:"ChangeBatch>Changes>Change"`
		}
		data, _ := io.ReadAll(r.Body)
		if err := xml.Unmarshal(data, &in); err != nil || len(in.Changes) != 1 {
			c.t.Errorf("route53: %s: %v", data, err)
		}
		ch := in.Changes[0]
		name := full(strings.ReplaceAll(ch.Set.Name, `\052`, "*"))
		of := func(e entry) bool { return e.name == name && e.kind == ch.Set.Type }
		var with []entry
		for _, v := range ch.Set.Values {
			with = append(with, entry{name: name, kind: ch.Set.Type, value: v.Value, ttl: ch.Set.TTL})
		}
		have := c.list(of)
		switch {
		case ch.Action == "UPSERT":
			c.replace(name, ch.Set.Type, with)
		case ch.Action == "CREATE" && len(have) == 0:
			c.replace(name, ch.Set.Type, with)
		case ch.Action == "DELETE" && len(have) == len(with):
			c.remove(of)
		default:
			w.WriteHeader(400)
			fmt.Fprint(w, `<ErrorResponse><Error><Type>Sender</Type><Code>InvalidChangeBatch</Code><Message>it exists, or is another</Message></Error></ErrorResponse>`)
			return
		}
		fmt.Fprint(w, `<ChangeResourceRecordSetsResponse><ChangeInfo><Id>/change/C1</Id><Status>PENDING</Status><SubmittedAt>2026-01-02T03:04:05Z</SubmittedAt></ChangeInfo></ChangeResourceRecordSetsResponse>`)
	}
}

// toCloud sends what goes to the providers' hosts to a test's cloud; nothing leaves the machine.
type toCloud struct {
	hosts map[string]http.HandlerFunc
}

func (c toCloud) RoundTrip(r *http.Request) (*http.Response, error) {
	h := c.hosts[r.URL.Host]
	if h == nil {
		return nil, fmt.Errorf("nothing stands for %s", r.URL.Host)
	}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	h(w, r)
	return w.Result(), nil
}

// TestProviders: one suite for all of them. Not parallel: the modules use the process's HTTP client.
func TestProviders(t *testing.T) {
	was := http.DefaultTransport
	defer func() { http.DefaultTransport = was }()
	for name, credentials := range spec.DNSCredentials {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t)
			http.DefaultTransport = toCloud{map[string]http.HandlerFunc{"api.cloudflare.com": c.cloudflare, "dnspod.tencentcloudapi.com": c.tencentcloud, "alidns.aliyuncs.com": c.alidns}}
			aws := httptest.NewServer(http.HandlerFunc(c.route53))
			defer aws.Close()
			t.Setenv("AWS_ENDPOINT_URL_ROUTE_53", aws.URL)
			t.Setenv("ATOLL_TEST_CREDENTIAL", "token")
			env := map[string]string{}
			for _, cr := range credentials {
				if !cr.Optional {
					env[cr.Name] = "ATOLL_TEST_CREDENTIAL"
				}
			}
			z, err := Open(&spec.DNSPublish{Provider: &spec.DNSProvider{Name: name, Env: env}})
			if err != nil {
				t.Fatal(err)
			}
			providerSuite(t, c, z, name != "tencentcloud") // which the spec refuses: the module cannot take a zone's own records away
		})
	}
}

func providerSuite(t *testing.T, c *cloud, z Zones, top bool) {
	const theirs = " TXT not ours; www2 A 192.0.2.1; www2 A 192.0.2.10"
	first, label := testZone, ""
	if !top {
		first, label = "app."+testZone, "app"
	}
	sets := func(apex, www, star string) []dns.RecordSet {
		var out []dns.RecordSet
		for _, s := range []struct{ name, values string }{{first, apex}, {"www." + testZone, www}, {"*." + testZone, star}} {
			for _, kind := range []string{"A", "AAAA"} {
				set := dns.RecordSet{Zone: testZone, Name: s.name, Type: kind, TTL: 60, Values: []string{}}
				for v := range strings.FieldsSeq(s.values) {
					if netip.MustParseAddr(v).Is4() == (kind == "A") {
						set.Values = append(set.Values, v)
					}
				}
				out = append(out, set)
			}
		}
		return out
	}
	for _, step := range []struct {
		what            string
		apex, www, star string
		changed         int
	}{
		{"the first time", "192.0.2.1 198.51.100.1", "192.0.2.1", "192.0.2.1 192.0.2.10 2001:db8::1", 4},
		{"once more", "192.0.2.1 198.51.100.1", "192.0.2.1", "192.0.2.1 192.0.2.10 2001:db8::1", 0},
		{"a site is lost", "198.51.100.1", "198.51.100.1", "192.0.2.10", 4},
		{"it is back", "192.0.2.1 198.51.100.1", "192.0.2.1 198.51.100.1", "192.0.2.1 192.0.2.10", 3},
		{"other sites", "192.0.2.2 198.51.100.2", "2001:db8::2", "192.0.2.1", 4},
	} {
		c.mu.Lock()
		writes := c.mu.writes
		c.mu.Unlock()
		changed, err := z.Set(t.Context(), testZone, sets(step.apex, step.www, step.star))
		if err != nil || changed != step.changed {
			t.Fatalf("%s: %d changed, %v; want %d", step.what, changed, err, step.changed)
		}
		var want []string
		for _, s := range []struct{ name, values string }{{label, step.apex}, {"www", step.www}, {"*", step.star}} {
			for v := range strings.FieldsSeq(s.values) {
				kind := "A"
				if strings.Contains(v, ":") {
					kind = "AAAA"
				}
				want = append(want, fmt.Sprintf("%s %s %s", s.name, kind, v))
			}
		}
		want = append(want, strings.Split(theirs, "; ")...)
		slices.Sort(want)
		if got := c.has(); got != strings.Join(want, "; ") {
			t.Errorf("%s:\ngot  %s\nwant %s", step.what, got, strings.Join(want, "; "))
		}
		c.mu.Lock()
		if step.changed == 0 && c.mu.writes != writes {
			t.Errorf("%s: it was written to", step.what)
		}
		c.mu.Unlock()
	}
}
