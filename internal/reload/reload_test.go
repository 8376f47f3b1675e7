package reload

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestChangedFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		load := func() (string, error) {
			data, err := os.ReadFile(path)
			if err == nil && string(data) == "broken" {
				err = errors.New("it is broken")
			}
			return string(data), err
		}
		var reports []error
		if _, err := Open(load, nil, path); err == nil {
			t.Fatal("began without its file")
		}
		put("one")
		v, err := Open(load, func(err error) { reports = append(reports, err) }, path)
		if err != nil {
			t.Fatal(err)
		}
		put("other")
		if v.Get() != "one" {
			t.Error("it looked before a second was over")
		}
		time.Sleep(lookEvery)
		if got := v.Get(); got != "other" || len(reports) != 1 || reports[0] != nil {
			t.Errorf("got %q, %v", got, reports)
		}
		put("broken")
		for range 3 {
			time.Sleep(lookEvery)
			if got := v.Get(); got != "other" {
				t.Errorf("got %q, want the last good one", got)
			}
		}
		if len(reports) != 2 || reports[1] == nil {
			t.Errorf("reported %v, want the broken file once", reports)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery)
		if got := v.Get(); got != "other" || len(reports) != 3 {
			t.Errorf("got %q, %v", got, reports)
		}
		put("new")
		time.Sleep(lookEvery)
		if got := v.Get(); got != "new" || len(reports) != 4 || reports[3] != nil {
			t.Errorf("got %q, %v", got, reports)
		}
	})
}
