package lab

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/pgserver"
)

// The test binary is also the processes that the tests start: roleEnv names what it shall be.
const roleEnv = "ATOLL_LAB_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(playRole(role))
	}
	code := pgserver.RunMain(m)
	if err := closeFaultWorld(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func playRole(role string) int {
	switch role {
	case "polite":
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Println("up")
		<-term
		fmt.Println("down")
		return 0
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("up")
		select {}
	case "ticker": // shows by its log whether it runs
		for n := 0; ; n++ {
			fmt.Println(n)
			time.Sleep(5 * time.Millisecond)
		}
	case "short":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "complaint")
		return 3
	case "lab":
		return playLab()
	case "netns-lab":
		if err := playNamespaceLab(); err != nil {
			fmt.Println(err)
		}
		return 1
	}
	return 9
}

// playLab is a lab that is about to be killed: it prints its folder and its child's process id.
func playLab() int {
	dir, _, err := newRunFolder()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	p := NewProcesses(dir, nil)
	c := roleCommand("child", "stubborn")
	c.Env = append(c.Env, runEnv+"="+dir)
	if err := p.Start(c); err != nil {
		fmt.Println(err)
		return 1
	}
	proc, _ := p.find("child", false)
	fmt.Println(dir, proc.child.Process.Pid)
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	select {}
}

func roleCommand(name, role string) Command {
	return Command{Name: name, Path: os.Args[0], Env: []string{roleEnv + "=" + role}}
}

// eventually waits for a condition of the outside world.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}
