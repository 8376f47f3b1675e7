package replicate

import (
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/change"
)

func TestOrder(t *testing.T) {
	t.Parallel()
	whole := func(pos change.Position) change.Tx {
		return change.Tx{Origin: "a", Position: pos, First: true, Last: true}
	}
	part := func(pos change.Position, first, last bool) change.Tx {
		return change.Tx{Origin: "a", Position: pos, First: first, Last: last}
	}
	for name, c := range map[string]struct {
		txs  []change.Tx
		want string // of the last; "" is accepted
	}{
		"one behind the other":      {[]change.Tx{whole(11), whole(12), whole(40)}, ""},
		"in parts":                  {[]change.Tx{part(11, true, false), part(11, false, false), part(11, false, true), whole(12)}, ""},
		"what is here already":      {[]change.Tx{whole(10)}, "behind position 10"},
		"the same again":            {[]change.Tx{whole(11), whole(11)}, "behind position 11"},
		"backwards":                 {[]change.Tx{whole(20), whole(15)}, "behind position 20"},
		"from another site":         {[]change.Tx{{Origin: "b", Position: 11, First: true, Last: true}}, `began at site "b"`},
		"without a beginning":       {[]change.Tx{part(11, false, true)}, "without the beginning"},
		"another one in the middle": {[]change.Tx{part(11, true, false), part(12, false, true)}, "in the middle of the transaction at 11"},
		"begun twice":               {[]change.Tx{part(11, true, false), part(11, true, true)}, "in the middle"},
		"a marker of another site": {[]change.Tx{{Origin: "a", Position: 11, First: true, Last: true,
			Markers: []change.Marker{{Kind: change.MarkerClosed, Site: "c"}}}}, `marker of site "c"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := order{origin: "a", last: 10}
			var err error
			for i := range c.txs {
				if err != nil {
					t.Fatal("refused too early:", err)
				}
				err = o.check(&c.txs[i])
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestPatience(t *testing.T) {
	t.Parallel()
	p := patience{10 * time.Millisecond, time.Second}
	for failures, want := range map[int]time.Duration{1: 10 * time.Millisecond, 2: 20 * time.Millisecond, 7: 640 * time.Millisecond, 8: time.Second, 1000: time.Second} {
		seen := make(map[time.Duration]bool)
		for range 100 {
			d := p.wait(failures)
			seen[d] = true
			if d < want/2 || d > want {
				t.Errorf("failure %d waits %s, want %s to %s", failures, d, want/2, want)
			}
		}
		if len(seen) < 10 {
			t.Errorf("failure %d has no jitter", failures)
		}
	}
}
