package dns

import (
	"net/netip"
	"strings"
	"time"

	wire "github.com/miekg/dns"
)

const (
	// maxUDP is the largest answer over UDP, whatever the asker says: what fits without fragments (DNS flag day 2020).
	maxUDP = 1232
	// serverTTL is for what changes with the spec only: NS records and the servers' addresses.
	serverTTL = time.Hour
	// serial stands in every SOA. There are no transfers that would go by it, and sites' servers must not differ in it.
	serial = 1
)

// Config is what a server answers for.
type Config struct {
	Zones   []string // without a dot at the end
	Names   []string // of the service
	TTL     time.Duration
	Answers int    // sites in one answer
	Contact string // mail address
	Servers []NameServer
}

// NameServer is a server that the zones are delegated to.
type NameServer struct {
	Name      string
	Addresses []netip.Addr
}

// answerer makes answers. It is immutable.
type answerer struct {
	zones   map[string]bool // canonical, with the dot
	service map[string]bool
	servers map[string][]netip.Addr
	order   []string        // of the servers
	exists  map[string]bool // names that have a record, and those between them and their zone
	ttl     uint32
	answers int
	contact string
	roll    func(n int) int // a number from 0 on, below n
}

func newAnswerer(c Config, roll func(int) int) *answerer {
	a := &answerer{zones: map[string]bool{}, service: map[string]bool{}, servers: map[string][]netip.Addr{}, exists: map[string]bool{},
		ttl: uint32(c.TTL / time.Second), answers: max(c.Answers, 1), roll: roll}
	for _, z := range c.Zones {
		a.zones[wire.CanonicalName(z)] = true
		a.exists[wire.CanonicalName(z)] = true
	}
	for _, n := range c.Names {
		a.service[wire.CanonicalName(n)] = true
		a.add(wire.CanonicalName(n))
	}
	for _, s := range c.Servers {
		name := wire.CanonicalName(s.Name)
		a.servers[name] = s.Addresses
		a.order = append(a.order, name)
		if a.zoneOf(name) != "" {
			a.add(name)
		}
	}
	user, host, _ := strings.Cut(c.Contact, "@")
	a.contact = wire.CanonicalName(strings.ReplaceAll(user, ".", `\.`) + "." + host)
	return a
}

// add notes that a name exists, with all between it and its zone.
func (a *answerer) add(name string) {
	for ; name != "." && !a.zones[name]; name = parent(name) {
		a.exists[name] = true
	}
}

func parent(name string) string {
	next, end := wire.NextLabel(name, 0)
	if end {
		return "."
	}
	return name[next:]
}

// zoneOf is the longest of the zones that a canonical name is in; "" if it is in none.
func (a *answerer) zoneOf(name string) string {
	for ; name != "."; name = parent(name) {
		if a.zones[name] {
			return name
		}
	}
	return ""
}

// answer makes the answer to a request. choice says where users are sent; over UDP an answer that does not fit is cut, and
// the asker comes again by TCP. nil: a request that gets no answer.
func (a *answerer) answer(req *wire.Msg, choice Choice, udp bool) *wire.Msg {
	if req.Response {
		return nil // an answer to an answer would begin a loop
	}
	resp := new(wire.Msg)
	resp.Id, resp.Response, resp.Opcode = req.Id, true, req.Opcode
	resp.RecursionDesired, resp.CheckingDisabled = req.RecursionDesired, req.CheckingDisabled
	resp.Compress = true
	limit := wire.MaxMsgSize
	if udp {
		limit = wire.MinMsgSize
	}
	opts, opt := 0, (*wire.OPT)(nil)
	for _, rr := range req.Extra {
		if o, ok := rr.(*wire.OPT); ok {
			opts, opt = opts+1, o
		}
	}
	if opt != nil {
		resp.SetEdns0(maxUDP, false)
		if udp {
			limit = min(max(int(opt.UDPSize()), wire.MinMsgSize), maxUDP)
		}
	}
	switch {
	case opts > 1:
		resp.Rcode = wire.RcodeFormatError
	case opt != nil && opt.Version() != 0:
		resp.Rcode = wire.RcodeBadVers
	case req.Opcode != wire.OpcodeQuery:
		resp.Rcode = wire.RcodeNotImplemented
	case len(req.Question) != 1:
		resp.Rcode = wire.RcodeFormatError
	default:
		resp.Question = req.Question
		a.query(resp, req.Question[0], choice)
	}
	if resp.Len() > limit {
		resp.Truncated, resp.Answer, resp.Ns = true, nil, nil
		resp.Extra = nil
		if opt != nil {
			resp.SetEdns0(maxUDP, false)
		}
	}
	return resp
}

