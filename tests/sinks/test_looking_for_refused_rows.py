"""How many statements it takes to find k refused rows among n: about k·log n, and not n."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import log2
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql.types import LongType, StructField, StructType

from spark_jobs.contracts.config import TableName, WriteMode
from spark_jobs.sinks.applying import Merger
from spark_jobs.sinks.careful import CarefulCopy
from spark_jobs.sinks.copying import Session, copy_rows, transaction
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.merging import MergeRule, merge
from spark_jobs.sinks.refused import Limit, RefusedRows
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.target import inspect

ROWS = 20_000
# The server names the line of the first, and says only that there is one of the second.
DEMANDS = {"check": "CHECK (id >= 0)", "foreign key": "REFERENCES known"}


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The savepoints that were set: one for each attempt to write a range of rows."""
    found: list[str] = []
    run = Cursor.run

    def counted(cursor: Cursor, statement: str) -> int:
        if statement.startswith("SAVEPOINT"):
            found.append(statement)
        return run(cursor, statement)

    monkeypatch.setattr(Cursor, "run", counted)
    return found


def _bad(count: int) -> set[int]:
    return {ROWS // count * number + 7 for number in range(count)} if count else set()


def _batches(count: int) -> list[pa.RecordBatch]:
    bad = _bad(count)
    ids = pa.array([-number if number in bad else number for number in range(ROWS)], pa.int64())
    return pa.table({"id": ids}).to_batches(max_chunksize=1000)


@contextmanager
def _table(database: Any, demand: str) -> Iterator[Cursor]:
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute("CREATE TABLE known (id bigint PRIMARY KEY)")
        conn.execute("INSERT INTO known SELECT generate_series(0, %s)", [ROWS])
        conn.execute(f"CREATE TABLE result (id bigint PRIMARY KEY {DEMANDS[demand]})".encode())
    with transaction(Session(database.uri, "test", "30s", "30s")) as cursor:
        yield cursor
        cursor.run("COMMIT")


def _check(database: Any, bad: int, written: int, refused: RefusedRows, attempts: list[str]) -> None:
    with closing(database.connect()) as conn:
        assert {row[0] for row in conn.execute("SELECT id FROM result")} == set(range(ROWS)) - _bad(bad)
    assert (written, refused.count) == (ROWS - bad, bad)
    # Found by halves: down to each row, and up again. Where the line is named it takes fewer.
    assert len(attempts) <= 2 * bad * (log2(ROWS) + 4)


@pytest.mark.parametrize("bad", [1, 5, 20])
@pytest.mark.parametrize("demand", ["check", "foreign key"])
def test_a_copy_finds_its_refused_rows(database: Any, attempts: list[str], demand: str, bad: int) -> None:
    letters = LetterSpool()
    refused = RefusedRows(letters, Limit())
    with closing(letters), _table(database, demand) as cursor:
        written = CarefulCopy(cursor, "public", "result", {"id": "bigint"}, refused).copy(_batches(bad))
    _check(database, bad, written, refused, attempts)


@pytest.mark.parametrize("bad", [1, 5, 20])
def test_a_merge_finds_its_refused_rows(database: Any, attempts: list[str], bad: int) -> None:
    letters = LetterSpool()
    refused = RefusedRows(letters, Limit())
    with closing(letters), _table(database, "foreign key") as cursor:
        written = _merger(database, cursor, bad, refused).apply()
    _check(database, bad, written, refused, attempts)


@pytest.mark.parametrize("bad", [1, 20, 2000])
def test_a_merge_asks_beforehand_which_rows_have_no_referenced_row(
    database: Any, attempts: list[str], bad: int
) -> None:
    letters = LetterSpool()
    refused = RefusedRows(letters, Limit())
    with closing(letters), _table(database, "foreign key") as cursor:
        written = _merger(database, cursor, bad, refused).apply()
    _check(database, bad, written, refused, attempts)
    # The whole, the question, the others, and each of them by itself.
    assert len(attempts) == 3 + bad


def _merger(database: Any, cursor: Cursor, bad: int, refused: RefusedRows) -> Merger:
    with closing(database.connect(autocommit=True)) as conn:
        schema = StructType([StructField("id", LongType())])
        target = inspect(conn, TableName("public", "result"), schema, ("id",))
        statements = merge(target, "staged", MergeRule(WriteMode.UPSERT, ("id",)), conn)
    cursor.run("CREATE TEMP TABLE staged (id bigint, _seq bigint GENERATED ALWAYS AS IDENTITY, _source text)")
    copy_rows(cursor, "pg_temp", "staged", _batches(bad))
    return Merger(cursor, statements, refused)


def test_a_healthy_batch_is_merged_by_one_statement(database: Any, attempts: list[str]) -> None:
    letters = LetterSpool()
    with closing(letters), _table(database, "foreign key") as cursor:
        written = _merger(database, cursor, 0, RefusedRows(letters, Limit())).apply()
    assert (written, len(attempts)) == (ROWS, 1)
