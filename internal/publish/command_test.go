package publish

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/dns"
)

// testDocument is a document of one name with an address of either family.
func testDocument() dns.Document {
	return dns.Document{Format: dns.DocumentFormat, Deployment: "tickets", Site: "a", Records: []dns.RecordSet{
		{Zone: "live.shop.example", Name: "live.shop.example", Type: "A", TTL: 30, Values: []string{"192.0.2.1", "198.51.100.1"}},
		{Zone: "live.shop.example", Name: "live.shop.example", Type: "AAAA", TTL: 30, Values: []string{"2001:db8::1"}},
	}}
}

// hook writes a script and returns a command that runs it.
func hook(t *testing.T, script string) Command {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return Command{Args: []string{"/bin/sh", path, filepath.Dir(path)}, Env: []string{"PATH=/usr/bin:/bin"}, Timeout: time.Minute}
}

func TestCommand_GetsTheDocument(t *testing.T) {
	t.Parallel()
	c := hook(t, `cat >"$1/got"; env >"$1/env"`)
	if err := c.Publish(t.Context(), testDocument()); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(c.Args[2], "got"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := dns.ReadDocument(f); err != nil || !got.Same(testDocument()) || got.Deployment != "tickets" {
		t.Errorf("%+v, %v", got, err)
	}
	env, err := os.ReadFile(filepath.Join(c.Args[2], "env"))
	if err != nil || strings.Contains(string(env), "HOME=") {
		t.Errorf("the hook has an environment that it was not given: %s, %v", env, err)
	}
}

func TestCommand_Fails(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3*saidMost)
	for name, c := range map[string]struct{ script, want string }{
		"with a word": {`echo "no such zone" >&2; exit 3`, "exit status 3: no such zone"},
		"at length":   {`echo ` + long + ` the end; exit 1`, " the end"},
		"silently":    {`exit 1`, "/bin/sh: exit status 1"},
	} {
		err := hook(t, c.script).Publish(t.Context(), testDocument())
		if err == nil || !strings.HasSuffix(err.Error(), c.want) || len(err.Error()) > 2*saidMost {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (Command{Args: []string{"/nonexistent"}, Timeout: time.Minute}).Publish(t.Context(), testDocument()); err == nil {
		t.Error("a program that does not exist has published")
	}
}

// TestCommand_IsBounded: what takes too long is killed with its children, at its timeout or when the role ends.
func TestCommand_IsBounded(t *testing.T) {
	t.Parallel()
	c := hook(t, `sleep 1000 & echo "it hangs"; wait`)
	c.Timeout = 200 * time.Millisecond
	began := time.Now()
	if err := c.Publish(t.Context(), testDocument()); err == nil || !strings.Contains(err.Error(), "killed after 200ms: it hangs") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, errors.New("not active any more"))
	defer cancel()
	c.Timeout = time.Hour
	if err := c.Publish(ctx, testDocument()); err == nil || err.Error() != "not active any more" {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("both took %v", took)
	}
}
