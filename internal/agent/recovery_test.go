package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/recovery"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// backUp writes a backup of the store through a's agent.
func (w *world) backUp() string {
	w.t.Helper()
	file := filepath.Join(w.dir, "backup")
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(w.people.StoreBackup(w.t.Context(), f), f.Close(), store.CheckBackup(file))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return file
}

// recovery describes what the command does, with the agents of the given sites.
func (w *world) recovery(s recovery.Store, reach ...topo.SiteID) recovery.Config {
	return recovery.Config{Deployment: w.spec.Deployment, Member: "a", Sites: w.spec.FullSites(), First: w.spec.FirstOwnership(), Store: s, Who: "ann", Now: time.Now,
		Ask: func(ctx context.Context, site topo.SiteID, seal uint64) (topo.Evidence, error) {
			for _, r := range reach {
				if r == site {
					return w.client(site).Evidence(ctx, api.EvidenceRequest{Seal: seal})
				}
			}
			return topo.Evidence{}, errors.New("out of reach")
		}}
}

// recover brings the store back from a backup, a folder, or nothing, and starts it.
func (w *world) recover(from string) recovery.Plan {
	w.t.Helper()
	v, err := store.Revive(w.t.Context(), store.Revival{Member: w.member(), From: from})
	if err != nil {
		w.t.Fatal(err)
	}
	var doubt *topo.Doubt
	if _, err := recovery.Look(w.t.Context(), w.recovery(v.Client, "a")); !errors.As(err, &doubt) {
		w.t.Errorf("without b: %v", err)
	}
	cfg := w.recovery(v.Client, "a", "b")
	plan, err := recovery.Look(w.t.Context(), cfg)
	if err == nil {
		err = recovery.Carry(w.t.Context(), cfg, plan)
	}
	if err == nil {
		_, err = v.Install(time.Now())
	}
	if err != nil {
		w.t.Fatal(errors.Join(err, v.Discard()))
	}
	w.startStore()
	return plan
}

// openNowhereTwice compares the bits of the two databases.
func (w *world) openNowhereTwice() {
	w.t.Helper()
	count := map[topo.BucketID]int{}
	for _, s := range w.sites {
		f, err := postgres.OpenFence(w.t.Context(), s.agent, s.id)
		if err != nil {
			w.t.Fatal(err)
		}
		st, err := f.State(w.t.Context())
		f.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		if !st.Lease.After(st.Clock) { // accepts nothing
			continue
		}
		for _, b := range st.Bits["users"].Buckets() {
			if count[b]++; count[b] > 1 {
				w.t.Fatalf("bucket %d is open at both sites", b)
			}
		}
	}
}

func (w *world) generation(id topo.SiteID, want uint64) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("site %s goes by generation %d, all open", id, want), func() bool {
		w.openNowhereTwice()
		st, err := w.client(id).Status(w.t.Context(), true)
		return err == nil && len(st.Sites) == 1 && st.Sites[0].Lease.Live && st.Ownership != nil && st.Ownership.Generation == want &&
			st.Sites[0].Opened >= st.Ownership.Version
	})
}

// TestStoreIsLostAndRecovered: the store is lost, and all that is left is a backup from before a switch. The databases say
// where the buckets are; agents that were never restarted go on, and so does one that was.
func TestStoreIsLostAndRecovered(t *testing.T) {
	w := newWorld(t)
	w.start2()
	file := w.backUp()
	w.await(w.people, w.begin("b", "0-24"), "done")
	here, there := w.keysIn(30, 63, 3), w.keysIn(0, 24, 3)
	w.exec(w.sites["a"].app, insert(here[0], 1))
	w.exec(w.sites["b"].app, insert(there[0], 1))

	w.loseStore()
	if err := os.RemoveAll(w.member().Dir); err != nil {
		t.Fatal(err)
	}
	touch := func(key int) string { return fmt.Sprintf("UPDATE item SET n = n + 1 WHERE id = %d", key) }
	for id, key := range map[topo.SiteID]int{"a": here[0], "b": there[0]} {
		w.eventually(fmt.Sprintf("site %s refuses writes", id), func() bool { return code(w.try(w.sites[id].app, touch(key))) == postgres.CodeLeaseRunOut })
	}
	w.stop("b")
	w.start("b")
	w.eventually("b's database is read", func() bool {
		_, err := w.client("b").Evidence(w.t.Context(), api.EvidenceRequest{})
		return err == nil
	})

	plan := w.recover(file)
	if at, _ := plan.Next.At("users", 7); at.Owner != "b" || plan.Next.Generation != 2 || at.Epoch < topo.RecoveryLift {
		t.Errorf("bucket 7 goes on as %+v under generation %d", at, plan.Next.Generation)
	}
	w.generation("a", 2)
	w.generation("b", 2)
	w.exec(w.sites["a"].app, touch(here[0]), insert(here[1], 2))
	w.exec(w.sites["b"].app, touch(there[0]), insert(there[1], 2))
	w.arrives("b", here[1], 2)
	w.arrives("a", there[1], 2)
	if err := w.try(w.sites["a"].app, insert(there[2], 1)); code(err) != postgres.CodeNotOwned {
		t.Errorf("a takes a write of a bucket that had moved when the backup was old: %v", err)
	}

	w.linked()
	w.await(w.people, w.begin("a", "0-24"), "done")
	w.openNowhereTwice()
	w.exec(w.sites["a"].app, insert(there[2], 3))
	w.arrives("b", there[2], 3)
}

// TestStoreIsRecoveredBehindAFailover: the backup does not know of a failover. Its cut and its record come back from the
// database of the site that took over, and the lost site returns as if nothing had been.
func TestStoreIsRecoveredBehindAFailover(t *testing.T) {
	w := newWorld(t)
	w.start2()
	file := w.backUp()
	key := w.keysIn(0, 24, 2)
	w.exec(w.sites["a"].app, insert(key[0], 1))
	w.arrives("b", key[0], 1)
	w.stop("a")
	people := w.client("b")
	w.eventually("b takes over", func() bool {
		a, err := people.Failover(w.t.Context(), api.FailoverRequest{Site: "a", To: "b", Why: "test", Override: []string{"max-loss"}})
		if err != nil {
			return false
		}
		w.await(people, a.ID, "done")
		return true
	})
	w.exec(w.sites["b"].app, insert(key[1], 1))

	w.loseStore()
	if err := os.RemoveAll(w.member().Dir); err != nil {
		t.Fatal(err)
	}
	w.start("a")
	w.eventually("a's database is read", func() bool {
		_, err := w.client("a").Evidence(w.t.Context(), api.EvidenceRequest{})
		return err == nil
	})
	plan := w.recover(file)
	if len(plan.Failovers) != 1 || plan.Failovers[0].From != "a" || plan.Failovers[0].To != "b" {
		t.Fatalf("failovers %+v", plan.Failovers)
	}
	w.generation("b", 2)
	w.eventually("the failover is settled", func() bool {
		w.openNowhereTwice()
		st, err := people.Status(w.t.Context(), true)
		return err == nil && st.Ownership != nil && len(st.Ownership.Unsettled) == 0
	})
	w.arrives("a", key[1], 1)
	w.linked()
	w.await(people, w.begin("a", "0-24"), "done")
	w.openNowhereTwice()
	w.exec(w.sites["a"].app, fmt.Sprintf("UPDATE item SET n = 9 WHERE id = %d", key[1]))
	w.arrives("b", key[1], 9)
}
