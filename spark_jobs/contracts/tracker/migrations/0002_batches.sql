-- Committed micro-batches with their books, the files they read and the source rows that were gone.

CREATE TABLE batch_tracker (
    pipeline_id              varchar(255) NOT NULL REFERENCES pipeline,
    query_id                 text         NOT NULL,
    batch_id                 bigint       NOT NULL CHECK (batch_id >= 0),
    processed_at             timestamptz  NOT NULL DEFAULT clock_timestamp(),
    record_count             bigint       NOT NULL,
    checkpoint_location      text         NOT NULL,
    run_id                   text         NOT NULL,
    epoch                    bigint       NOT NULL,
    status                   text         NOT NULL DEFAULT 'committed' CHECK (status = 'committed'),
    start_offsets            jsonb,
    end_offsets              jsonb,
    source_digest            text,
    watermark                timestamptz,
    event_time_min           timestamptz,
    event_time_max           timestamptz,
    duration_ms              bigint       NOT NULL,
    source_rows              bigint       NOT NULL CHECK (source_rows >= 0),
    passed_rows              bigint       NOT NULL CHECK (passed_rows >= 0),
    rejected_rows            bigint       NOT NULL CHECK (rejected_rows >= 0),
    dead_lettered_rows       bigint       NOT NULL CHECK (dead_lettered_rows >= 0),
    late_rows                bigint       NOT NULL CHECK (late_rows >= 0),
    filtered_rows            bigint       NOT NULL CHECK (filtered_rows >= 0),
    deduplicated_rows        bigint       NOT NULL CHECK (deduplicated_rows >= 0),
    sink_rows                bigint       NOT NULL CHECK (sink_rows >= 0),
    written_rows             bigint       NOT NULL CHECK (written_rows >= 0),
    write_dead_lettered_rows bigint       NOT NULL CHECK (write_dead_lettered_rows >= 0),
    write_deduplicated_rows  bigint       NOT NULL CHECK (write_deduplicated_rows >= 0),
    strategy                 text         NOT NULL,
    strategy_reason          text         NOT NULL,
    duplicate_count          integer      NOT NULL DEFAULT 0,
    PRIMARY KEY (pipeline_id, query_id, batch_id),
    CONSTRAINT source_books_balance CHECK (
        source_rows = passed_rows + rejected_rows + dead_lettered_rows + late_rows + filtered_rows + deduplicated_rows
    ),
    CONSTRAINT sink_books_balance CHECK (
        sink_rows = written_rows + write_dead_lettered_rows + write_deduplicated_rows
    ),
    CONSTRAINT record_count_is_written_rows CHECK (record_count = written_rows)
);

CREATE INDEX batch_tracker_by_time ON batch_tracker (processed_at);
CREATE INDEX batch_tracker_by_pipeline_time ON batch_tracker (pipeline_id, processed_at);
CREATE INDEX batch_tracker_by_run ON batch_tracker (run_id);

CREATE TABLE batch_file (
    pipeline_id varchar(255) NOT NULL,
    query_id    text         NOT NULL,
    batch_id    bigint       NOT NULL,
    path        text         NOT NULL,
    modified_at timestamptz  NOT NULL,
    size_bytes  bigint       NOT NULL,
    PRIMARY KEY (pipeline_id, query_id, batch_id, path),
    FOREIGN KEY (pipeline_id, query_id, batch_id) REFERENCES batch_tracker ON DELETE CASCADE
);

-- A finding, not a part of the batch: it stays when retention takes the batch away.
CREATE TABLE source_gap (
    gap_id       bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id  varchar(255) NOT NULL,
    query_id     text         NOT NULL,
    batch_id     bigint       NOT NULL,
    source       jsonb        NOT NULL,
    missing_rows bigint,
    reason       text         NOT NULL,
    recorded_at  timestamptz  NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX source_gap_by_batch ON source_gap (pipeline_id, query_id, batch_id);
