package postgres

import (
	"slices"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/change"
)

func TestRoomFollowsConflictsAndPace(t *testing.T) {
	t.Parallel()
	w := &applyWorker{Applier: &Applier{cfg: ApplyConfig{BatchRows: 4000}}}
	group := make([]change.Tx, 100)
	for i := range group {
		group[i].Rows = make([]change.Row, 30)
	}
	for _, step := range []struct {
		do   func()
		want int
	}{
		{func() {}, 100}, {w.crowded, 16}, {w.crowded, 2}, {w.crowded, 2}, // 500, 64 and again 64 rows
		{w.eased, 4}, {w.eased, 8}, {w.eased, 17}, {w.eased, 34}, {w.eased, 68}, {w.eased, 100}, {w.eased, 100},
	} {
		step.do()
		if got := len(w.some(group)); got != step.want {
			t.Errorf("room for %d rows: %d transactions; want %d", w.room, got, step.want)
		}
	}
	for _, step := range []struct {
		rows int
		took time.Duration
		want int
	}{{3000, longest, 100}, {3000, 2 * longest, 50}, {1500, 2 * longest, 25}, {750, longest, 50}, {100, time.Minute, 2}, {50, time.Minute, 2}, {60, time.Millisecond, 4}} {
		w.paced(step.rows, step.took)
		if got := len(w.some(group)); got != step.want {
			t.Errorf("after %d rows in %s room for %d rows: %d transactions; want %d", step.rows, step.took, w.room, got, step.want)
		}
	}
	w.crowded()
	group[0].Rows = make([]change.Row, 9000)
	if got := len(w.some(group)); got != 1 {
		t.Errorf("a transaction larger than the room: %d; want it alone", got)
	}
}

// What is here when the worker is idle shares its transaction, up to a batch; nothing waits for more.
func TestFeed_TakesWhatIsHere(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rows int // of a batch
		want []int
	}{{4000, []int{10}}, {4, []int{4, 4, 2}}} {
		a := &Applier{cfg: ApplyConfig{BatchRows: c.rows, BatchBytes: 4 << 20}}
		in := make(chan change.Tx, 10)
		for i := range cap(in) {
			in <- change.Tx{Position: change.Position(i + 1), Rows: make([]change.Row, 1), First: true, Last: true}
		}
		close(in)
		work, idle, ended := make(chan []change.Tx), make(chan struct{}, 1), make(chan error, 1)
		go func() {
			ended <- a.feed(t.Context(), in, work, idle)
			close(work)
		}()
		var got []int
		for group := range work {
			got = append(got, len(group))
			idle <- struct{}{}
		}
		if err := <-ended; err != nil || !slices.Equal(got, c.want) {
			t.Errorf("batches of %d rows: %v, want %v; %v", c.rows, got, c.want, err)
		}
	}
}

// A message without content is an error and no panic.
func TestCapture_EmptyMessage(t *testing.T) {
	t.Parallel()
	s := &captureStream{decoder: newPgDecoder()}
	if err := s.copyData(t.Context(), append([]byte("w"), make([]byte, 24)...)); err == nil {
		t.Error("no error")
	}
}
