package agent

import (
	"path/filepath"
	"testing"

	"github.com/google/uuid"
)

// TestLockState: a run learns who ran before it, and only once that one has ended.
func TestLockState(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state", "agent-a.lock")
	first, second, third := uuid.NewString(), uuid.NewString(), uuid.NewString()
	unlock, previous, err := lockState(path, first)
	if err != nil || previous != "" {
		t.Fatalf("first run: previous %q, %v", previous, err)
	}
	nothing, previous, err := lockState(path, second)
	if err != nil || previous != "" {
		t.Fatalf("a second run beside the first: previous %q, %v; want it to know nothing", previous, err)
	}
	nothing()
	unlock()
	unlock, previous, err = lockState(path, third)
	if err != nil || previous != first {
		t.Fatalf("a run behind the first: previous %q, %v; want %s", previous, err, first)
	}
	unlock()
}
