package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/mattn/go-isatty"
)

// leastEvery keeps a watch from being a load.
const leastEvery = 100 * time.Millisecond

// watch shows again and again, until ctx ends: on a terminal in place, elsewhere below one another. What cannot be
// shown for the moment does not end it.
func watch(ctx context.Context, out io.Writer, every time.Duration, show func(io.Writer) error) error {
	if every < leastEvery {
		return fmt.Errorf("--every %s; want at least %s", every, leastEvery)
	}
	redraw := isTerminal(out)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var page bytes.Buffer
		if err := show(&page); err != nil && ctx.Err() == nil {
			page.Reset()
			fmt.Fprintf(&page, "%s: %s\ntrying again\n", time.Now().Format(time.TimeOnly), oneLine(err.Error()))
		}
		if ctx.Err() != nil {
			return nil
		}
		text := page.Bytes()
		if redraw { // line by line over what is there, so that nothing flickers
			text = bytes.ReplaceAll(text, []byte("\n"), []byte("\x1b[K\n"))
			text = append(append([]byte("\x1b[H"), text...), "\x1b[J"...)
		}
		if _, err := out.Write(text); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func isTerminal(f any) bool {
	file, isFile := f.(*os.File)
	return isFile && isatty.IsTerminal(file.Fd()) && os.Getenv("TERM") != "dumb"
}

// plain makes foreign text fit for a terminal: nothing in it moves the cursor, colours, or answers back.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
}

// oneLine is foreign text as one line of moderate length.
func oneLine(s string) string { return shorten(plain(strings.Join(strings.Fields(s), " ")), 160) }

func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
