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

-- Tells whether the session is an applier's; the agent's role may not ask by itself.
CREATE FUNCTION lab.applies() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN pg_replication_origin_session_is_setup(); END';

-- Everybody's sessions write it by their triggers.
GRANT USAGE ON SCHEMA lab TO PUBLIC;
GRANT INSERT ON lab.change TO PUBLIC;

CREATE FUNCTION lab.note_epoch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    INSERT INTO lab.epoch (site, keyspace, bucket, epoch, state, handover)
    VALUES (NEW.site, NEW.keyspace, NEW.bucket, NEW.epoch, NEW.state, NEW.handover);
    RETURN NULL;
END $$;
