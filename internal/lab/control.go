package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/topo"
)

const controlFile = "control.sock" // in the run folder; only its owner may write to it

// order and reply are one line of JSON each.
type order struct {
	Args []string `json:"args"`
}

type reply struct {
	Text  string `json:"text,omitempty"`
	Error string `json:"error,omitempty"`
}

// orders are what a running lab can be told, with what to write.
var orders = map[string]string{
	"cut":         "cut A B [KIND]            nothing passes between the sites",
	"cut-one-way": "cut-one-way A B [KIND]    nothing passes from A to B",
	"heal":        "heal A B                  undo every cut and delay between the sites",
	"reset":       "reset A B                 end every connection between the sites",
	"delay":       "delay A B 100ms [KIND]    add a delay from A to B; 0s takes it away",
	"lose":        "lose A B 10% [KIND]       lose a share of the packets from A to B, with --netns; 0% ends it",
	"kill":        "kill a/agent | a          end a process, or all of a site, at once, as a crash",
	"stop":        "stop a/agent              end a process in order",
	"restart":     "restart a/agent | a       start a process, or all of a site, again",
	"pause":       "pause a/db                stop a process where it is",
	"resume":      "resume a/db               let it go on",
	"status":      "status                    processes and addresses",
}

// OrderHelp explains the orders.
func OrderHelp() string {
	lines := []string{"orders to a running lab:"}
	for _, name := range slices.Sorted(maps.Keys(orders)) {
		lines = append(lines, "  "+orders[name])
	}
	lines = append(lines, fmt.Sprintf("KIND is one of %s, %s, %s, %s, %s; without it, all", StoreClient, StorePeer, AgentAPI, Link, GatewayPeer))
	return strings.Join(lines, "\n")
}

// Obey does what a line of words says and answers with a sentence.
func (d *Deployment) Obey(ctx context.Context, args []string) (string, error) {
	if len(args) == 0 || orders[args[0]] == "" {
		return "", fmt.Errorf("%q is no order; %s", strings.Join(args, " "), OrderHelp())
	}
	usage := fmt.Errorf("write: %s", orders[args[0]])
	switch args[0] {
	case "status":
		return d.describe(), nil
	case "kill", "stop", "restart", "pause", "resume":
		if len(args) != 2 {
			return "", usage
		}
		return args[0] + " " + args[1] + ": done", d.Do(ctx, args[0], args[1])
	}
	if len(args) < 3 {
		return "", usage
	}
	a, b := topo.SiteID(args[1]), topo.SiteID(args[2])
	if d.at[a] == nil || d.at[b] == nil || a == b {
		return "", fmt.Errorf("want two of the sites %v", slices.Sorted(maps.Keys(d.at)))
	}
	return d.obeyPath(args[0], Way{a, b}, args[3:], usage)
}

func (d *Deployment) obeyPath(verb string, w Way, rest []string, usage error) (string, error) {
	var extra time.Duration
	var share float64
	if verb == "delay" || verb == "lose" {
		if len(rest) == 0 {
			return "", usage
		}
		var err error
		if verb == "delay" {
			extra, err = time.ParseDuration(rest[0])
		} else if share, err = strconv.ParseFloat(strings.TrimSuffix(rest[0], "%"), 64); !(share <= 100) {
			err = usage
		}
		if err != nil || extra < 0 || share < 0 {
			return "", fmt.Errorf("%q is no %s; %w", rest[0], map[string]string{"delay": "delay", "lose": "share"}[verb], usage)
		}
		rest = rest[1:]
	}
	if verb == "lose" && !d.opts.Netns {
		return "", errors.New("the paths of this lab carry no packets that could be lost: start it with --netns, as root")
	}
	kind := AnyKind
	if len(rest) == 1 && verb != "heal" && verb != "reset" {
		kind = Kind(rest[0])
		if !slices.Contains([]Kind{StoreClient, StorePeer, AgentAPI, Link, GatewayPeer}, kind) {
			return "", fmt.Errorf("unknown kind %q; %w", kind, usage)
		}
	} else if len(rest) > 0 {
		return "", usage
	}
	switch verb {
	case "cut":
		d.Network.CutOneWay(w, kind)
		d.Network.CutOneWay(w.back(), kind)
	case "cut-one-way":
		d.Network.CutOneWay(w, kind)
	case "heal":
		d.Network.Heal(w.From, w.To)
	case "reset":
		d.Network.Reset(w.From, w.To)
	case "delay":
		d.Network.Delay(w, kind, extra)
	case "lose":
		d.Network.Lose(w, kind, share/100)
	}
	return fmt.Sprintf("%s %s: done", verb, w), nil
}

