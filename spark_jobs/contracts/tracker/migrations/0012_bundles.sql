-- Dead letters that failed together in the same way share one row, and with it their status, until one of them is
-- treated unlike the others: whoever takes, brings home, gives up or removes them changes one row, not thousands.

-- Letters by themselves: of bundles that were taken apart, and all that were here before there were bundles.
ALTER TABLE dead_letter RENAME TO dead_letter_single;

CREATE TABLE dead_letter_bundle (
    bundle_id       uuid         PRIMARY KEY,
    pipeline_id     varchar(255) NOT NULL,
    query_id        text         NOT NULL,
    batch_id        bigint       NOT NULL,
    stage           text         NOT NULL,
    error_class     text         NOT NULL,
    has_raw_value   boolean      NOT NULL,
    attempt         integer      NOT NULL,
    letters         bigint       NOT NULL CHECK (letters > 0),
    first_failed_at timestamptz  NOT NULL,
    last_failed_at  timestamptz  NOT NULL,
    status          text         NOT NULL DEFAULT 'pending',
    replay_id       uuid,
    status_before   text,
    home_query_id   text,
    home_batch_id   bigint,
    closed_at       timestamptz,
    closed_by       text,
    reason          text,
    -- As of a letter by itself.
    CONSTRAINT dead_letter_status CHECK (status IN ('pending', 'replaying', 'replayed', 'parked', 'discarded')),
    CONSTRAINT dead_letter_discarded CHECK (status <> 'discarded' OR (closed_by IS NOT NULL AND reason IS NOT NULL)),
    CONSTRAINT dead_letter_home CHECK (status <> 'replayed' OR (home_query_id IS NOT NULL AND home_batch_id IS NOT NULL)),
    CONSTRAINT dead_letter_replaying CHECK (
        status <> 'replaying' OR (replay_id IS NOT NULL AND status_before IS NOT NULL)
    )
);

CREATE INDEX dead_letter_bundle_by_pipeline ON dead_letter_bundle (pipeline_id, status, first_failed_at);
CREATE INDEX dead_letter_bundle_by_class ON dead_letter_bundle (pipeline_id, status, error_class, first_failed_at);
CREATE INDEX dead_letter_bundle_by_time ON dead_letter_bundle (status, first_failed_at);
CREATE INDEX dead_letter_bundle_by_kind ON dead_letter_bundle (status, error_class, first_failed_at);

-- What is each letter's own. No foreign key: it would look up the bundle for each of thousands of letters, and both are
-- only ever written and removed in one statement.
CREATE TABLE dead_letter_bundled (
    dead_letter_id  uuid  PRIMARY KEY DEFAULT gen_random_uuid(),
    bundle_id       uuid  NOT NULL,
    sqlstate        text,
    message         text  NOT NULL,
    column_name     text,
    constraint_name text,
    raw_key         bytea,
    raw_value       bytea,
    raw_headers     jsonb,
    parsed_row      jsonb,
    source          jsonb NOT NULL,
    event_time      timestamptz
);

CREATE INDEX dead_letter_bundled_by_bundle ON dead_letter_bundled (bundle_id);

CREATE VIEW dead_letter AS
SELECT dead_letter_id, pipeline_id, query_id, batch_id, stage, error_class, sqlstate, message, column_name,
    constraint_name, raw_key, raw_value, raw_headers, parsed_row, source, event_time, attempt, first_failed_at,
    last_failed_at, status, replay_id, status_before, home_query_id, home_batch_id, closed_at, closed_by, reason,
    NULL::uuid AS bundle_id
FROM dead_letter_single
UNION ALL
SELECT l.dead_letter_id, b.pipeline_id, b.query_id, b.batch_id, b.stage, b.error_class, l.sqlstate, l.message,
    l.column_name, l.constraint_name, l.raw_key, l.raw_value, l.raw_headers, l.parsed_row, l.source, l.event_time,
    b.attempt, b.first_failed_at, b.last_failed_at, b.status, b.replay_id, b.status_before, b.home_query_id,
    b.home_batch_id, b.closed_at, b.closed_by, b.reason, b.bundle_id
