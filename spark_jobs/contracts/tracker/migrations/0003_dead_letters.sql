-- Rows that could not be read or written, with their reason and their place in the source.

CREATE TABLE dead_letter (
    dead_letter_id  uuid         PRIMARY KEY DEFAULT gen_random_uuid(),
    pipeline_id     varchar(255) NOT NULL,
    query_id        text         NOT NULL,
    batch_id        bigint       NOT NULL,
    stage           text         NOT NULL,
    error_class     text         NOT NULL,
    sqlstate        text,
    message         text         NOT NULL,
    raw_key         bytea,
    raw_value       bytea,
    raw_headers     jsonb,
    parsed_row      jsonb,
    source          jsonb        NOT NULL,
    event_time      timestamptz,
    attempt         integer      NOT NULL DEFAULT 1,
    first_failed_at timestamptz  NOT NULL DEFAULT clock_timestamp(),
    last_failed_at  timestamptz  NOT NULL DEFAULT clock_timestamp(),
    status          text         NOT NULL DEFAULT 'pending'
);

CREATE INDEX dead_letter_by_batch ON dead_letter (pipeline_id, query_id, batch_id);
CREATE INDEX dead_letter_waiting ON dead_letter (pipeline_id, first_failed_at) WHERE status = 'pending';
