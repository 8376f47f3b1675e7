package shop

import (
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestElsewhere(t *testing.T) {
	t.Parallel()
	var e elsewhere
	start := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	one, two := job{ID: uuid.New()}, job{ID: uuid.New()}
	for at, tries := 0, 0; at <= 60; at++ {
		now := start.Add(time.Duration(at) * time.Second)
		jobs := e.due([]job{one, two}, now)
		switch len(jobs) {
		case 2:
			tries++
			e.refused(one.ID, now)
		case 1:
			if jobs[0].ID != two.ID {
				t.Fatal("a row that nobody refused was left out")
			}
		default:
			t.Fatal(jobs)
		}
		if at == 60 && (tries < 8 || tries > 12) { // after 0, 1, 2, 4, 8, 16, 24, … s
			t.Errorf("tried %d times in a minute", tries)
		}
	}
	if e.due(nil, start.Add(time.Hour)); len(e.rows) != 0 {
		t.Errorf("%d rows remembered", len(e.rows))
	}
}
