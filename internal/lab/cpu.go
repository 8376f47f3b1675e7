package lab

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// cpuTimes is what the kernel has counted since the machine began.
type cpuTimes struct {
	at     time.Time
	busy   time.Duration // of all cores together
	waited time.Duration // in which something that could run had to wait for a core; 0 where the kernel does not count that
}

// userHZ is the unit of /proc/stat, the same on every Linux that Go runs on.
const userHZ = 100

func readCPU() cpuTimes {
	t := cpuTimes{at: time.Now()}
	if data, err := os.ReadFile("/proc/stat"); err == nil {
		t.busy = busyOf(string(data))
	}
	if data, err := os.ReadFile("/proc/pressure/cpu"); err == nil {
		t.waited = waitedOf(string(data))
	}
	return t
}

// busyOf reads the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, in hundredths of a second.
func busyOf(stat string) time.Duration {
	var user, nice, system, idle, wait, irq, soft int64
	if _, err := fmt.Sscanf(stat, "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &soft); err != nil {
		return 0
	}
	return time.Duration(user+nice+system+irq+soft) * (time.Second / userHZ)
}

// waitedOf reads /proc/pressure/cpu: its line "some" ends with total=MICROSECONDS.
func waitedOf(pressure string) time.Duration {
	line, _, _ := strings.Cut(pressure, "\n")
	_, total, _ := strings.Cut(line, "total=")
	var us int64
	if _, err := fmt.Sscan(total, &us); err != nil {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// CPU says how much of the machine a run took: where something waits for a core most of the time, what takes long may
// take long because of that.
type CPU struct {
	Busy   float64 `json:"busy_cores"`   // on average
	Waited float64 `json:"waited_share"` // of the time
}

func (t cpuTimes) until(end cpuTimes) CPU {
	took := end.at.Sub(t.at).Seconds()
	if took <= 0 {
		return CPU{}
	}
	return CPU{Busy: round((end.busy-t.busy).Seconds()/took, 2), Waited: round((end.waited-t.waited).Seconds()/took, 2)}
}
