package supervise

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary plays the child, and, in one test, the supervisor that is killed.
func TestMain(m *testing.M) {
	switch os.Getenv("SUPERVISE_ROLE") {
	case "":
		goleak.VerifyTestMain(m)
	case "child":
		os.Stdout.WriteString("up\n")
		time.Sleep(time.Hour)
	case "relay": // takes over from the one before: writes its number, and ends when the next one has written its own
		os.Stdout.WriteString("relay " + strconv.Itoa(os.Getpid()) + "\n")
		mark := os.Getenv("SUPERVISE_DIR") + "/"
		before, _ := os.ReadFile(mark + "now")
		if string(before) == "poison" {
			os.Exit(4)
		}
		_ = os.WriteFile(mark+"now", []byte(strconv.Itoa(os.Getpid())), 0o600)
		for {
			if now, _ := os.ReadFile(mark + "now"); len(now) > 0 && string(now) != strconv.Itoa(os.Getpid()) && string(now) != "poison" {
				os.Exit(0)
			}
			time.Sleep(5 * time.Millisecond)
		}
	case "crash":
		os.Stdout.WriteString("crash\n")
		os.Exit(3)
	case "supervisor":
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SUPERVISE_ROLE=child")
		cmd.Stdout = os.Stdout
		if _, err := Start(cmd); err != nil {
			os.Exit(1)
		}
		time.Sleep(time.Hour)
	}
}

func play(role string, out io.Writer) Child {
	return Child{Name: role, Path: os.Args[0], Env: append(os.Environ(), "SUPERVISE_ROLE="+role), Output: out}
}

func TestRun_RestartsWhatEndsAndStopsAll(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, slog.New(slog.DiscardHandler), play("child", w), play("crash", w)) }()
	lines := bufio.NewScanner(r)
	crashes, ups := 0, 0
	for crashes < 3 || ups < 1 {
		if !lines.Scan() {
			t.Fatal("the children's output ended")
		}
		switch lines.Text() {
		case "crash":
			crashes++
		case "up":
			ups++
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.Close() // no child holds the pipe any more, so its end is seen
	rest, err := io.ReadAll(r)
	if err != nil || strings.Contains(string(rest), "up") {
		t.Fatalf("after the end: %q, %v", rest, err)
	}
	r.Close()
}

func TestRun_ProgramDoesNotExist(t *testing.T) {
	t.Parallel()
	err := Run(t.Context(), slog.New(slog.DiscardHandler), Child{Name: "gateway", Path: "/does/not/exist"})
	if err == nil || !strings.Contains(err.Error(), "start gateway") {
		t.Fatal(err)
	}
}

func TestStart_ChildDiesWithItsSupervisor(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SUPERVISE_ROLE=supervisor")
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	in := bufio.NewReader(r)
	if line, err := in.ReadString('\n'); err != nil || line != "up\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if _, err := in.ReadString('\n'); err != io.EOF {
		t.Fatalf("the child still holds its output: %v", err)
	}
	r.Close()
}

// A child has what its thread was given before the start, and no other thread has.
func TestStartWithin(t *testing.T) {
	t.Parallel()
	nice := func() int { // as the kernel has it: 20 less than nothing
		n, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
		if err != nil {
			t.Fatal(err)
		}
		return 20 - n
	}
	before := nice()
	if before > 15 {
		t.Skip("too nice already to be nicer")
	}
	out, err := os.CreateTemp(t.TempDir(), "nice")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("nice") // prints its own
	cmd.Stdout = out
	p, err := StartWithin(cmd, func() error { return syscall.Setpriority(syscall.PRIO_PROCESS, 0, before+3) })
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done
	said, err := os.ReadFile(out.Name())
	if want := strconv.Itoa(before + 3); err != nil || strings.TrimSpace(string(said)) != want {
		t.Errorf("the child is nice by %q, %v; want %s", said, err, want)
	}
	if got := nice(); got != before {
		t.Errorf("the test is nice by %d, was by %d", got, before)
	}
	refused := errors.New("no entry")
	if _, err := StartWithin(exec.Command("nice"), func() error { return refused }); !errors.Is(err, refused) {
		t.Errorf("%v, want %v", err, refused)
	}
}

// A renewed child is another process, and nothing is started again for it; one that cannot take over leaves the running one.
func TestRun_Renews(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dir := t.TempDir()
	renew := make(chan struct{})
	c := play("relay", w)
	c.Env, c.Renew = append(c.Env, "SUPERVISE_DIR="+dir), renew
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, slog.New(slog.DiscardHandler), c) }()
	lines := bufio.NewScanner(r)
	next := func() (pid string) {
		if !lines.Scan() {
			t.Fatal("the children's output ended")
		}
		return strings.TrimPrefix(lines.Text(), "relay ")
	}
	alive := func(pid string) bool {
		n, _ := strconv.Atoi(pid)
		return syscall.Kill(n, 0) == nil
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("not within 20 s: " + what)
			}
		}
	}
	wrote := func(pid string) func() bool {
		return func() bool { now, _ := os.ReadFile(dir + "/now"); return string(now) == pid }
	}
	first := next()
	until("the first is there", wrote(first))
	renew <- struct{}{}
	second := next()
	until("the first has ended", func() bool { return !alive(first) })
	if !alive(second) || first == second {
		t.Errorf("%s was renewed by %s", first, second)
	}
	if err := os.WriteFile(dir+"/now", []byte("poison"), 0o600); err != nil {
		t.Fatal(err)
	}
	renew <- struct{}{}
	third := next()
	until("the third has given up", func() bool { return !alive(third) })
	if !alive(second) {
		t.Error("the running one ended although nobody took over")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if alive(second) {
		t.Error("it outlived its supervisor")
	}
	w.Close()
	for lines.Scan() {
		t.Errorf("another one was started: %s", lines.Text())
	}
}
