package discover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/atollhq/atoll/internal/balance"
)

// How often is asked, whatever the answer's time to live, and how long is waited for one.
const (
	soonest    = time.Second
	latest     = 5 * time.Minute
	askTimeout = 2 * time.Second
)

// DNS finds instances under a name.
type DNS struct {
	Name    string   // of addresses (A, AAAA), or with SRV of a service
	SRV     bool     // ask for SRV: ports and weights come from there, of the best priority only
	Port    int      // without SRV
	Zone    string   // of all that is found
	Weight  int      // of each, without SRV
	Servers []string // host:port; none: as /etc/resolv.conf says
	Log     *slog.Logger
}

// Find asks again and again, as often as the answers' time to live says.
func (d DNS) Find(ctx context.Context, found func([]balance.Instance)) error {
	servers := d.Servers
	if len(servers) == 0 {
		conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil {
			return fmt.Errorf("name servers: %w", err)
		}
		for _, s := range conf.Servers {
			servers = append(servers, net.JoinHostPort(s, conf.Port))
		}
	}
	r := &resolver{servers: servers, good: make(map[dns.Question][]dns.RR)}
	var last []balance.Instance
	failing := ""
	for {
		in, ttl, err := d.lookup(ctx, r)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && err.Error() != failing {
			d.Log.Warn("instances are those that were found last", "name", d.Name, "error", err)
		}
		failing = ""
		if err != nil {
			failing, ttl = err.Error(), soonest
		}
		if len(in) > 0 && !slices.Equal(in, last) {
			last = in
			found(in)
		}
		rest := min(max(ttl, soonest), latest)
		timer := time.NewTimer(rest - rand.N(rest/10))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// lookup finds the instances in order of address. With an error there may be some, found earlier.
func (d DNS) lookup(ctx context.Context, r *resolver) ([]balance.Instance, time.Duration, error) {
	if !d.SRV {
		addrs, ttl, err := r.addresses(ctx, d.Name)
		return d.at(addrs, d.Port, d.Weight), ttl, err
	}
	records, ttl, err := r.ask(ctx, d.Name, dns.TypeSRV)
	var services []*dns.SRV
	for _, rr := range records {
		if s, ok := rr.(*dns.SRV); ok && s.Target != "." {
			services = append(services, s)
		}
	}
	if len(services) == 0 {
		return nil, ttl, err
	}
	best := slices.MinFunc(services, func(a, b *dns.SRV) int { return int(a.Priority) - int(b.Priority) }).Priority
	var all []balance.Instance
	for _, s := range services {
		if s.Priority != best {
			continue
		}
		addrs, until, addrErr := r.addresses(ctx, s.Target)
		all = append(all, d.at(addrs, int(s.Port), max(int(s.Weight), 1))...)
		ttl, err = min(ttl, until), errors.Join(err, addrErr)
	}
	return sorted(all), ttl, err
}

func (d DNS) at(addrs []netip.Addr, port, weight int) []balance.Instance {
	var out []balance.Instance
	for _, a := range addrs {
		out = append(out, balance.Instance{Address: net.JoinHostPort(a.String(), strconv.Itoa(port)), Zone: d.Zone, Weight: weight})
	}
	return sorted(out)
}

func sorted(in []balance.Instance) []balance.Instance {
	slices.SortFunc(in, func(a, b balance.Instance) int { return strings.Compare(a.Address, b.Address) })
	return slices.CompactFunc(in, func(a, b balance.Instance) bool { return a.Address == b.Address })
}

// resolver asks name servers, and keeps the last good answer to each question.
type resolver struct {
	servers []string
	good    map[dns.Question][]dns.RR
}

// addresses asks for both kinds; one kind is enough.
func (r *resolver) addresses(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	var out []netip.Addr
	ttl := latest
	var errs []error
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		records, until, err := r.ask(ctx, name, kind)
		if errs = append(errs, err); err == nil {
			ttl = min(ttl, until)
		}
		for _, rr := range records {
			var ip net.IP
			switch rr := rr.(type) {
			case *dns.A:
				ip = rr.A
			case *dns.AAAA:
				ip = rr.AAAA
			}
			if a, ok := netip.AddrFromSlice(ip); ok {
				out = append(out, a.Unmap())
			}
		}
	}
	if errs[0] != nil && errs[1] != nil {
		return out, soonest, errors.Join(errs...)
	}
	return out, ttl, nil
}

// ask returns the answer to one question, with its time to live; with an error, or with an answer that has nothing, what was the answer before.
func (r *resolver) ask(ctx context.Context, name string, kind uint16) ([]dns.RR, time.Duration, error) {
	q := dns.Question{Name: dns.Fqdn(name), Qtype: kind, Qclass: dns.ClassINET}
	m := new(dns.Msg)
	m.SetQuestion(q.Name, q.Qtype)
	m.SetEdns0(1232, false)
	err := errors.New("no name server is known")
	for _, server := range r.servers {
		var answer *dns.Msg
		if answer, err = exchange(ctx, m, server); err != nil {
			continue
		}
		if len(answer.Answer) == 0 {
			return r.good[q], soonest, fmt.Errorf("%s %s: nothing is found under that name", dns.TypeToString[kind], name)
		}
		ttl := latest
		for _, rr := range answer.Answer {
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		}
		r.good[q] = answer.Answer
		return answer.Answer, ttl, nil
	}
	return r.good[q], soonest, fmt.Errorf("%s %s: %w", dns.TypeToString[kind], name, err)
}

func exchange(ctx context.Context, m *dns.Msg, server string) (*dns.Msg, error) {
	udp, tcp := dns.Client{Net: "udp", Timeout: askTimeout}, dns.Client{Net: "tcp", Timeout: askTimeout}
	answer, _, err := udp.ExchangeContext(ctx, m, server)
	if err == nil && answer.Truncated {
		answer, _, err = tcp.ExchangeContext(ctx, m, server)
	}
	if err != nil {
		return nil, err
	}
	if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("%s answered %s", server, dns.RcodeToString[answer.Rcode])
	}
	return answer, nil
}
