-- Dead letters come home: who has them, where they went, how many of each kind there are, and the replays that took them.

-- A partition for each status: a letter that changes its status leaves the indexes of the one before without work, and
-- pays for those of the next alone. Whoever waits is found by all of them; whoever is in a replay by its id only.
ALTER TABLE dead_letter RENAME TO dead_letter_pending;
ALTER INDEX dead_letter_pkey RENAME TO dead_letter_pending_pkey;
DROP INDEX dead_letter_by_batch, dead_letter_waiting;
CREATE TABLE dead_letter (LIKE dead_letter_pending INCLUDING DEFAULTS INCLUDING COMMENTS) PARTITION BY LIST (status);
ALTER TABLE dead_letter ATTACH PARTITION dead_letter_pending FOR VALUES IN ('pending');
CREATE TABLE dead_letter_replaying PARTITION OF dead_letter (PRIMARY KEY (dead_letter_id)) FOR VALUES IN ('replaying');
CREATE TABLE dead_letter_parked PARTITION OF dead_letter (PRIMARY KEY (dead_letter_id)) FOR VALUES IN ('parked');
CREATE TABLE dead_letter_replayed PARTITION OF dead_letter (PRIMARY KEY (dead_letter_id)) FOR VALUES IN ('replayed');
CREATE TABLE dead_letter_discarded PARTITION OF dead_letter (PRIMARY KEY (dead_letter_id)) FOR VALUES IN ('discarded');

-- Who was allowed to use the table is allowed to use it as before.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT acl.privilege_type, '' AS of_column, acl.is_grantable, acl.grantee
        FROM pg_class c, LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
        WHERE c.oid = 'dead_letter_pending'::regclass AND acl.grantee <> quote_ident(current_user)::regrole
        UNION ALL
        SELECT acl.privilege_type, format(' (%I)', a.attname), acl.is_grantable, acl.grantee
        FROM pg_attribute a, LATERAL aclexplode(a.attacl) AS acl
        WHERE a.attrelid = 'dead_letter_pending'::regclass AND a.attnum > 0
            AND acl.grantee <> quote_ident(current_user)::regrole
    LOOP
        EXECUTE format(
            'GRANT %s%s ON dead_letter TO %s %s', granted.privilege_type, granted.of_column,
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END,
            CASE WHEN granted.is_grantable THEN 'WITH GRANT OPTION' END
        );
    END LOOP;
END $$;

ALTER TABLE dead_letter
    ADD COLUMN replay_id     uuid,
    -- Of a letter in a replay: what it is again if the replay gives it back.
    ADD COLUMN status_before text,
    ADD COLUMN home_query_id text,
    ADD COLUMN home_batch_id bigint,
    ADD COLUMN closed_at     timestamptz,
    ADD COLUMN closed_by     text,
    ADD COLUMN reason        text,
    ADD CONSTRAINT dead_letter_status CHECK (status IN ('pending', 'replaying', 'replayed', 'parked', 'discarded')),
    -- Whoever gives a letter up is named, and says why; what was replayed names the micro-batch it came home in.
    ADD CONSTRAINT dead_letter_discarded CHECK (status <> 'discarded' OR (closed_by IS NOT NULL AND reason IS NOT NULL)),
    ADD CONSTRAINT dead_letter_home CHECK (status <> 'replayed' OR (home_query_id IS NOT NULL AND home_batch_id IS NOT NULL)),
    ADD CONSTRAINT dead_letter_replaying CHECK (
        status <> 'replaying' OR (replay_id IS NOT NULL AND status_before IS NOT NULL)
    );

CREATE INDEX dead_letter_pending_by_pipeline ON dead_letter_pending (pipeline_id, first_failed_at, dead_letter_id);
CREATE INDEX dead_letter_pending_by_class ON dead_letter_pending (pipeline_id, error_class, first_failed_at);
CREATE INDEX dead_letter_pending_by_time ON dead_letter_pending (first_failed_at, dead_letter_id);
CREATE INDEX dead_letter_pending_by_kind ON dead_letter_pending (error_class, first_failed_at);
CREATE INDEX dead_letter_parked_by_pipeline ON dead_letter_parked (pipeline_id, first_failed_at, dead_letter_id);
CREATE INDEX dead_letter_parked_by_class ON dead_letter_parked (pipeline_id, error_class, first_failed_at);
CREATE INDEX dead_letter_parked_by_time ON dead_letter_parked (first_failed_at, dead_letter_id);
CREATE INDEX dead_letter_parked_by_kind ON dead_letter_parked (error_class, first_failed_at);
CREATE INDEX dead_letter_replayed_by_pipeline ON dead_letter_replayed (pipeline_id, first_failed_at, dead_letter_id);
CREATE INDEX dead_letter_replayed_by_time ON dead_letter_replayed (first_failed_at, dead_letter_id);
CREATE INDEX dead_letter_discarded_by_pipeline ON dead_letter_discarded (pipeline_id, first_failed_at, dead_letter_id);
CREATE INDEX dead_letter_discarded_by_time ON dead_letter_discarded (first_failed_at, dead_letter_id);

