package lab

import (
	"testing"
	"time"
)

func TestCPU(t *testing.T) {
	begin := time.Unix(1000, 0)
	a := cpuTimes{begin, busyOf("cpu  344211 50210 204511 216187 1800 0 19204 0 0 0\ncpu0 1 2 3\n"), waitedOf("some avg10=81.19 avg60=71.31 avg300=81.00 total=2000000\nfull avg10=0.00 total=0\n")}
	b := cpuTimes{begin.Add(10 * time.Second), busyOf("cpu 345211 50210 205011 216687 1800 0 19204"), waitedOf("some avg10=0 avg60=0 avg300=0 total=10000000")}
	if got := a.until(b); got != (CPU{1.5, 0.8}) {
		t.Errorf("%+v", got)
	}
	for _, text := range []string{"", "cpu", "some total=", "intr 1", "some avg10=1\nfull total=5\n"} {
		if busyOf(text) != 0 || waitedOf(text) != 0 {
			t.Errorf("%q: %v, %v", text, busyOf(text), waitedOf(text))
		}
	}
	if got := (cpuTimes{at: begin}).until(cpuTimes{at: begin}); got != (CPU{}) {
		t.Errorf("%+v", got)
	}
}
