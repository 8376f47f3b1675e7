package dashboard

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/atollhq/atoll/internal/api"
)

// chromium is the browser's path, or the test is skipped: the page is then only tested as text.
func chromium(t *testing.T) string {
	t.Helper()
	names := []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless-shell"}
	if named := os.Getenv("ATOLL_CHROMIUM"); named != "" {
		names = []string{named}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skipf("no browser: none of %v is on the PATH; `make tools` installs chromium, or name one with ATOLL_CHROMIUM", names)
	return ""
}

// browser starts one with a profile of its own. It ends with the test.
func browser(t *testing.T) context.Context {
	t.Helper()
	path := chromium(t)
	flags := []chromedp.ExecAllocatorOption{chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.NoSandbox}
	for _, f := range []string{"headless", "disable-gpu", "disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars"} {
		flags = append(flags, chromedp.Flag(f, true))
	}
	all, cancel := chromedp.NewExecAllocator(context.Background(), flags...)
	t.Cleanup(cancel)
	ctx, cancelTab := chromedp.NewContext(all)
	stuck := time.AfterFunc(90*time.Second, cancel)
	t.Cleanup(func() { stuck.Stop() })
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil { // waits until the browser has gone: it writes to its profile until then
			t.Logf("browser: %v", err)
		}
		cancelTab()
	})
	return ctx
}

// shownPage is a page served on loopback whose status can be exchanged.
type shownPage struct {
	url    string
	status atomic.Pointer[api.Status]
	stop   context.CancelFunc
}

