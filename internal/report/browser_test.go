package report

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/atollhq/atoll/internal/assess"
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
	stuck := time.AfterFunc(240*time.Second, cancel)
	t.Cleanup(func() { stuck.Stop() })
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil { // waits until the browser has gone: it writes to its profile until then
			t.Logf("browser: %v", err)
		}
		cancelTab()
	})
	return ctx
}

// faults finds what is wrong with a layout: text that leaves the page, its panel or its chart, text on text, charts
// whose axes say no unit, links that lead nowhere.
const faults = `(() => {
	const out = [], width = document.documentElement.clientWidth;
	if (document.documentElement.scrollWidth > width) out.push("the page is " + document.documentElement.scrollWidth + " wide, the window " + width);
	const texts = [];
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let n; (n = walk.nextNode());) {
		const e = n.parentElement;
		if (!n.data.trim() || e.closest("title") || !e.checkVisibility()) continue;
		const r = document.createRange();
		r.selectNodeContents(n);
		for (const b of r.getClientRects()) {
			if (b.width < 1 || b.height < 1) continue;
			const what = n.data.trim().slice(0, 40);
			if (b.left < -0.5 || b.right > width + 0.5) out.push(JSON.stringify(what) + " spans " + b.left + " to " + b.right + " of " + width);
			const box = e.closest("svg, .panel, body"), outer = box.getBoundingClientRect();
			const pad = box.matches("svg") ? 0 : parseFloat(getComputedStyle(box).paddingRight);
			if (b.right > outer.right - pad + 1 || b.left < outer.left - 1) out.push(JSON.stringify(what) + " leaves its " + box.tagName);
			texts.push({ what, n, b });
		}
	}
	texts.sort((p, q) => p.b.top - q.b.top);
	for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length && texts[j].b.top < texts[i].b.bottom; j++) {
		const p = texts[i], q = texts[j];
		if (p.n === q.n) continue;
		const x = Math.min(p.b.right, q.b.right) - Math.max(p.b.left, q.b.left), y = Math.min(p.b.bottom, q.b.bottom) - Math.max(p.b.top, q.b.top);
		if (x > 1 && y > 4) out.push(JSON.stringify(p.what) + " lies on " + JSON.stringify(q.what));
	}
	let charts = 0;
	for (const svg of document.querySelectorAll("svg.chart")) {
		if (!svg.checkVisibility()) continue;
		charts++;
		const labels = [...svg.querySelectorAll(".axis-label")].map((l) => l.textContent), ticks = svg.querySelectorAll(".tick").length;
		if (labels.length !== 2 || ticks < 2) out.push("a chart with axes " + JSON.stringify(labels) + " and " + ticks + " ticks");
		for (const l of labels) if (l !== "service" && !/\(.+\)$/.test(l)) out.push("an axis without a unit: " + l);
		if (/NaN|Infinity/.test(svg.outerHTML)) out.push("a chart with NaN");
	}
	if (charts < 5) out.push("only " + charts + " charts are seen");
	for (const a of document.querySelectorAll('a[href^="#"]')) if (!document.getElementById(decodeURIComponent(a.getAttribute("href").slice(1)))) out.push("nowhere: " + a.getAttribute("href"));
	const verdict = document.getElementById("verdict").getBoundingClientRect();
	if (verdict.bottom > innerHeight || verdict.height < 10) out.push("the first screen does not hold the verdict: it ends at " + verdict.bottom);
	return out.slice(0, 30);
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

// TestPageInABrowser: wide and narrow, light and dark, folded and open: nothing overlaps or runs out of the page, every
// chart has axes with units, every link leads somewhere, and the first screen says the verdict. ATOLL_SCREENSHOTS names
// a folder for pictures.
func TestPageInABrowser(t *testing.T) {
	t.Parallel()
	reports := map[string]*assess.Report{"small": assessed(t, "../assess/testdata/small.yaml"), "wide": wide(t), "tickets": assessed(t, "../../examples/estates/travel-tickets.yaml")}
	ctx := browser(t)
	shots := os.Getenv("ATOLL_SCREENSHOTS")
	dir := cmp.Or(shots, t.TempDir())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, r := range reports {
		var page bytes.Buffer
		if err := HTML(&page, r); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), name+".html")
		if err := os.WriteFile(file, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, width := range []int64{1280, 390} {
			do(t, ctx, name, chromedp.EmulateViewport(width, 900), prefer("light"), chromedp.Navigate("file://"+file))
			if name != "small" { // their appendices are like that of the small one
				do(t, ctx, "no appendix", chromedp.Evaluate[chromedp.Void](`document.getElementById("appendix").hidden = true`))
			}
			look := fmt.Sprintf("assess-%s-%d", name, width)
			for _, wrong := range ask(t, ctx, chromedp.Evaluate[[]string](faults)) {
				t.Errorf("%s: %s", look, wrong)
			}
			shoot(t, ctx, shots, look+"-light")
			if shots != "" {
				do(t, ctx, "dark", prefer("dark"))
				shoot(t, ctx, shots, look+"-dark")
			}
			do(t, ctx, "open all", chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("details").forEach((d) => { d.open = true; })`))
			for _, wrong := range ask(t, ctx, chromedp.Evaluate[[]string](faults)) {
				t.Errorf("%s, opened: %s", look, wrong)
			}
			if name == "small" { // opened, the others are as long as a book
				shoot(t, ctx, shots, look+"-open")
			}
		}
	}
}

// shoot takes a picture of the page without its appendix, where pictures are wanted.
func shoot(t *testing.T, ctx context.Context, dir, name string) {
	t.Helper()
	if dir == "" {
		return
	}
	do(t, ctx, "hide the appendix", chromedp.Evaluate[chromedp.Void](`new Promise((shown) => { const a = document.getElementById("appendix"); a.dataset.was = a.hidden; a.hidden = true; scrollTo(0, 0); requestAnimationFrame(() => requestAnimationFrame(() => shown())); })`, chromedp.EvalAwaitPromise))
	defer do(t, ctx, "show the appendix", chromedp.Evaluate[chromedp.Void](`(() => { const a = document.getElementById("appendix"); a.hidden = a.dataset.was === "true"; })()`))
	if err := os.WriteFile(filepath.Join(dir, name+".png"), ask(t, ctx, chromedp.FullScreenshot(100)), 0o644); err != nil {
		t.Fatal(err)
	}
}
