package publish

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	wire "github.com/miekg/dns"

	"github.com/atollhq/atoll/internal/dns"
)

const (
	exchangeBound = 10 * time.Second
	fudge         = 300 // seconds that the clocks may differ, as RFC 8945 has it
)

// Update is a server that takes dynamic updates (RFC 2136) signed by TSIG (RFC 8945), over TCP.
type Update struct {
	addr, key, algorithm string
	client               wire.Client
}

// NewUpdate names the server (host:port), the key, its algorithm (hmac-sha256, …) and its secret in base64.
func NewUpdate(addr, key, algorithm, secret string) (*Update, error) {
	if _, err := base64.StdEncoding.DecodeString(secret); err != nil {
		return nil, errors.New("the TSIG secret is not base64; take it from the server's configuration as it stands there")
	}
	u := &Update{addr: addr, key: wire.CanonicalName(key), algorithm: wire.Fqdn(algorithm)}
	u.client = wire.Client{Net: "tcp", Timeout: exchangeBound, TsigSecret: map[string]string{u.key: secret}}
	return u, nil
}

// Set reads the record sets and sends those that differ in one update, which the server carries out as a whole or not at
// all.
func (u *Update) Set(ctx context.Context, zone string, sets []dns.RecordSet) (int, error) {
	update := new(wire.Msg).SetUpdate(wire.Fqdn(zone))
	changed := 0
	for _, set := range sets {
		rrtype := wire.StringToType[set.Type]
		same, err := u.has(ctx, set, rrtype)
		if err != nil {
			return 0, err
		}
		if same {
			continue
		}
		changed++
		name := wire.Fqdn(set.Name)
		update.RemoveRRset([]wire.RR{&wire.ANY{Hdr: wire.RR_Header{Name: name, Rrtype: rrtype}}})
		for _, v := range set.Values {
			ip, err := netip.ParseAddr(v)
			if err != nil {
				return 0, err
			}
			h := wire.RR_Header{Name: name, Rrtype: rrtype, Class: wire.ClassINET, Ttl: uint32(set.TTL)}
			if rrtype == wire.TypeA {
				update.Insert([]wire.RR{&wire.A{Hdr: h, A: ip.AsSlice()}})
			} else {
				update.Insert([]wire.RR{&wire.AAAA{Hdr: h, AAAA: ip.AsSlice()}})
			}
		}
	}
	if changed == 0 {
		return 0, nil
	}
	resp, err := u.exchange(ctx, update)
	if err != nil {
		return 0, err
	}
	if resp.Rcode != wire.RcodeSuccess {
		return 0, refused("the update", zone, resp.Rcode)
	}
	return changed, nil
}

// has tells whether the server has a record set as it should be, TTL included.
func (u *Update) has(ctx context.Context, set dns.RecordSet, rrtype uint16) (bool, error) {
	req := new(wire.Msg).SetQuestion(wire.Fqdn(set.Name), rrtype)
	req.RecursionDesired = false
	resp, err := u.exchange(ctx, req)
	if err != nil {
		return false, err
	}
	switch {
	case resp.Rcode != wire.RcodeSuccess && resp.Rcode != wire.RcodeNameError:
		return false, refused("the question for "+set.Name, set.Zone, resp.Rcode)
	case !resp.Authoritative:
		return false, fmt.Errorf("server %s does not have zone %s: it answers without authority", u.addr, set.Zone)
	}
	var have []string
	for _, rr := range resp.Answer {
		switch rr := rr.(type) {
		case *wire.A:
			have = append(have, rr.A.String())
		case *wire.AAAA:
			ip, _ := netip.AddrFromSlice(rr.AAAA)
			have = append(have, ip.String())
		default:
			return false, fmt.Errorf("%s has a %s record; only addresses can be published at a name", set.Name, wire.TypeToString[rr.Header().Rrtype])
		}
		if rr.Header().Ttl != uint32(set.TTL) || wire.CanonicalName(rr.Header().Name) != wire.CanonicalName(set.Name) {
			return false, nil
		}
	}
	slices.Sort(have)
	return slices.Equal(have, slices.Sorted(slices.Values(set.Values))), nil
}

// exchange signs a message, sends it, and checks the answer's signature.
func (u *Update) exchange(ctx context.Context, req *wire.Msg) (*wire.Msg, error) {
	req.SetTsig(u.key, u.algorithm, fudge, time.Now().Unix())
	resp, _, err := u.client.ExchangeContext(ctx, req, u.addr)
	if resp != nil && resp.Rcode == wire.RcodeNotAuth { // which may come unsigned
		return nil, notAuth(u.addr, u.key, resp)
	}
	if err != nil {
		return nil, fmt.Errorf("server %s: %w", u.addr, err)
	}
	if refusal := resp.Rcode != wire.RcodeSuccess && resp.Rcode != wire.RcodeNameError; resp.IsTsig() == nil && !refusal {
		return nil, fmt.Errorf("server %s: the answer (%s) is not signed", u.addr, wire.RcodeToString[resp.Rcode])
	}
	return resp, nil
}

// notAuth says what is wrong between the two ends (RFC 8945, section 5.3).
func notAuth(addr, key string, resp *wire.Msg) error {
	why := "does it have this zone?"
	if t := resp.IsTsig(); t != nil {
		switch t.Error {
		case wire.RcodeBadKey:
			why = fmt.Sprintf("it does not know key %s with this algorithm, or gives it no right here", key)
		case wire.RcodeBadSig:
			why = fmt.Sprintf("its secret of key %s is another one", key)
		case wire.RcodeBadTime:
			why = "its clock is more than five minutes off ours"
		}
	}
	return fmt.Errorf("server %s: NOTAUTH: %s", addr, why)
}

func refused(what, zone string, rcode int) error {
	hint := ""
	switch rcode {
	case wire.RcodeRefused:
		hint = "; the server's rules must let the key ask for and update the names' A and AAAA records"
	case wire.RcodeNotZone:
		hint = "; is " + zone + " the zone that the server has?"
	}
	return fmt.Errorf("%s got %s%s", what, wire.RcodeToString[rcode], hint)
}
