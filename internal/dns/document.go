package dns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// DocumentFormat is the version of [Document] that this build writes and reads.
const DocumentFormat = 1

// Document is what is to be published: the whole content of the names, not a change. A hook gets it as JSON on its
// standard input; to publish it twice is to publish it once.
type Document struct {
	Format     int         `json:"format"` // 1
	Deployment string      `json:"deployment"`
	Site       topo.SiteID `json:"site"` // who publishes
	At         time.Time   `json:"at"`
	Records    []RecordSet `json:"records"` // every name, A and AAAA as far as the spec has such addresses
	Sites      []Share     `json:"sites"`   // who is behind the addresses, for DNS that can weigh them
}

// RecordSet is all records of one name and type.
type RecordSet struct {
	Zone   string   `json:"zone"` // without a dot at the end, as all names here
	Name   string   `json:"name"` // the whole name
	Type   string   `json:"type"` // A or AAAA
	TTL    int      `json:"ttl"`  // seconds
	Values []string `json:"values"`
}

// newDocument is what a choice comes to. It is refused if it would leave the names without any address.
func newDocument(s *spec.Spec, site topo.SiteID, sites []Site, choice Choice) (Document, error) {
	doc := Document{Format: DocumentFormat, Deployment: s.Deployment, Site: site, Sites: choice.Shares}
	values, declared := map[string][]string{}, map[string]bool{}
	for _, at := range sites {
		for _, a := range at.all() {
			declared[recordType(a)] = true
		}
	}
	for _, share := range choice.Shares {
		for _, a := range share.Addresses {
			values[recordType(a)] = append(values[recordType(a)], a.String())
		}
	}
	for _, name := range s.DNS.Names {
		for _, t := range []string{"A", "AAAA"} {
			if declared[t] {
				set := RecordSet{Zone: s.DNS.ZoneOf(name), Name: name, Type: t, TTL: int(s.DNS.TTL / time.Second), Values: []string{}}
				set.Values = append(set.Values, values[t]...)
				slices.Sort(set.Values)
				set.Values = slices.Compact(set.Values)
				doc.Records = append(doc.Records, set)
			}
		}
	}
	return doc, doc.check()
}

func recordType(a netip.Addr) string {
	if a.Is4() {
		return "A"
	}
	return "AAAA"
}

// Same tells whether two documents say the same.
func (d Document) Same(o Document) bool {
	return slices.EqualFunc(d.Records, o.Records, func(a, b RecordSet) bool {
		return a.Zone == b.Zone && a.Name == b.Name && a.Type == b.Type && a.TTL == b.TTL && slices.Equal(a.Values, b.Values)
	}) && Choice{Shares: d.Sites}.Equal(Choice{Shares: o.Sites})
}

// ReadDocument reads and checks a document.
func ReadDocument(r io.Reader) (Document, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return Document{}, fmt.Errorf("document: %w", err)
	}
	if len(data) > maxFile {
		return Document{}, fmt.Errorf("document: larger than %d bytes", maxFile)
	}
	var d Document
	if err := json.Unmarshal(data, &d); err != nil {
		return Document{}, fmt.Errorf("document: %w", err)
	}
	return d, d.check()
}

// check refuses what must not be published.
func (d Document) check() error {
	if d.Format != DocumentFormat {
		return fmt.Errorf("document: format %d; this atoll reads %d", d.Format, DocumentFormat)
	}
	if len(d.Records) == 0 {
		return errors.New("document: it has no records; nothing is never published")
	}
	count := map[string]int{}
	seen := map[[2]string]bool{}
	for _, r := range d.Records {
		key := [2]string{r.Name, r.Type}
		switch {
		case r.Zone == "" || r.Name != r.Zone && !strings.HasSuffix(r.Name, "."+r.Zone):
			return fmt.Errorf("document: name %q is not in zone %q", r.Name, r.Zone)
		case r.Type != "A" && r.Type != "AAAA":
			return fmt.Errorf("document: type %q of %s; want A or AAAA", r.Type, r.Name)
		case r.TTL < 1 || r.TTL > 86400:
			return fmt.Errorf("document: TTL %d of %s; want 1 to 86400", r.TTL, r.Name)
		case seen[key]:
			return fmt.Errorf("document: %s of %s stands there twice", r.Type, r.Name)
		}
		seen[key] = true
		for _, v := range r.Values {
			a, err := netip.ParseAddr(v)
			if err != nil || a.Zone() != "" || recordType(a) != r.Type || a.String() != v {
				return fmt.Errorf("document: %q is no value of an %s record", v, r.Type)
			}
		}
		count[r.Name] += len(r.Values)
	}
	for _, r := range d.Records {
		if count[r.Name] == 0 {
			return fmt.Errorf("document: %s would have no address; nothing is never published", r.Name)
		}
	}
	return nil
}
