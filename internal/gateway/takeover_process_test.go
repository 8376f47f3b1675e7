package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/supervise"
)

// process is the configuration of a gateway that the test binary runs as a process of its own.
type process struct{ Users, Admin, App, Agent, StateDir string }

func runProcess(text string) int {
	var p process
	must0(json.Unmarshal([]byte(text), &p))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	gw, err := New(Config{
		Site: "a", Name: "g1", Listen: Listen{Users: p.Users, Admin: p.Admin}, Routes: testRoutes, Keyspaces: testSpaces,
		Upstreams: map[string]Upstream{"app": At(p.App)}, Agents: []Agent{{Site: "a", URL: p.Agent}}, StateDir: p.StateDir, Takeover: true,
		Grace: 2 * time.Second, Linger: 3 * time.Second, Log: slog.New(slog.NewTextHandler(os.Stdout, nil)).With("pid", os.Getpid()),
	})
	if err == nil {
		err = gw.Run(ctx)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// follow tells the process numbers of those that serve, as their logs say it.
func follow(t *testing.T, out io.Reader) <-chan int {
	serving := make(chan int, 100)
	line := regexp.MustCompile(`msg=serving pid=(\d+)`)
	go func() { // ends with out
		defer close(serving)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			t.Log(lines.Text())
			if m := line.FindStringSubmatch(lines.Text()); m != nil {
				pid, _ := strconv.Atoi(m[1])
				serving <- pid
			}
		}
	}()
	return serving
}

// As `atoll up` does it: real processes, one after the other, beside a supervisor that starts again what ends; and one that is
// killed in the middle of its takeover. Clients that send nothing again notice none of it.
func TestTakeoverBetweenProcesses(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", echo("a"))
	publish(half(), 1, s)
	p := process{Users: freeAddr(t), Admin: freeAddr(t), App: s.app.URL, Agent: s.agent.URL, StateDir: t.TempDir()}
	text, err := json.Marshal(p)
	must0(err)
	r, w, err := os.Pipe()
	must0(err)
	serving := follow(t, r)
	renew := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- supervise.Run(ctx, slog.New(slog.DiscardHandler), supervise.Child{Name: "gateway", Path: os.Args[0],
			Env: append(os.Environ(), "GATEWAY_TEST_PROCESS="+string(text)), Output: w, Renew: renew})
	}()
	defer func() {
		cancel()
		must0(<-ended)
		must0(w.Close())
		for pid := range serving {
			t.Errorf("process %d served that nobody asked for", pid)
		}
		must0(r.Close())
	}()

	current := <-serving
	client := newClient(t)
	eventually(t, "it serves", func() bool {
		req, _ := http.NewRequest("POST", "http://"+p.Users+"/users", strings.NewReader("x"))
		req.Header.Set("X-User", keyIn(0))
		resp, err := client.Do(req)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
	loading, endLoad := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var answered atomic.Int64
	for i := range 6 {
		tr := &http.Transport{DisableKeepAlives: i%2 == 1}
		load.Go(func() {
			defer tr.CloseIdleConnections()
			for loading.Err() == nil {
				req, _ := http.NewRequest("POST", "http://"+p.Users+"/users", io.NopCloser(strings.NewReader("x"))) // cannot be sent again
				req.Header.Set("X-User", keyIn(0))
				resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("client %d: %v %v", i, resp, err)
					return
				}
				answered.Add(1)
			}
		})
	}
	for range 3 {
		before := answered.Load()
		renew <- struct{}{}
		next := <-serving
		if next == current {
			t.Error("the same process serves again")
		}
		eventually(t, "the old process has ended", func() bool { return syscall.Kill(current, 0) != nil })
		eventually(t, "clients are answered", func() bool { return answered.Load() > before+100 })
		current = next
	}
	// One that dies when it has the sockets, before it serves: the running one has not changed anything.
	conf := s.config()
	conf.Listen, conf.StateDir, conf.Takeover = Listen{Users: p.Users, Admin: p.Admin}, p.StateDir, true
	dying, err := New(conf)
	must0(err)
	dying.closeListeners()
	must0(dying.inherited.conn.Close())
	before := answered.Load()
	eventually(t, "clients are answered", func() bool { return answered.Load() > before+100 })
	endLoad()
	load.Wait()
	if syscall.Kill(current, 0) != nil {
		t.Error("the running process has gone")
	}
	t.Logf("%d answers", answered.Load())
}
