"""Ten million dead letters: a list's first page and the numbers by class, as ``etl-pipeline dead-letters`` asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median
from time import monotonic
from typing import Any

import psycopg
from report import Figure

from sandbox.postgres import PostgresServer
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.replay import LetterFilter
from spark_jobs.contracts.tracker.connect import Connection, connect
from spark_jobs.contracts.tracker.letters import count_letters, list_letters
from spark_jobs.contracts.tracker.migrate import migrate

_DATABASE = "letters"
_GOAL_MS = 200
_FIRST_DAY = datetime(2026, 10, 1, tzinfo=UTC)
_DAYS = 30
# Every second letter is of pipeline-0, and one in a hundred thousand of a class of its own. A hundred letters, as of a
# micro-batch, failed at the same moment. Home, name and reason are there where the table asks for them.
_LETTERS = """
SELECT
    ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS dead_letter_id,
    'pipeline-' || CASE WHEN n %% 2 = 0 THEN 0 ELSE 1 + n / 2 %% 49 END AS pipeline_id,
    'query' AS query_id, n / 100 AS batch_id,
    CASE WHEN n %% 3 = 0 THEN 'write' ELSE 'parse' END AS stage,
    CASE WHEN n %% 100000 = 0 THEN 'CLASS_RARE' ELSE 'CLASS_' || n / 7 %% 11 END AS error_class,
    CASE WHEN n %% 3 = 0 THEN '23514' END AS sqlstate,
    'the value of column quantity is not one of an integer: line ' || n AS message,
    convert_to('{"id": ' || n || ', "sku": "sku-0000001", "quantity": "many", "note": "of some length"}', 'UTF8')
        AS raw_value,
    CASE WHEN n %% 3 = 0 THEN jsonb_build_object('id', n, 'quantity', -1) END AS parsed_row,
    jsonb_build_object('topic', 'orders', 'partition', n %% 4, 'offset', n) AS source,
    moment, status,
    CASE WHEN status = 'replayed' THEN '00000000-0000-4000-8000-000000000001'::uuid END AS replay_id,
    CASE WHEN status = 'replayed' THEN 'query' END AS home_query_id,
    CASE WHEN status = 'replayed' THEN n / 100 END AS home_batch_id,
    CASE WHEN status = 'discarded' THEN 'somebody' END AS closed_by,
    CASE WHEN status = 'discarded' THEN 'not needed' END AS reason
