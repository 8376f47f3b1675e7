-- What `atoll apply` creates in a site's database besides the triggers, sequences and functions that it generates.
-- Tables marked "published" travel to the other sites; their rows are keyed by site, and an applier never writes
-- rows of its own site. All else is local.

CREATE SCHEMA atoll;

-- Which deployment and site this database is. One row.
CREATE TABLE atoll.install (
    id          int PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    format      int NOT NULL,                 -- version of this schema
    deployment  text NOT NULL,
    site        text NOT NULL,
    agent_role  name NOT NULL,                -- the one role whose writes the fence lets pass (the applier)
    functions   text NOT NULL,                -- digest of the fixed functions, to see which version is installed
    installed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Control rows: whoever changes ownership bits of a keyspace locks its row first.
CREATE TABLE atoll.keyspace (
    id        smallint PRIMARY KEY,           -- names the keyspace's sequences: atoll.own_<id>_<word>
    name      text NOT NULL UNIQUE,
    buckets   int NOT NULL,
    hash      text NOT NULL,
    restricts bigint NOT NULL DEFAULT 0       -- counts restrictions: an opening that was decided before the last one is void
);

-- Epoch rows (published): at which epoch a site holds a bucket, and whether its fence is open for it.
CREATE TABLE atoll.bucket (
    site       text NOT NULL,
    keyspace   text NOT NULL,
    bucket     int NOT NULL,
    epoch      bigint NOT NULL,
    state      text NOT NULL CHECK (state IN ('open', 'closed')),
    handover   text NOT NULL DEFAULT '',
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (site, keyspace, bucket)
);

-- Buckets that are being closed: their bits are off, their writers perhaps not gone yet. No opening at the same or a
-- lower epoch may set the bits again.
CREATE TABLE atoll.closing (
    keyspace text NOT NULL,
    bucket   int NOT NULL,
    epoch    bigint NOT NULL,
    handover text NOT NULL,
    reopen   boolean NOT NULL,                -- the bit was on, and may come back on if the closing is abandoned
    attempt  bigint NOT NULL,                 -- the transaction since which the bits are off: writers were waited out since then, or not at all
    PRIMARY KEY (keyspace, bucket)
);

-- Markers (published): the last word of an epoch ('closed') or its first ('opened') in a site's change stream.
CREATE TABLE atoll.marker (
    site       text NOT NULL,
    handover   text NOT NULL,                 -- or 'open-<version>' where a site opened outside a handover
    kind       text NOT NULL CHECK (kind IN ('closed', 'opened')),
    keyspace   text NOT NULL,
    buckets    jsonb NOT NULL,                -- [{"first":0,"last":24,"epoch":7}]
    vector     jsonb NOT NULL,                -- {"b": 123456}: what the site had applied of every other origin
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (site, handover, kind, keyspace)
);

-- Progress per origin, written in the transaction that applies (positions as bigint: an LSN fits).
CREATE TABLE atoll.progress (
    origin       text PRIMARY KEY,
    position     bigint NOT NULL,
    committed_at timestamptz,                 -- commit time at the origin of what was applied last
    applied_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    halted       text NOT NULL DEFAULT '',    -- a failover from the origin for which nothing more of it is applied
    cuts         int NOT NULL DEFAULT 0,      -- counts changes of atoll.cut for the origin; an applier that knows another number reads them again
    relay_from   bigint,                      -- atoll.relay has all of the origin's changes beyond, but for those that every other full site has; NULL: none are kept
    split        bigint NOT NULL DEFAULT 0    -- a transaction beyond position whose ordinary rows are here, while its stale ones are not decided
);

-- Where the epochs of a lost owner end for this site: what the origin committed under such an epoch or an earlier one,
-- beyond the position, is stale (I5). Its progress row is locked by whoever writes here.
CREATE TABLE atoll.cut (
    origin   text NOT NULL,
    keyspace text NOT NULL,
    bucket   int NOT NULL,
    epoch    bigint NOT NULL,
    position bigint NOT NULL,
    handover text NOT NULL,
    before   bigint NOT NULL,                 -- every transaction of this database with a lower id had ended when the cut was recorded
    mine     boolean NOT NULL,                -- this site took the bucket, and decides what is stale; else another one does, and here it is passed over
    PRIMARY KEY (origin, keyspace, bucket, epoch)
);

-- What a site keeps of each origin's applied changes until every site has them.
CREATE TABLE atoll.relay (
    origin   text NOT NULL,
    position bigint NOT NULL,
    part     int NOT NULL,
    body     bytea NOT NULL,                  -- a change.Tx in its wire form
    PRIMARY KEY (origin, position, part)
);

-- Every conflict, written in the transaction that decided it.
CREATE TABLE atoll.conflict (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    origin      text NOT NULL,
    position    bigint NOT NULL,
    source_xid  bigint NOT NULL,
    kind        text NOT NULL,                -- PostgreSQL 18's names: insert_exists, update_missing, delete_missing, ...
    table_name  text NOT NULL,
    keyspace    text NOT NULL DEFAULT '',
    bucket      int,
    epoch       bigint,
    local_row   jsonb,
    remote_row  jsonb,
    handover    text NOT NULL DEFAULT '',     -- the failover whose tail the remote version is of; then kind is stale_insert, stale_update or stale_delete
    decided_xid bigint,                       -- this database's transaction that decided
    decision    text NOT NULL                 -- applied | kept | logged
);

-- To find out whether a row's last writer was a decision about the same tail.
CREATE INDEX conflict_decided ON atoll.conflict (decided_xid) WHERE decided_xid IS NOT NULL;

-- Last known owners, for the message of a refused write only.
CREATE TABLE atoll.owner (
    keyspace text NOT NULL,
    first    int NOT NULL,
    last     int NOT NULL,
    owner    text NOT NULL,
    epoch    bigint NOT NULL,
    PRIMARY KEY (keyspace, first)
);

-- The keeper's proof that this database still completes durable writes. One row.
CREATE TABLE atoll.heartbeat (
    id int PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    beat bigint NOT NULL DEFAULT 0,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- How to take back what was changed outside this schema, newest first; `atoll remove` runs and deletes these.
CREATE TABLE atoll.undo (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reason text NOT NULL,
    sql    text NOT NULL
);

-- The moment, in milliseconds since 1970 on this database's clock, until which writes are accepted. Never set, or
-- lost in a crash or a promotion (hence UNLOGGED): no write is accepted.
CREATE UNLOGGED SEQUENCE atoll.lease AS bigint MINVALUE 0 START 0;
