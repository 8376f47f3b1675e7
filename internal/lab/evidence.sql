-- The lab's own witness in a site's database. It records every row change of the watched tables, by whom it was made
-- (an ordinary session, the applier, or Atoll on its own account), and every state of the fence's epoch rows, in the transaction that makes
-- them: what rolls back leaves no trace, and the commit's time comes from the database, as does whose change it was at first.
-- An applier gives its transactions the commit time of their origin. When something arrived here is told by the moment
-- at which the applier wrote it (at), a little before its commit.
CREATE SCHEMA lab;

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

-- Everybody's sessions write what they change by their triggers: for each watched table into one of its own (evidence.go),
-- which the view lab.change joins.
GRANT USAGE ON SCHEMA lab TO PUBLIC;

CREATE FUNCTION lab.note_epoch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    INSERT INTO lab.epoch (site, keyspace, bucket, epoch, state, handover)
    VALUES (NEW.site, NEW.keyspace, NEW.bucket, NEW.epoch, NEW.state, NEW.handover);
    RETURN NULL;
END $$;