FROM (
    SELECT n, %(start)s::timestamptz + n / 100 * %(step)s::interval AS moment,
        CASE
            WHEN n / 11 %% 20 = 0 THEN 'replayed'
            WHEN n / 11 %% 50 = 1 THEN 'parked'
            WHEN n / 11 %% 50 = 2 THEN 'discarded'
            ELSE 'pending'
        END AS status
    FROM generate_series(0::bigint, %(rows)s::bigint - 1) AS n
) AS numbered"""
# Every second micro-batch has its letters in bundles, small ones; those of the others were taken apart.
_SHARED = "pipeline_id, query_id, batch_id, stage, error_class, status, replay_id, home_query_id, home_batch_id"
_SINGLE = f"""
INSERT INTO etl.dead_letter_single (
    dead_letter_id, {_SHARED}, closed_by, reason, sqlstate, message, raw_value, parsed_row, source, first_failed_at,
    last_failed_at
)
SELECT dead_letter_id, {_SHARED}, closed_by, reason, sqlstate, message, raw_value, parsed_row, source, moment, moment
FROM ({_LETTERS}) AS letter WHERE batch_id %% 2 = 0"""
_BUNDLE_ID = f"md5(concat_ws(' ', {_SHARED}))::uuid"
_BUNDLE = f"""
INSERT INTO etl.dead_letter_bundle (
    bundle_id, {_SHARED}, closed_by, reason, has_raw_value, attempt, letters, first_failed_at, last_failed_at
)
SELECT {_BUNDLE_ID}, {_SHARED}, closed_by, reason, true, 1, count(*), min(moment), min(moment)
FROM ({_LETTERS}) AS letter WHERE batch_id %% 2 = 1 GROUP BY {_SHARED}, closed_by, reason"""
_BUNDLED = f"""
INSERT INTO etl.dead_letter_bundled (dead_letter_id, bundle_id, sqlstate, message, raw_value, parsed_row, source)
SELECT dead_letter_id, {_BUNDLE_ID}, sqlstate, message, raw_value, parsed_row, source
FROM ({_LETTERS}) AS letter WHERE batch_id %% 2 = 1"""
_TABLES = ("dead_letter_single", "dead_letter_bundle", "dead_letter_bundled")
# Differences, as the triggers would have kept them of micro-batches with a thousand dead letters each.
_TALLY = """
INSERT INTO etl.dead_letter_tally (pipeline_id, status, stage, error_class, letters)
SELECT pipeline_id, status, stage, error_class, count(*) FROM (
    SELECT *, row_number() OVER (PARTITION BY pipeline_id ORDER BY dead_letter_id) / 1000 AS batch FROM etl.dead_letter
) AS letters GROUP BY pipeline_id, status, stage, error_class, batch"""


def figures(server: PostgresServer, rows: int, number: int) -> Iterator[Figure]:
    """Fill the table, measure, and yield the milliseconds of each question."""
    server.create_database(_DATABASE)
    database = DatabaseConnection.from_airflow("bench", server.airflow_uri(_DATABASE))
    with connect(database, application_name="bench") as conn:
        migrate(conn, "etl")
        began = monotonic()
        _fill(conn, rows)
        print(f"{rows:,} letters in {monotonic() - began:.0f} s", flush=True)
        total = sum(count.letters for count in count_letters(conn, "etl"))
        assert total == rows, total
        for name, ask in _questions(conn, rows).items():
            ms = _milliseconds(ask, number)
            if ms > _GOAL_MS:
                _explain(conn, name, ask)
            yield Figure(f"{rows:,} dead letters: {name}", ms, "ms", f"{_GOAL_MS} ms", ms / _GOAL_MS, 1.0, less=True)
    server.drop_database(_DATABASE)


def _questions(conn: Connection, rows: int) -> dict[str, Callable[[], Any]]:
    def listed(pipeline: str | None, **wanted: Any) -> Callable[[], Any]:
        letters = LetterFilter.of(pipeline_id=pipeline or "-", **wanted)
        return partial(_page, conn, letters, everywhere=pipeline is None)

    a_day = {"since": _FIRST_DAY + timedelta(days=9), "until": _FIRST_DAY + timedelta(days=10)}
    big, small, rare = "pipeline-0", "pipeline-7", ("CLASS_RARE",)
    return {
        "first page, a pipeline with half of them": listed(big),
        "first page, a pipeline with one in a hundred": listed(small),
        "first page, one class of a pipeline": listed(big, error_classes=("CLASS_3",)),
        "first page, a rare class of a pipeline": listed(big, error_classes=rare),
        "first page, one stage of a pipeline": listed(small, stages=("write",)),
        "first page, a day of a pipeline": listed(big, **a_day),
        "first page, any status of a pipeline": listed(big, statuses=()),
        "first page, two classes of a pipeline": listed(big, error_classes=("CLASS_3", "CLASS_4")),
        "first page, all pipelines": listed(None),
        "first page, a day of all pipelines": listed(None, **a_day),
        "first page, one class of all pipelines": listed(None, error_classes=("CLASS_3",)),
        "first page, a rare class of all pipelines": listed(None, error_classes=rare),
        "numbers by class, a pipeline": lambda: count_letters(conn, "etl", big),
        "numbers by class, all pipelines": lambda: count_letters(conn, "etl"),
    }


def _page(conn: Connection, letters: LetterFilter, *, everywhere: bool) -> None:
    found = list_letters(conn, "etl", letters, everywhere=everywhere)
    assert found
    assert found == sorted(found, key=lambda letter: letter.first_failed_at, reverse=True)


def _milliseconds(ask: Callable[[], Any], number: int) -> float:
    times = []
    for _ in range(number + 1):
        began = monotonic()
        ask()
        times.append((monotonic() - began) * 1000)
    return median(times[1:])


def _fill(conn: Connection, rows: int) -> None:
    """Fill the tables without their triggers and indexes, which are there again afterwards."""
    indexes = conn.execute(
        "SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i "
        "JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = 'etl'::regnamespace AND c.relkind = 'r' "
        "AND c.relname ~ '^dead_letter_(pending|replaying|parked|replayed|discarded|bundle|bundled)$' "
        "AND NOT i.indisprimary"
    ).fetchall()
    step = timedelta(days=_DAYS) / max(rows / 100, 1)
    conn.execute("SET statement_timeout = 0")
    conn.execute("SET maintenance_work_mem = '512MB'")
    for table in _TABLES:
        conn.execute(f"ALTER TABLE etl.{table} DISABLE TRIGGER USER".encode())
    for name, _ in indexes:
        conn.execute(f"DROP INDEX {name}".encode())
    for statement in (_SINGLE, _BUNDLE, _BUNDLED):
        conn.execute(statement.encode(), {"rows": rows, "start": _FIRST_DAY, "step": step})
    for _, definition in indexes:
        conn.execute(definition.encode())
    for table in _TABLES:
        conn.execute(f"ALTER TABLE etl.{table} ENABLE TRIGGER USER".encode())
    conn.execute(_TALLY.encode())
    for table in ("dead_letter_bundle", "dead_letter_tally"):
        print(f"{table}:", conn.execute(f"SELECT count(*) FROM etl.{table}".encode()).fetchone(), flush=True)
    for table in (*_TABLES, "dead_letter_tally"):
        conn.execute(f"VACUUM ANALYZE etl.{table}".encode())


def _explain(conn: Connection, name: str, ask: Callable[[], Any]) -> None:
    """Print the plan of what is slower than it may be."""

    def show(notice: psycopg.errors.Diagnostic) -> None:
        print(f"{name}: {notice.message_primary}", flush=True)

    conn.add_notice_handler(show)
    settings = ("LOAD 'auto_explain'", "SET auto_explain.log_min_duration = 0", "SET auto_explain.log_analyze = on")
    for statement in (*settings, "SET client_min_messages = log"):
        conn.execute(statement.encode())
    ask()
    conn.execute("SET auto_explain.log_min_duration = -1")
    conn.remove_notice_handler(show)