FROM dead_letter_bundle b JOIN dead_letter_bundled l USING (bundle_id);

-- As tally_dead_letters: a bundle counts as many as it has.
CREATE FUNCTION tally_dead_letter_bundles() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format(
        'INSERT INTO %I.dead_letter_tally (pipeline_id, status, stage, error_class, letters) '
        'SELECT pipeline_id, status, stage, error_class, sum(number) FROM (%s) AS changed '
        'GROUP BY 1, 2, 3, 4 HAVING sum(number) <> 0',
        TG_TABLE_SCHEMA,
        concat_ws(
            ' UNION ALL ',
            CASE WHEN TG_OP <> 'INSERT' THEN 'SELECT pipeline_id, status, stage, error_class, -letters AS number FROM gone' END,
            CASE WHEN TG_OP <> 'DELETE' THEN 'SELECT pipeline_id, status, stage, error_class, letters AS number FROM come' END
        )
    );
    RETURN NULL;
END $$;

CREATE TRIGGER tally_inserted AFTER INSERT ON dead_letter_bundle
    REFERENCING NEW TABLE AS come FOR EACH STATEMENT EXECUTE FUNCTION tally_dead_letter_bundles();
CREATE TRIGGER tally_updated AFTER UPDATE ON dead_letter_bundle
    REFERENCING OLD TABLE AS gone NEW TABLE AS come FOR EACH STATEMENT EXECUTE FUNCTION tally_dead_letter_bundles();
CREATE TRIGGER tally_deleted AFTER DELETE ON dead_letter_bundle
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION tally_dead_letter_bundles();

-- The bundles that a replay took: their letters have the positions above the first, up to the last.
CREATE TABLE dead_letter_replay_bundle (
    replay_id      uuid    NOT NULL REFERENCES dead_letter_replay ON DELETE CASCADE,
    first_position bigint  NOT NULL,
    last_position  bigint  NOT NULL CHECK (last_position > first_position),
    bundle_id      uuid    NOT NULL,
    stage          text    NOT NULL,
    error_class    text    NOT NULL,
    has_raw_value  boolean NOT NULL,
    PRIMARY KEY (replay_id, last_position)
);

CREATE INDEX dead_letter_replay_bundle_by_bundle ON dead_letter_replay_bundle (bundle_id);

-- Who was allowed to read, write and change letters is allowed to do so wherever they are now.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT DISTINCT acl.grantee, acl.privilege_type
        FROM pg_class c, LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
        WHERE c.oid = 'dead_letter_single'::regclass AND acl.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
            AND acl.grantee <> quote_ident(current_user)::regrole
        UNION
        SELECT acl.grantee, acl.privilege_type
        FROM pg_attribute a, LATERAL aclexplode(a.attacl) AS acl
        WHERE a.attrelid = 'dead_letter_single'::regclass AND a.attnum > 0
            AND acl.privilege_type IN ('SELECT', 'INSERT', 'UPDATE') AND acl.grantee <> quote_ident(current_user)::regrole
    LOOP
        EXECUTE format(
            CASE granted.privilege_type
                WHEN 'SELECT' THEN
                    'GRANT SELECT ON dead_letter, dead_letter_bundle, dead_letter_bundled, dead_letter_replay_bundle TO %s'
                WHEN 'INSERT' THEN 'GRANT SELECT, INSERT ON dead_letter_bundle, dead_letter_bundled TO %s'
                ELSE
                    'GRANT SELECT, INSERT, UPDATE, DELETE ON dead_letter_single, dead_letter_bundle, dead_letter_bundled, '
                    'dead_letter_replay_bundle, dead_letter_replay_item TO %s'
            END,
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END
        );
    END LOOP;
END $$;