// describe lists what runs and where it is reached.
func (d *Deployment) describe() string {
	var b strings.Builder
	for _, site := range d.opts.Sites {
		a := d.at[site]
		fmt.Fprintf(&b, "site %s\n  database  %s\n  shop      http://%s\n", site, d.databases[site].DSN(shopRole, database), a.app)
		if a.namespace != "" {
			fmt.Fprintf(&b, "  there     nsenter --net=%s COMMAND\n", a.namespace)
		}
		for _, name := range slices.Sorted(maps.Keys(a.gateways)) {
			fmt.Fprintf(&b, "  gateway   http://%s   %s/%s, admin http://%s\n", a.gateways[name].listen, site, name, a.gateways[name].admin)
		}
	}
	fmt.Fprintf(&b, "processes\n")
	for _, name := range d.Processes.Names() {
		fmt.Fprintf(&b, "  %-9s %s\n", name, map[bool]string{true: "runs", false: "ended"}[d.Processes.Running(name)])
	}
	fmt.Fprintf(&b, "spec      %s\nlogs      %s", d.SpecFile, filepath.Join(d.Dir, "logs"))
	return b.String()
}

// serveControl takes orders until ctx ends.
func (d *Deployment) serveControl(ctx context.Context) error {
	l, err := net.Listen("unix", filepath.Join(d.Dir, controlFile))
	if err != nil {
		return fmt.Errorf("lab: control socket: %w", err)
	}
	if err := os.Chmod(l.Addr().String(), 0o600); err != nil {
		l.Close()
		return fmt.Errorf("lab: control socket: %w", err)
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("lab: control socket: %w", err)
		}
		running.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			d.serveOrder(ctx, c)
		})
	}
}

func (d *Deployment) serveOrder(ctx context.Context, c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	var o order
	if err := json.NewDecoder(bufio.NewReader(c)).Decode(&o); err != nil {
		_ = json.NewEncoder(c).Encode(reply{Error: "no order: " + err.Error()}) // whoever sent that may be gone
		return
	}
	text, err := d.Obey(ctx, o.Args)
	r := reply{Text: text}
	if err != nil {
		r = reply{Error: err.Error()}
	}
	_ = json.NewEncoder(c).Encode(r) // done either way
}

// Tell sends an order to the lab that runs on this machine and returns its answer.
func Tell(ctx context.Context, args []string) (string, error) {
	sockets, err := filepath.Glob(filepath.Join(os.TempDir(), runPrefix+"*", controlFile))
	if err != nil {
		panic("BUG: " + err.Error())
	}
	var dialer net.Dialer
	var answering []net.Conn
	for _, path := range sockets {
		if c, err := dialer.DialContext(ctx, "unix", path); err == nil {
			defer c.Close()
			answering = append(answering, c)
		}
	}
	switch len(answering) {
	case 0:
		return "", errors.New("no lab runs here; start one with `atoll lab up`")
	case 1:
	default:
		return "", fmt.Errorf("%d labs run here; end all but one", len(answering))
	}
	c := answering[0]
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if err := json.NewEncoder(c).Encode(order{args}); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	var r reply
	if err := json.NewDecoder(c).Decode(&r); err != nil {
		return "", fmt.Errorf("lab: the running lab did not answer: %w", err)
	}
	if r.Error != "" {
		return "", errors.New(r.Error)
	}
	return r.Text, nil
}

// Up builds a deployment and keeps it, obeying orders, until ctx ends.
func Up(ctx context.Context, o Options) (err error) {
	if err := o.enter(); err != nil {
		return err
	}
	s := newScreen(os.Stdout)
	d, err := Build(ctx, o, func(what string) { s.say("building: %s", what) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	fmt.Fprintf(os.Stdout, "\n%s\n\n%s\n\nThe page of the shop is at each gateway. Ctrl-C ends the lab and removes it.\n", d.describe(), OrderHelp())
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for {
			select {
			case <-watch.Done():
				return
			case name := <-d.deaths:
				s.say("%s ended by itself; its log ends:\n%s", name, d.Processes.Tail(name, 5))
			}
		}
	}()
	return d.serveControl(ctx)
}
