package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pgserver"
)

// The real shop under real load at one site, without Atoll: what the lab reads of its tables and history is there, the
// checks hold, and fail when the database is tampered with.
func TestTickets_OneSite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bin := filepath.Join(dir, "tickets")
	if out, err := exec.Command("go", "build", "-o", bin, "../../examples/tickets").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	server := pgserver.Shared(t)
	dsn := server.DSN(pgserver.Superuser, server.Database(t))
	p := testProcesses(t, func(name string) { t.Errorf("%s ended by surprise", name) })
	env := []string{"SHOP_DSN=" + dsn}
	if _, err := p.Run(t.Context(), Command{Name: "init", Path: bin, Env: env, Args: []string{"init", "--seats", "500", "--customers", "50"}}); err != nil {
		t.Fatal(err)
	}
	port, err := loopback.Port()
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + local(port)
	if err := p.Start(Command{Name: "a/app", Path: bin, Env: env, Args: []string{"serve", "--listen", local(port), "--gateway", url, "--slow-endpoint"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the shop is open", func() bool { return probe(t.Context(), local(port)) == nil })
	history := filepath.Join(dir, "history.jsonl")
	_, err = p.Run(t.Context(), Command{Name: "load", Path: bin, Args: []string{"load", "--gateways", "a/g1=" + url, "--rate", "100",
		"--duration", "3s", "--writes", "0.5", "--customers", "50", "--history", history,
		"--registers", "5", "--register-every", "50ms", "--sessions", "3", "--session-every", "100ms"}})
	if err != nil {
		t.Fatal(err)
	}
	note := Operation{ID: "note", Op: "bulk-note", Key: ada, Write: true}
	send(t.Context(), url+"/orders/bulk-note", map[string]any{"note": "x", "ms": 1}, &note)
	if note.Status != 404 || note.Outcome != OK { // ada is no customer here
		t.Errorf("bulk note: %+v", note)
	}
	db, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	eventually(t, "the outbox is empty", func() bool { n, err := openJobs(t.Context(), db); return err == nil && n == 0 })

	f, err := os.Open(history)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ops, err := ReadHistory(f)
	if err != nil {
		t.Fatal(err)
	}
	shop := func() []Shop {
		s, err := readShop(t.Context(), db, "a")
		if err != nil {
			t.Fatal(err)
		}
		return []Shop{s}
	}
	want(t, CheckK3(ops, shop(), nil), "")
	seats, _ := CheckSeats(shop(), nil)
	want(t, seats, "")
	atRest := time.Now()
	want(t, CheckK4(append(ops, FinalReads(ops, shop(), atRest)...), nil, nil), "")
	want(t, CheckLists(append(ops, FinalReads(ops, shop(), atRest)...), nil, nil), "")
	k5, sessions := CheckK5(Evidence{}, ops, 1)
	want(t, k5, "without a token") // nobody gives one
	if sessions.Sessions != 3 || sessions.Lists != 3 || sessions.Reads < 10 || sessions.Appends < 5 || k5.Violated != sessions.Reads+sessions.Appends {
		t.Errorf("%s; %d violations", sessions, k5.Violated)
	}
	if c := count(ops); c.Failed > 0 || c.Writes < 50 {
		t.Errorf("%+v", c)
	}

	bought := firstOrder(t, ops)
	execSQL(t, db, `UPDATE orders SET number = number + 1000 WHERE id = '`+bought.ID+`'`)
	want(t, CheckK3(ops, shop(), nil), "was acknowledged as number")
	execSQL(t, db, `DELETE FROM payments WHERE order_id = '`+bought.ID+`'; DELETE FROM outbox WHERE order_id = '`+bought.ID+`';
		DELETE FROM orders WHERE id = '`+bought.ID+`'`)
	want(t, CheckK3(ops, shop(), nil), "was acknowledged and is missing")
	execSQL(t, db, `UPDATE customers SET address = '' WHERE address <> '' AND id = (SELECT id FROM customers WHERE address <> '' LIMIT 1)`)
	want(t, CheckK4(append(ops, FinalReads(ops, shop(), atRest)...), nil, nil), `it read ""`)
}

func firstOrder(t *testing.T, ops []Operation) Receipt {
	t.Helper()
	for _, o := range ops {
		if o.Op == buyOp && o.Order != nil {
			return *o.Order
		}
	}
	t.Fatal("nothing was bought")
	return Receipt{}
}