func servePage(t *testing.T, first api.Status) *shownPage {
	t.Helper()
	s := &shownPage{}
	s.status.Store(&first)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	ended := make(chan struct{})
	p := New(Config{Every: 100 * time.Millisecond, Status: func(context.Context, bool) api.Status { return *s.status.Load() }})
	go func() {
		defer close(ended)
		_ = Serve(ctx, ln, p)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return s
}

// faults finds what is wrong with a layout: text that goes beyond the page or its box, and text on text.
const faults = `(() => {
	const out = [], width = document.documentElement.clientWidth;
	if (document.documentElement.scrollWidth > width) out.push("the page is " + document.documentElement.scrollWidth + " wide, the window " + width);
	const texts = [];
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let n; (n = walk.nextNode());) {
		if (!n.data.trim() || n.parentElement.closest("noscript, title, svg") || !n.parentElement.checkVisibility()) continue;
		const r = document.createRange();
		r.selectNodeContents(n);
		for (const b of r.getClientRects()) {
			if (b.width < 1 || b.height < 1) continue;
			const what = n.data.trim().slice(0, 40);
			if (b.left < 0 || b.right > width + 0.5) out.push(JSON.stringify(what) + " spans " + b.left + " to " + b.right + " of " + width);
			const panel = n.parentElement.closest(".panel, .problems, body"), inside = panel.getBoundingClientRect().right - parseFloat(getComputedStyle(panel).paddingRight);
			if (b.right > inside + 0.5) out.push(JSON.stringify(what) + " leaves its panel");
			texts.push({ what, n, b });
		}
	}
	for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
		const p = texts[i], q = texts[j];
		if (p.n === q.n) continue;
		const x = Math.min(p.b.right, q.b.right) - Math.max(p.b.left, q.b.left), y = Math.min(p.b.bottom, q.b.bottom) - Math.max(p.b.top, q.b.top);
		if (x > 1 && y > 4) out.push(JSON.stringify(p.what) + " lies on " + JSON.stringify(q.what));
	}
	for (const e of document.querySelectorAll("[style]")) out.push("an inline style: " + e.outerHTML.slice(0, 60));
	return out;
})()`

func do(t *testing.T, ctx context.Context, what string, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func ask[T any](t *testing.T, ctx context.Context, question chromedp.Action[T]) T {
	t.Helper()
	answer, err := chromedp.Run(ctx, question)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func prefer(scheme string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		_, err := cdp.Call(ctx, tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		return err
	})
}

// shoot finds faults and takes a picture.
func shoot(t *testing.T, ctx context.Context, file string) {
	t.Helper()
	for _, wrong := range ask(t, ctx, chromedp.Evaluate[[]string](faults)) {
		t.Errorf("%s: %s", filepath.Base(file), wrong)
	}
	if err := os.WriteFile(file, ask(t, ctx, chromedp.FullScreenshot(100)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestPageInABrowser: in light and dark, wide and narrow, nothing overlaps or runs out of the page; nothing is refused
// by the content policy; the page follows its server and says when it is not fed any more.
func TestPageInABrowser(t *testing.T) {
	t.Parallel()
	ctx := browser(t)
	served := servePage(t, calm())
	dir := cmp.Or(os.Getenv("ATOLL_SCREENSHOTS"), t.TempDir())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var complaint atomic.Pointer[string]
	err := chromedp.Listen(ctx, func(ev any) {
		switch e := ev.(type) {
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError && !strings.Contains(e.Entry.Text, "ERR_") { // not those of a server that went
				complaint.Store(&e.Entry.Text)
			}
		case *cdpruntime.EventExceptionThrown:
			complaint.Store(&e.ExceptionDetails.Text)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, st := range map[string]api.Status{"calm": calm(), "stormy": stormy()} {
		served.status.Store(&st)
		for _, width := range []int64{1280, 390} {
			for _, scheme := range []string{"light", "dark"} {
				look := fmt.Sprintf("%s-%d-%s", name, width, scheme)
				do(t, ctx, look, chromedp.EmulateViewport(width, 900), prefer(scheme), chromedp.Navigate(served.url), chromedp.WaitVisible("#fresh.live"))
				shoot(t, ctx, filepath.Join(dir, look+".png"))
			}
		}
	}
	follows(t, ctx, served, dir)
	if said := complaint.Load(); said != nil {
		t.Errorf("the browser complains: %s", *said)
	}
}

// follows: an event changes the page in place, what the reader opened stays open, and the end of events is told.
func follows(t *testing.T, ctx context.Context, served *shownPage, dir string) {
	before, after := calm(), stormy()
	served.status.Store(&before)
	const read = `details[data-key="20260314-114020.444-10c3"]`
	do(t, ctx, "open a handover", prefer("light"), chromedp.EmulateViewport(390, 900), chromedp.Navigate(served.url), chromedp.WaitVisible("#problems.calm"),
		chromedp.Click(read+" summary"), chromedp.Evaluate[chromedp.Void](`document.body.dataset.mine = "kept"`))
	served.status.Store(&after)
	do(t, ctx, "follow", chromedp.WaitVisible("#problems.problems"), chromedp.WaitVisible("#tails"))
	if !ask(t, ctx, chromedp.Evaluate[bool](`document.querySelector('`+read+`').open`)) {
		t.Error("an event closes what was opened")
	}
	if !ask(t, ctx, chromedp.Evaluate[bool](`document.body.dataset.mine === "kept"`)) {
		t.Error("an event loads the page again")
	}
	do(t, ctx, "open all", chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("details").forEach((d) => { d.open = true; })`))
	shoot(t, ctx, filepath.Join(dir, "opened-390.png"))
	do(t, ctx, "open all, wide", chromedp.EmulateViewport(1280, 900))
	shoot(t, ctx, filepath.Join(dir, "opened-1280.png"))
	served.stop()
	do(t, ctx, "silence", chromedp.WaitVisible("#fresh.old"))
	shoot(t, ctx, filepath.Join(dir, "silent-1280.png"))
	if said := ask(t, ctx, chromedp.Text("#fresh")); !strings.Contains(said, "No news for") || !strings.Contains(said, "12:00:30 UTC") {
		t.Errorf("the page that is not fed says %q", said)
	}
}
