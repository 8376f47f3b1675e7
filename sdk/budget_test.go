package sdk

import "testing"

func TestBudget_AFifthAndAFew(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ underWay, again int }{{1, 1}, {30, 10}, {50, 10}, {200, 40}} {
		var b budget
		var shares []*share
		for range c.underWay {
			shares = append(shares, b.begin())
		}
		got := 0
		for range 2 { // whoever may once may twice
			got = 0
			for _, s := range shares {
				if s.spend() {
					got++
				}
			}
		}
		if got != c.again {
			t.Errorf("of %d under way %d are sent again, want %d", c.underWay, got, c.again)
		}
		for _, s := range shares {
			s.end()
		}
		if b.underWay.Load() != 0 || b.again.Load() != 0 {
			t.Errorf("%d under way and %d again are left", b.underWay.Load(), b.again.Load())
		}
	}
}
