"""Rows that keys will refuse are set aside by questions: the others land, and nothing is refused that could land."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pyspark.sql.types import IntegerType, StructField, StructType

from spark_jobs.contracts.config import TableName, WriteMode
from spark_jobs.sinks.applying import Merger
from spark_jobs.sinks.copying import Session, copy_rows, transaction
from spark_jobs.sinks.merging import MergeRule, merge
from spark_jobs.sinks.refused import Limit, RefusedRows
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.target import inspect

COLUMNS = ("id", "serial", "shop", "till", "boss")
DDL = """
CREATE TABLE place (shop int, "the till" int, UNIQUE ("the till", shop));
INSERT INTO place SELECT shop, till FROM generate_series(0, 2) AS shop, generate_series(0, 2) AS till;
CREATE TABLE result (
    id int PRIMARY KEY, serial int, shop int, till int, boss int,
    UNIQUE (serial), FOREIGN KEY (shop, till) REFERENCES place (shop, "the till")
);
INSERT INTO result VALUES (0, 0, 0, 0, NULL), (1, 1, NULL, 5, 0);
"""
SMALL = some.integers(0, 4) | some.none()
ROWS = some.lists(
    some.tuples(some.integers(0, 12), some.integers(0, 12) | some.none(), SMALL, SMALL, SMALL), max_size=30
)
RULES = some.sampled_from(
    [MergeRule(WriteMode.APPEND), MergeRule(WriteMode.UPSERT, ("id",)), MergeRule(WriteMode.UPSERT, ("id",), "serial")]
)
Row = tuple[Any, ...]


@pytest.fixture
def table(database: Any) -> Any:
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute(DDL)
    return database


def _merged(database: Any, rule: MergeRule, rows: Sequence[Row], role: str | None = None) -> tuple[int, list[Row]]:
    """Merge as after a refused row; return how many were written, and the refused rows with what was said of them."""
    schema = StructType([StructField(name, IntegerType()) for name in COLUMNS])
    with closing(database.connect()) as conn:
        target = inspect(conn, TableName("public", "result"), schema, rule.keys)
        statements = merge(target, "staged", rule, conn)
    letters = LetterSpool()
    columns = ", ".join(f"{name} int" for name in COLUMNS)
    with closing(letters), transaction(Session(database.uri, "test", "30s", "30s", role)) as cursor:
        cursor.run(f"CREATE TEMP TABLE staged ({columns}, _seq bigint GENERATED ALWAYS AS IDENTITY, _source text)")
        batch = pa.table({name: pa.array([row[i] for row in rows], pa.int32()) for i, name in enumerate(COLUMNS)})
        copy_rows(cursor, "pg_temp", "staged", batch.to_batches())
        written = Merger(cursor, statements, RefusedRows(letters, Limit())).apply()
        cursor.run("COMMIT")
        found = [json.loads(text) for chunk in letters.batches() for text in chunk]
    return written, [(*(json.loads(one["parsed_row"])[name] for name in COLUMNS), one["sqlstate"]) for one in found]


def _candidates(rule: MergeRule, rows: Sequence[Row]) -> list[Row]:
    """The rows that are to be written: for an upsert one of each key."""
    if not rule.keys:
        return list(rows)
    latest: dict[Any, Row] = {}
    for row in rows:
        now = latest.get(row[0])
        if (
            now is None
            or not rule.order_column
            or (row[1] or -1, row[1] is not None) >= (now[1] or -1, now[1] is not None)
        ):
            latest[row[0]] = row
    return list(latest.values())


def _rank(row: Row) -> int:
    return -1 if row[1] is None else int(row[1])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rule=RULES, rows=ROWS)
def test_what_is_refused_is_refused_alone_and_afterwards_too(table: Any, rule: MergeRule, rows: list[Row]) -> None:
    with closing(table.connect(autocommit=True)) as conn:
        conn.execute("DELETE FROM result WHERE id > 1")
        conn.execute("UPDATE result SET serial = id, shop = NULL, till = NULL, boss = NULL")
        before = set(conn.execute("SELECT * FROM result").fetchall())
        written, refused = _merged(table, rule, rows)
        there = set(conn.execute("SELECT * FROM result").fetchall())
        wanted = _candidates(rule, rows)
        known = [row[:-1] for row in refused]
        if not rule.keys:
            assert written + len(refused) == len(rows)
            assert sorted([*(there - before), *known], key=str) == sorted(wanted, key=str)
        else:
            assert there <= before | set(wanted)
            # What is neither there nor refused is older than what is there.
            left = {row for row in wanted if row not in there} - set(known)
            newer = {row[0]: _rank(row) for row in there}
            assert all(rule.order_column and _rank(row) < newer[row[0]] for row in left)
        update = ", ".join(f"{name} = EXCLUDED.{name}" for name in COLUMNS[1:])
        conflict = f" ON CONFLICT (id) DO UPDATE SET {update}" if rule.keys else ""
        for *row, state in refused:
            with pytest.raises(psycopg.Error) as said:
                conn.execute(f"INSERT INTO result VALUES (%s, %s, %s, %s, %s){conflict}".encode(), row)
            assert {said.value.sqlstate, state} <= {"23503", "23505"}


def test_a_role_that_may_not_look_at_the_referenced_table_finds_the_rows_by_halves(table: Any) -> None:
    with closing(table.connect(autocommit=True)) as conn:
        name = f"writer_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name}".encode())
        conn.execute(f"GRANT INSERT, SELECT ON result TO {name}".encode())
    try:
        rows = [(number, number, number % 5, 0, None) for number in range(2, 202)]
        written, refused = _merged(table, MergeRule(WriteMode.APPEND), rows, name)
        bad = {row for row in rows if row[2] > 2}
        assert (written, {row[:-1] for row in refused}) == (len(rows) - len(bad), bad)
    finally:
        with closing(table.connect(autocommit=True)) as conn:
            conn.execute(f"DROP OWNED BY {name}".encode())
            conn.execute(f"DROP ROLE {name}".encode())


def test_rows_that_refer_to_each_other_land_though_another_is_refused(table: Any) -> None:
    with closing(table.connect(autocommit=True)) as conn:
        conn.execute("ALTER TABLE result ADD FOREIGN KEY (boss) REFERENCES result")
    # A row whose boss comes later, one whose serial is there already, and that boss.
    rows = [(2, 2, 0, 0, 4), (3, 1, 0, 0, 0), (4, 4, 0, 0, None)]
    written, refused = _merged(table, MergeRule(WriteMode.APPEND), rows)
    assert (written, refused) == (2, [(3, 1, 0, 0, 0, "23505")])
