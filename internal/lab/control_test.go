package lab

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// aDeployment has paths and one process, and no databases.
func aDeployment(t *testing.T, dir string) *Deployment {
	t.Helper()
	d := &Deployment{Dir: dir, Network: testNetwork(t), Processes: testProcesses(t, nil), databases: map[topo.SiteID]*pgserver.Server{},
		at: map[topo.SiteID]*addresses{"a": {}, "b": {}, "w": {}}}
	if err := d.Processes.Start(roleCommand("a/agent", "polite")); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestObey(t *testing.T) {
	t.Parallel()
	d := aDeployment(t, t.TempDir())
	d.opts.Netns = true // what is said of packets is understood
	state := func(w Way, k Kind) condition { return d.Network.condition(w, k) }
	for _, step := range []struct {
		say  string
		then func() bool
	}{
		{"cut a b", func() bool {
			return state(Way{"a", "b"}, Link).cut && state(Way{"b", "a"}, StorePeer).cut && !state(Way{"a", "w"}, Link).cut
		}},
		{"heal b a", func() bool { return !state(Way{"a", "b"}, Link).cut && !state(Way{"b", "a"}, Link).cut }},
		{"cut-one-way a b link", func() bool {
			return state(Way{"a", "b"}, Link).cut && !state(Way{"b", "a"}, Link).cut && !state(Way{"a", "b"}, AgentAPI).cut
		}},
		{"delay b a 100ms", func() bool { return state(Way{"b", "a"}, Link).delay == testRTT/2+100*time.Millisecond }},
		{"lose a b 25% link", func() bool {
			return state(Way{"a", "b"}, Link).loss == 0.25 && state(Way{"b", "a"}, Link).loss == 0 && state(Way{"a", "b"}, AgentAPI).loss == 0
		}},
		{"lose a b 0 link", func() bool { return state(Way{"a", "b"}, Link).loss == 0 }},
		{"reset a b", func() bool { return state(Way{"a", "b"}, Link).cut }},
		{"kill a/agent", func() bool { return !d.Processes.Running("a/agent") }},
		{"restart a/agent", func() bool { return d.Processes.Running("a/agent") }},
	} {
		if _, err := d.Obey(t.Context(), strings.Fields(step.say)); err != nil || !step.then() {
			t.Errorf("%s: %v, done: %v", step.say, err, step.then())
		}
	}
	d.opts.Netns = false
	for _, bad := range []string{"lose a b 10%", "", "dance", "cut a", "cut a a", "cut a z", "cut a b everything", "delay a b", "delay a b soon", "delay a b -1s",
		"kill", "kill b/agent", "heal a b link", "pause a/agent b/agent"} {
		if text, err := d.Obey(t.Context(), strings.Fields(bad)); err == nil {
			t.Errorf("%q was obeyed: %s", bad, text)
		}
	}
}

func TestObey_Shares(t *testing.T) {
	t.Parallel()
	d := aDeployment(t, t.TempDir())
	d.opts.Netns = true
	for _, bad := range []string{"lose a b", "lose a b many", "lose a b -1%", "lose a b 101%", "lose a b NaN", "lose a b 10% wire"} {
		if text, err := d.Obey(t.Context(), strings.Fields(bad)); err == nil {
			t.Errorf("%q was obeyed: %s", bad, text)
		}
	}
}

func TestTell(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	if _, err := Tell(t.Context(), []string{"status"}); err == nil || !strings.Contains(err.Error(), "no lab runs here") {
		t.Errorf("without a lab: %v", err)
	}
	dir, dog, err := newRunFolder()
	if err != nil {
		t.Fatal(err)
	}
	d := aDeployment(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- d.serveControl(ctx) }()
	eventually(t, "the lab answers", func() bool { _, err := Tell(ctx, []string{"status"}); return err == nil })
	if text, err := Tell(ctx, []string{"cut", "a", "b"}); err != nil || !strings.Contains(text, "a→b") || !d.Network.condition(Way{"a", "b"}, Link).cut {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := Tell(ctx, []string{"dance"}); err == nil || !strings.Contains(err.Error(), "no order") {
		t.Errorf("%v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := dog.done(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(tmp + "/" + runPrefix + "*"); len(left) != 1 { // the folder itself is Close's to remove
		t.Errorf("%v", left)
	}
}
