package postgres

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
)

func TestLastApplied(t *testing.T) {
	t.Parallel()
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment()).install()
	agent, err := pgx.Connect(t.Context(), s.agentDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close(t.Context())
	if _, _, known, err := LastApplied(t.Context(), agent, "b"); err != nil || known {
		t.Fatalf("known %v, %v", known, err)
	}
	s.exec(s.adminDSN, "INSERT INTO atoll.progress (origin, position, applied_at) VALUES ('b', 4711, clock_timestamp() - interval '90 s'), ('c', 1, clock_timestamp() + interval '1 h')")
	at, ago, known, err := LastApplied(t.Context(), agent, "b")
	if err != nil || !known || at != 4711 || ago < 90*time.Second || ago > 120*time.Second {
		t.Errorf("at %d, %s ago, known %v, %v", at, ago, known, err)
	}
	if _, ago, _, err = LastApplied(t.Context(), agent, "c"); err != nil || ago != 0 { // the clock went back
		t.Errorf("%s ago, %v", ago, err)
	}
}
