-- Micro-batches that are done again, in the same ledger: who asked for it, and what each one was and is.

-- Its runs and micro-batches are those of the pipeline '<pipeline_id>/reprocess/<reprocess_id>'; a micro-batch that was
-- done again has a row there under the query and batch id that it had.
CREATE TABLE reprocess (
    reprocess_id uuid         PRIMARY KEY,
    pipeline_id  varchar(255) NOT NULL REFERENCES pipeline,
    query_id     text         NOT NULL,
    -- What was chosen when it began: a further attempt does the same batches, whatever was committed since.
    batch_ids    bigint[]     NOT NULL,
    dry_run      boolean      NOT NULL,
    request      jsonb        NOT NULL,
    requested_by text         NOT NULL,
    requested_at timestamptz  NOT NULL DEFAULT clock_timestamp(),
    state        text         NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'finished')),
    ended_at     timestamptz,
    summary      jsonb
);

CREATE INDEX reprocess_by_pipeline ON reprocess (pipeline_id, requested_at);

-- Written in the transaction that writes the rows. The number rises with each time that a batch is done again: it is
-- given while the batch's row of batch_tracker is locked.
CREATE TABLE batch_reprocessed (
    pipeline_id    varchar(255) NOT NULL,
    query_id       text         NOT NULL,
    batch_id       bigint       NOT NULL,
    number         bigint       NOT NULL GENERATED ALWAYS AS IDENTITY,
    reprocess_id   uuid         NOT NULL REFERENCES reprocess,
    rows_before    bigint       NOT NULL,
    rows_after     bigint       NOT NULL,
    letters_before bigint       NOT NULL,
    letters_after  bigint       NOT NULL,
    reprocessed_at timestamptz  NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pipeline_id, query_id, batch_id, number),
    FOREIGN KEY (pipeline_id, query_id, batch_id) REFERENCES batch_tracker ON DELETE CASCADE
);

CREATE INDEX batch_reprocessed_by_reprocess ON batch_reprocessed (reprocess_id, batch_id);

-- Who may write micro-batches may do them again; who may read them may read what became of them.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT DISTINCT acl.grantee, acl.privilege_type
        FROM pg_class c, LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
        WHERE c.oid = 'batch_tracker'::regclass AND acl.privilege_type IN ('SELECT', 'INSERT')
            AND acl.grantee <> quote_ident(current_user)::regrole
        UNION
        SELECT acl.grantee, acl.privilege_type
        FROM pg_attribute a, LATERAL aclexplode(a.attacl) AS acl
        WHERE a.attrelid = 'batch_tracker'::regclass AND a.attnum > 0 AND acl.privilege_type IN ('SELECT', 'INSERT')
            AND acl.grantee <> quote_ident(current_user)::regrole
    LOOP
        EXECUTE format(
            'GRANT %s ON reprocess, batch_reprocessed TO %s',
            CASE granted.privilege_type WHEN 'SELECT' THEN 'SELECT' ELSE 'SELECT, INSERT, UPDATE' END,
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END
        );
    END LOOP;
END $$;
