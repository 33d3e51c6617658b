"""The fence: whatever the order of events, only the newest run's driver commits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import ConfigError, ContractVersionError, EtlError, FencedError, TransientError
from spark_jobs.contracts.events import RunFinished, read_event
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import connect, raw
from spark_jobs.contracts.tracker.queries import pipeline_status
from spark_jobs.contracts.tracker.retire import retire_run
from spark_jobs.sinks.ledger import Ledger

FROZEN_DRIVER = """
import os, signal, sys
from spark_jobs.contracts.credentials import resolve_database
from spark_jobs.contracts.tracker import runs, statements as st
from spark_jobs.contracts.tracker.connect import connect, raw
with connect(resolve_database("warehouse"), application_name="driver") as conn:
    with conn.transaction():
        raw(conn, st.begin_settings(), runs.application_name("orders", 1), "5s", "600s")
        runs.check_fence(conn, "etl", "orders", "old", 1, lock=True)
        print("holds the fence", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
"""


def in_commit(tracker, conn, run_id, epoch, pipeline_id="orders"):
    """Bring ``conn`` to where a commit has passed the fence and holds it."""
    conn.execute("BEGIN")
    raw(conn, st.begin_settings(), runs.application_name(pipeline_id, epoch), "200ms", "600s")
    runs.check_fence(conn, tracker.schema, pipeline_id, run_id, epoch, lock=True)


def alive(conn):
    with suppress(psycopg.Error):
        conn.execute("SELECT 1")
    return not conn.closed


def test_epochs_go_up(tracker):
    assert [tracker.start("r1"), tracker.start("r2"), tracker.start("r3")] == [1, 2, 3]
    assert tracker.start("other", "returns") == 1


def test_registering_fences_the_older_driver_at_once(tracker):
    epoch = tracker.start("old")
    runs.check_fence(tracker.conn, "etl", "orders", "old", epoch, lock=False)
    tracker.register("new")
    for lock in (False, True):
        with tracker.conn.transaction(), pytest.raises(FencedError, match="newest run 'new'") as caught:
            runs.check_fence(tracker.conn, "etl", "orders", "old", epoch, lock=lock)
    assert caught.value.exit_code == ExitCode.FENCED
    assert tracker.one("SELECT state FROM etl.pipeline_run WHERE run_id = 'old'") == "fenced"


def test_only_the_newest_run_claims(tracker):
    tracker.register("old")
    tracker.register("new")
    with pytest.raises(FencedError):
        runs.claim_epoch(tracker.conn, "etl", "orders", "old")
    assert tracker.one("SELECT epoch FROM etl.pipeline") == 0
    assert runs.claim_epoch(tracker.conn, "etl", "orders", "new") == 1


def test_a_driver_that_the_cluster_starts_again_fences_the_first(tracker):
    first = tracker.start("r1")
    second = runs.claim_epoch(tracker.conn, "etl", "orders", "r1")
    assert second == first + 1
    with pytest.raises(FencedError, match="epoch 2"):
        runs.check_fence(tracker.conn, "etl", "orders", "r1", first, lock=False)
    runs.check_fence(tracker.conn, "etl", "orders", "r1", second, lock=False)


def test_a_late_driver_of_an_ended_run_claims_nothing(tracker):
    tracker.register("r1")
    tracker.conn.execute("LISTEN etl_batch")
    assert runs.finish_run(tracker.conn, "etl", "r1", "failed", 1)
    (told,) = tracker.conn.notifies(timeout=10, stop_after=1)
    assert read_event(told.payload) == RunFinished(pipeline_id="orders", run_id="r1", state="failed", exit_code=1)
    with pytest.raises(FencedError, match="has ended already"):
        runs.claim_epoch(tracker.conn, "etl", "orders", "r1")
    assert tracker.one("SELECT epoch FROM etl.pipeline") == 0


def test_a_pipeline_that_nobody_registered_has_no_fence_to_pass(tracker):
    with pytest.raises(FencedError, match="without any run"):
        runs.check_fence(tracker.conn, "etl", "nobody", "r1", 0, lock=False)
    with pytest.raises(FencedError):
        runs.claim_epoch(tracker.conn, "etl", "nobody", "r1")


def test_registering_again(tracker):
    tracker.register("r1")
    tracker.register("r1")
    assert tracker.one("SELECT count(*) FROM etl.pipeline_run") == 1
    with pytest.raises(ConfigError, match="is taken"):
        tracker.register("r1", "returns")
    tracker.register("r2")
    with pytest.raises(FencedError):
        tracker.register("r1")
    assert tracker.one("SELECT newest_run_id FROM etl.pipeline WHERE pipeline_id = 'orders'") == "r2"


def test_the_first_word_on_how_a_run_ended_stays(tracker):
    tracker.start("r1")
    assert runs.finish_run(tracker.conn, "etl", "r1", "finished", 0, result={"batches": 3})
    assert not runs.finish_run(tracker.conn, "etl", "r1", "failed", 1, error={"what": "lost"})
    assert tracker.one("SELECT state, exit_code, error, result FROM etl.pipeline_run") == (
        "finished", 0, None, {"batches": 3},
    )  # fmt: skip


def test_a_heartbeat_keeps_the_application(tracker):
    tracker.start("r1")
    runs.heartbeat(tracker.conn, "etl", "r1", "app-1")
    runs.heartbeat(tracker.conn, "etl", "r1")
    assert tracker.one("SELECT application_id, heartbeat_at >= started_at FROM etl.pipeline_run") == ("app-1", True)


def test_the_request_comes_back_as_it_was(tracker):
    tracker.register("r1")
    request = runs.read_request(tracker.conn, "etl", "r1")
    assert (request.pipeline_id, request.config, request.resume) == ("orders", {"pipelineId": "orders"}, "none")
    with pytest.raises(ConfigError, match="not registered"):
        runs.read_request(tracker.conn, "etl", "nobody")


@pytest.mark.parametrize(
    "change",
    [
        "jsonb_set(request, '{contract_version}', '99')",
        "request - 'contract_version'",
        "request || '{\"unknown\": 1}'",
        "request - 'started_by'",
    ],
)
def test_a_request_of_another_version_is_refused(tracker, change):
    tracker.register("r1")
    tracker.conn.execute(f"UPDATE etl.pipeline_run SET request = {change}")
    with pytest.raises(ContractVersionError, match="install the same version"):
        runs.read_request(tracker.conn, "etl", "r1")


def test_a_lock_outside_a_transaction_is_refused(tracker):
    epoch = tracker.start("r1")
    with pytest.raises(EtlError, match="needs an open transaction"):
        runs.check_fence(tracker.conn, "etl", "orders", "r1", epoch, lock=True)


def test_a_commit_under_way_is_waited_for(tracker):
    epoch = tracker.start("old")
    with closing(tracker.connect()) as driver, closing(tracker.connect()) as watcher:
        in_commit(tracker, driver, "old", epoch)
        registering = threading.Thread(target=tracker.register, args=("new",))
        registering.start()
        wait_for_a_lock(watcher)
        assert watcher.execute("SELECT newest_run_id FROM etl.pipeline").fetchone() == ("old",)
        driver.execute("COMMIT")
        registering.join(10)
    assert tracker.one("SELECT newest_run_id FROM etl.pipeline") == "new"


@pytest.mark.parametrize(("timeout", "least", "most"), [("300 milliseconds", 0.3, 3), ("4 seconds", 4, 30)])
def test_a_frozen_driver_does_not_block_the_next_run_for_longer_than_it_says(tracker, database, timeout, least, most):
    tracker.start("old")
    environ = os.environ | {"AIRFLOW_CONN_WAREHOUSE": database.airflow_uri}
    driver = subprocess.Popen(
        [sys.executable, "-c", FROZEN_DRIVER], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert driver.stdout.readline() == "holds the fence\n"
        began = time.monotonic()
        tracker.register("new", load={"takeoverTimeout": timeout})
        assert least <= time.monotonic() - began < most
        assert runs.claim_epoch(tracker.conn, "etl", "orders", "new") == 2
    finally:
        driver.send_signal(signal.SIGCONT)
        _, complaint = driver.communicate(timeout=30)
    # What it wanted to commit is lost with its session.
    assert driver.returncode != 0
    assert "terminating connection" in complaint or "TransientError" in complaint or "closed" in complaint


def test_only_sessions_of_this_pipeline_role_and_time_are_ended(tracker, database):
    tracker.start("returns-1", "returns")
    epoch = tracker.start("old")
    tracker.conn.execute("CREATE ROLE etl_other LOGIN SUPERUSER PASSWORD 'x'")
    address = database.airflow_uri.split("@")[1]
    other_role = DatabaseConnection.from_airflow("warehouse", f"postgres://etl_other:x@{address}")
    try:
        with (
            closing(tracker.connect()) as frozen,
            closing(tracker.connect()) as other_pipeline,
            closing(tracker.connect(runs.application_name("orders", epoch))) as idle,
            closing(tracker.connect()) as newer,
            closing(tracker.connect()) as other_tracker,
            closing(connect(other_role, application_name=runs.application_name("orders", epoch))) as foreign,
        ):
            in_commit(tracker, frozen, "old", epoch)
            in_commit(tracker, other_pipeline, "returns-1", 1, "returns")
            for conn, name in (
                (newer, runs.application_name("orders", epoch + 1)),
                (other_tracker, runs.application_name("orders", epoch, "another schema")),
            ):
                conn.execute("BEGIN")
                raw(conn, st.begin_settings(), name, "5s", "600s")
            foreign.execute("BEGIN; SELECT 1")
            tracker.register("new", lock_timeout_ms=100)
            assert not alive(frozen)
            assert all(alive(conn) for conn in (other_pipeline, idle, newer, other_tracker, foreign))
    finally:
        tracker.conn.execute("DROP ROLE etl_other")


def test_a_claim_frees_what_older_drivers_hold_elsewhere(tracker):
    epoch = tracker.start("old")
    tracker.conn.execute("CREATE TABLE target (id int)")
    with closing(tracker.connect()) as frozen:
        frozen.execute("BEGIN")
        raw(frozen, st.begin_settings(), runs.application_name("orders", epoch), "5s", "600s")
        frozen.execute("LOCK TABLE target")
        tracker.start("new")
        tracker.conn.execute("SET lock_timeout = '5s'")
        tracker.conn.execute("INSERT INTO target VALUES (1)")
        assert not alive(frozen)


def test_a_registration_that_froze_before_its_commit_does_not_block_the_next(tracker):
    tracker.start("old")
    with closing(tracker.connect()) as frozen:
        frozen.execute("BEGIN")
        raw(frozen, st.begin_settings(), runs.application_name("orders", 0), "5s", "600s")
        frozen.execute("SELECT FROM etl.pipeline FOR UPDATE")
        tracker.register("new", lock_timeout_ms=600)
        assert not alive(frozen)
    assert tracker.one("SELECT newest_run_id FROM etl.pipeline WHERE pipeline_id = 'orders'") == "new"


def test_registrations_that_wait_for_each_other_end_nobody(tracker):
    tracker.start("old")
    errors = []

    def register(number):
        with closing(tracker.connect()) as conn:
            try:
                request = RunRequest(
                    run_id=f"run-{number}", pipeline_id="orders", config={"pipelineId": "orders"}, started_by="me"
                )
                runs.register_run(conn, "etl", request, lock_timeout_ms=2_000)
            except EtlError as error:
                errors.append(error)

    threads = [threading.Thread(target=register, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert tracker.one("SELECT count(*) FROM etl.pipeline_run") == 9


def test_a_skipped_batch_and_a_registration_wait_for_each_other_in_one_order(tracker, database):
    epoch = tracker.start("old")
    ledger = Ledger(DatabaseConnection.from_airflow("warehouse", database.airflow_uri), "etl", "orders", "old", epoch)
    with closing(tracker.connect()) as newer:
        newer.execute("BEGIN")
        newer.execute("SELECT FROM etl.pipeline WHERE pipeline_id = 'orders' FOR NO KEY UPDATE")
        thread = threading.Thread(target=lambda: suppressed(ledger.count_duplicate, tracker.record().identity))
        thread.start()
        wait_for_a_lock(tracker.conn)
        # What a registration does next: with the rows locked the other way round this would be a deadlock.
        newer.execute("SET LOCAL lock_timeout = '5s'")
        newer.execute("UPDATE etl.pipeline_run SET state = 'fenced' WHERE run_id = 'old'")
        newer.execute("COMMIT")
        thread.join(30)
    ledger.close()
    assert not thread.is_alive()


def suppressed(work, *arguments):
    with suppress(EtlError):
        work(*arguments)


def test_a_stranger_who_keeps_the_row_is_reported_not_ended(tracker):
    tracker.start("old")
    with closing(tracker.connect("psql")) as stranger:
        stranger.execute("BEGIN")
        stranger.execute("SELECT FROM etl.pipeline FOR UPDATE")
        with pytest.raises(TransientError, match="pg_stat_activity") as caught:
            tracker.register("new", lock_timeout_ms=50)
        assert caught.value.retryable
        assert alive(stranger)


def test_a_fenced_run_that_waits_for_the_row_ends_nobody(tracker):
    tracker.register("old")
    epoch = tracker.start("new")
    with closing(tracker.connect()) as driver:
        in_commit(tracker, driver, "new", epoch)
        with pytest.raises(FencedError):
            runs.claim_epoch(tracker.conn, "etl", "orders", "old", lock_timeout_ms=50)
        assert driver.info.transaction_status == TransactionStatus.INTRANS
        driver.execute("COMMIT")


def test_a_run_that_was_given_up_commits_no_more_and_the_next_run_does(tracker):
    epoch = tracker.start("r1")
    with closing(tracker.connect()) as frozen:
        in_commit(tracker, frozen, "r1", epoch)
        assert retire_run(tracker.conn, "etl", "r1")
        assert not alive(frozen)
    with pytest.raises(FencedError):
        runs.check_fence(tracker.conn, "etl", "orders", "r1", epoch, lock=False)
    with pytest.raises(FencedError):
        runs.claim_epoch(tracker.conn, "etl", "orders", "r1")
    assert not retire_run(tracker.conn, "etl", "r1")
    assert [status.run_state for status in pipeline_status(tracker.conn, "etl")] == ["fenced"]
    assert tracker.start("r2") == epoch + 1


@pytest.mark.parametrize("pipeline_id", ["orders", "x" * 255, "naïve % _ pipeline", "заказы" * 40])
def test_an_application_name_is_never_cut(tracker, pipeline_id):
    name = runs.application_name(pipeline_id, 2**63 - 1)
    assert len(name.encode()) < 63
    with closing(tracker.connect(name)) as conn:
        assert conn.execute("SHOW application_name").fetchone() == (name,)


def wait_for_a_lock(conn):
    deadline = time.monotonic() + 10
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while conn.execute(waiting).fetchone() == (0,):
        assert time.monotonic() < deadline
        time.sleep(0.01)
