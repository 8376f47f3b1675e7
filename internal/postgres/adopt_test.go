package postgres

import (
	"errors"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// An application at work does not notice that the fence is put in under it; then the agent takes the first lease back.
func TestAdopt_NoWriteIsRefused(t *testing.T) {
	t.Parallel()
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment())
	s.exec(s.srv.DSN(s.owner, s.db), "INSERT INTO item SELECT g FROM generate_series(1, 100) g", "INSERT INTO part SELECT g FROM generate_series(1, 100) g")
	s.d.Adopt = true
	traffic := startTraffic(s)
	traffic.awaitProgress(t)
	s.install()
	traffic.awaitProgress(t)
	st := s.state()
	if ahead := st.Lease.Sub(st.Clock); ahead < AdoptFor-time.Minute {
		t.Errorf("the first lease is %v, want about %v", ahead, AdoptFor)
	}
	for ks, k := range s.d.Keyspaces {
		if st.Bits[ks].Len() != k.Buckets || len(st.Rows[ks]) != k.Buckets || st.Rows[ks][0].Epoch != 1 || st.Rows[ks][0].State != "open" {
			t.Errorf("keyspace %s: bits %s, %d rows", ks, st.Bits[ks], len(st.Rows[ks]))
		}
	}
	s.extend(30 * time.Second)
	traffic.awaitProgress(t)
	st = s.state()
	if ahead := st.Lease.Sub(st.Clock); ahead > 30*time.Second {
		t.Errorf("after the agent's first renewal the lease is %v", ahead)
	}
	traffic.stop(t)
	if refused := traffic.refused.Load(); refused > 0 {
		t.Errorf("%d writes were refused", refused)
	}

	// A database that has run is not opened again: another site may own its buckets by now.
	s.close("h1", "users", topo.EpochSpan{Last: 63, Epoch: 1})
	s.apply()
	var late *StaleError
	wantCode(t, s.try("UPDATE item SET n = 0 WHERE id = 1"), CodeNotOwned)
	err := s.fence.OpenBuckets(t.Context(), OpenOrder{Handover: "again", Keyspace: "users", Buckets: []topo.EpochSpan{{Last: 63, Epoch: 1}}})
	if !errors.As(err, &late) {
		t.Errorf("opened again at the epoch that was closed: %v", err)
	}
}
