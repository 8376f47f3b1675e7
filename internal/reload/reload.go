// Package reload keeps what was read from files up to date without a restart.
//
// The main type is [Value]: Get returns what the files held when they were last read and were good. It looks at them on
// use, at most once a second, so nothing runs in the background. It guarantees that files that became broken, or of which
// only one was replaced yet, leave the last good ones in use, and that this is reported once for each reason. It refuses
// to begin with files that do not load.
package reload

import (
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// lookEvery is how often the files are looked at, if anybody asks.
const lookEvery = time.Second

// Value is what files held at one moment. It is safe for concurrent use.
type Value[T any] struct {
	paths  []string
	load   func() (T, error)
	report func(error)
	start  time.Time
	next   atomic.Int64 // when to look again, from start
	inUse  atomic.Pointer[T]
	mu     struct {
		sync.Mutex
		seen     []fs.FileInfo // of the files when they were last read, whether or not they loaded
		reported string
	}
}

// Open reads the files; load makes of them what Get returns, and must not change it later. report is told why changed files
// do not load, and nil when they do.
func Open[T any](load func() (T, error), report func(error), paths ...string) (*Value[T], error) {
	v := &Value[T]{paths: paths, load: load, report: report, start: time.Now()}
	v.mu.seen = v.stat() // before reading: what is replaced meanwhile is read again
	first, err := load()
	if err != nil {
		return nil, err
	}
	v.inUse.Store(&first)
	v.next.Store(int64(lookEvery))
	return v, nil
}

// Get returns what the files hold, or held when they were good.
func (v *Value[T]) Get() T {
	if now := int64(time.Since(v.start)); now >= v.next.Load() && v.mu.TryLock() {
		v.lookLocked()
		v.next.Store(now + int64(lookEvery))
		v.mu.Unlock()
	}
	return *v.inUse.Load()
}

func (v *Value[T]) lookLocked() {
	seen := v.stat()
	if same(seen, v.mu.seen) {
		return
	}
	v.mu.seen = seen
	fresh, err := v.load()
	if err != nil {
		if text := err.Error(); text != v.mu.reported {
			v.mu.reported = text
			v.report(err)
		}
		return
	}
	v.mu.reported = ""
	v.inUse.Store(&fresh)
	v.report(nil)
}

func (v *Value[T]) stat() []fs.FileInfo {
	out := make([]fs.FileInfo, len(v.paths))
	for i, path := range v.paths {
		if info, err := os.Stat(path); err == nil { // else loading says so
			out[i] = info
		}
	}
	return out
}

func same(a, b []fs.FileInfo) bool {
	for i, x := range a {
		y := b[i]
		if x == nil || y == nil {
			return false // what is missing is looked for each time
		}
		if !os.SameFile(x, y) || x.Size() != y.Size() || !x.ModTime().Equal(y.ModTime()) {
			return false
		}
	}
	return true
}
