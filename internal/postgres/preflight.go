package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// Problem is something that stands in the way of a deployment: what is wrong, and what to do about it.
type Problem struct {
	What string `json:"what"`
	Do   string `json:"do"`
}

func (p Problem) String() string { return p.What + "; " + p.Do }

// preflightPatience bounds each connection attempt of a preflight.
const preflightPatience = 5 * time.Second

// Preflight looks for everything that would keep Apply or the agent from working with a database, and changes
// nothing. It tries each privilege that will be needed. No problem found: the result is empty.
func Preflight(ctx context.Context, adminDSN, agentDSN string, d Deployment) []Problem {
	p := &preflight{d: d}
	if err := d.check(); err != nil {
		p.add(err.Error(), "complete the spec")
		return p.problems
	}
	admin := p.connect(ctx, "administrator", adminDSN, nil)
	agent := p.connect(ctx, "agent", agentDSN, nil)
	if admin != nil {
		defer closeConn(admin)
	}
	if agent != nil {
		defer closeConn(agent)
	}
	if admin == nil || agent == nil {
		return p.problems
	}
	for _, look := range []func(context.Context, *pgx.Conn) error{p.server, p.sameDatabase(agent), p.adminPrivileges, p.agentPrivileges, p.installed, p.tables} {
		if err := look(ctx, admin); err != nil {
			p.add(fmt.Sprintf("the database does not answer as it should: %v", err), "see its log")
			return p.problems
		}
	}
	p.replication(ctx, agentDSN)
	return p.problems
}

type preflight struct {
	d        Deployment
	problems []Problem
}

func (p *preflight) add(what, do string) { p.problems = append(p.problems, Problem{what, do}) }

func (p *preflight) connect(ctx context.Context, who, dsn string, params map[string]string) *pgx.Conn {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		p.add(fmt.Sprintf("the %s's DSN cannot be read: %v", who, err), "write it as postgres://role:password@host:5432/database or as key=value pairs")
		return nil
	}
	config.ConnectTimeout = preflightPatience
	config.RuntimeParams["application_name"] = "atoll preflight"
	for k, v := range params {
		config.RuntimeParams[k] = v
	}
	ctx, cancel := context.WithTimeout(ctx, 2*preflightPatience)
	defer cancel()
	c, err := pgx.ConnectConfig(ctx, config)
	if err == nil {
		return c
	}
	where := fmt.Sprintf("database %q at %s:%d as role %q", config.Database, config.Host, config.Port, config.User)
	switch code := sqlState(err); {
	case params != nil && (code == "42501" || code == "28000"):
		p.add(fmt.Sprintf("role %q may not replicate: %v", config.User, err),
			fmt.Sprintf("run, as a superuser: ALTER ROLE %s REPLICATION (on RDS: GRANT rds_replication TO %[1]s), and let pg_hba.conf admit it", pgx.Identifier{config.User}.Sanitize()))
	case code == "":
		p.add(fmt.Sprintf("the %s's DSN does not answer (%s): %v", who, where, err), "check host and port, that PostgreSQL runs there, and that nothing between drops the connection")
	case code == "28P01" || code == "28000":
		p.add(fmt.Sprintf("the %s is not let in (%s): %v", who, where, err), "check role, password and pg_hba.conf; the role is made with CREATE ROLE … LOGIN REPLICATION")
	case code == "3D000":
		p.add(fmt.Sprintf("the %s's DSN names a database that does not exist (%s)", who, where), "create it, with the application's tables, or correct the DSN")
	default:
		p.add(fmt.Sprintf("the %s cannot connect (%s): %v", who, where, err), "see the server's log")
	}
	return nil
}

