package api

import (
	"strings"
	"testing"

	"github.com/atollhq/atoll/topo"
)

func TestSessionTokens(t *testing.T) {
	t.Parallel()
	s, err := ParseSession("1~users.17.5.a.16b3f48~catalog.0.2.b.1a2c")
	if err != nil || len(s.Seen) != 2 || s.Seen[0] != (Seen{Keyspace: "users", Bucket: 17, Epoch: 5, Site: "a", Position: 0x16b3f48}) {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "2", "x~users.1.1.a.1", "1~", "1~users.1.1.a", "1~users.1.1.a.1.1", "1~Users.1.1.a.1", "1~users.70000.1.a.1", "1~users.1.0.a.1",
		"1~users.1.1..1", "1~users.1.1.a.xyz", "1~users.1.1.a.ffffffffffffffff", "1~users.1.1.a.1~users.1.2.a.1", "1" + strings.Repeat("~users.1.1.a.1", 9), "1~" + strings.Repeat("u", MaxSession)} {
		if s, err := ParseSession(bad); err == nil {
			t.Errorf("%.60q is read as %+v", bad, s)
		}
	}
	for b := range topo.BucketID(20) {
		s = s.With(Seen{Keyspace: "users", Bucket: b, Epoch: 1, Site: "a", Position: 7})
	}
	if _, kept := s.Of("users", 19); !kept || len(s.Seen) != maxSeen {
		t.Errorf("of 21 buckets it keeps %d: %s", len(s.Seen), s)
	}
	long := topo.KeyspaceID("k" + strings.Repeat("x", 31))
	for b := range topo.BucketID(8) {
		s = s.With(Seen{Keyspace: long, Bucket: topo.MaxBuckets - 1 - b, Epoch: 1 << 62, Site: topo.SiteID(long), Position: Everything})
	}
	if again, err := ParseSession(s.String()); err != nil || len(again.Seen) != len(s.Seen) {
		t.Errorf("a long one is not read again: %d bytes, %v", len(s.String()), err)
	}
}

// What was seen and lies beyond stays: an answer by a site that is behind takes nothing away.
func TestSessionOnlyGrows(t *testing.T) {
	t.Parallel()
	at := func(epoch topo.Epoch, site topo.SiteID, position uint64) Seen {
		return Seen{Keyspace: "users", Bucket: 1, Epoch: epoch, Site: site, Position: position}
	}
	for _, c := range []struct{ had, now, want Seen }{
		{at(1, "a", 5), at(1, "a", 9), at(1, "a", 9)},
		{at(1, "a", 9), at(1, "a", 5), at(1, "a", 9)},
		{at(1, "a", 9), at(2, "b", 3), at(2, "b", 3)},
		{at(2, "b", 3), at(1, "a", 9), at(2, "b", 3)},
	} {
		if got, _ := (Session{}).With(c.had).With(c.now).Of("users", 1); got != c.want {
			t.Errorf("%+v, then %+v: %+v", c.had, c.now, got)
		}
	}
}

func FuzzSession(f *testing.F) {
	f.Add("1~users.17.5.a.16b3f48~catalog.0.2.b.1a2c")
	f.Add("1")
	f.Add("1~users.1.1.a.g")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSession(text)
		if err != nil {
			return
		}
		if again, err := ParseSession(s.String()); err != nil || again.String() != s.String() {
			t.Fatalf("%q is written as %q, which is read as %+v, %v", text, s, again, err)
		}
	})
}
