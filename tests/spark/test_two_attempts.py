"""Two attempts at one part at the same time: an executor that was taken for lost, and its successor."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from psycopg import sql

from spark_jobs.contracts.cleanup import MINIMUM_BATCHES, CleanupRequest
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import CheckpointMismatchError, FencedError
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import decisions
from spark_jobs.contracts.tracker.cleanup import clean
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.tracker.decisions import Right, Winner
from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.contracts.tracker.part_names import part_names
from spark_jobs.contracts.tracker.records import BatchIdentity, BatchRecord, Books
from spark_jobs.contracts.tracker.runs import application_name, claim_epoch, register_run
from spark_jobs.sinks import parts
from spark_jobs.sinks.committing import CommitPlan, stateless_books
from spark_jobs.sinks.copying import Session
from spark_jobs.sinks.dead_letter_rows import insert_letters_from_json
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.refused import Limit
from spark_jobs.sinks.single import SinglePlan, write_single
from spark_jobs.sinks.table_state import table_state
from spark_jobs.sinks.two_phase import TwoPhasePlan, prepare_part
from spark_jobs.sinks.writing import RowsPlan


def _plan(database: Any) -> SinglePlan:
    connection = DatabaseConnection.from_airflow("warehouse", database.airflow_uri)
    with connect(connection, application_name="test") as conn:
        migrate(conn)
        register_run(conn, "etl", RunRequest(run_id="run", pipeline_id="twice", config={}, started_by="test"))
        epoch = claim_epoch(conn, "etl", "twice", "run")
        conn.execute("CREATE TABLE result (id bigint)")
        state = table_state(conn, sql.Identifier("public", "result"), ["id"], merges=False)
    record = BatchRecord(
        identity=BatchIdentity(pipeline_id="twice", query_id="q", batch_id=0, end_offsets={"offset": 10}),
        run_id="run",
        epoch=epoch,
        checkpoint_location="/nowhere",
        books=Books.empty(),
        duration_ms=0,
        strategy="single",
        strategy_reason="test",
    )
    name = application_name("twice", epoch, "etl")
    return SinglePlan(
        session=Session(connection.uri(application_name=name), name, "30s", "30s"),
        rows=RowsPlan("public", "result", (("id", "bigint"),)),
        commit=CommitPlan('"etl"', state, record, {}, insert_letters_from_json('"etl"'), Limit()),
    )


def test_only_one_of_two_attempts_commits(database: Any) -> None:
    plan = _plan(database)
    together = threading.Barrier(2, timeout=60)

    def rows() -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"id": pa.array(range(5), pa.int64())})
        # Both have looked into the ledger and found nothing; now both go on.
        together.wait()
        yield pa.RecordBatch.from_pydict({"id": pa.array(range(5, 10), pa.int64())})

    reports: list[PartReport] = []
    threads = [
        threading.Thread(target=lambda n=n: reports.append(write_single(plan, rows(), stateless_books, n)))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(report.state for report in reports) == [parts.ALREADY_THERE, parts.COMMITTED], reports
    with database.connect() as conn:
        assert conn.execute("SELECT count(*), count(DISTINCT id) FROM result").fetchone() == (10, 10)
        assert conn.execute("SELECT written_rows FROM etl.batch_tracker").fetchall() == [(10,)]


_MORE = """
INSERT INTO etl.batch_tracker
SELECT (jsonb_populate_record(b, jsonb_build_object('batch_id', n))).*
FROM etl.batch_tracker b, generate_series(1, %s) AS n WHERE b.batch_id = 0"""


def _remove_the_first(conn: Any) -> None:
    """Go on for as many batches as a cleanup keeps, and clean."""
    conn.execute(_MORE, (MINIMUM_BATCHES,))
    request = CleanupRequest.of(days=0, keep_batches=MINIMUM_BATCHES, pause_seconds=0)
    assert clean(conn, "etl", request).totals == {"batches": 1}


def test_an_attempt_that_wakes_up_after_a_cleanup_commits_nothing(database: Any) -> None:
    plan = _plan(database)

    def rows() -> Iterator[pa.RecordBatch]:
        yield from _five(0)
        # This one has found nothing in the ledger, and sleeps: while its successor commits, and a cleanup takes the
        # ledger's row away that would have refused it.
        assert write_single(plan, _five(0), stateless_books, 1).state == parts.COMMITTED
        with database.connect(autocommit=True) as conn:
            _remove_the_first(conn)

    with pytest.raises(CheckpointMismatchError, match="a cleanup has removed its row"):
        write_single(plan, rows(), stateless_books, 0)
    with database.connect() as conn:
        assert conn.execute("SELECT count(*) FROM result").fetchone() == (5,)
        assert conn.execute("SELECT count(*) FROM etl.batch_tracker WHERE batch_id = 0").fetchone() == (0,)


def test_an_attempt_that_prepares_after_a_cleanup_rolls_itself_back(database: Any) -> None:
    single = _plan(database)
    assert write_single(single, _five(0), stateless_books, 0).state == parts.COMMITTED
    names = part_names("twice", "etl", "q", 0, single.commit.record.epoch, 1)
    plan = TwoPhasePlan(single.session, single.rows, single.commit, names)
    with database.connect(autocommit=True) as conn:
        _remove_the_first(conn)
        with pytest.raises(FencedError):
            prepare_part(plan, _five(0), part=0, attempt=1)
        assert conn.execute(
            "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"
        ).fetchone() == (0,)


def _five(first: int) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pydict({"id": pa.array(range(first, first + 5), pa.int64())})


@pytest.mark.parametrize("finished", [False, True])
def test_an_attempt_that_prepares_after_the_decision_rolls_itself_back(database: Any, finished: bool) -> None:
    single = _plan(database)
    record = replace(single.commit.record, books=Books(source=5, passed=5, sink=5, written=5))
    names = part_names("twice", "etl", "q", 0, record.epoch, 1)
    plan = TwoPhasePlan(single.session, single.rows, replace(single.commit, record=record), names)
    winner = prepare_part(plan, _five(0), part=0, attempt=0)
    assert winner.state != parts.FAILED, winner.message
    right = Right("etl", "twice", "run", record.epoch)
    with database.connect(autocommit=True) as conn:
        decisions.decide(conn, right, record, "{}", [Winner(winner.name, winner.written)])
        if finished:
            [batch] = decisions.decided(conn, "etl", "twice")
            decisions.commit_parts(conn, batch)
            decisions.finish(conn, right, batch)
        # An executor that was taken for lost: its part comes late, under a name of its own.
        with pytest.raises(FencedError):
            prepare_part(plan, _five(0), part=0, attempt=1)
        left = conn.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()").fetchall()
        assert left == ([] if finished else [(winner.name,)])
        for batch in decisions.decided(conn, "etl", "twice"):
            decisions.commit_parts(conn, batch)
            decisions.finish(conn, right, batch)
        assert conn.execute("SELECT id FROM result ORDER BY id").fetchall() == [(number,) for number in range(5)]