// server looks at the server's version and settings.
func (p *preflight) server(ctx context.Context, c *pgx.Conn) error {
	var version, slots, senders int
	var walLevel, encoding string
	var standby bool
	err := c.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('wal_level'), current_setting('server_encoding'),
		pg_is_in_recovery(), current_setting('max_replication_slots')::int, current_setting('max_wal_senders')::int`).
		Scan(&version, &walLevel, &encoding, &standby, &slots, &senders)
	if err != nil {
		return err
	}
	if version < 150000 {
		p.add(fmt.Sprintf("the server is PostgreSQL %d.%d; unlogged sequences came with 15", version/10000, version%10000), "upgrade it to 15 or newer")
	}
	if walLevel != "logical" {
		p.add(fmt.Sprintf("wal_level is %s; changes can only be read with logical", walLevel),
			"run, as a superuser: ALTER SYSTEM SET wal_level = 'logical', and restart the server (on RDS: rds.logical_replication = 1)")
	}
	if encoding != "UTF8" {
		p.add(fmt.Sprintf("the database's encoding is %s; keys are hashed as UTF-8", encoding), "use a database with ENCODING 'UTF8'")
	}
	if standby {
		p.add("the server is a standby", "let the DSNs lead to the primary")
	}
	if slots < 1 || senders < 1 {
		p.add(fmt.Sprintf("max_replication_slots is %d and max_wal_senders %d", slots, senders), "allow at least one of each per other site, with room to spare (10), and restart the server")
	}
	return nil
}

// sameDatabase makes sure that both DSNs lead to one database, the agent's with the declared role.
func (p *preflight) sameDatabase(agent *pgx.Conn) func(context.Context, *pgx.Conn) error {
	return func(ctx context.Context, admin *pgx.Conn) error {
		const who = `SELECT (SELECT system_identifier FROM pg_control_system())::text || ' ' || current_database(), current_user::text`
		var adminAt, adminRole, agentAt, agentRole string
		if err := admin.QueryRow(ctx, who).Scan(&adminAt, &adminRole); err != nil {
			return err
		}
		if err := agent.QueryRow(ctx, who).Scan(&agentAt, &agentRole); err != nil {
			return err
		}
		if adminAt != agentAt {
			p.add(fmt.Sprintf("the administrator's and the agent's DSN lead to different databases (%s, %s)", adminAt, agentAt), "correct one of them")
		}
		if agentRole != p.d.AgentRole {
			p.add(fmt.Sprintf("the agent's DSN connects as role %q, but the agent's role is %q", agentRole, p.d.AgentRole), "correct one of them")
		}
		return nil
	}
}

// adminPrivileges tries what Apply needs apart from tables.
func (p *preflight) adminPrivileges(ctx context.Context, c *pgx.Conn) error {
	var role, database string
	var mayCreate, superuser bool
	err := c.QueryRow(ctx, `SELECT current_user::text, current_database()::text, has_database_privilege(current_database(), 'CREATE'),
		(SELECT rolsuper FROM pg_roles WHERE rolname = current_user)`).Scan(&role, &database, &mayCreate, &superuser)
	if err != nil {
		return err
	}
	role = pgx.Identifier{role}.Sanitize()
	if !mayCreate {
		p.add(fmt.Sprintf("role %s may not create a schema and a publication in database %s", role, database),
			fmt.Sprintf("run: GRANT CREATE ON DATABASE %s TO %s", pgx.Identifier{database}.Sanitize(), role))
	}
	lacking, err := originGrantsLacking(ctx, c, p.d.AgentRole)
	if err != nil || superuser || len(lacking) == 0 {
		return err
	}
	p.add(fmt.Sprintf("the agent's role %s may not use replication origins, and %s may not grant it", p.d.AgentRole, role),
		fmt.Sprintf("run, as a superuser: GRANT EXECUTE ON FUNCTION %s TO %s", strings.Join(lacking, ", "), pgx.Identifier{p.d.AgentRole}.Sanitize()))
	return nil
}

// agentPrivileges looks for what row security and ownership would do to the agent.
func (p *preflight) agentPrivileges(ctx context.Context, c *pgx.Conn) error {
	var seesAll bool
	if err := c.QueryRow(ctx, `SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = $1`, p.d.AgentRole).Scan(&seesAll); err != nil {
		return err
	}
	for _, t := range p.d.Tables {
		if !t.Published() || seesAll {
			continue
		}
		var secured bool
		if err := c.QueryRow(ctx, `SELECT coalesce((SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass($1)), false)`, t.SQL()).Scan(&secured); err != nil {
			return err
		}
		if secured {
			p.add(fmt.Sprintf("table %s has row security, which would hide rows from the agent", t),
				fmt.Sprintf("run, as a superuser: ALTER ROLE %s BYPASSRLS", pgx.Identifier{p.d.AgentRole}.Sanitize()))
		}
	}
	return nil
}

// installed refuses a database that belongs elsewhere.
func (p *preflight) installed(ctx context.Context, c *pgx.Conn) error {
	is, err := isInstalled(ctx, c)
	if err != nil {
		return err
	}
	if !is {
		var schema, publication bool
		err := c.QueryRow(ctx, `SELECT to_regnamespace('atoll') IS NOT NULL, EXISTS (SELECT FROM pg_publication WHERE pubname = $1)`, PublicationName).Scan(&schema, &publication)
		if schema {
			p.add("a schema named atoll exists already and is not Atoll's", "drop or rename it")
		}
		if publication {
			p.add("a publication named atoll exists already and is not Atoll's", "drop or rename it")
		}
		return err
	}
	planned := planner{d: p.d}
	if err := planned.cat.read(ctx, c, Deployment{Deployment: p.d.Deployment, Site: p.d.Site, AgentRole: p.d.AgentRole}); err != nil {
		return err
	}
	planned.d.Tables = nil // tables are looked at one by one
	if err := planned.fits(); err != nil {
		p.add(err.Error(), "correct the spec, or take the old installation out with `atoll remove`")
	}
	return nil
}

// replication tries to open a replication connection, as capture will.
func (p *preflight) replication(ctx context.Context, agentDSN string) {
	if slices.ContainsFunc(p.problems, func(q Problem) bool { return strings.HasPrefix(q.What, "wal_level") }) {
		return // would fail for that reason
	}
	if c := p.connect(ctx, "agent", agentDSN, map[string]string{"replication": "database"}); c != nil {
		closeConn(c)
	}
}

// tables looks at each table of the spec.
func (p *preflight) tables(ctx context.Context, c *pgx.Conn) error {
	for _, t := range p.d.Tables {
		if !t.Published() {
			continue
		}
		look := tableLook{p: p, t: t}
		if err := look.run(ctx, c); err != nil {
			return fmt.Errorf("table %s: %w", t, err)
		}
	}
	return nil
}

// keyTypes says which column types print a key in the one form that is hashed.
var keyTypes = map[topo.KeyForm][]string{
	topo.IntegerKey: {"smallint", "integer", "bigint"},
	topo.TextKey:    {"text", "character varying"},
	topo.UUIDKey:    {"uuid"},
}
