-- What Spark told of each micro-batch, what the driver knows of one that failed, and where a run's Spark is to be seen.

ALTER TABLE pipeline_run ADD COLUMN trigger text, ADD COLUMN ui_url text;

-- No foreign keys: they would lock the pipeline's row, for which each commit waits. `progress_id` gives the order: of two
-- drivers neither clock is to be trusted.
CREATE TABLE query_progress (
    progress_id               bigint       GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id               varchar(255) NOT NULL,
    query_id                  text         NOT NULL,
    batch_id                  bigint,
    spark_run_id              text         NOT NULL,
    run_id                    text         NOT NULL,
    epoch                     bigint       NOT NULL,
    attempt                   integer      NOT NULL CHECK (attempt > 0),
    outcome                   text         NOT NULL CHECK (outcome IN ('completed', 'failed')),
    phase                     text         CHECK (phase IN ('planning', 'checking', 'writing', 'committed')),
    recorded_at               timestamptz  NOT NULL DEFAULT clock_timestamp(),
    triggered_at              timestamptz,  -- by the driver's clock
    duration_ms               bigint,
    durations                 jsonb,
    input_rows                bigint,
    input_rows_per_second     double precision,
    processed_rows_per_second double precision,
    watermark                 timestamptz,
    event_time                jsonb,
    sources                   jsonb,
    backlog_rows              bigint,
    backlog_bytes             bigint,
    state_rows                bigint,
    state_bytes               bigint,
    state_operators           jsonb,
    error                     jsonb,
    CONSTRAINT only_failures_have_an_error CHECK (
        (outcome = 'failed') = (error IS NOT NULL) AND (outcome = 'failed') = (phase IS NOT NULL)
    )
);

CREATE INDEX query_progress_by_pipeline ON query_progress (pipeline_id, progress_id);

-- A write that got no answer is done again. The same micro-batch, done again, has another spark_run_id.
CREATE UNIQUE INDEX query_progress_once ON query_progress (pipeline_id, spark_run_id, coalesce(batch_id, -1), outcome);

-- Who carries runs out may write their progress, and remove what is old; who may read runs may read it.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT DISTINCT acl.grantee, acl.privilege_type
        FROM pg_class c, LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
        WHERE c.oid = 'pipeline_run'::regclass AND acl.privilege_type IN ('SELECT', 'UPDATE')
            AND acl.grantee <> quote_ident(current_user)::regrole
        UNION
        SELECT acl.grantee, acl.privilege_type
        FROM pg_attribute a, LATERAL aclexplode(a.attacl) AS acl
        WHERE a.attrelid = 'pipeline_run'::regclass AND a.attnum > 0 AND acl.privilege_type IN ('SELECT', 'UPDATE')
            AND acl.grantee <> quote_ident(current_user)::regrole
    LOOP
        EXECUTE format(
            'GRANT %s ON query_progress TO %s',
            CASE granted.privilege_type WHEN 'SELECT' THEN 'SELECT' ELSE 'SELECT, INSERT, DELETE' END,
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END
        );
    END LOOP;
END $$;
