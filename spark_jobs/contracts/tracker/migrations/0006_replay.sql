-- Dead letters come home: who has them, where they went, how many of each kind there are, and the replays that took them.

ALTER TABLE dead_letter
    ADD COLUMN replay_id     uuid,
    ADD COLUMN home_query_id text,
    ADD COLUMN home_batch_id bigint,
    ADD COLUMN closed_at     timestamptz,
    ADD COLUMN closed_by     text,
    ADD COLUMN reason        text,
    ADD CONSTRAINT dead_letter_status CHECK (status IN ('pending', 'replaying', 'replayed', 'parked', 'discarded')),
    -- Whoever gives a letter up is named, and says why; what was replayed names the micro-batch it came home in.
    ADD CONSTRAINT dead_letter_discarded CHECK (status <> 'discarded' OR (closed_by IS NOT NULL AND reason IS NOT NULL)),
    ADD CONSTRAINT dead_letter_home CHECK (status <> 'replayed' OR (home_query_id IS NOT NULL AND home_batch_id IS NOT NULL)),
    ADD CONSTRAINT dead_letter_replaying CHECK (status <> 'replaying' OR replay_id IS NOT NULL);

DROP INDEX dead_letter_waiting;
CREATE INDEX dead_letter_by_pipeline ON dead_letter (pipeline_id, status, first_failed_at, dead_letter_id);
CREATE INDEX dead_letter_by_class ON dead_letter (pipeline_id, status, error_class, first_failed_at);
CREATE INDEX dead_letter_by_time ON dead_letter (status, first_failed_at, dead_letter_id);
CREATE INDEX dead_letter_by_kind ON dead_letter (status, error_class, first_failed_at);

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
    status_before  text   NOT NULL,
    stage          text   NOT NULL,
    error_class    text   NOT NULL,
    PRIMARY KEY (replay_id, position)
);

CREATE INDEX dead_letter_replay_item_by_letter ON dead_letter_replay_item (dead_letter_id);

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
