-- The lab's own witness in a site's database. It records every row change of the watched tables, by whom it was made
-- (an ordinary session, the applier, or Atoll on its own account), and every state of the fence's epoch rows, in the transaction that makes
-- them: what rolls back leaves no trace, and the commit's time comes from the database.
-- An applier gives its transactions the commit time of their origin. When something arrived here is told by the moment
-- at which the applier wrote it (at), a little before its commit.
CREATE SCHEMA lab;

CREATE TABLE lab.change (
    seq     bigint GENERATED ALWAYS AS IDENTITY,
    xid     xid NOT NULL DEFAULT pg_current_xact_id()::xid,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied boolean NOT NULL,            -- by the applier
    origin  text NOT NULL,               -- applied: the site where it was committed; else ''
    decided boolean NOT NULL,            -- by the agent's role outside replication: Atoll decides about a stale change
    tbl     text NOT NULL,
    op      text NOT NULL,
    key     text NOT NULL,               -- the routing key; '' for tables with one home
    pk      text NOT NULL
);
CREATE INDEX ON lab.change (at); -- for what is not at the other site yet

CREATE TABLE lab.epoch (
    seq      bigint GENERATED ALWAYS AS IDENTITY,
    xid      xid NOT NULL DEFAULT pg_current_xact_id()::xid,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    site     text NOT NULL,
    keyspace text NOT NULL,
    bucket   int NOT NULL,
    epoch    bigint NOT NULL,
    state    text NOT NULL,
    handover text NOT NULL
);

-- Arguments: the agent's role, the key column or '', the columns of the primary key.
CREATE FUNCTION lab.note_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    o jsonb; n jsonb; pk text := ''; key text := ''; was text;
    by_agent boolean := session_user = TG_ARGV[0];
    by_applier boolean := by_agent AND pg_replication_origin_session_is_setup();
    origin text := CASE WHEN by_applier THEN coalesce(substring(current_setting('application_name') FROM '^atoll apply from (.*)$'), '?') ELSE '' END;
BEGIN
    IF TG_OP <> 'INSERT' THEN o := to_jsonb(OLD); END IF;
    IF TG_OP <> 'DELETE' THEN n := to_jsonb(NEW); END IF;
    FOR i IN 2 .. TG_NARGS - 1 LOOP
        pk := pk || CASE WHEN i > 2 THEN '/' ELSE '' END || (coalesce(n, o) ->> TG_ARGV[i]);
    END LOOP;
    IF TG_ARGV[1] <> '' THEN
        key := coalesce(n, o) ->> TG_ARGV[1];
        was := o ->> TG_ARGV[1];
        IF was <> key THEN -- a row that changes its key is written in two buckets
            INSERT INTO lab.change (applied, origin, decided, tbl, op, key, pk) VALUES (by_applier, origin, by_agent AND NOT by_applier, TG_TABLE_NAME, TG_OP, was, pk);
        END IF;
    END IF;
    INSERT INTO lab.change (applied, origin, decided, tbl, op, key, pk) VALUES (by_applier, origin, by_agent AND NOT by_applier, TG_TABLE_NAME, TG_OP, coalesce(key, ''), pk);
    RETURN NULL;
END $$;

CREATE FUNCTION lab.note_epoch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    INSERT INTO lab.epoch (site, keyspace, bucket, epoch, state, handover)
    VALUES (NEW.site, NEW.keyspace, NEW.bucket, NEW.epoch, NEW.state, NEW.handover);
    RETURN NULL;
END $$;
