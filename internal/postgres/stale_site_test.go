package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// tailSites are two fenced sites that replicate to each other. a owns everything at epoch 1; b takes it at epoch 2.
type tailSites struct {
	t      testing.TB
	a, b   *streamSite
	fa, fb *Fence
	ab, ba *streamLink
	cut    change.Position
}

const tailFailover = topo.HandoverID("h1")

func newTailSites(t testing.TB, ddl string, tables ...TableSpec) *tailSites {
	t.Helper()
	srv := pgserver.Shared(t)
	n := streamSites.Add(1)
	s := &tailSites{t: t}
	for _, letter := range []string{"a", "b"} {
		db := srv.Database(t)
		site := &streamSite{t: t, id: topo.SiteID(fmt.Sprintf("%s%d", letter, n)), tables: tables, dsn: srv.DSN(pgserver.Superuser, db), agent: srv.DSN(db+"_agt", db)}
		t.Cleanup(func() { // before the database goes
			comesAbout(t, func() bool {
				conn, err := pgx.Connect(context.Background(), site.dsn)
				if err != nil {
					return false
				}
				defer conn.Close(context.Background())
				_, err = conn.Exec(context.Background(), "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = $1", OriginName(site.other()))
				return err == nil
			})
		})
		site.exec("CREATE ROLE " + db + "_agt LOGIN REPLICATION; " + ddl)
		ctx := context.Background()
		plan, err := Plan(ctx, site.dsn, Deployment{Deployment: "test", Site: site.id, AgentRole: db + "_agt", Keyspaces: usersKeyspace, Tables: tables})
		if err != nil {
			t.Fatal(err)
		}
		if err := Apply(ctx, site.dsn, plan, streamLog(t)); err != nil {
			t.Fatal(err)
		}
		fence, err := OpenFence(ctx, site.agent, site.id)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(fence.Close)
		if letter == "a" {
			s.a, s.fa = site, fence
		} else {
			s.b, s.fb = site, fence
		}
	}
	s.link()
	s.open(s.fa, 1)
	s.settle()
	return s
}

// link starts the links of both directions.
func (s *tailSites) link() {
	s.t.Helper()
	s.ab, s.ba = newStreamLink(s.a, s.b), newStreamLink(s.b, s.a)
	s.ab.retry, s.ba.retry = true, true
	s.ab.start()
	s.ba.start()
	ab, ba := s.ab, s.ba
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("links: to b %v; to a %v", ab.failure(), ba.failure())
		}
	})
}

func (s *tailSites) unlink() {
	s.ab.stop()
	s.ba.stop()
}

func (s *tailSites) spans(epoch topo.Epoch) map[topo.KeyspaceID][]topo.EpochSpan {
	out := map[topo.KeyspaceID][]topo.EpochSpan{}
	for ks, k := range usersKeyspace {
		out[ks] = []topo.EpochSpan{{Last: topo.BucketID(k.Buckets - 1), Epoch: epoch}}
	}
	return out
}

func (s *tailSites) open(f *Fence, epoch topo.Epoch) {
	s.t.Helper()
	for ks, spans := range s.spans(epoch) {
		if err := f.OpenBuckets(context.Background(), OpenOrder{Handover: tailFailover, Keyspace: ks, Buckets: spans}); err != nil {
			s.t.Fatal(err)
		}
	}
	s.extend(f)
}

func (s *tailSites) extend(f *Fence) {
	s.t.Helper()
	if err := f.ExtendLease(context.Background(), time.Now().Add(10*time.Minute), 0); err != nil {
		s.t.Fatal(err)
	}
}

// cuts are those of a failover from a, at s.cut.
func (s *tailSites) cuts() []topo.CutRange {
	var out []topo.CutRange
	for ks, k := range usersKeyspace {
		out = append(out, topo.CutRange{Keyspace: ks, Range: topo.Range{Last: topo.BucketID(k.Buckets - 1), Owner: s.b.id, Epoch: 2, State: topo.Open},
			Cut: topo.Cut{From: s.a.id, Epoch: 1, Position: uint64(s.cut), Handover: tailFailover}})
	}
	return out
}

// takeOver is what b does when a is lost.
func (s *tailSites) takeOver() {
	s.t.Helper()
	var err error
	if s.cut, err = s.fb.Halt(context.Background(), s.a.id, tailFailover); err != nil {
		s.t.Fatal(err)
	}
	if err := s.fb.RecordCuts(context.Background(), s.cuts()); err != nil {
		s.t.Fatal(err)
	}
	s.open(s.fb, 2)
}

// closeA is what a does when it is back: its fence closes, and its marker is the last word of its tail.
func (s *tailSites) closeA() {
	s.t.Helper()
	for ks, spans := range s.spans(1) {
		if _, err := s.fa.CloseBuckets(context.Background(), CloseOrder{Handover: tailFailover, Keyspace: ks, Buckets: spans, Bound: 5 * time.Second}); err != nil {
			s.t.Fatal(err)
		}
	}
}

// settle waits until each has what the other has.
func (s *tailSites) settle() {
	s.t.Helper()
	s.ab.settle()
	s.ba.settle()
}

// lose runs a whole failover: what both have, what a commits that b never got, and what b does as the new owner.
func (s *tailSites) lose(both, tail, owner []string) {
	s.t.Helper()
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("after %d statements at two sites", len(both)+len(tail)+len(owner))
		}
	})
	for _, sql := range both {
		s.a.exec(sql)
	}
	s.settle()
	s.unlink()
	for _, sql := range tail {
		s.a.exec(sql)
	}
	s.takeOver()
	for _, sql := range owner {
		s.b.exec(sql)
	}
	s.closeA()
	s.link()
	s.settle()
}

const staleRows = "SELECT concat_ws(' | ', kind, table_name, coalesce(local_row::text, '-'), remote_row::text, decision) FROM atoll.conflict WHERE handover = 'h1' ORDER BY id"

// wantTail compares b's log of decisions, and both sites.
func (s *tailSites) wantTail(tables []string, want ...string) {
	s.t.Helper()
	s.b.want(strings.Join(want, "\n"), staleRows)
	equal(s.a, s.b, tables...)
	s.b.want("0", "SELECT count(*) FROM atoll.conflict WHERE handover = '' OR decided_xid IS NULL OR keyspace = '' OR bucket IS NULL OR epoch <> 1")
}

// keyIn gives the nth integer from 1 on whose bucket of keyspace users is b.
func keyIn(b topo.BucketID, nth int) int {
	for k := 1; ; k++ {
		if bucketOf(23, fmt.Append(nil, k), 64) == b {
			if nth--; nth == 0 {
				return k
			}
		}
	}
}
