package lab

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"
)

var (
	endA = netip.MustParseAddrPort("10.77.1.1:40000")
	endB = netip.MustParseAddrPort("10.77.2.1:7401")
)

// segment is a packet of TCP with data behind both headers' options.
func segment(from, to netip.AddrPort, flags byte, data string) []byte {
	b := resetPacket(from, to, 7)
	b = append(b[:ipHeader:ipHeader], append([]byte{1, 1, 1, 0}, b[ipHeader:]...)...) // no-operations of IP's
	b = append(b, 1, 1, 1, 0)
	b = append(b, data...)
	b[0] = 4<<4 | (ipHeader+4)/4
	tcp := b[ipHeader+4:]
	tcp[12], tcp[13] = (tcpHeader+4)/4<<4, flags
	binary.BigEndian.PutUint32(tcp[8:], 9)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

func TestParsePacket(t *testing.T) {
	t.Parallel()
	udp := segment(endA, endB, 0, "")
	udp[9] = 17
	fragment := segment(endA, endB, 0, "")
	fragment[7] = 3
	hosts := packet{from: netip.AddrPortFrom(endA.Addr(), 0), to: netip.AddrPortFrom(endB.Addr(), 0)}
	padded := append(segment(endA, endB, flagACK, "abc"), 0, 0, 0)
	change := func(at int, to byte) []byte {
		b := segment(endA, endB, flagACK, "abc")
		b[at] = to
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		want packet
		err  error
	}{
		{"a segment with options", segment(endA, endB, flagACK|flagFIN, "abc"), packet{from: endA, to: endB, tcp: true, flags: flagACK | flagFIN, seq: 7, ack: 9, payload: 3}, nil},
		{"what a device adds behind it is not data", padded, packet{from: endA, to: endB, tcp: true, flags: flagACK, seq: 7, ack: 9, payload: 3}, nil},
		{"another protocol has no ports", udp, hosts, nil},
		{"a later fragment has no ports", fragment, hosts, nil},
		{"nothing", nil, packet{}, errNotIPv4},
		{"IPv6", change(0, 6<<4|6), packet{}, errNotIPv4},
		{"a header shorter than one", change(0, 4<<4|4), packet{}, errTruncated},
		{"longer than what came", change(3, 200), packet{}, errTruncated},
		{"shorter than its header", change(3, 10), packet{}, errTruncated},
		{"TCP's header cut off", change(3, 30), packet{}, errTruncated},
		{"TCP's options cut off", change(ipHeader+4+12, 15<<4), packet{}, errTruncated},
		{"TCP's header shorter than one", change(ipHeader+4+12, 4<<4), packet{}, errTruncated},
	} {
		got, err := parsePacket(c.b)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v; want %+v, %v", c.name, got, err, c.want, c.err)
		}
	}
}

func TestResetPacket(t *testing.T) {
	t.Parallel()
	b := resetPacket(endB, endA, 1<<31+5)
	p, err := parsePacket(b)
	if want := (packet{from: endB, to: endA, tcp: true, flags: flagRST, seq: 1<<31 + 5}); err != nil || p != want {
		t.Errorf("%+v, %v; want %+v", p, err, want)
	}
	// Summed up with its checksum, each header gives nothing.
	if got := onesComplement(sum(0, b[:ipHeader])); got != 0 {
		t.Errorf("IP's checksum is wrong by %#x", got)
	}
	if got := onesComplement(sum(sum(protoTCP+tcpHeader, b[12:20]), b[ipHeader:])); got != 0 {
		t.Errorf("TCP's checksum is wrong by %#x", got)
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add(segment(endA, endB, flagACK, "abc"))
	f.Add(resetPacket(endB, endA, 5))
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePacket(b)
		if err != nil {
			if p != (packet{}) {
				t.Fatalf("%+v beside %v", p, err)
			}
			return
		}
		if got := p.to.Addr().As4(); got != [4]byte(b[16:20]) || !p.from.Addr().Is4() {
			t.Fatalf("to %v, header %v", got, b[16:20])
		}
		if !p.tcp {
			if p.from.Port() != 0 || p.to.Port() != 0 || p.payload != 0 {
				t.Fatalf("ports without TCP: %+v", p)
			}
			return
		}
		head := int(b[0]&0x0f) * 4
		if p.payload < 0 || head+tcpHeader+p.payload > len(b) || p.to.Port() != binary.BigEndian.Uint16(b[head+2:]) {
			t.Fatalf("%+v of %d bytes", p, len(b))
		}
	})
}

// arrivals takes everything that has arrived by a moment.
func arrivals(o *outbox, now time.Time) (out string) {
	for {
		p, arrived, _ := o.take(now)
		if !arrived {
			return out
		}
		out += string(p.data)
	}
}

func TestOutbox_Order(t *testing.T) {
	t.Parallel()
	ab, ba := ruleKey{Way{"a", "b"}, Link}, ruleKey{Way{"a", "b"}, StorePeer}
	var zero time.Time
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	type one struct {
		key  ruleKey
		due  int
		data string
	}
	for _, c := range []struct {
		name  string
		sent  []one
		times []int
		want  []string // what has arrived by each time, and not before
	}{
		{"in time", []one{{ab, 10, "1"}, {ab, 20, "2"}}, []int{9, 10, 19, 20}, []string{"", "1", "", "2"}},
		{"order is kept when a delay shrinks", []one{{ab, 30, "1"}, {ab, 10, "2"}, {ab, 40, "3"}}, []int{29, 30, 40}, []string{"", "12", "3"}},
		{"of another kind nothing waits", []one{{ab, 30, "1"}, {ba, 10, "x"}, {ab, 20, "2"}}, []int{10, 30}, []string{"x", "12"}},
		{"at the same moment as sent", []one{{ab, 5, "1"}, {ba, 5, "2"}, {ab, 5, "3"}}, []int{5}, []string{"123"}},
	} {
		var o outbox
		for _, s := range c.sent {
			if !o.add(s.key, at(s.due), []byte(s.data)) {
				t.Fatalf("%s: no room", c.name)
			}
		}
		for i, ms := range c.times {
			if got := arrivals(&o, at(ms)); got != c.want[i] {
				t.Errorf("%s: by %d ms %q arrives, want %q", c.name, ms, got, c.want[i])
			}
		}
		if _, arrived, wait := o.take(at(1000)); arrived || wait != 0 || o.bytes != 0 {
			t.Errorf("%s: at the end %v, %v, %d bytes", c.name, arrived, wait, o.bytes)
		}
	}
}

func TestOutbox_Full(t *testing.T) {
	t.Parallel()
	var o outbox
	key, now := ruleKey{Way{"a", "b"}, Link}, time.Now()
	big := make([]byte, outboxBytes)
	if !o.add(key, now, big) || o.add(key, now, []byte{1}) {
		t.Fatal("it takes more than it has room for, or less")
	}
	if _, arrived, _ := o.take(now); !arrived || !o.add(key, now, big) {
		t.Fatal("what has arrived still takes room")
	}
}
