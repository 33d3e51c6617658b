-- What retention has removed of the ledger stays explained, and is never loaded a second time.

-- One row for each query of which batches were removed: all of its batches up to removed_through_batch, and none after it.
CREATE TABLE batch_retention (
    pipeline_id           varchar(255) NOT NULL REFERENCES pipeline,
    query_id              text         NOT NULL,
    removed_through_batch bigint       NOT NULL CHECK (removed_through_batch >= 0),
    -- Where that batch ended, and when it was committed.
    end_offsets           jsonb,
    through_time          timestamptz  NOT NULL,
    removed_batches       bigint       NOT NULL,
    removed_rows          bigint       NOT NULL,
    -- Above 0: the ledger cannot say any more which files the query has read.
    removed_files         bigint       NOT NULL DEFAULT 0,
    updated_at            timestamptz  NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pipeline_id, query_id)
);

-- The files that removed batches have read: whoever resumes without a checkpoint must not read them again.
CREATE TABLE batch_file_retained (
    pipeline_id varchar(255) NOT NULL REFERENCES pipeline,
    query_id    text         NOT NULL,
    path        text         NOT NULL,
    modified_at timestamptz  NOT NULL,
    size_bytes  bigint       NOT NULL,
    PRIMARY KEY (pipeline_id, query_id, path)
);

-- Every commit asks whether its batch was removed: who may read the batches may read these.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT DISTINCT acl.grantee
        FROM pg_class c, LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
        WHERE c.oid = 'batch_tracker'::regclass AND acl.privilege_type = 'SELECT'
            AND acl.grantee <> quote_ident(current_user)::regrole
        UNION
        SELECT acl.grantee
        FROM pg_attribute a, LATERAL aclexplode(a.attacl) AS acl
        WHERE a.attrelid = 'batch_tracker'::regclass AND a.attnum > 0 AND acl.privilege_type = 'SELECT'
            AND acl.grantee <> quote_ident(current_user)::regrole
    LOOP
        EXECUTE format(
            'GRANT SELECT ON batch_retention, batch_file_retained TO %s',
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END
        );
    END LOOP;
END $$;

-- Who removes runs asks whether a query began with one of them.
CREATE INDEX pipeline_query_by_run ON pipeline_query (run_id);

-- Whoever looks for gaps asks for those of one pipeline, lately.
CREATE INDEX source_gap_by_time ON source_gap (pipeline_id, recorded_at);
