package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// OverloadBenchOptions say how to measure what a gateway does where more comes than its services can do.
type OverloadBenchOptions struct {
	Atoll  string        // binary
	Out    string        // folder of the report
	Length time.Duration // of the overload, default 60 s
	Times  float64       // what the service can do, default 5
	JSON   bool          // print the report as JSON to Stdout, the progress to Stderr
	Stdout io.Writer     // default os.Stdout
	Stderr io.Writer     // default os.Stderr
}

// Of the service that is overloaded, and of those whose neighbour gets slow.
const (
	narrowSlots  = 10
	narrowTakes  = 20 * time.Millisecond
	neighbours   = 3
	slowTimes    = 20
	neighbourRPS = 150
)

// What is to be kept.
const (
	goodputLeast   = 0.8
	memoryMostMiB  = 200
	recoverWithin  = 5 * time.Second
	neighbourTimes = 2
)

// OverloadBenchReport is out/bench-overload.json.
type OverloadBenchReport struct {
	Overload   OverloadFigures  `json:"overload"`
	Instance   NeighbourFigures `json:"slow_instance"` // one of three instances of a service gets slow
	Service    NeighbourFigures `json:"slow_service"`  // one of three services gets slow
	Kept       bool             `json:"kept"`
	Broken     []string         `json:"broken,omitempty"`
	Cores      int              `json:"cores"`
	MemoryMiB  int              `json:"memory_mib"`
	Kernel     string           `json:"kernel"`
	At         string           `json:"at"`
	LoadBefore float64          `json:"load_average_before"`
	LoadAfter  float64          `json:"load_average_after"`
}

// OverloadFigures are those of one service under more than it can do.
type OverloadFigures struct {
	CanRPS       float64 `json:"service_can_rps"`
	OfferedRPS   float64 `json:"offered_rps"`
	Seconds      float64 `json:"seconds"`
	GoodRPS      float64 `json:"good_rps"`
	Goodput      float64 `json:"goodput"` // of what the service can do
	Shed         int64   `json:"shed"`    // 503 with reason overload
	Other        int64   `json:"other"`   // ended in any other way
	GoodP50MS    float64 `json:"good_p50_ms"`
	GoodP99MS    float64 `json:"good_p99_ms"`
	ShedP99MS    float64 `json:"shed_p99_ms"`
	Limit        float64 `json:"limit_at_the_end"`
	RSSBeforeMiB float64 `json:"rss_before_mib"`
	RSSMostMiB   float64 `json:"rss_most_mib"`
	RecoveredMS  float64 `json:"recovered_ms"` // after the overload: the last request that was shed
	AfterShed    int64   `json:"shed_after"`   // in ten seconds of half of what it can do
}

// NeighbourFigures are those of the two whose neighbour gets slow.
type NeighbourFigures struct {
	BeforeP99MS float64 `json:"others_p99_before_ms"`
	WithP99MS   float64 `json:"others_p99_with_ms"`
	Times       float64 `json:"times"`
	SlowShare   float64 `json:"slow_share"` // of the answers, that came from the slow one
	Shed        int64   `json:"shed"`
}

// bench has the services, and the gateway before them.
type overloadBench struct {
	opts    OverloadBenchOptions
	gateway *loneGateway
	client  *http.Client
	slow    atomic.Bool
}

