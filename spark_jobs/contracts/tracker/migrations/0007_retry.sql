-- What runs did again, and the circuit breakers that runs and pipelines share.

-- One row for each attempt that failed and was followed by another one. Written once the database answers again: the
-- time is its clock less how long ago that was.
CREATE TABLE run_retry (
    run_id  text        NOT NULL REFERENCES pipeline_run,
    at      timestamptz NOT NULL,
    kind    text        NOT NULL CHECK (kind IN ('read', 'write', 'publish')),
    attempt integer     NOT NULL CHECK (attempt > 0),
    wait_ms bigint      NOT NULL CHECK (wait_ms >= 0),
    error   jsonb       NOT NULL
);

CREATE INDEX run_retry_by_run ON run_retry (run_id, at);

-- One row for each system outside that has failed at least once. All times are this server's.
CREATE TABLE circuit_breaker (
    system          text        PRIMARY KEY,
    state           text        NOT NULL DEFAULT 'closed' CHECK (state IN ('closed', 'open', 'half-open')),
    failures        integer     NOT NULL DEFAULT 0 CHECK (failures >= 0),
    successes       integer     NOT NULL DEFAULT 0 CHECK (successes >= 0),
    opened_at       timestamptz,
    reopen_at       timestamptz,
    last_failure    jsonb,
    last_failure_at timestamptz,
    CHECK (state = 'closed' OR reopen_at IS NOT NULL)
);

-- Runs that try a half-open system. One that dies is given up when its time is over.
CREATE TABLE circuit_breaker_probe (
    system     text        NOT NULL REFERENCES circuit_breaker ON DELETE CASCADE,
    run_id     text        NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (system, run_id)
);

CREATE TABLE circuit_breaker_event (
    event_id    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    system      text        NOT NULL REFERENCES circuit_breaker ON DELETE CASCADE,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    from_state  text        NOT NULL,
    to_state    text        NOT NULL,
    run_id      text,
    pipeline_id text,
    reason      text        NOT NULL
);

CREATE INDEX circuit_breaker_event_by_system ON circuit_breaker_event (system, at);
