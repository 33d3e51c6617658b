-- Strategy two_phase: what was decided before it is committed, and the parts that prove that it was. Beside it the state's
-- size of an aggregation, and where a dead letter's fault lies, as far as PostgreSQL says it.

-- One row from the decision on until every part is committed; everything that whoever finishes it needs.
CREATE TABLE batch_decision (
    pipeline_id varchar(255) NOT NULL REFERENCES pipeline,
    query_id    text         NOT NULL,
    batch_id    bigint       NOT NULL,
    epoch       bigint       NOT NULL,
    run_id      text         NOT NULL,
    decided_at  timestamptz  NOT NULL DEFAULT clock_timestamp(),
    winners     jsonb        NOT NULL,  -- [{"name": prepared transaction, "rows": n}, …]
    record      jsonb        NOT NULL,  -- the row of batch_tracker to be
    files       jsonb,
    gaps        jsonb,
    event       jsonb        NOT NULL,
    PRIMARY KEY (pipeline_id, query_id, batch_id)
);

-- Written in each part's own transaction, and so there exactly when the part's rows are. No foreign keys: a prepared
-- transaction must not lock the pipeline's row.
CREATE TABLE batch_part (
    name        text         PRIMARY KEY,
    pipeline_id varchar(255) NOT NULL,
    query_id    text         NOT NULL,
    batch_id    bigint       NOT NULL,
    rows        bigint       NOT NULL
);

CREATE INDEX batch_part_by_batch ON batch_part (pipeline_id, query_id, batch_id);

-- How much Spark remembers after the batch: what the next one's result is bounded by.
ALTER TABLE batch_tracker ADD COLUMN state_rows bigint;

ALTER TABLE dead_letter ADD COLUMN column_name text, ADD COLUMN constraint_name text;
