package agent

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

// TestWhatOperatorsSee: the status page to this machine and to operators' certificates, and the conflict log, which
// needs no lease.
func TestWhatOperatorsSee(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.spec.Sites["a"].Agent.Admin = freeAddr(t)
	w.start("a")
	w.eventually("the page shows who owns what", func() bool {
		status, body := w.get(http.DefaultClient, "http://"+w.spec.Sites["a"].Agent.Admin+"/")
		return status == 200 && strings.Contains(body, "64 buckets") && strings.Contains(body, "does not answer")
	})
	if status, body := w.get(http.DefaultClient, "http://"+w.spec.Sites["a"].Agent.Admin+"/healthz"); status != 200 || !strings.Contains(body, `"site": "a"`) {
		t.Errorf("health: %d %s", status, body)
	}
	w.exec(w.sites["a"].admin, `INSERT INTO atoll.progress (origin, position, halted) VALUES ('b', 1, 'f1')`)
	w.eventually("the status tells of the halted link", func() bool {
		st, err := w.people.Status(t.Context(), false)
		return err == nil && len(st.Sites) == 2 && len(st.Sites[0].Links) > 0 && st.Sites[0].Links[0].Halted == "f1" && strings.Contains(strings.Join(st.Problems, "\n"), "for failover f1")
	})
	ann, err := pki.Load(w.spec.PKI, "operator-ann")
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[*pki.Identity]int{ann: 200, w.identity("b"): 403} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: kind.ClientTLS("a")}}
		if status, body := w.get(client, "https://"+w.spec.Sites["a"].Agent.API+"/"); status != want {
			t.Errorf("%s sees %d %.200s; want %d", kind.Self(), status, body, want)
		}
		client.CloseIdleConnections()
	}
	w.exec(w.sites["a"].admin, `INSERT INTO atoll.conflict (origin, position, source_xid, kind, table_name, keyspace, bucket, epoch, remote_row, decision)
		VALUES ('b', 7, 8, 'update_missing', 'public.item', 'users', 3, 1, '{"id": "5"}', 'logged')`)
	list, err := w.people.Conflicts(t.Context(), api.ConflictQuery{Table: "public.item"})
	if err != nil || len(list.Conflicts) != 1 || list.Conflicts[0].Site != "a" {
		t.Fatalf("%+v, %v", list, err)
	}
	c, err := w.people.Conflict(t.Context(), list.Conflicts[0].ID)
	if err != nil || len(c.Key) != 1 || c.Key[0] != "id" || *c.Bucket != 3 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestUnsettledTailsAreProblems: what a failover left is told until it is settled, summed up over all keyspaces.
func TestUnsettledTailsAreProblems(t *testing.T) {
	t.Parallel()
	all := func(buckets int) topo.Placement {
		return topo.Placement{Buckets: buckets, Hash: topo.HashMD5, Ranges: []topo.Range{{First: 0, Last: topo.BucketID(buckets - 1), Owner: "a", Epoch: 1, State: topo.Open}}}
	}
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": all(64), "catalog": all(1)})
	taken, _, err := o.TakeOver("a", "b", "f1", 77)
	if err != nil {
		t.Fatal(err)
	}
	st := api.Status{Ownership: ownershipStatus(taken)}
	if u := st.Ownership.Unsettled; len(u) != 1 || u[0] != (api.UnsettledStatus{Handover: "f1", Site: "a", Owner: "b", Buckets: 65, Position: 77}) {
		t.Errorf("%+v", u)
	}
	if p := problems(st); len(p) != 1 || !strings.Contains(p[0], "site a was lost in failover f1") {
		t.Errorf("%q", p)
	}
	settled, err := taken.Settle("f1", true)
	if err != nil {
		t.Fatal(err)
	}
	if p := problems(api.Status{Ownership: ownershipStatus(settled)}); len(p) != 0 {
		t.Errorf("%q", p)
	}
}

func (w *world) get(client *http.Client, url string) (status int, body string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(data)
}
