-- The fixed functions of the fence. Each is one statement of its caller, so that a frozen agent never sits on the
-- control row's lock. They act for the site that atoll.install names, and for no other.
-- A set of buckets comes as [{"first":0,"last":24,"epoch":7}].

-- the buckets of a set, one per row
CREATE OR REPLACE FUNCTION atoll.expand(spans jsonb) RETURNS TABLE (bucket int, epoch bigint)
LANGUAGE sql STABLE AS $$
  SELECT g, (s->>'epoch')::bigint
  FROM jsonb_array_elements(spans) s, generate_series((s->>'first')::int, (s->>'last')::int) g
$$;

-- the sequence that holds a bucket's ownership bit, 32 buckets to a sequence
CREATE OR REPLACE FUNCTION atoll.word_of(ks smallint, bucket int) RETURNS regclass
LANGUAGE sql STABLE AS $$
  SELECT format('atoll.own_%s_%s', ks, bucket >> 5)::regclass
$$;

-- what the fence says of each bucket of a set. Looked up one by one, by key: the planner knows nothing of these
-- tables' contents while they are new, and a bad guess would compare every bucket with every other.
CREATE OR REPLACE FUNCTION atoll.standing(ks text, spans jsonb)
RETURNS TABLE (bucket int, asked bigint, epoch bigint, state text, handover text, closing bigint, closing_by text, reopen boolean)
LANGUAGE sql STABLE SET enable_seqscan = off SET jit = off AS $$
  SELECT w.bucket, w.epoch, b.epoch, b.state, b.handover, c.epoch, c.handover, c.reopen
  FROM atoll.expand(spans) w
  LEFT JOIN LATERAL (SELECT * FROM atoll.bucket b
    WHERE b.site = (SELECT i.site FROM atoll.install i WHERE i.id = 1) AND b.keyspace = ks AND b.bucket = w.bucket OFFSET 0) b ON true
  LEFT JOIN LATERAL (SELECT * FROM atoll.closing c WHERE c.keyspace = ks AND c.bucket = w.bucket OFFSET 0) c ON true
$$;

-- locks the control row of a keyspace
CREATE OR REPLACE FUNCTION atoll.lock_keyspace(ks text) RETURNS atoll.keyspace
LANGUAGE plpgsql AS $$
DECLARE
  k atoll.keyspace;
BEGIN
  SELECT * INTO k FROM atoll.keyspace WHERE name = ks FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'keyspace % is not installed in this database', ks USING HINT = 'Run atoll apply.';
  END IF;
  RETURN k;
END $$;

