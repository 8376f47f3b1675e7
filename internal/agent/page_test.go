package agent

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
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
