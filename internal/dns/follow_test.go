package dns

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
)

// script answers as an agent would, one line after the other; "away" is an agent that does not answer. The last line
// stays.
func script(lines ...string) func(context.Context) (api.Health, error) {
	return func(context.Context) (api.Health, error) {
		line := lines[0]
		if len(lines) > 1 {
			lines = lines[1:]
		}
		if line == "away" {
			return api.Health{}, errors.New("no answer")
		}
		return told(line), nil
	}
}

func follow(file string, ask func(context.Context) (api.Health, error)) (*Follow, *[]string) {
	var set []string
	f := &Follow{Sites: three(), Ask: ask, File: file, Log: slog.New(slog.DiscardHandler)}
	f.Set = func(c Choice) { set = append(set, c.String()) }
	return f, &set
}

// TestFollow: an agent that is away changes nothing, each change is told once, and the last good choice outlives the
// process.
func TestFollow(t *testing.T) {
	t.Parallel()
	const (
		all  = "healthy: a×100[192.0.2.1 2001:db8::1] b×50[198.51.100.1 198.51.100.2]"
		b    = "healthy: b×50[198.51.100.1 198.51.100.2]"
		last = "last good: b×50[198.51.100.1 198.51.100.2]"
	)
	file := filepath.Join(t.TempDir(), "state", "dns-a.json")
	synctest.Test(t, func(t *testing.T) {
		well, dead := "a:live:g1,g2 b:live:g1,g2 c:live:g1", "a:lapsed:- b:lapsed:- c:lapsed:-"
		f, set := follow(file, script("away", well, well, "away", "a:lapsed:- b:live:g1,g2 c:live:g1", dead, dead))
		if got := f.First().Basis; got != Everyone {
			t.Errorf("first %s", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx) }()
		time.Sleep(7 * AskEvery) // of the bubble's clock
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if got, want := strings.Join(*set, "\n"), strings.Join([]string{all, b, last}, "\n"); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
	f, set := follow(file, script("away"))
	if got := f.First().String(); got != b { // nobody has said anything else since
		t.Errorf("after a restart: %s", got)
	}
	f.look(t.Context())
	if len(*set) != 0 {
		t.Errorf("without an agent: %v", *set)
	}
}

func TestFollow_BadFile(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"rubbish": "{", "newer": `{"format": 2}`, "weight": `{"format": 1, "choice": {"shares": [{"site": "a", "weight": 0, "addresses": ["192.0.2.1"]}]}}`,
		"address": `{"format": 1, "choice": {"shares": [{"site": "a", "weight": 1, "addresses": ["192.0.2"]}]}}`} {
		file := filepath.Join(t.TempDir(), "dns.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, _ := follow(file, script("a:live:g1,g2 b:lapsed:- c:lapsed:-"))
		var log strings.Builder
		f.Log = slog.New(slog.NewTextHandler(&log, nil))
		if got := f.First().Basis; got != Everyone || !strings.Contains(log.String(), "refused the saved choice") {
			t.Errorf("%s: %s\n%s", name, got, log.String())
		}
		f.look(t.Context())
		if good, err := readChoice(file); err != nil || len(good.Shares) != 1 {
			t.Errorf("%s: not replaced: %v, %v", name, good, err)
		}
	}
}

func FuzzReadChoice(f *testing.F) {
	f.Add([]byte(`{"format":1,"choice":{"basis":"healthy","shares":[{"site":"a","weight":100,"addresses":["192.0.2.1"]}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "dns.json")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		last, _ := readChoice(file)
		for _, s := range Decide(three(), api.Health{}, last).Shares {
			site, ok := siteByID(three(), s.Site)
			if !ok || s.Weight < 1 || len(s.Addresses) == 0 || len(s.Addresses) > len(site.all()) {
				t.Fatalf("%+v", s)
			}
		}
	})
}