-- the one place where ownership bits change: the control row is locked before the word is read
CREATE OR REPLACE FUNCTION atoll.set_bits(ks smallint, word int, bits_on bigint, bits_off bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  seq regclass := atoll.word_of(ks, word << 5);
  was bigint;
BEGIN
  PERFORM FROM atoll.keyspace WHERE id = ks FOR UPDATE;
  was := pg_sequence_last_value(seq);
  IF was IS DISTINCT FROM ((coalesce(was, 0) | bits_on) & ~bits_off) THEN
    PERFORM setval(seq, (coalesce(was, 0) | bits_on) & ~bits_off);
  END IF;
END $$;

-- first half of closing: bits off, and no opening may set them again. A closing that is under way is joined, and keeps
-- its attempt; one that was given up in between begins anew, for those who waited before too.
CREATE OR REPLACE FUNCTION atoll.begin_close(ks text, ho text, spans jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  me text := (SELECT site FROM atoll.install);
  k atoll.keyspace := atoll.lock_keyspace(ks);
  done jsonb;
  late jsonb;
  r record;
  joined bigint;
BEGIN
  SELECT jsonb_build_object('outcome', 'closed', 'buckets', m.buckets, 'vector', m.vector) INTO done
  FROM atoll.marker m WHERE m.site = me AND m.handover = ho AND m.kind = 'closed' AND m.keyspace = ks;
  IF FOUND THEN
    RETURN done;
  END IF;
  SELECT jsonb_agg(jsonb_build_object('bucket', w.bucket, 'asked', w.asked, 'epoch', greatest(w.epoch, w.closing),
                                      'state', w.state, 'handover', coalesce(w.closing_by, w.handover)) ORDER BY w.bucket)
  INTO late
  FROM atoll.standing(ks, spans) w
  WHERE w.epoch > w.asked OR (w.epoch = w.asked AND w.state = 'closed') OR (w.closing >= w.asked AND w.closing_by <> ho);
  IF late IS NOT NULL THEN
    RETURN jsonb_build_object('outcome', 'stale', 'late', late);
  END IF;
  SELECT max(c.attempt) INTO joined FROM atoll.closing c WHERE c.keyspace = ks AND c.handover = ho;
  INSERT INTO atoll.closing AS c (keyspace, bucket, epoch, handover, reopen, attempt)
  SELECT ks, w.bucket, w.epoch, ho,
         coalesce((pg_sequence_last_value(atoll.word_of(k.id, w.bucket)) >> (w.bucket & 31)) & 1 = 1, false), txid_current()
  FROM atoll.expand(spans) w
  ON CONFLICT (keyspace, bucket) DO UPDATE
  SET epoch = excluded.epoch, handover = excluded.handover, reopen = excluded.reopen, attempt = excluded.attempt
  WHERE (c.handover, c.epoch) IS DISTINCT FROM (excluded.handover, excluded.epoch);
  IF FOUND OR joined IS NULL THEN -- some bit goes off only now
    joined := txid_current();
    UPDATE atoll.closing c SET attempt = joined WHERE c.keyspace = ks AND c.handover = ho AND c.attempt <> joined;
  END IF;
  FOR r IN SELECT w.bucket >> 5 AS word, bit_or(1::bigint << (w.bucket & 31)) AS mask
           FROM atoll.expand(spans) w GROUP BY 1 LOOP
    PERFORM atoll.set_bits(k.id, r.word, 0, r.mask);
  END LOOP;
  RETURN jsonb_build_object('outcome', 'closing', 'attempt', joined);
END $$;

-- second half of closing, when every writer since the attempt began is gone: closed rows and the marker, in one transaction
CREATE OR REPLACE FUNCTION atoll.finish_close(ks text, ho text, spans jsonb, began bigint) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  me text := (SELECT site FROM atoll.install);
  k atoll.keyspace := atoll.lock_keyspace(ks);
  done jsonb;
  v jsonb;
BEGIN
  SELECT jsonb_build_object('outcome', 'closed', 'buckets', m.buckets, 'vector', m.vector) INTO done
  FROM atoll.marker m WHERE m.site = me AND m.handover = ho AND m.kind = 'closed' AND m.keyspace = ks;
  IF FOUND THEN
    RETURN done;
  END IF;
  IF EXISTS (SELECT FROM atoll.standing(ks, spans) w WHERE (w.closing_by, w.closing) IS DISTINCT FROM (ho, w.asked))
    OR EXISTS (SELECT FROM atoll.closing c WHERE c.keyspace = ks AND c.handover = ho AND c.attempt <> began) THEN
    RETURN jsonb_build_object('outcome', 'superseded');
  END IF;
  IF EXISTS (SELECT FROM atoll.expand(spans) w
             WHERE (pg_sequence_last_value(atoll.word_of(k.id, w.bucket)) >> (w.bucket & 31)) & 1 = 1) THEN
    RAISE EXCEPTION 'BUG: an ownership bit is on while its bucket is being closed by handover %', ho;
  END IF;
  INSERT INTO atoll.bucket AS b (site, keyspace, bucket, epoch, state, handover)
  SELECT me, ks, w.bucket, w.epoch, 'closed', ho FROM atoll.expand(spans) w
  ON CONFLICT (site, keyspace, bucket) DO UPDATE
  SET epoch = excluded.epoch, state = excluded.state, handover = excluded.handover, changed_at = clock_timestamp();
  SELECT coalesce(jsonb_object_agg(p.origin, p.position), '{}') INTO v FROM atoll.progress p WHERE p.origin <> me;
  INSERT INTO atoll.marker (site, handover, kind, keyspace, buckets, vector) VALUES (me, ho, 'closed', ks, spans, v);
  DELETE FROM atoll.closing c WHERE c.keyspace = ks AND c.handover = ho;
  RETURN jsonb_build_object('outcome', 'closed', 'buckets', spans, 'vector', v);
END $$;

-- gives a closing up: bits that it turned off come on again, unless a restriction or a newer epoch came between
CREATE OR REPLACE FUNCTION atoll.abandon_close(ks text, ho text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  k atoll.keyspace := atoll.lock_keyspace(ks);
  spans jsonb;
  r record;
BEGIN
  SELECT jsonb_agg(jsonb_build_object('first', c.bucket, 'last', c.bucket, 'epoch', c.epoch)) INTO spans
  FROM atoll.closing c WHERE c.keyspace = ks AND c.handover = ho;
  FOR r IN SELECT w.bucket >> 5 AS word, bit_or(1::bigint << (w.bucket & 31)) AS mask
           FROM atoll.standing(ks, spans) w
           WHERE w.epoch = w.asked AND w.state = 'open' AND w.reopen GROUP BY 1 LOOP
    PERFORM atoll.set_bits(k.id, r.word, r.mask, 0);
  END LOOP;
  DELETE FROM atoll.closing c WHERE c.keyspace = ks AND c.handover = ho;
END $$;

-- the newest generation of the store that this database was told of: nothing opens, and no lease is extended, under an
-- older one. One row, or none. It stands here and not among the tables so that a database that was prepared before gets it.
CREATE TABLE IF NOT EXISTS atoll.generation (id int PRIMARY KEY DEFAULT 1 CHECK (id = 1), generation bigint NOT NULL);

-- tells the database of a generation; it only grows. No opening is under way when this returns.
CREATE OR REPLACE FUNCTION atoll.raise_generation(told bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM atoll.keyspace ORDER BY id FOR UPDATE;
  INSERT INTO atoll.generation AS g (id, generation) VALUES (1, told)
  ON CONFLICT (id) DO UPDATE SET generation = greatest(g.generation, excluded.generation);
  RETURN (SELECT g.generation FROM atoll.generation g);
END $$;

-- this form knew no generations
DROP FUNCTION IF EXISTS atoll.open_rows(text, text, jsonb, bigint);

-- first half of opening: the epoch rows and the marker, committed before any bit is set (I6: only a higher epoch)
CREATE OR REPLACE FUNCTION atoll.open_rows(ks text, ho text, spans jsonb, seen bigint, under bigint DEFAULT 0) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  me text := (SELECT site FROM atoll.install);
  k atoll.keyspace := atoll.lock_keyspace(ks);
  late jsonb;
  r record;
BEGIN
  IF k.restricts <> seen THEN
    RETURN jsonb_build_object('outcome', 'restricted');
  ELSIF EXISTS (SELECT FROM atoll.generation g WHERE g.generation > under) THEN
    RETURN jsonb_build_object('outcome', CASE under WHEN 0 THEN 'restricted' ELSE 'former' END);
  END IF;
  SELECT jsonb_agg(jsonb_build_object('bucket', w.bucket, 'asked', w.asked, 'epoch', greatest(w.epoch, w.closing),
                                      'state', w.state, 'handover', coalesce(w.closing_by, w.handover)) ORDER BY w.bucket)
  INTO late
  FROM atoll.standing(ks, spans) w
  WHERE w.epoch > w.asked OR (w.epoch = w.asked AND w.state = 'closed') OR w.closing >= w.asked;
  IF late IS NOT NULL THEN
    RETURN jsonb_build_object('outcome', 'stale', 'late', late);
  END IF;
  FOR r IN SELECT w.bucket FROM atoll.standing(ks, spans) w WHERE w.closing IS NOT NULL LOOP
    DELETE FROM atoll.closing c WHERE c.keyspace = ks AND c.bucket = r.bucket;
  END LOOP;
  INSERT INTO atoll.bucket AS b (site, keyspace, bucket, epoch, state, handover)
  SELECT me, ks, w.bucket, w.epoch, 'open', ho FROM atoll.expand(spans) w
  ON CONFLICT (site, keyspace, bucket) DO UPDATE
  SET epoch = excluded.epoch, state = excluded.state, handover = excluded.handover, changed_at = clock_timestamp()
  WHERE b.epoch < excluded.epoch;
  IF FOUND THEN
    INSERT INTO atoll.marker AS m (site, handover, kind, keyspace, buckets, vector)
    VALUES (me, ho, 'opened', ks, spans,
            (SELECT coalesce(jsonb_object_agg(p.origin, p.position), '{}') FROM atoll.progress p WHERE p.origin <> me))
    ON CONFLICT (site, handover, kind, keyspace) DO UPDATE
    SET buckets = excluded.buckets, vector = excluded.vector, written_at = clock_timestamp();
  END IF;
  RETURN jsonb_build_object('outcome', 'written');
END $$;

-- second half of opening: the bits of those buckets whose row is still the one that was written
CREATE OR REPLACE FUNCTION atoll.open_bits(ks text, spans jsonb, seen bigint) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  k atoll.keyspace := atoll.lock_keyspace(ks);
  r record;
  n bigint := 0;
BEGIN
  IF k.restricts <> seen THEN
    RETURN jsonb_build_object('outcome', 'restricted');
  END IF;
  FOR r IN SELECT w.bucket >> 5 AS word, bit_or(1::bigint << (w.bucket & 31)) AS mask, count(*) AS buckets
           FROM atoll.standing(ks, spans) w
           WHERE w.epoch = w.asked AND w.state = 'open' AND w.closing IS NULL GROUP BY 1 LOOP
    PERFORM atoll.set_bits(k.id, r.word, r.mask, 0);
    n := n + r.buckets;
  END LOOP;
  RETURN jsonb_build_object('outcome', 'opened', 'opened', n);
END $$;

-- turns off every bit that is not kept, and voids every opening and reopening that was decided before;
-- keep is {"users": [4294967295, 0, ...]}, one number per word
CREATE OR REPLACE FUNCTION atoll.restrict(keep jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  k atoll.keyspace;
  counters jsonb := '{}';
BEGIN
  FOR k IN SELECT * FROM atoll.keyspace ORDER BY id FOR UPDATE LOOP
    FOR w IN 0 .. (k.buckets - 1) >> 5 LOOP
      PERFORM atoll.set_bits(k.id, w, 0, ~coalesce((keep->k.name->>w)::bigint, 0) & 4294967295);
    END LOOP;
    UPDATE atoll.closing c SET reopen = false
    WHERE c.keyspace = k.name AND c.reopen
      AND (coalesce((keep->k.name->>(c.bucket >> 5))::bigint, 0) >> (c.bucket & 31)) & 1 = 0;
    UPDATE atoll.keyspace u SET restricts = u.restricts + 1 WHERE u.id = k.id;
    counters := counters || jsonb_build_object(k.name, k.restricts + 1);
  END LOOP;
  RETURN counters;
END $$;

-- where a lost site's epochs end here; from now on what it committed beyond is decided, not applied. wanted is
-- [{"keyspace":"users","first":0,"last":24,"epoch":7,"position":123456,"handover":"h"}]. The progress row is locked: an
-- applier either committed before, or finds another count of cuts.
CREATE OR REPLACE FUNCTION atoll.record_cuts(lost text, wanted jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
  p atoll.progress;
  beyond bigint;
  n bigint;
BEGIN
  SELECT * INTO p FROM atoll.progress WHERE origin = lost FOR UPDATE;
  IF NOT FOUND AND EXISTS (SELECT FROM atoll.wanted_cuts(wanted) w WHERE w.mine) THEN
    RETURN jsonb_build_object('outcome', 'no progress');
  END IF;
  SELECT max(w.position) INTO beyond
  FROM atoll.wanted_cuts(wanted) w
  LEFT JOIN atoll.cut c ON c.origin = lost AND c.keyspace = w.keyspace AND c.bucket = w.bucket AND c.epoch = w.epoch
  WHERE w.mine AND w.position < greatest(p.position, p.split) AND c.epoch IS NULL;
  IF beyond IS NOT NULL THEN
    RETURN jsonb_build_object('outcome', 'beyond', 'cut', beyond, 'position', greatest(p.position, p.split));
  END IF;
  n := atoll.put_cuts(lost, wanted);
  UPDATE atoll.progress SET cuts = p.cuts + (n > 0)::int,
    halted = CASE WHEN EXISTS (SELECT FROM jsonb_array_elements(wanted) s WHERE s->>'handover' = p.halted) THEN '' ELSE p.halted END
  WHERE origin = lost;
  RETURN jsonb_build_object('outcome', 'recorded');
END $$;

-- the buckets of a set of cuts, one per row
CREATE OR REPLACE FUNCTION atoll.wanted_cuts(wanted jsonb)
RETURNS TABLE (keyspace text, bucket int, epoch bigint, "position" bigint, handover text, mine boolean)
LANGUAGE sql STABLE AS $$
  SELECT s->>'keyspace', g, (s->>'epoch')::bigint, (s->>'position')::bigint, s->>'handover', (s->>'mine')::boolean
  FROM jsonb_array_elements(wanted) s, generate_series((s->>'first')::int, (s->>'last')::int) g
$$;

-- writes the rows of new cuts, and of those that have become this site's to decide, and counts them
CREATE OR REPLACE FUNCTION atoll.put_cuts(lost text, wanted jsonb) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  n bigint;
BEGIN
  INSERT INTO atoll.cut AS c (origin, keyspace, bucket, epoch, position, handover, before, mine)
  SELECT lost, w.keyspace, w.bucket, w.epoch, w.position, w.handover, pg_snapshot_xmin(pg_current_snapshot())::text::bigint, w.mine
  FROM atoll.wanted_cuts(wanted) w
  ON CONFLICT ON CONSTRAINT cut_pkey DO UPDATE SET mine = true, before = excluded.before
  WHERE excluded.mine AND NOT c.mine;
  GET DIAGNOSTICS n = ROW_COUNT;
  RETURN n;
END $$;

-- whether cuts are recorded already, and hold nothing up any more; reads only
CREATE OR REPLACE FUNCTION atoll.cuts_recorded(lost text, wanted jsonb) RETURNS boolean
LANGUAGE sql STABLE AS $$
  SELECT NOT EXISTS (SELECT FROM atoll.wanted_cuts(wanted) w
      LEFT JOIN atoll.cut c ON c.origin = lost AND c.keyspace = w.keyspace AND c.bucket = w.bucket AND c.epoch = w.epoch
      WHERE c.epoch IS NULL OR w.mine AND NOT c.mine)
    AND NOT EXISTS (SELECT FROM atoll.progress p, jsonb_array_elements(wanted) s WHERE p.origin = lost AND p.halted = s->>'handover')
$$;

-- how this site stands to a bucket that was taken from a lost site: 'own' (open here, the lease in force), 'gone' (another
-- site took it, or it was open here and went on to one), or 'wait' (it is this site's, but not open at this moment)
CREATE OR REPLACE FUNCTION atoll.tail_standing(lost text, ks text, b int) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  r atoll.bucket;
  last atoll.cut;
BEGIN
  SELECT c.* INTO last FROM atoll.cut c WHERE c.origin = lost AND c.keyspace = ks AND c.bucket = b ORDER BY c.epoch DESC LIMIT 1;
  SELECT w.* INTO r FROM atoll.bucket w
  WHERE w.site = (SELECT i.site FROM atoll.install i) AND w.keyspace = ks AND w.bucket = b AND w.epoch > last.epoch;
  IF r.state = 'closed' OR r.state IS NULL AND NOT last.mine THEN
    RETURN 'gone';
  ELSIF r.state = 'open'
    AND (pg_sequence_last_value(atoll.word_of((SELECT k.id FROM atoll.keyspace k WHERE k.name = ks), b)) >> (b & 31)) & 1 = 1
    AND pg_sequence_last_value('atoll.lease'::regclass) > date_part('epoch', clock_timestamp()) * 1000 THEN
    RETURN 'own';
  END IF;
  RETURN 'wait';
END $$;

-- writes the lease moment, which only grows: a late statement changes nothing; but a moment that lies further ahead
-- than any that this keeper can have meant (lead, in ms) was written by a clock that has since been set back
CREATE OR REPLACE FUNCTION atoll.extend_lease(moment bigint, lead bigint) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  was bigint;
BEGIN
  PERFORM FROM atoll.install FOR UPDATE;
  was := pg_sequence_last_value('atoll.lease'::regclass);
  IF was IS NULL OR moment > was THEN
    PERFORM setval('atoll.lease'::regclass, moment);
    RETURN 'extended';
  ELSIF was > date_part('epoch', clock_timestamp()) * 1000 + lead + 1000 THEN
    PERFORM setval('atoll.lease'::regclass, moment);
    RETURN 'lowered';
  END IF;
  RETURN 'kept';
END $$;

-- the bucket of a key in its canonical text form, as the gateway computes it: the low bits of the first 32 of its MD5.
-- There are at most 65536 buckets, so the second 16 bits are enough; the form is the one that calls the fewest functions.
CREATE OR REPLACE FUNCTION atoll.bucket_of(key text, buckets int) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT pg_catalog.int4(('x' || substr(md5(key), 5, 4))::varbit) & (buckets - 1)
$$;

-- refuses a write, with all that the application or its gateway needs to try again at the right place. The guard may
-- have been overtaken by an opening in between; then the bucket was not open when it looked.
CREATE OR REPLACE FUNCTION atoll.refuse(ks text, b int, no_lease boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  me text := (SELECT i.site FROM atoll.install i);
  owner text;
  ep bigint;
  about text;
BEGIN
  IF b IS NULL THEN
    RAISE EXCEPTION 'a row of keyspace % has no key', ks
      USING ERRCODE = 'not_null_violation', HINT = 'Every row of a keyed table belongs to the bucket of its key.';
  END IF;
  SELECT w.owner, w.epoch INTO owner, ep FROM atoll.owner w WHERE w.keyspace = ks AND b BETWEEN w.first AND w.last;
  IF no_lease THEN
    about := format('site %s accepts no writes at present, its lease has run out (bucket %s of keyspace %s)', me, b, ks);
  ELSE
    about := format('bucket %s of keyspace %s is not open for writes at site %s; its owner is %s (epoch %s)',
                    b, ks, me, coalesce(owner, 'unknown'), coalesce(ep, 0));
  END IF;
  RAISE EXCEPTION '%', about USING
    ERRCODE = CASE WHEN no_lease THEN 'AT002' ELSE 'AT001' END,
    DETAIL = json_build_object('keyspace', ks, 'bucket', b, 'owner', coalesce(owner, ''), 'epoch', coalesce(ep, 0)),
    HINT = format('Roll back and answer 503 with the header Atoll-Fenced: %s/%s/%s.', ks, b, coalesce(ep, 0));
END $$;

-- deferred constraint trigger (keyspace, key column, buckets): looks at the lease once more at commit
CREATE OR REPLACE FUNCTION atoll.check_commit() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
  key text;
  nothing int;
BEGIN
  IF pg_catalog.clock_timestamp() < pg_catalog.to_timestamp(pg_catalog.pg_sequence_last_value('atoll.lease'::regclass) * 0.001::float8) THEN
    RETURN nothing; -- a variable is returned without preparing an expression
  END IF;
  IF current_user = (SELECT i.agent_role FROM atoll.install i) THEN
    RETURN NULL;
  END IF;
  IF TG_OP = 'DELETE' THEN
    key := to_jsonb(OLD) ->> TG_ARGV[1];
  ELSE
    key := to_jsonb(NEW) ->> TG_ARGV[1];
  END IF;
  PERFORM atoll.refuse(TG_ARGV[0], CASE WHEN TG_ARGV[1] = '' THEN 0 ELSE atoll.bucket_of(key, TG_ARGV[2]::int) END, true);
  RETURN NULL;
END $$;

-- truncate trigger (keyspace): TRUNCATE speaks of no bucket
CREATE OR REPLACE FUNCTION atoll.refuse_truncate() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  IF current_user = (SELECT i.agent_role FROM atoll.install i) THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION 'TRUNCATE of % is refused: its rows belong to keyspace %, whose buckets may be owned by other sites',
                  TG_RELID::regclass, TG_ARGV[0]
    USING ERRCODE = 'AT003', DETAIL = json_build_object('keyspace', TG_ARGV[0]),
          HINT = 'DELETE the rows instead, at the sites that own them.';
END $$;
