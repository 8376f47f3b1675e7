package lab

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-isatty"
)

// screen shows what happens now: on a terminal as lines that are redrawn, elsewhere as plain lines every few seconds.
type screen struct {
	w     io.Writer
	tty   bool
	began time.Time

	mu struct {
		sync.Mutex
		phase string
		drawn int // lines of the live part on the terminal
		plain time.Time
	}
}

// plainEvery is how often the live part becomes a plain line.
const plainEvery = 3 * time.Second

func newScreen(w io.Writer) *screen {
	f, isFile := w.(*os.File)
	s := &screen{w: w, began: time.Now()}
	s.tty = isFile && isatty.IsTerminal(f.Fd()) && os.Getenv("TERM") != "dumb"
	return s
}

// Colours, only on a terminal.
const (
	bold   = "1"
	green  = "32"
	red    = "31"
	yellow = "33"
	dim    = "2"
)

func (s *screen) paint(colour, text string) string {
	if !s.tty || os.Getenv("NO_COLOR") != "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (s *screen) elapsed() string {
	t := time.Since(s.began).Round(time.Second)
	return fmt.Sprintf("%d:%02d", int(t.Minutes()), int(t.Seconds())%60)
}

// say prints a line that stays, and names what happens now.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.phase = fmt.Sprintf(format, args...)
	s.eraseLocked()
	fmt.Fprintf(s.w, "%s  %s\n", s.paint(dim, fmt.Sprintf("%5s", s.elapsed())), s.mu.phase)
}

// live shows the state of things; each call replaces the one before.
func (s *screen) live(lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.tty {
		if time.Since(s.mu.plain) >= plainEvery*9/10 { // its caller, too, goes by plainEvery
			s.mu.plain = time.Now()
			fmt.Fprintf(s.w, "%5s  . %s\n", s.elapsed(), strings.Join(lines, " | "))
		}
		return
	}
	s.eraseLocked()
	fmt.Fprintf(s.w, "%s  %s\n", s.paint(dim, fmt.Sprintf("%5s", s.elapsed())), s.paint(bold, "now: "+s.mu.phase))
	for _, l := range lines {
		fmt.Fprintf(s.w, "       %s\n", l)
	}
	s.mu.drawn = len(lines) + 1
}

// done ends the live part.
func (s *screen) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eraseLocked()
}

func (s *screen) eraseLocked() {
	for range s.mu.drawn {
		fmt.Fprint(s.w, "\x1b[1A\x1b[2K")
	}
	s.mu.drawn = 0
}
