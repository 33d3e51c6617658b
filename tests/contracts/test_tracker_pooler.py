"""The tracker through a pooler in transaction mode."""

from __future__ import annotations

import threading
from contextlib import closing

import psycopg
import pytest
from transaction_pooler import transaction_pooler

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import FencedError, LoginRefusedError
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import connect, raw
from spark_jobs.contracts.tracker.migrate import migrate, require_version
from spark_jobs.contracts.tracker.queries import pipeline_status, summarise_run
from spark_jobs.sinks.copying import Session, transaction


@pytest.fixture
def pooled(database):
    with transaction_pooler(database.server.port) as pooler:
        address = database.airflow_uri.replace(f":{database.server.port}/", f":{pooler.port}/")
        yield pooler, DatabaseConnection.from_airflow("warehouse", address)


def test_it_is_a_pooler_in_transaction_mode(pooled):
    pooler, connection = pooled
    with connect(connection, application_name="one") as one, connect(connection, application_name="two") as two:
        pids = {one.execute("SELECT pg_backend_pid()").fetchone() for _ in range(6)}
        pids |= {two.execute("SELECT pg_backend_pid()").fetchone() for _ in range(6)}
        assert len(pids) == 2
        with one.transaction():
            assert len({one.execute("SELECT pg_backend_pid()").fetchone() for _ in range(4)}) == 1
        with one.cursor().copy("COPY (SELECT generate_series(1, 1000)) TO STDOUT") as copy:
            assert len(list(copy.rows())) == 1000
        one.execute("CREATE TABLE copied (id int)")
        with one.cursor().copy("COPY copied FROM STDIN") as copy:
            for number in range(1000):
                copy.write_row((number,))
        assert two.execute("SELECT count(*) FROM copied").fetchone() == (1000,)
    assert pooler.transactions > 10
    with pytest.raises(psycopg.OperationalError, match="startup parameter"):
        psycopg.connect(connection.conninfo(options="-c search_path=etl"))


def test_a_run_from_its_registration_to_its_end(pooled, tracker):
    _, connection = pooled
    with connect(connection, application_name="driver") as conn, connect(connection, application_name="other") as other:
        assert migrate(conn) == []
        require_version(other)
        request = runs.RunRequest(run_id="r1", pipeline_id="orders", config={}, started_by="me")
        runs.register_run(conn, "etl", request)
        epoch = runs.claim_epoch(other, "etl", "orders", "r1")
        assert runs.read_request(conn, "etl", "r1") == request
        record = tracker.record(epoch=epoch)
        with conn.transaction():
            raw(conn, st.begin_settings(), runs.application_name("orders", epoch), "5s", "30s")
            raw(conn, st.insert_batch(tracker.ident), record.row_json())
            raw(conn, st.notify(), "{}")
            runs.check_fence(conn, "etl", "orders", "r1", epoch, lock=True)
        runs.heartbeat(other, "etl", "r1", "app")
        assert summarise_run(conn, "etl", "r1").batches == 1
        assert runs.finish_run(other, "etl", "r1", "finished", 0)
        assert pipeline_status(conn, "etl", "orders")[0].run_state == "finished"
        # Nothing of a driver sticks to the server's sessions.
        names = {conn.execute("SHOW application_name").fetchone()[0] for _ in range(4)}
        names |= {conn.execute("SHOW idle_in_transaction_session_timeout").fetchone()[0] for _ in range(4)}
        assert names <= {"driver", "other", "0"}


def test_a_commit_by_adbc(pooled, tracker):
    _, connection = pooled
    epoch = tracker.start("r1")
    record = tracker.record(epoch=epoch)
    with transaction(Session(connection.uri(), runs.application_name("orders", epoch), "5s", "30s")) as cursor:
        cursor.execute(st.insert_batch(tracker.ident), (record.row_json(),))
        cursor.execute(st.insert_files(tracker.ident), (record.files_json(),))
        assert cursor.execute(st.lock_epoch(tracker.ident), ("orders", str(epoch), "r1")) == [(True,)]
        cursor.run("COMMIT")
    assert tracker.one("SELECT count(*) FROM etl.batch_tracker") == 1


def test_a_driver_that_hangs_behind_the_pooler_is_ended_and_bystanders_are_not(pooled, tracker):
    _, connection = pooled
    epoch = tracker.start("old")
    with closing(connect(connection, application_name="driver")) as driver, tracker.connect("idle") as bystander:
        driver.execute("BEGIN")
        raw(driver, st.begin_settings(), runs.application_name("orders", epoch), "5s", "600s")
        runs.check_fence(driver, "etl", "orders", "old", epoch, lock=True)
        with connect(connection, application_name="operator") as operator:
            request = runs.RunRequest(run_id="new", pipeline_id="orders", config={}, started_by="me")
            runs.register_run(operator, "etl", request, lock_timeout_ms=100)
            assert runs.claim_epoch(operator, "etl", "orders", "new") == epoch + 1
        with pytest.raises(psycopg.OperationalError):
            driver.execute("COMMIT")
        assert bystander.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(FencedError):
        runs.check_fence(tracker.conn, "etl", "orders", "old", epoch, lock=False)


def test_two_migrators_at_once(pooled):
    _, connection = pooled
    barrier, applied = threading.Barrier(2), []

    def work():
        with connect(connection, application_name="migrator") as conn:
            barrier.wait()
            applied.append(len(migrate(conn)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(applied)[0] == 0
    assert sorted(applied)[1] > 0


def test_a_refused_login_comes_through(pooled):
    _, connection = pooled
    wrong = connection.model_copy(update={"user": "nobody"})
    with pytest.raises(LoginRefusedError):
        connect(wrong, application_name="t")
