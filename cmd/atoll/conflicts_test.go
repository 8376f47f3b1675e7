package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// logOf answers like an agent with a conflict log, in pages of two.
func (a *agents) logOf(site topo.SiteID, entries ...api.Conflict) map[string]any {
	return map[string]any{
		"GET /v1/conflicts": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			before, _ := strconv.ParseInt(r.URL.Query().Get("before"), 10, 64)
			limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
			list := api.ConflictList{Site: site, Conflicts: []api.Conflict{}}
			for i := len(entries) - 1; i >= 0; i-- {
				if e := entries[i]; before == 0 || e.ID < before {
					if list.More = len(list.Conflicts) == min(limit, 2); list.More {
						break
					}
					e.Site = site
					list.Conflicts = append(list.Conflicts, e)
				}
			}
			a.reply(list)(w, r)
		}),
		"GET /v1/conflicts/{id}": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for _, e := range entries {
				if r.PathValue("id") == fmt.Sprint(e.ID) {
					e.Site, e.Key = site, []string{"id"}
					a.reply(e)(w, r)
					return
				}
			}
			a.reply(&api.Error{Status: 404, Code: api.CodeNotFound, Message: "no conflict"})(w, r)
		}),
	}
}

func entry(id int64, minute int, decision string, local, remote string) api.Conflict {
	bucket, epoch := int64(12), uint64(4)
	c := api.Conflict{ID: id, At: time.Date(2026, 3, 14, 12, minute, 0, 0, time.UTC), Kind: "stale_update", Table: "public.orders", Keyspace: "users", Bucket: &bucket, Epoch: &epoch,
		Handover: "f1", Origin: "a", Position: 0x16B3748, XID: 4711, Decision: decision}
	if local != "" {
		c.Local = json.RawMessage(local)
	}
	if remote != "" {
		c.Remote = json.RawMessage(remote)
	}
	return c
}

func TestConflictsOfAllSites(t *testing.T) {
	t.Parallel()
	c := newAgents(t)
	c.answer("a", c.logOf("a", entry(1, 1, "kept", "", `{"id":"1"}`), entry(2, 4, "applied", `{"id":"1","v":"x"}`, `{"id":"1","v":"y\u001b[2J"}`)))
	c.answer("b", c.logOf("b", entry(5, 2, "kept", `{"id":"1","v":null}`, `{"id":"1","v":"y"}`), entry(6, 3, "kept", "", ""), entry(7, 5, "kept", `{"id":"1"}`, `{"id":[]}`)))
	out, err := c.run("conflicts", "list")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var order []string
	for line := range strings.Lines(out) {
		if first := strings.Fields(line)[0]; strings.Contains(first, "/") {
			order = append(order, first)
		}
	}
	if got := strings.Join(order, " "); got != "b/7 a/2 b/6 b/5 a/1" {
		t.Errorf("order %s:\n%s", got, out)
	}
	wantText(t, out, "users 12", "stale_update", "no row here", "a version of a row")
	if strings.Contains(out, "\x1b") {
		t.Error("a row's content reaches the terminal as it is")
	}
	out, err = c.run("conflicts", "list", "--limit", "2")
	if err != nil || !strings.Contains(out, "a/2") || strings.Contains(out, "b/6") || !strings.Contains(out, "there are older ones") {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = c.run("conflicts", "list", "--site", "a", "--json")
	var found conflictsFound
	if jsonErr := json.Unmarshal([]byte(out), &found); err != nil || jsonErr != nil || len(found.Conflicts) != 2 || found.More {
		t.Errorf("%v, %v\n%s", err, jsonErr, out)
	}
	for _, bad := range [][]string{{"list", "--limit", "0"}, {"list", "--site", "w"}, {"show", "7"}, {"show", "b/x"}, {"show", "z/1"}, {"show", "b/99"}} {
		if out, err := c.run(append([]string{"conflicts"}, bad...)...); err == nil {
			t.Errorf("%v:\n%s", bad, out)
		}
	}
	out, err = c.run("conflicts", "show", "b/5")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantText(t, out, "conflict b/5: stale_update in public.orders", "12 of users, owned by site b now", "transaction 4711, at position 0/16B3748, under epoch 4", "failover f1 left",
		"kept, the version of b stands", "VERSION OF B", "VERSION OF A", "* v", "NULL", "To let the version of a stand instead, at the database of site b",
		`UPDATE "public"."orders"`, `SET "v" = 'y'`, `WHERE "id" = '1' AND "v" IS NULL;`)
}

func TestConflictsOfSitesThatAnswer(t *testing.T) {
	t.Parallel()
	c := newAgents(t)
	_, err := c.run("conflicts", "list")
	wantError(t, err, "no agent answers")
	c.answer("b", c.logOf("b"))
	out, err := c.run("conflicts", "list")
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, out, "! site a is left out", "no conflicts")
}

