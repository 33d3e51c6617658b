-- Pipelines, their runs and their queries. Applied with search_path set to the tracker's schema.

-- The fence: one row a pipeline. A driver may commit only while epoch and newest_run_id are its own.
CREATE TABLE pipeline (
    pipeline_id   text        PRIMARY KEY CHECK (length(pipeline_id) BETWEEN 1 AND 255),
    epoch         bigint      NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    newest_run_id text,
    epoch_run_id  text,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE pipeline_run (
    run_id         text        PRIMARY KEY,
    pipeline_id    text        NOT NULL REFERENCES pipeline,
    state          text        NOT NULL DEFAULT 'registered'
                   CHECK (state IN ('registered', 'running', 'finished', 'failed', 'stopped', 'fenced')),
    epoch          bigint,
    request        jsonb       NOT NULL,
    started_by     text        NOT NULL,
    application_id text,
    duplicates     integer     NOT NULL DEFAULT 0,
    registered_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at     timestamptz,
    heartbeat_at   timestamptz,
    ended_at       timestamptz,
    exit_code      integer,
    error          jsonb,
    result         jsonb
);

CREATE INDEX pipeline_run_by_pipeline ON pipeline_run (pipeline_id, registered_at);

CREATE TABLE pipeline_query (
    pipeline_id         text        NOT NULL REFERENCES pipeline,
    query_id            text        NOT NULL,
    checkpoint_location text        NOT NULL,
    origin              text        NOT NULL CHECK (origin IN ('fresh', 'resumed', 'accepted')),
    seeded_from         text,
    start_offsets       jsonb,
    fingerprint         jsonb,
    run_id              text        NOT NULL REFERENCES pipeline_run,
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pipeline_id, query_id)
);