-- Numbers of letters, as differences: nobody waits for a row that another transaction, a prepared one perhaps, holds.
CREATE TABLE dead_letter_tally (
    pipeline_id varchar(255) NOT NULL,
    status      text         NOT NULL,
    stage       text         NOT NULL,
    error_class text         NOT NULL,
    letters     bigint       NOT NULL
);

CREATE INDEX dead_letter_tally_by_pipeline ON dead_letter_tally (pipeline_id);

INSERT INTO dead_letter_tally (pipeline_id, status, stage, error_class, letters)
SELECT pipeline_id, status, stage, error_class, count(*) FROM dead_letter GROUP BY 1, 2, 3, 4;

-- As the ledger's owner: who may write a letter may count it. The table is named in full, whatever the search path.
CREATE FUNCTION tally_dead_letters() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        EXECUTE format('TRUNCATE %I.dead_letter_tally', TG_TABLE_SCHEMA);
        RETURN NULL;
    END IF;
    EXECUTE format(
        'INSERT INTO %I.dead_letter_tally (pipeline_id, status, stage, error_class, letters) '
        'SELECT pipeline_id, status, stage, error_class, sum(sign) FROM (%s) AS changed '
        'GROUP BY 1, 2, 3, 4 HAVING sum(sign) <> 0',
        TG_TABLE_SCHEMA,
        concat_ws(
            ' UNION ALL ',
            CASE WHEN TG_OP <> 'INSERT' THEN 'SELECT pipeline_id, status, stage, error_class, -1 AS sign FROM gone' END,
            CASE WHEN TG_OP <> 'DELETE' THEN 'SELECT pipeline_id, status, stage, error_class, 1 AS sign FROM come' END
        )
    );
    RETURN NULL;
END $$;

CREATE TRIGGER tally_inserted AFTER INSERT ON dead_letter
    REFERENCING NEW TABLE AS come FOR EACH STATEMENT EXECUTE FUNCTION tally_dead_letters();
CREATE TRIGGER tally_updated AFTER UPDATE ON dead_letter
    REFERENCING OLD TABLE AS gone NEW TABLE AS come FOR EACH STATEMENT EXECUTE FUNCTION tally_dead_letters();
CREATE TRIGGER tally_deleted AFTER DELETE ON dead_letter
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION tally_dead_letters();
CREATE TRIGGER tally_truncated AFTER TRUNCATE ON dead_letter
    FOR EACH STATEMENT EXECUTE FUNCTION tally_dead_letters();

-- One row for each replay; its runs are those of the pipeline '<pipeline_id>/replay/<replay_id>'.
CREATE TABLE dead_letter_replay (
    replay_id    uuid         PRIMARY KEY,
    pipeline_id  varchar(255) NOT NULL REFERENCES pipeline,
    mode         text         NOT NULL CHECK (mode IN ('reprocess', 'redrive')),
    dry_run      boolean      NOT NULL,
    request      jsonb        NOT NULL,
    requested_by text         NOT NULL,
    requested_at timestamptz  NOT NULL DEFAULT clock_timestamp(),
    state        text         NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'finished', 'released')),
    letters      bigint       NOT NULL,
    ended_at     timestamptz,
    summary      jsonb
);

CREATE INDEX dead_letter_replay_by_pipeline ON dead_letter_replay (pipeline_id, requested_at);

-- The letters that a replay took, as they were, in the order in which it goes through them: positions from 1, without
-- holes.
CREATE TABLE dead_letter_replay_item (
    replay_id      uuid   NOT NULL REFERENCES dead_letter_replay ON DELETE CASCADE,
    position       bigint NOT NULL,
    dead_letter_id uuid   NOT NULL,
    stage          text   NOT NULL,
    error_class    text   NOT NULL,
    has_raw_value  boolean NOT NULL,
    PRIMARY KEY (replay_id, position)
);

-- Of a redrive: how far its topics reached before the records of a micro-batch were sent. Gone once the batch is settled:
-- while it is there, the records may have been sent, and whoever sends them again looks from these offsets on.
CREATE TABLE dead_letter_redrive (
    replay_id      uuid   NOT NULL REFERENCES dead_letter_replay ON DELETE CASCADE,
    batch_id       bigint NOT NULL,
    first_position bigint NOT NULL,
    last_position  bigint NOT NULL,
    start_offsets  jsonb  NOT NULL,
    PRIMARY KEY (replay_id, batch_id)
);
