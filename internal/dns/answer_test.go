package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

func testConfig() Config {
	return Config{Zones: []string{"live.shop.example", "shop.test"}, Names: []string{"live.shop.example", "*.live.shop.example", "a.b.live.shop.example", "www.shop.test"},
		TTL: 30 * time.Second, Contact: "host.master@shop.example",
		Servers: []NameServer{{"ns-a.live.shop.example", []netip.Addr{ip("192.0.2.53"), ip("2001:db8::53")}}, {"ns2.elsewhere.example", nil}}}
}

var testChoice = Choice{Healthy, []Share{{"a", 3, []netip.Addr{ip("192.0.2.1"), ip("2001:db8::1")}}, {"b", 1, []netip.Addr{ip("198.51.100.1"), ip("198.51.100.2")}}}}

// first rolls the first site of a choice.
func first(int) int { return 0 }

// summary is an answer in one line: rcode, flags, and the sections' records.
func summary(m *wire.Msg) string {
	out := wire.RcodeToString[m.Rcode]
	if m.Authoritative {
		out += " aa"
	}
	if m.Truncated {
		out += " tc"
	}
	for i, section := range [][]wire.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if _, ok := rr.(*wire.OPT); ok {
				continue
			}
			h := rr.Header()
			out += fmt.Sprintf(" %s%s/%d/%s", []string{"", "ns:", "add:"}[i], h.Name, h.Ttl, strings.ReplaceAll(strings.TrimPrefix(rr.String(), h.String()), " ", "_"))
		}
	}
	return out
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	const (
		soa     = "live.shop.example./30/ns-a.live.shop.example._host\\.master.shop.example._1_3600_600_1209600_30"
		soaTest = "shop.test./30/ns-a.live.shop.example._host\\.master.shop.example._1_3600_600_1209600_30"
	)
	for _, c := range []struct{ question, want string }{
		{"live.shop.example. A", "NOERROR aa live.shop.example./30/192.0.2.1"},
		{"LIVE.shop.eXample. A", "NOERROR aa LIVE.shop.eXample./30/192.0.2.1"}, // as it was asked: resolvers check the case
		{"live.shop.example. AAAA", "NOERROR aa live.shop.example./30/2001:db8::1"},
		{"www.shop.test. A", "NOERROR aa www.shop.test./30/192.0.2.1"},
		{"live.shop.example. MX", "NOERROR aa ns:" + soa},
		{"live.shop.example. CNAME", "NOERROR aa ns:" + soa},
		{"live.shop.example. TXT", "NOERROR aa ns:" + soa},
		{"live.shop.example. SOA", "NOERROR aa " + soa},
		{"live.shop.example. NS", "NOERROR aa live.shop.example./3600/ns-a.live.shop.example. live.shop.example./3600/ns2.elsewhere.example. add:ns-a.live.shop.example./3600/192.0.2.53 add:ns-a.live.shop.example./3600/2001:db8::53"},
		{"shop.test. NS", "NOERROR aa shop.test./3600/ns-a.live.shop.example. shop.test./3600/ns2.elsewhere.example. add:ns-a.live.shop.example./3600/192.0.2.53 add:ns-a.live.shop.example./3600/2001:db8::53"},
		{"shop.test. A", "NOERROR aa ns:" + soaTest},
		{"nope.shop.test. A", "NXDOMAIN aa ns:" + soaTest},
		{"nope.www.shop.test. A", "NXDOMAIN aa ns:" + soaTest},
		{"x.live.shop.example. A", "NOERROR aa x.live.shop.example./30/192.0.2.1"}, // the wildcard
		{"x.y.live.shop.example. A", "NOERROR aa x.y.live.shop.example./30/192.0.2.1"},
		{"x.live.shop.example. MX", "NOERROR aa ns:" + soa},
		{`x\.live.shop.example. A`, "REFUSED"},                   // one label, not two
		{"b.live.shop.example. A", "NOERROR aa ns:" + soa},       // nothing but names below it
		{"x.b.live.shop.example. A", "NXDOMAIN aa ns:" + soa},    // the wildcard does not reach below a name that exists
		{"x.ns-a.live.shop.example. A", "NXDOMAIN aa ns:" + soa}, // nor below a server
		{"ns-a.live.shop.example. A", "NOERROR aa ns-a.live.shop.example./3600/192.0.2.53"},
		{"ns-a.live.shop.example. MX", "NOERROR aa ns:" + soa},
		{"ns2.elsewhere.example. A", "REFUSED"},
		{"shop.example. A", "REFUSED"},
		{"notlive.shop.example. A", "REFUSED"},
		{"example. NS", "REFUSED"},
		{". NS", "REFUSED"},
		{". ANY", "REFUSED"},
		{"live.shop.example. ANY", `NOERROR aa live.shop.example./30/"RFC8482"_""`},
		{"nope.shop.test. ANY", "NXDOMAIN aa ns:" + soaTest},
		{"live.shop.example. AXFR", "REFUSED"},
		{"live.shop.example. IXFR", "REFUSED"},
		{"live.shop.example. DS", "NOERROR aa ns:" + soa},
	} {
		t.Run(c.question, func(t *testing.T) {
			t.Parallel()
			name, qtype, _ := strings.Cut(c.question, " ")
			req := new(wire.Msg).SetQuestion(name, wire.StringToType[qtype])
			resp := newAnswerer(testConfig(), first).answer(req, testChoice, true)
			if got := summary(resp); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if resp.Id != req.Id || !resp.Response || resp.RecursionAvailable || !resp.RecursionDesired || len(resp.Question) != 1 || resp.IsEdns0() != nil {
				t.Errorf("header: %+v", resp.MsgHdr)
			}
		})
	}
}

