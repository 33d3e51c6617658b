"""Ten million ledger rows over a thousand pipelines: half of them go, while a pipeline commits all the while.

Quiet and busy stretches take turns, so that what else the machine does is in both; what counts is the ratio of their
medians. A commit is what a small micro-batch's is: a thousand rows by COPY, the ledger's row, the fence's lock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from statistics import median
from time import monotonic, sleep

import ledger_questions
from filled_ledger import PIPELINES, fill
from report import Figure

from sandbox.postgres import PostgresServer
from spark_jobs.contracts.cleanup import MINIMUM_BATCHES, CleanupRequest
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.batch_retention import BatchCleanup
from spark_jobs.contracts.tracker.connect import Connection, connect, raw
from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.contracts.tracker.records import BatchIdentity, BatchRecord, Books
from spark_jobs.contracts.tracker.runs import application_name, claim_epoch, register_run
from spark_jobs.contracts.tracker.short_deletes import Problems, server_time_before

_DATABASE = "cleanup"
_COMMITS = 500
_PAUSE_SECONDS = 0.05
_ROWS = "".join(f"{n}\tsku-{n:07}\t{n % 100}\t{n / 7:.2f}\n" for n in range(1_000)).encode()
_GOAL = 1.1


def figures(server: PostgresServer, rows: int) -> Iterator[Figure]:
    """Fill the ledger; yield what answers take, what a cleanup costs others, and what it removes in a second."""
    server.create_database(_DATABASE)
    database = DatabaseConnection.from_airflow("bench", server.airflow_uri(_DATABASE))
    with closing(connect(database, application_name="etl-bench")) as conn:
        migrate(conn, "etl")
        fill(conn, rows)
        yield from ledger_questions.figures(conn, rows)
        ms = _milliseconds_to_look(conn)
        yield Figure(f"{rows:,} ledger rows: looking for old batches of all pipelines", ms, "ms", "", 1.0)
    with closing(connect(database, application_name=application_name("live", 1))) as driver:
        commits = _Commits(driver)
        quiet, busy = commits.measure(), []
        with _cleaning(server) as cleaning:
            before, began = _count(driver), monotonic()
            while cleaning.poll() is None:
                busy.append(commits.one())
                sleep(_PAUSE_SECONDS)
            seconds, removed = monotonic() - began, before - _count(driver)
        quiet += commits.measure()
    assert removed > rows * 0.4, f"the cleanup removed {removed} rows only"
    ratio = median(busy) / median(quiet)
    name = f"{rows:,} ledger rows: a commit of 1,000 rows while {removed:,} of them are removed"
    yield Figure(name, median(busy), "ms", f"without: {median(quiet):.1f} ms", ratio, _GOAL, less=True)
    tails = [sorted(times)[len(times) * 95 // 100] for times in (busy, quiet)]
    without = f"without: {tails[1]:.1f} ms"
    yield Figure(f"{name}, 95th percentile", tails[0], "ms", without, tails[0] / tails[1])
    yield Figure(f"{rows:,} ledger rows: removed meanwhile", removed / seconds / 1000, "krows/s", "", 1.0)
    server.drop_database(_DATABASE)


class _Commits:
    """Commits of a pipeline, as its driver's."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._batch = 0
        self._ident = st.quote_identifier("etl")
        conn.execute("CREATE TABLE target (id bigint, sku text, quantity int, price numeric)")
        register_run(conn, "etl", RunRequest(run_id="live", pipeline_id="live", config={}, started_by="bench"))
        claim_epoch(conn, "etl", "live", "live")
        self.measure()

    def measure(self) -> list[float]:
        """Return the milliseconds of some commits."""
        times = []
        for _ in range(_COMMITS):
            times.append(self.one())
            sleep(_PAUSE_SECONDS)
        return times

    def one(self) -> float:
        """Return the milliseconds of one commit."""
        began = monotonic()
        with self._conn.transaction():
            raw(self._conn, st.begin_settings(), application_name("live", 1), "5s", "30s")
            with self._conn.cursor().copy("COPY target FROM STDIN") as copy:
                copy.write(_ROWS)
            raw(self._conn, st.insert_batch(self._ident), self._record().row_json())
            assert raw(self._conn, st.lock_epoch(self._ident), "live", "1", "live") == [(True,)]
        self._batch += 1
        return (monotonic() - began) * 1000

    def _record(self) -> BatchRecord:
        return BatchRecord(
            identity=BatchIdentity(pipeline_id="live", query_id="live", batch_id=self._batch),
            run_id="live",
            epoch=1,
            checkpoint_location="/checkpoints/live",
            books=Books(source=1_000, passed=1_000, sink=1_000, written=1_000),
            duration_ms=100,
            strategy="single",
            strategy_reason="at most 1,000 rows",
        )


@contextmanager
def _cleaning(server: PostgresServer) -> Iterator[subprocess.Popen[bytes]]:
    """Let ``etl-pipeline cleanup`` run; killed in the end, as the next one goes on where it was."""
    keep = ("--keep-batches", str(MINIMUM_BATCHES), "--keep-history", "--keep-letters")
    command = [sys.executable, "-m", "spark_jobs.cli", "cleanup", "--connection", "bench", *keep]
    environ = {**os.environ, "AIRFLOW_CONN_BENCH": server.airflow_uri(_DATABASE)}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    try:
        _wait_until_it_removes(server, process)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


def _wait_until_it_removes(server: PostgresServer, process: subprocess.Popen[bytes]) -> None:
    with server.connect(_DATABASE, autocommit=True) as conn:
        before = conn.execute("SELECT coalesce(sum(removed_batches), 0) FROM etl.batch_retention").fetchone()
        while process.poll() is None:
            now = conn.execute("SELECT coalesce(sum(removed_batches), 0) FROM etl.batch_retention").fetchone()
            if now != before:
                return


def _count(conn: Connection) -> int:
    row = conn.execute("SELECT -coalesce(sum(removed_batches), 0)::bigint FROM etl.batch_retention").fetchone()
    return int(row[0]) if row else 0


def _milliseconds_to_look(conn: Connection) -> float:
    request = CleanupRequest.of(keep_batches=MINIMUM_BATCHES)
    cleanup = BatchCleanup(conn, "etl", request, server_time_before(conn, 30), Problems(conn))
    times = []
    for _ in range(5):
        began = monotonic()
        assert len(cleanup.old_queries()) == PIPELINES
        times.append((monotonic() - began) * 1000)
    return median(times[1:])