// TestRemediesDoWhatTheySay: each statement that is proposed puts the other version into a real table, once, and only
// over the version that it is meant for.
func TestRemediesDoWhatTheySay(t *testing.T) {
	t.Parallel()
	srv := pgserver.Shared(t)
	dsn := srv.DSN(pgserver.Superuser, srv.Database(t))
	execSQL(t, dsn, `CREATE SCHEMA "S p"; CREATE TABLE "S p"."Od""d" (id int, k2 text, v text, at timestamptz, j jsonb, PRIMARY KEY (id, k2))`)
	nasty := "it's \\ a\ttab\nand \x1b[31m \u202e end"
	text, err := json.Marshal(nasty)
	if err != nil {
		t.Fatal(err)
	}
	base := fmt.Sprintf(`{"id":"1","k2":%s,"v":"here","at":"2026-03-14 12:00:00+00","j":"{\"a\": 1}"}`, text)
	other := fmt.Sprintf(`{"id":"1","k2":%s,"v":%s,"at":null,"j":"{\"a\": 2}"}`, text, text)
	for name, c := range map[string]struct {
		kind, decision, local, remote string
		start, want                   string // the row's v; "" is no row
	}{
		"kept update":     {"stale_update", "kept", base, other, "here", nasty},
		"applied update":  {"stale_update", "applied", base, other, nasty, "here"},
		"kept insert":     {"stale_insert", "kept", "", other, "", nasty},
		"applied insert":  {"stale_insert", "applied", "", other, nasty, ""},
		"kept delete":     {"stale_delete", "kept", base, other, "here", ""},
		"applied delete":  {"stale_delete", "applied", base, other, "", "here"},
		"logged update":   {"update_missing", "logged", "", `{"id":"1","k2":"x","v":"here"}`, "", "here"},
		"nothing on both": {"delete_missing", "logged", "", base, "", ""},
		"nothing differs": {"update_origin_differs", "kept", base, `{"v":"here"}`, "here", "here"},
	} {
		t.Run(name, func(t *testing.T) {
			k := entry(1, 1, c.decision, c.local, c.remote)
			k.Site, k.Kind, k.Table, k.Key = "b", c.kind, `S p.Od"d`, []string{"id", "k2"}
			v, err := versionsOf(k)
			if err != nil {
				t.Fatal(err)
			}
			execSQL(t, dsn, `TRUNCATE "S p"."Od""d"`)
			for _, version := range []string{c.local, c.remote} { // whichever stands
				if r, err := api.ParseVersion(json.RawMessage(version)); err != nil {
					t.Fatal(err)
				} else if c.start != "" && r["v"] != nil && *r["v"] == c.start && r["k2"] != nil {
					insertVersion(t, dsn, version)
				}
			}
			remedy := v.remedy("b")
			if strings.ContainsAny(remedy, "\x1b\t\u202e") {
				t.Errorf("control characters reach the terminal: %q", remedy)
			}
			sql := ""
			if _, after, ok := strings.Cut(remedy, "\n\n"); ok {
				sql, _, _ = strings.Cut(after, ";\n")
			}
			if sql != "" {
				if n := affected(t, dsn, sql); n != 1 {
					t.Errorf("%s\nchanged %d rows", sql, n)
				}
				if !strings.Contains(sql, "INSERT") {
					if n := affected(t, dsn, sql); n != 0 {
						t.Errorf("once more it changed %d rows", n)
					}
				}
			}
			if got := valueOf(t, dsn); got != c.want {
				t.Errorf("the row has %q; want %q\n%s", got, c.want, remedy)
			}
		})
	}
}

func insertVersion(t *testing.T, dsn, version string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `INSERT INTO "S p"."Od""d" SELECT (x->>'id')::int, x->>'k2', x->>'v', (x->>'at')::timestamptz, (x->>'j')::jsonb FROM (SELECT $1::jsonb x) y`, version); err != nil {
		t.Fatal(err)
	}
}

func affected(t *testing.T, dsn, sql string) int64 {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	tag, err := conn.Exec(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return tag.RowsAffected()
}

func valueOf(t *testing.T, dsn string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var v string
	if err := conn.QueryRow(t.Context(), `SELECT coalesce(max(v), '') FROM "S p"."Od""d"`).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}
