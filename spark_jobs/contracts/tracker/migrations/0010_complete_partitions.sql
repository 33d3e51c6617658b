-- Commits in the order of the fence, and which periods of event time were announced as complete.

-- Whoever watches commits asks after each one for what comes after a position.
CREATE INDEX batch_tracker_by_commit ON batch_tracker (pipeline_id, epoch, batch_id);

-- No foreign keys: they would lock the pipeline's row, for which each commit waits.
CREATE TABLE complete_partition (
    pipeline_id   varchar(255) NOT NULL,
    asset         text         NOT NULL,
    partition_key text         NOT NULL CHECK (length(partition_key) BETWEEN 1 AND 250),
    period_start  timestamptz  NOT NULL,
    period_end    timestamptz  NOT NULL CHECK (period_end > period_start),
    -- 'announcing' until somebody has seen in Airflow that the event is stored.
    state         text         NOT NULL CHECK (state IN ('announcing', 'announced')),
    -- The try that announces it: dag_id, run_id, task_id, map_index, try_id.
    announced_by  jsonb        NOT NULL,
    claimed_at    timestamptz  NOT NULL DEFAULT clock_timestamp(),
    -- The query with which the target began: another one when it was started over since.
    began_with    text         NOT NULL,
    PRIMARY KEY (pipeline_id, asset, partition_key)
);

CREATE INDEX complete_partition_open ON complete_partition (pipeline_id, asset) WHERE state = 'announcing';

-- Who registers runs, as Airflow's tasks do, may announce; who may read runs may read what was announced.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT DISTINCT acl.grantee, acl.privilege_type
        FROM pg_class c, LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
        WHERE c.oid = 'pipeline_run'::regclass AND acl.privilege_type IN ('SELECT', 'INSERT')
            AND acl.grantee <> quote_ident(current_user)::regrole
        UNION
        SELECT acl.grantee, acl.privilege_type
        FROM pg_attribute a, LATERAL aclexplode(a.attacl) AS acl
        WHERE a.attrelid = 'pipeline_run'::regclass AND a.attnum > 0 AND acl.privilege_type IN ('SELECT', 'INSERT')
            AND acl.grantee <> quote_ident(current_user)::regrole
    LOOP
        EXECUTE format(
            'GRANT %s ON complete_partition TO %s',
            CASE granted.privilege_type WHEN 'SELECT' THEN 'SELECT' ELSE 'SELECT, INSERT, UPDATE' END,
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END
        );
    END LOOP;
END $$;
