"""Migrations: from nothing, from an older version, by two at once, and against a history that does not fit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading

import psycopg
import pytest

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import EtlError, LedgerVersionError, TargetMismatchError
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.tracker.migrate import Migration, migrate, packaged, require_version

LABELS = [migration.label for migration in packaged()]

PROCESS = """
import os, sys
from spark_jobs.contracts.credentials import resolve_database
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.tracker.migrate import migrate
with connect(resolve_database("warehouse"), application_name="migrator") as conn:
    print("ready", flush=True)
    sys.stdin.readline()
    print(",".join(migrate(conn)))
"""


@pytest.fixture
def conn(database):
    with connect(DatabaseConnection.from_airflow("warehouse", database.airflow_uri), application_name="t") as conn:
        yield conn


@pytest.fixture
def role(conn):
    """Makes roles, which belong to the server, and drops them with what they were granted."""
    made = []

    def make(name):
        conn.execute(f"CREATE ROLE {name}")
        made.append(name)

    yield make
    for name in made:
        conn.execute(f"DROP OWNED BY {name}")
        conn.execute(f"DROP ROLE {name}")


def tables(conn, schema="etl"):
    return {name for (name,) in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,))}


def test_from_nothing_and_again(conn):
    assert migrate(conn) == LABELS
    assert migrate(conn) == []
    require_version(conn)
    assert tables(conn) == {
        "schema_migration", "pipeline", "pipeline_run", "pipeline_query",
        "batch_tracker", "batch_file", "source_gap", "dead_letter_single", "batch_decision", "batch_part",
        "dead_letter_pending", "dead_letter_replaying", "dead_letter_parked", "dead_letter_replayed",
        "dead_letter_discarded", "dead_letter_tally", "dead_letter_bundle", "dead_letter_bundled",
        "dead_letter_replay_bundle",
        "dead_letter_replay", "dead_letter_replay_item", "dead_letter_redrive",
        "run_retry", "circuit_breaker", "circuit_breaker_probe", "circuit_breaker_event",
        "batch_retention", "batch_file_retained",
        "query_progress",
        "complete_partition",
        "reprocess", "batch_reprocessed",
    }  # fmt: skip


def test_versions_are_numbered_without_holes():
    assert [migration.version for migration in packaged()] == list(range(1, len(LABELS) + 1))


@pytest.mark.parametrize("schema", ["tracker", "My Ledger", 'quo"ted', "select", "50% {off}"])
def test_any_schema_name(conn, schema):
    migrate(conn, schema)
    require_version(conn, schema)
    assert "batch_tracker" in tables(conn, schema)
    assert conn.execute("SHOW search_path").fetchone() == ('"$user", public',)


def test_an_older_version_keeps_its_rows(conn):
    assert migrate(conn, migrations=packaged()[:1]) == LABELS[:1]
    conn.execute("INSERT INTO etl.pipeline (pipeline_id, epoch) VALUES ('orders', 7)")
    with pytest.raises(LedgerVersionError, match=r"0002_batches.*etl-pipeline migrate --schema etl"):
        require_version(conn)
    assert migrate(conn) == LABELS[1:]
    assert conn.execute("SELECT epoch FROM etl.pipeline").fetchone() == (7,)


def test_a_query_of_an_older_version_has_the_epoch_of_its_run(conn):
    migrate(conn, migrations=packaged()[:4])
    conn.execute("INSERT INTO etl.pipeline (pipeline_id, epoch) VALUES ('orders', 7)")
    conn.execute(
        "INSERT INTO etl.pipeline_run (run_id, pipeline_id, epoch, request, started_by) "
        "VALUES ('first', 'orders', 3, '{}', 'a test')"
    )
    conn.execute(
        "INSERT INTO etl.pipeline_query (pipeline_id, query_id, checkpoint_location, origin, run_id) "
        "VALUES ('orders', 'q', '/c', 'fresh', 'first')"
    )
    migrate(conn)
    assert conn.execute("SELECT query_id, epoch FROM etl.pipeline_query").fetchall() == [("q", 3)]


def test_dead_letters_of_an_older_version_wait_and_belong_to_whom_they_did(conn, role):
    migrate(conn, migrations=packaged()[:5])
    role("etl_reader")
    conn.execute("GRANT SELECT, INSERT ON etl.dead_letter TO etl_reader WITH GRANT OPTION")
    conn.execute("GRANT UPDATE (status) ON etl.dead_letter TO etl_reader")
    conn.execute(
        "INSERT INTO etl.dead_letter (pipeline_id, query_id, batch_id, stage, error_class, message, source) "
        "SELECT 'orders', 'q', 0, 'parse', 'BAD', 'm', '{}' FROM generate_series(1, 3)"
    )
    migrate(conn)
    counted = "SELECT status, count(*) FROM etl.dead_letter GROUP BY 1"
    assert conn.execute(counted).fetchall() == [("pending", 3)]
    assert conn.execute("SELECT status, letters FROM etl.dead_letter_tally").fetchall() == [("pending", 3)]

    def may(right: str, table: str = "dead_letter_single") -> bool:
        return conn.execute("SELECT has_table_privilege('etl_reader', %s, %s)", (f"etl.{table}", right)).fetchone()[0]

    for right in ("SELECT", "INSERT WITH GRANT OPTION"):
        assert may(right)
    assert may("SELECT", "dead_letter")
    # Who may store letters stores them in bundles; who may change their status may take these apart.
    for table in ("dead_letter_bundle", "dead_letter_bundled"):
        assert all(may(right, table) for right in ("SELECT", "INSERT", "UPDATE", "DELETE"))


def test_who_stores_letters_in_an_older_version_changes_none_in_this_one(conn, role):
    migrate(conn, migrations=packaged()[:11])
    role("etl_writer")
    role("etl_reader")
    conn.execute("GRANT INSERT ON etl.dead_letter TO etl_writer")
    conn.execute("GRANT SELECT ON etl.dead_letter TO etl_reader")
    migrate(conn)
    asked = "SELECT has_table_privilege(%s, %s, %s)"
    for table in ("etl.dead_letter_bundle", "etl.dead_letter_bundled"):
        for right, writer in (("INSERT", True), ("UPDATE", False), ("DELETE", False)):
            assert conn.execute(asked, ("etl_writer", table, right)).fetchone() == (writer,)
            assert conn.execute(asked, ("etl_reader", table, right)).fetchone() == (False,)
    assert conn.execute(asked, ("etl_reader", "etl.dead_letter", "SELECT")).fetchone() == (True,)


def test_who_reads_the_batches_of_an_older_version_reads_what_was_removed_of_them(conn, role):
    migrate(conn, migrations=[migration for migration in packaged() if migration.name != "retention"])
    role("etl_writer")
    conn.execute("GRANT INSERT, SELECT (pipeline_id, query_id, batch_id) ON etl.batch_tracker TO etl_writer")
    migrate(conn)
    for table in ("batch_retention", "batch_file_retained"):
        for right, has in (("SELECT", True), ("DELETE", False)):
            asked = "SELECT has_table_privilege('etl_writer', %s, %s)"
            assert conn.execute(asked, (f"etl.{table}", right)).fetchone() == (has,)


def test_who_carries_out_runs_of_an_older_version_may_write_their_progress(conn, role):
    migrate(conn, migrations=packaged()[:7])
    role("etl_driver")
    role("etl_reader")
    conn.execute("GRANT SELECT (run_id), UPDATE (heartbeat_at) ON etl.pipeline_run TO etl_driver")
    conn.execute("GRANT SELECT ON etl.pipeline_run TO etl_reader")
    migrate(conn)
    asked = "SELECT has_table_privilege(%s, 'etl.query_progress', %s)"
    for right in ("SELECT", "INSERT", "DELETE"):
        assert conn.execute(asked, ("etl_driver", right)).fetchone() == (True,)
        assert conn.execute(asked, ("etl_reader", right)).fetchone() == (right == "SELECT",)


def test_who_registers_runs_of_an_older_version_may_announce_partitions(conn, role):
    migrate(conn, migrations=packaged()[:9])
    role("etl_airflow")
    role("etl_reader")
    conn.execute("GRANT SELECT, INSERT ON etl.pipeline_run TO etl_airflow")
    conn.execute("GRANT SELECT (run_id) ON etl.pipeline_run TO etl_reader")
    migrate(conn)
    asked = "SELECT has_table_privilege(%s, 'etl.complete_partition', %s)"
    for right, has in (
        ("SELECT", (True, True)),
        ("INSERT", (True, False)),
        ("UPDATE", (True, False)),
        ("DELETE", (False, False)),
    ):
        assert tuple(conn.execute(asked, (name, right)).fetchone()[0] for name in ("etl_airflow", "etl_reader")) == has


def test_who_writes_batches_of_an_older_version_may_do_them_again(conn, role):
    migrate(conn, migrations=packaged()[:10])
    role("etl_writer")
    role("etl_reader")
    conn.execute("GRANT SELECT, INSERT ON etl.batch_tracker TO etl_writer")
    conn.execute("GRANT SELECT (batch_id) ON etl.batch_tracker TO etl_reader")
    migrate(conn)
    asked = "SELECT has_table_privilege(%s, %s, %s)"
    for table in ("etl.reprocess", "etl.batch_reprocessed"):
        for right, has in (("SELECT", (True, True)), ("INSERT", (True, False)), ("DELETE", (False, False))):
            found = [conn.execute(asked, (name, table, right)).fetchone()[0] for name in ("etl_writer", "etl_reader")]
            assert tuple(found) == has


def test_nothing_there_names_the_command(conn):
    with pytest.raises(LedgerVersionError, match="etl-pipeline migrate") as caught:
        require_version(conn)
    assert not caught.value.retryable
    assert not tables(conn)


def test_a_newer_ledger_is_refused(conn):
    migrate(conn)
    conn.execute("INSERT INTO etl.schema_migration (version, name, checksum) VALUES (999, 'future', 'x')")
    for refused in (migrate, require_version):
        with pytest.raises(LedgerVersionError, match="newer version"):
            refused(conn)


@pytest.mark.parametrize("column", ["name", "checksum"])
def test_a_changed_migration_is_refused(conn, column):
    migrate(conn)
    conn.execute(f"UPDATE etl.schema_migration SET {column} = 'other' WHERE version = 2")
    for refused in (migrate, require_version):
        with pytest.raises(LedgerVersionError, match="0002_batches"):
            refused(conn)


def test_a_failing_migration_leaves_nothing(conn):
    broken = Migration(len(LABELS) + 1, "broken", "CREATE TABLE half (a int); SELECT 1 / 0;")
    with pytest.raises(EtlError, match="division by zero"):
        migrate(conn, migrations=[*packaged(), broken])
    assert not tables(conn)
    assert migrate(conn) == LABELS


def test_the_kind_of_line_ends_does_not_matter():
    for migration in packaged():
        assert dataclasses.replace(migration, text=migration.text.replace("\n", "\r\n")).checksum == migration.checksum


def test_an_open_transaction_is_refused(conn):
    with conn.transaction(), pytest.raises(EtlError, match="without an open transaction"):
        migrate(conn)


def test_a_schema_made_by_the_administrator_is_enough(conn, database):
    conn.execute("CREATE ROLE etl_migrator LOGIN PASSWORD 'x'")
    try:
        conn.execute("CREATE SCHEMA etl AUTHORIZATION etl_migrator")
        with conn.transaction():
            conn.execute("SET LOCAL ROLE etl_migrator")
            with pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
                conn.execute("CREATE SCHEMA other")
        own = database.airflow_uri.replace("//", "//").split("@")[1]
        user = DatabaseConnection.from_airflow("warehouse", f"postgres://etl_migrator:x@{own}")
        with connect(user, application_name="t") as session:
            assert migrate(session) == LABELS
            with pytest.raises(TargetMismatchError, match="42501"):
                migrate(session, "elsewhere")
    finally:
        conn.execute("DROP OWNED BY etl_migrator CASCADE")
        conn.execute("DROP ROLE etl_migrator")


def test_threads_at_once(database):
    connection = DatabaseConnection.from_airflow("warehouse", database.airflow_uri)
    barrier, applied = threading.Barrier(6), []

    def work():
        with connect(connection, application_name="migrator") as session:
            barrier.wait()
            applied.append(migrate(session))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(applied) == [[]] * 5 + [LABELS]


def test_processes_at_once(database):
    environ = os.environ | {"AIRFLOW_CONN_WAREHOUSE": database.airflow_uri}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sorted(outputs) == ["", "", ",".join(LABELS)]
