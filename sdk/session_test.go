package sdk

import (
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/api"
)

func TestSession_KeepsTheFurthestOfEach(t *testing.T) {
	t.Parallel()
	eight := "1~k.0.1.a.1~k.1.1.a.1~k.2.1.a.1~k.3.1.a.1~k.4.1.a.1~k.5.1.a.1~k.6.1.a.1~k.7.1.a.1"
	long := "1"
	for _, ks := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		long += "~" + strings.Repeat(ks, 32) + ".65535.9223372036854775807." + strings.Repeat("s", 32) + ".7fffffffffffffff"
	}
	for _, c := range []struct{ name, before, token, lost, want string }{
		{"the first answer", "", "1~users.17.5.a.10", "", "1~users.17.5.a.10"},
		{"an answer without a token", "1~users.17.5.a.10", "", "", "1~users.17.5.a.10"},
		{"further", "1~users.17.5.a.10", "1~users.17.5.a.1f", "", "1~users.17.5.a.1f"},
		{"an answer that was overtaken", "1~users.17.5.a.1f", "1~users.17.5.a.10", "", "1~users.17.5.a.1f"},
		{"a later epoch", "1~users.17.5.a.ff", "1~users.17.6.b.1", "", "1~users.17.6.b.1"},
		{"two that overlapped", "1~users.17.5.a.10~catalog.0.2.b.1", "1~users.18.5.a.20~catalog.0.2.b.2", "", "1~users.18.5.a.20~catalog.0.2.b.2~users.17.5.a.10"},
		{"the ninth bucket", eight, "1~k.8.1.a.1", "", "1~k.8.1.a.1" + strings.TrimSuffix(eight[1:], "~k.7.1.a.1")},
		{"more than fits", long, "1~users.1.1.a.1", "", "1~users.1.1.a.1" + long[1:]},
		{"lost, and seen anew", "1~users.17.5.a.ff~catalog.0.2.b.1", "1~users.17.6.b.1", "users/17/5", "1~users.17.6.b.1~catalog.0.2.b.1"},
		{"lost, and refused", "1~users.17.5.a.ff~catalog.0.2.b.1", "1~catalog.0.2.b.1", "users/17/5", "1~catalog.0.2.b.1"},
		{"lost what is not known any more", "1~users.17.6.b.1", "", "users/17/5", "1~users.17.6.b.1"},
		{"of a newer gateway", "1~users.17.5.a.10", "2~what", "", "1~users.17.5.a.10"},
		{"from a newer gateway on", "2~what", "2~more", "", "2~more"},
		{"from a newer gateway back", "2~what", "1~users.17.5.a.10", "", "1~users.17.5.a.10"},
		{"garbage", "", "1~users.17", "", "1~users.17"}, // gateways read it, or take it for everything
	} {
		s := NewSession(c.before)
		s.Learn(c.token, c.lost)
		if got := s.Token(); got != c.want || len(got) > api.MaxSession {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func FuzzSession(f *testing.F) {
	f.Add("1~users.17.5.a.10", "1~users.17.5.a.1f", "users/17/5")
	f.Add("", "2~x", "//")
	f.Fuzz(func(t *testing.T, before, token, lost string) {
		s := NewSession(before)
		s.Learn(token, lost)
		got := s.Token()
		s.Learn(got, "")
		if _, err := api.ParseSession(got); err == nil && s.Token() != got {
			t.Errorf("%q once more is %q", got, s.Token())
		}
	})
}