func TestAnswer_WhatIsNoQuestion(t *testing.T) {
	t.Parallel()
	a := newAnswerer(testConfig(), first)
	ask := func(change func(*wire.Msg)) *wire.Msg {
		req := new(wire.Msg).SetQuestion("live.shop.example.", wire.TypeA)
		change(req)
		return a.answer(req, testChoice, true)
	}
	if got := ask(func(m *wire.Msg) { m.Response = true }); got != nil {
		t.Errorf("an answer is answered: %v", got)
	}
	for name, c := range map[string]struct {
		change func(*wire.Msg)
		want   int
	}{
		"update":       {func(m *wire.Msg) { m.Opcode = wire.OpcodeUpdate }, wire.RcodeNotImplemented},
		"notify":       {func(m *wire.Msg) { m.Opcode = wire.OpcodeNotify }, wire.RcodeNotImplemented},
		"no question":  {func(m *wire.Msg) { m.Question = nil }, wire.RcodeFormatError},
		"two":          {func(m *wire.Msg) { m.Question = append(m.Question, m.Question[0]) }, wire.RcodeFormatError},
		"chaos":        {func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassCHAOS }, wire.RcodeRefused},
		"any class":    {func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassANY }, wire.RcodeRefused},
		"EDNS 1":       {func(m *wire.Msg) { m.SetEdns0(4096, false).IsEdns0().SetVersion(1) }, wire.RcodeBadVers},
		"EDNS twice":   {func(m *wire.Msg) { m.SetEdns0(4096, false).SetEdns0(4096, false) }, wire.RcodeFormatError},
		"plain":        {func(*wire.Msg) {}, wire.RcodeSuccess},
		"EDNS with DO": {func(m *wire.Msg) { m.SetEdns0(4096, true) }, wire.RcodeSuccess},
	} {
		got := ask(c.change)
		if got.Rcode != c.want || c.want != wire.RcodeSuccess && len(got.Answer)+len(got.Ns) > 0 {
			t.Errorf("%s: %s; want %s", name, summary(got), wire.RcodeToString[c.want])
		}
		if _, err := got.Pack(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if opt := ask(func(m *wire.Msg) { m.SetEdns0(4096, true) }).IsEdns0(); opt == nil || opt.UDPSize() != maxUDP || opt.Do() || opt.Version() != 0 {
		t.Errorf("EDNS: %v", opt)
	}
}

// TestAnswer_Sizes: over UDP an answer keeps to what the asker takes, and what does not fit is cut, with the word to come
// again by TCP.
func TestAnswer_Sizes(t *testing.T) {
	t.Parallel()
	many := Choice{Healthy, []Share{{Site: "a", Weight: 1}}}
	for i := range 60 {
		many.Shares[0].Addresses = append(many.Shares[0].Addresses, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	a := newAnswerer(testConfig(), first)
	for _, c := range []struct {
		edns       int // 0: none
		udp, whole bool
	}{{0, true, false}, {0, false, true}, {200, true, false}, {512, true, false}, {1232, true, true}, {65535, true, true}} {
		req := new(wire.Msg).SetQuestion("live.shop.example.", wire.TypeA)
		if c.edns > 0 {
			req.SetEdns0(uint16(c.edns), false)
		}
		resp := a.answer(req, many, c.udp)
		packed, err := resp.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if limit := min(max(c.edns, 512), maxUDP); c.udp && len(packed) > limit {
			t.Errorf("EDNS %d: %d bytes, more than %d", c.edns, len(packed), limit)
		}
		if resp.Truncated == c.whole || c.whole != (len(resp.Answer) == 60) || (c.edns > 0) != (resp.IsEdns0() != nil) {
			t.Errorf("EDNS %d, UDP %v: %d records, truncated %v, OPT %v", c.edns, c.udp, len(resp.Answer), resp.Truncated, resp.IsEdns0())
		}
	}
}

// TestAnswer_Weights: every site gets its share exactly, over all rolls; with several sites in an answer none comes twice;
// a family that a site has not is the other sites' alone.
func TestAnswer_Weights(t *testing.T) {
	t.Parallel()
	count := map[string]int{}
	for n := range 4 {
		a := newAnswerer(testConfig(), func(total int) int {
			if total != 4 {
				t.Fatalf("rolls of %d, want the weights' sum", total)
			}
			return n
		})
		resp := a.answer(new(wire.Msg).SetQuestion("live.shop.example.", wire.TypeA), testChoice, true)
		count[summary(resp)]++
	}
	if len(count) != 2 || count["NOERROR aa live.shop.example./30/192.0.2.1"] != 3 || count["NOERROR aa live.shop.example./30/198.51.100.1 live.shop.example./30/198.51.100.2"] != 1 {
		t.Errorf("%v", count)
	}
	conf := testConfig()
	conf.Answers = 5
	resp := newAnswerer(conf, func(total int) int { return total - 1 }).answer(new(wire.Msg).SetQuestion("live.shop.example.", wire.TypeA), testChoice, true)
	if got := summary(resp); got != "NOERROR aa live.shop.example./30/198.51.100.1 live.shop.example./30/198.51.100.2 live.shop.example./30/192.0.2.1" {
		t.Error(got)
	}
	resp = newAnswerer(conf, func(total int) int { return total - 1 }).answer(new(wire.Msg).SetQuestion("live.shop.example.", wire.TypeAAAA), testChoice, true)
	if got := summary(resp); got != "NOERROR aa live.shop.example./30/2001:db8::1" {
		t.Error(got)
	}
	if len(testChoice.Shares) != 2 || testChoice.Shares[0].Site != "a" {
		t.Errorf("answering has changed the choice: %v", testChoice)
	}
}

// FuzzAnswer: whatever comes over the network, the answer is one: packed, of the same id, within its size, without
// recursion, and it says nothing of other zones.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"live.shop.example.", "x.live.shop.example.", "nope.shop.test.", "example.", "."} {
		for _, qtype := range []uint16{wire.TypeA, wire.TypeNS, wire.TypeANY, wire.TypeAXFR} {
			req := new(wire.Msg).SetQuestion(name, qtype)
			req.SetEdns0(1232, true)
			data, err := req.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data, true)
			f.Add(data, false)
		}
	}
	update := new(wire.Msg).SetUpdate("live.shop.example.")
	update.SetTsig("key.", wire.HmacSHA256, 300, 1)
	data, err := update.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data, false)
	a := newAnswerer(testConfig(), first)
	f.Fuzz(func(t *testing.T, data []byte, udp bool) {
		req := new(wire.Msg)
		if req.Unpack(data) != nil {
			return
		}
		resp := a.answer(req, testChoice, udp)
		if resp == nil {
			if !req.Response {
				t.Fatal("a request without an answer")
			}
			return
		}
		packed, err := resp.Pack()
		if err != nil {
			t.Fatalf("%v does not pack: %v", resp, err)
		}
		if udp && len(packed) > maxUDP || udp && req.IsEdns0() == nil && len(packed) > wire.MinMsgSize {
			t.Fatalf("%d bytes over UDP", len(packed))
		}
		back := new(wire.Msg)
		if err := back.Unpack(packed); err != nil {
			t.Fatalf("the answer is none: %v", err)
		}
		if back.Id != req.Id || !back.Response || back.RecursionAvailable {
			t.Fatalf("header %+v of an answer to %+v", back.MsgHdr, req.MsgHdr)
		}
		if len(back.Answer)+len(back.Ns) == 0 {
			return
		}
		if !back.Authoritative || !slices.ContainsFunc(testConfig().Zones, func(z string) bool { return wire.IsSubDomain(wire.Fqdn(z), back.Question[0].Name) }) {
			t.Fatalf("an answer for another zone: %v", back)
		}
	})
}
