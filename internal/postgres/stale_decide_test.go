package postgres

import "testing"

func TestFullXID(t *testing.T) {
	t.Parallel()
	const wrap = 1 << 32
	for _, c := range []struct {
		near uint64
		bits uint32
		want uint64
	}{
		{1000, 1000, 1000}, {1000, 900, 900}, {1000, 1100, 1100}, // a later one: the row was written while we decided
		{wrap + 5, 5, wrap + 5}, {wrap + 5, wrap - 5, wrap - 5}, {wrap - 5, 7, wrap + 7}, {3*wrap + 10, 20, 3*wrap + 20},
	} {
		if got := fullXID(c.near, c.bits); got != c.want {
			t.Errorf("near %d, bits %d: %d; want %d", c.near, c.bits, got, c.want)
		}
	}
}