// BenchOverload measures a gateway in a process of its own. It fails if what is to be kept is not.
func BenchOverload(ctx context.Context, o OverloadBenchOptions) (err error) {
	o.Length, o.Times, o.Out = cmp.Or(o.Length, time.Minute), cmp.Or(o.Times, 5), cmp.Or(o.Out, "out")
	if o.Stdout == nil {
		o.Stdout, o.Stderr = os.Stdout, os.Stderr
	}
	progress := o.Stdout
	if o.JSON {
		progress = o.Stderr
	}
	b := &overloadBench{opts: o, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2000}, Timeout: 20 * time.Second}}
	say := func(format string, args ...any) { fmt.Fprintf(progress, format+"\n", args...) }
	r := &OverloadBenchReport{At: time.Now().UTC().Format(time.RFC3339), LoadBefore: loadAverage()}
	closeApps, upstreams, err := b.services()
	defer closeApps()
	if err != nil {
		return err
	}
	if b.gateway, err = startLoneGateway(ctx, o.Atoll, func(s *spec.Spec) {
		s.Sites[loneSite].Upstreams = upstreams
		s.Keyspaces = map[topo.KeyspaceID]*spec.Keyspace{"all": {Buckets: 1}} // a view shows something
		for _, name := range slices.Sorted(maps.Keys(upstreams)) {
			s.Routes = append(s.Routes, &spec.Route{Name: name, Match: spec.Match{Path: "/" + name}, Upstream: name})
		}
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.gateway.close()) }()

	say("a service that can do %.0f requests/s gets %.0f/s for %s", narrowCan(), o.Times*narrowCan(), o.Length)
	if r.Overload, err = b.overload(ctx); err != nil {
		return err
	}
	f := r.Overload
	say("  goodput %.1f %% (%.0f/s), p50 %.0f ms, p99 %.0f ms; shed %d (p99 %.1f ms), other ends %d; limit %.0f", 100*f.Goodput, f.GoodRPS, f.GoodP50MS, f.GoodP99MS, f.Shed, f.ShedP99MS, f.Other, f.Limit)
	say("  memory %.0f MiB before, %.0f MiB at most; behind it the last one was shed after %.0f ms", f.RSSBeforeMiB, f.RSSMostMiB, f.RecoveredMS)
	if r.Instance, err = b.neighbour(ctx, []string{"pool"}); err != nil {
		return err
	}
	say("one of three instances gets %d times as slow: p99 of the others' answers %.1f ms before, %.1f ms with it; it gives %.1f %% of the answers", slowTimes, r.Instance.BeforeP99MS, r.Instance.WithP99MS, 100*r.Instance.SlowShare)
	if r.Service, err = b.neighbour(ctx, []string{"svc0", "svc1", "svc2"}); err != nil {
		return err
	}
	say("one of three services gets %d times as slow: p99 of the others' answers %.1f ms before, %.1f ms with it", slowTimes, r.Service.BeforeP99MS, r.Service.WithP99MS)
	r.finish()
	if err := writeReport(filepath.Join(o.Out, "bench-overload.json"), r, o.JSON, o.Stdout); err != nil {
		return err
	}
	if !r.Kept {
		return fmt.Errorf("lab: not kept: %v", r.Broken)
	}
	say("all is kept")
	return nil
}

func narrowCan() float64 { return narrowSlots / narrowTakes.Seconds() }

// services starts the applications.
func (b *overloadBench) services() (closeAll func(), upstreams map[string]*spec.Upstream, err error) {
	var servers []*http.Server
	closeAll = func() {
		for _, s := range servers {
			_ = s.Close()
		}
	}
	serve := func(h http.HandlerFunc) (addr string) {
		ln, listenErr := net.Listen("tcp", "127.0.0.1:0")
		if listenErr != nil {
			err = fmt.Errorf("lab: %w", listenErr)
			return ""
		}
		s := &http.Server{Handler: h}
		servers = append(servers, s)
		go func() { _ = s.Serve(ln) }() // ends with Close
		return ln.Addr().String()
	}
	slots := make(chan struct{}, narrowSlots)
	narrow := serve(func(w http.ResponseWriter, r *http.Request) {
		slots <- struct{}{}
		<-time.After(narrowTakes)
		<-slots
	})
	one := func(i int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if i == 0 {
				w.Header().Set("X-Slow", "1")
			}
			if i == 0 && b.slow.Load() {
				<-time.After(slowTimes * narrowTakes)
				return
			}
			<-time.After(narrowTakes)
		}
	}
	upstreams = map[string]*spec.Upstream{
		"narrow": {URL: "http://" + narrow, Limits: &spec.Limits{}},
		"pool":   {URL: "http://pool.internal", Discover: &spec.Discover{}, Limits: &spec.Limits{}},
	}
	for i := range neighbours {
		upstreams["pool"].Discover.Static = append(upstreams["pool"].Discover.Static, spec.Instance{Address: serve(one(i))})
		upstreams[fmt.Sprint("svc", i)] = &spec.Upstream{URL: "http://" + serve(one(i)), Limits: &spec.Limits{}}
	}
	return closeAll, upstreams, err
}

// flood sends requests at a rate, whether or not the ones before are answered, and collects what became of them.
type flood struct {
	mu         sync.Mutex
	good, slow []time.Duration // slow: from the one that is
	shed       []time.Duration
	lastShed   time.Time
	other      int64
}

func (b *overloadBench) flood(ctx context.Context, paths []string, rate float64, length time.Duration) (*flood, time.Duration) {
	f := &flood{}
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for sent := 0; time.Since(began) < length && ctx.Err() == nil; <-tick.C {
		for ; float64(sent) < time.Since(began).Seconds()*rate; sent++ {
			url := "http://" + b.gateway.users + "/" + paths[sent%len(paths)]
			wg.Go(func() { f.one(ctx, b.client, url) })
		}
	}
	wg.Wait()
	return f, time.Since(began)
}

func (f *flood) one(ctx context.Context, c *http.Client, url string) {
	began := time.Now()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	resp, err := c.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	took := time.Since(began)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err != nil:
		f.other++
	case resp.StatusCode == http.StatusOK && resp.Header.Get("X-Slow") != "":
		f.slow = append(f.slow, took)
	case resp.StatusCode == http.StatusOK:
		f.good = append(f.good, took)
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Atoll-Reason") == "overload":
		f.shed, f.lastShed = append(f.shed, took), time.Now()
	default:
		f.other++
	}
}

