package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// TestReviveFromSurvivor: two of three are lost for good. The third one's folder becomes a new store, to which others are
// added; the former members come to life again, end, and are believed by nobody.
func TestReviveFromSurvivor(t *testing.T) {
	t.Parallel()
	c := startCluster(t, false)
	t.Cleanup(c.stop)
	cl := c.client(t, "shop")
	load := lived(t, cl)
	load.stop(t)
	settled := c.client(t, "shop", "w")
	load.check(t, settled) // w has all of it
	for _, s := range sites {
		c.members[s].kill()
	}
	conf := c.members["w"].conf.config()
	v := revive(t, conf, conf.Dir)
	load.check(t, v.Client)
	raise(t, v.Client)
	former, err := v.Install(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(former, "etcd")); err != nil {
		t.Errorf("the former folder is not kept: %v", err)
	}

	w := c.members["w"]
	w.start(t)
	load.check(t, c.client(t, "shop", "w"))
	all, err := settled.Members(within(t, 10*time.Second))
	if err != nil || len(all.Members) != 1 || all.Members[0].Peer != w.conf.AdvertisePeer {
		t.Errorf("members of the revived store: %+v, %v", all, err)
	}
	knows := c.client(t, "shop")
	if o, _, err := knows.Ownership(within(t, 10*time.Second)); err != nil || o.Generation != 2 {
		t.Fatalf("generation %d, %v", o.Generation, err)
	}

	// The two former members are a quorum of their own store.
	a, b := c.members["a"], c.members["b"]
	a.conf.Clients, b.conf.Clients = nil, nil // and do not find out
	c.start(t, "a", "b")
	onlyFormer := c.client(t, "shop", "a", "b")
	if o, _, err := onlyFormer.Ownership(within(t, 10*time.Second)); err != nil || o.Generation != 1 {
		t.Fatalf("the former store does not live: generation %d, %v", o.Generation, err)
	}
	for range 20 {
		if o, _, err := knows.Ownership(within(t, 10*time.Second)); err != nil || o.Generation != 2 {
			t.Fatalf("a client that knows generation 2 got %d, %v", o.Generation, err)
		}
	}
	w.kill()
	if _, _, err := knows.Ownership(within(t, 3*time.Second)); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "generation 2 has replaced") {
		t.Errorf("with only the former members: %v", err)
	}
	w.start(t)

	// With their spec they do find out.
	for _, m := range []*process{a, b} {
		m.kill()
		m.conf.Clients = w.conf.Clients
	}
	a.spawn(t)
	b.spawn(t)
	for _, m := range []*process{a, b} {
		if text := m.ended(t); !strings.Contains(text, "left over from generation 1") || !strings.Contains(text, "atoll store add "+string(m.conf.Site)) {
			t.Errorf("%s does not say what to do: %s", m.conf.Site, text)
		}
	}

	if err := os.RemoveAll(a.conf.Dir); err != nil {
		t.Fatal(err)
	}
	a.spawn(t)
	c.addMember(t, c.client(t, "shop", "w"), "a")
	a.await(t)
	load.check(t, c.client(t, "shop", "a"))
}

// TestReviveFromBackup: every folder is lost, a backup is left.
func TestReviveFromBackup(t *testing.T) {
	t.Parallel()
	c := startCluster(t, false)
	t.Cleanup(c.stop)
	cl := c.client(t, "shop")
	load := lived(t, cl)
	file := filepath.Join(c.dir, "shop.backup")
	if err := backupTo(within(t, 20*time.Second), cl, file); err != nil {
		t.Fatal(err)
	}
	if err := CheckBackup(file); err != nil {
		t.Fatal(err)
	}
	load.stop(t)
	_, before, err := cl.Ownership(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	c.loseAll(t)
	a := c.members["a"]

	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, damaged := range map[string][]byte{"cut short": body[:len(body)-512], "changed": append([]byte{body[0] ^ 1}, body[1:]...), "empty": nil} {
		bad := filepath.Join(c.dir, "bad.backup")
		if err := os.WriteFile(bad, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Revive(t.Context(), Revival{Member: a.conf.config(), From: bad}); !errors.Is(err, ErrBackupDamaged) {
			t.Errorf("a backup that is %s: %v", name, err)
		}
	}

	v := revive(t, a.conf.config(), file)
	raise(t, v.Client)
	if _, err := v.Install(time.Now()); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	o, rev, err := c.client(t, "shop", "a").Ownership(within(t, 10*time.Second))
	if err != nil || o.Generation != 2 || rev < before+revisionBump/2 {
		t.Errorf("generation %d at revision %d after %d, %v", o.Generation, rev, before, err)
	}
	if _, err := Revive(t.Context(), Revival{Member: a.conf.config(), From: file}); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("revived beside a running member: %v", err)
	}
}

// lived is a store with a document, a lease and writes under way.
func lived(t *testing.T, cl *Client) *load {
	t.Helper()
	if err := cl.Bootstrap(within(t, 10*time.Second), firstOwnership("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.RenewLease(within(t, 10*time.Second), "a", Lease{Holder: "h", Sequence: 1, Duration: time.Second}, 0); err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, cl)
	eventually(t, 20*time.Second, "writes go on", func() bool {
		all, err := cl.Handovers(within(t, 5*time.Second))
		return err == nil && len(all) > 50
	})
	return l
}

func revive(t *testing.T, conf MemberConfig, from string) *Revived {
	t.Helper()
	v, err := Revive(within(t, 60*time.Second), Revival{Member: conf, From: from})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.end(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// raise begins the next generation.
func raise(t *testing.T, cl *Client) {
	t.Helper()
	o, rev, err := cl.Ownership(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	l, leaseRev, err := cl.Lease(within(t, 10*time.Second), "a")
	if err != nil || l.Holder != "h" {
		t.Fatalf("lease %+v, %v", l, err)
	}
	next := topo.NewOwnership(o.Keyspaces)
	next.Generation = o.Generation + 1
	next, err = topo.DecodeOwnership(next.Encode())
	if err != nil {
		t.Fatal(err)
	}
	l.Sequence, l.Released = l.Sequence+1, true
	if _, err := cl.Commit(within(t, 10*time.Second), Change{Ownership: &OwnershipChange{rev, next}, Lease: &LeaseChange{Site: "a", Expect: leaseRev, Next: l}}); err != nil {
		t.Fatal(err)
	}
}

// loseAll kills every member and takes their folders away.
func (c *cluster) loseAll(t *testing.T) {
	t.Helper()
	for _, p := range c.members {
		p.kill()
		if err := os.RemoveAll(p.conf.Dir); err != nil {
			t.Fatal(err)
		}
	}
}