// query fills in what is known of a question.
func (a *answerer) query(resp *wire.Msg, q wire.Question, choice Choice) {
	name := wire.CanonicalName(q.Name)
	zone := a.zoneOf(name)
	if q.Qclass != wire.ClassINET || zone == "" {
		resp.Rcode = wire.RcodeRefused
		return
	}
	switch q.Qtype {
	case wire.TypeAXFR, wire.TypeIXFR, wire.TypeMAILA, wire.TypeMAILB, wire.TypeTKEY, wire.TypeTSIG, wire.TypeOPT, wire.TypeNone:
		resp.Rcode = wire.RcodeRefused
		return
	}
	resp.Authoritative = true
	node := name
	if !a.exists[name] {
		node = a.wildcard(name, zone)
	}
	switch {
	case node == "":
		resp.Rcode = wire.RcodeNameError
	case q.Qtype == wire.TypeANY:
		resp.Answer = []wire.RR{&wire.HINFO{Hdr: header(q.Name, wire.TypeHINFO, a.ttl), Cpu: "RFC8482"}}
	case node == zone && q.Qtype == wire.TypeSOA:
		resp.Answer = []wire.RR{a.soa(q.Name, zone)}
	case node == zone && q.Qtype == wire.TypeNS:
		a.nameServers(resp, q.Name)
	case a.servers[node] != nil:
		resp.Answer = records(q.Name, q.Qtype, uint32(serverTTL/time.Second), a.servers[node])
	case a.service[node]:
		resp.Answer = a.addresses(q, choice)
	}
	if len(resp.Answer) == 0 {
		resp.Ns = []wire.RR{a.soa(zone, zone)}
	}
}

// wildcard is the wildcard that stands for a name that does not exist (RFC 4592); "" if there is none.
func (a *answerer) wildcard(name, zone string) string {
	for name != zone {
		name = parent(name)
		if a.exists[name] {
			break // the closest encloser
		}
	}
	if star := "*." + name; a.service[star] {
		return star
	}
	return ""
}

// soa is the zone's. Its TTL is that of "there is no such name" (RFC 2308).
func (a *answerer) soa(owner, zone string) wire.RR {
	primary := zone
	if len(a.order) > 0 {
		primary = a.order[0] // at every site the same
	}
	return &wire.SOA{Hdr: header(owner, wire.TypeSOA, a.ttl), Ns: primary, Mbox: a.contact, Serial: serial,
		Refresh: 3600, Retry: 600, Expire: 1209600, Minttl: a.ttl}
}

func (a *answerer) nameServers(resp *wire.Msg, owner string) {
	ttl := uint32(serverTTL / time.Second)
	for _, name := range a.order {
		resp.Answer = append(resp.Answer, &wire.NS{Hdr: header(owner, wire.TypeNS, ttl), Ns: name})
		if a.zoneOf(name) != "" {
			glue := append(records(name, wire.TypeA, ttl, a.servers[name]), records(name, wire.TypeAAAA, ttl, a.servers[name])...)
			resp.Extra = append(glue, resp.Extra...)
		}
	}
}

// addresses rolls which sites are in this answer, by weight: the order that addresses have in an answer does not reach
// users, resolvers and programs sort them as they like.
func (a *answerer) addresses(q wire.Question, choice Choice) []wire.RR {
	var shares []Share
	for _, s := range choice.Shares {
		if list := ofFamily(s.Addresses, q.Qtype); len(list) > 0 {
			shares = append(shares, Share{s.Site, s.Weight, list})
		}
	}
	var out []wire.RR
	for range min(a.answers, len(shares)) {
		i := pick(shares, a.roll)
		out = append(out, records(q.Name, q.Qtype, a.ttl, shares[i].Addresses)...)
		shares = append(shares[:i], shares[i+1:]...)
	}
	return out
}

// pick rolls one of the shares, by weight.
func pick(shares []Share, roll func(int) int) int {
	total := 0
	for _, s := range shares {
		total += s.Weight
	}
	n := roll(total)
	for i, s := range shares {
		if n -= s.Weight; n < 0 {
			return i
		}
	}
	panic("BUG: the weights are more than their sum")
}

func ofFamily(list []netip.Addr, qtype uint16) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		if qtype == wire.TypeA && a.Is4() || qtype == wire.TypeAAAA && a.Is6() {
			out = append(out, a)
		}
	}
	return out
}

func records(owner string, qtype uint16, ttl uint32, list []netip.Addr) []wire.RR {
	var out []wire.RR
	for _, a := range ofFamily(list, qtype) {
		if a.Is4() {
			out = append(out, &wire.A{Hdr: header(owner, qtype, ttl), A: a.AsSlice()})
		} else {
			out = append(out, &wire.AAAA{Hdr: header(owner, qtype, ttl), AAAA: a.AsSlice()})
		}
	}
	return out
}

func header(owner string, rrtype uint16, ttl uint32) wire.RR_Header {
	return wire.RR_Header{Name: owner, Rrtype: rrtype, Class: wire.ClassINET, Ttl: ttl}
}