// quantile is in milliseconds; it sorts.
func quantile(of []time.Duration, q float64) float64 {
	if len(of) == 0 {
		return 0
	}
	slices.Sort(of)
	return round(of[min(int(q*float64(len(of))), len(of)-1)].Seconds()*1000, 2)
}

func (b *overloadBench) overload(ctx context.Context) (OverloadFigures, error) {
	paths, can := []string{"narrow"}, narrowCan()
	b.flood(ctx, paths, 0.8*can, 5*time.Second) // both learn
	f := OverloadFigures{CanRPS: can, OfferedRPS: b.opts.Times * can, RSSBeforeMiB: round(b.gateway.rssMiB(), 1)}
	watching, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { // until the overload is over
		for watching.Err() == nil {
			f.RSSMostMiB = max(f.RSSMostMiB, round(b.gateway.rssMiB(), 1))
			select {
			case <-time.After(200 * time.Millisecond):
			case <-watching.Done():
			}
		}
	})
	over, took := b.flood(ctx, paths, f.OfferedRPS, b.opts.Length)
	stop()
	watch.Wait()
	f.Limit = b.gateway.metric(`atoll_gateway_concurrency_limit{upstream="narrow"}`)
	f.Seconds, f.GoodRPS = round(took.Seconds(), 1), round(float64(len(over.good))/took.Seconds(), 1)
	f.Goodput = round(f.GoodRPS/can, 3)
	f.Shed, f.Other = int64(len(over.shed)), over.other
	f.GoodP50MS, f.GoodP99MS, f.ShedP99MS = quantile(over.good, .5), quantile(over.good, .99), quantile(over.shed, .99)
	ended := time.Now()
	after, _ := b.flood(ctx, paths, 0.5*can, 10*time.Second)
	f.AfterShed = int64(len(after.shed))
	if f.AfterShed > 0 {
		f.RecoveredMS = round(after.lastShed.Sub(ended).Seconds()*1000, 0)
	}
	f.Other += after.other
	return f, ctx.Err()
}

// neighbour measures the others' answers before and while one is slow.
func (b *overloadBench) neighbour(ctx context.Context, paths []string) (f NeighbourFigures, err error) {
	b.slow.Store(false)
	rate := float64(neighbours * neighbourRPS)
	b.flood(ctx, paths, rate, 3*time.Second)
	before, _ := b.flood(ctx, paths, rate, 10*time.Second)
	b.slow.Store(true)
	defer b.slow.Store(false)
	with, _ := b.flood(ctx, paths, rate, 10*time.Second)
	f.BeforeP99MS, f.WithP99MS = quantile(before.good, .99), quantile(with.good, .99)
	f.Times = round(f.WithP99MS/max(f.BeforeP99MS, 0.001), 2)
	f.SlowShare = round(float64(len(with.slow))/float64(max(len(with.good)+len(with.slow), 1)), 3)
	f.Shed = int64(len(with.shed))
	return f, ctx.Err()
}

// finish says what is kept, and adds what is known at the end.
func (r *OverloadBenchReport) finish() {
	f := r.Overload
	for what, kept := range map[string]bool{
		fmt.Sprintf("goodput %.3f, at least %v", f.Goodput, goodputLeast):                           f.Goodput >= goodputLeast,
		fmt.Sprintf("memory %.0f MiB more, at most %d", f.RSSMostMiB-f.RSSBeforeMiB, memoryMostMiB): f.RSSMostMiB-f.RSSBeforeMiB <= memoryMostMiB,
		fmt.Sprintf("recovered after %.0f ms, within %s", f.RecoveredMS, recoverWithin):             f.RecoveredMS <= float64(recoverWithin.Milliseconds()),
		fmt.Sprintf("%d requests ended otherwise, none may", f.Other):                               f.Other == 0,
		fmt.Sprintf("a slow instance: %.2f times, at most %d", r.Instance.Times, neighbourTimes):    r.Instance.Times <= neighbourTimes,
		fmt.Sprintf("a slow service: %.2f times, at most %d", r.Service.Times, neighbourTimes):      r.Service.Times <= neighbourTimes,
	} {
		if !kept || math.IsNaN(f.Goodput) {
			r.Broken = append(r.Broken, what)
		}
	}
	slices.Sort(r.Broken)
	r.Kept = len(r.Broken) == 0
	r.Cores, r.MemoryMiB, r.Kernel, r.LoadAfter = runtime.NumCPU(), memoryMiB(), kernel(), loadAverage()
}

// writeReport writes a report as JSON into a file, and to where it was asked for.
func writeReport(file string, report any, print bool, to io.Writer) error {
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	data = append(data, '\n')
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, data, 0o644)); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if print {
		_, err = to.Write(data)
	}
	return err
}
