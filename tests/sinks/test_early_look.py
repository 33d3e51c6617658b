"""A part whose first rows the merge would refuse fails after them; any other part is staged as if nobody had looked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql
from pyspark.sql.types import LongType, StringType, StructField, StructType

from spark_jobs.contracts.config import TableName, WriteMode
from spark_jobs.sinks import parts
from spark_jobs.sinks.copying import Session
from spark_jobs.sinks.merge_sql import MergeRule
from spark_jobs.sinks.merging import early_look
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.refused import Limit
from spark_jobs.sinks.staged import StagedPlan, stage_part
from spark_jobs.sinks.staging_table import create_staging
from spark_jobs.sinks.target import inspect
from spark_jobs.sinks.writing import RowsPlan

SCHEMA = StructType([StructField("id", LongType()), StructField("note", StringType())])
ROWS = 5000
"""Of a batch; each is as large as the first bounded COPY."""

BATCHES = 6
FIRST = -1
"""The first row of the part, in the numbers of the ids."""


@dataclass
class Part:
    """Batches of rows, and how many of them were asked for."""

    bad: int | None
    taken: int = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        for number in range(BATCHES):
            self.taken += 1
            ids = [FIRST if n == self.bad else n for n in range(number * ROWS, (number + 1) * ROWS)]
            yield pa.record_batch({"id": pa.array(ids, pa.int64()), "note": pa.array(["n" * 300] * ROWS)})


@pytest.fixture
def table(database: Any) -> Iterator[psycopg.Connection[Any]]:
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute("CREATE TABLE known (id bigint PRIMARY KEY)")
        conn.execute("INSERT INTO known SELECT generate_series(0, %s)", [ROWS * BATCHES])
        conn.execute("CREATE TABLE result (id bigint REFERENCES known, note text)")
        conn.execute("CREATE TABLE letters (envelope text, _attempt bigint, _rows bigint)")
        yield conn


def _staged(
    database: Any,
    conn: psycopg.Connection[Any],
    part: Part,
    rule: MergeRule | None = None,
    role: str | None = None,
    keys: Sequence[str] = (),
) -> PartReport:
    rule = rule or MergeRule(WriteMode.APPEND)
    target = inspect(conn, TableName("public", "result"), SCHEMA, keys)
    conn.execute(create_staging(sql.Identifier("staged"), target, kind="UNLOGGED", rule=rule))
    if role:
        conn.execute(f"GRANT ALL ON staged, letters TO {role}".encode())
    columns = (("id", "bigint"), ("note", "text"))
    rows = RowsPlan("public", "staged", columns, look=early_look(target, '"staged"', rule, conn))
    plan = StagedPlan(Session(database.uri, "test", "30s", "30s", role), "public", rows, "letters", Limit())
    return stage_part(plan, part.batches(), 0, 7)


def _count(conn: psycopg.Connection[Any], table: str) -> Any:
    return conn.execute(f"SELECT count(*) FROM {table} WHERE id IS NOT NULL".encode()).fetchone()


def test_a_part_whose_first_rows_refer_to_nothing_fails_with_the_servers_words(
    database: Any, table: psycopg.Connection[Any]
) -> None:
    part = Part(bad=10)
    report = _staged(database, table, part)
    assert (report.state, report.sqlstate, report.doing) == (parts.FAILED, "23503", parts.MERGE)
    assert "result_id_fkey" in report.message
    assert part.taken == 2
    assert _count(table, "staged") == _count(table, "result") == (0,)


@pytest.mark.parametrize("bad", [None, ROWS * BATCHES - 1])
def test_a_part_whose_first_rows_are_good_is_staged(
    database: Any, table: psycopg.Connection[Any], bad: int | None
) -> None:
    report = _staged(database, table, Part(bad))
    assert (report.state, report.written, report.doing) == (parts.STAGED, ROWS * BATCHES, "")
    assert (_count(table, "staged"), _count(table, "result")) == ((ROWS * BATCHES,), (0,))
    assert table.execute("SELECT min(_seq) > 0 FROM staged").fetchone() == (True,)


def test_a_row_that_the_server_takes_all_the_same_is_staged(database: Any, table: psycopg.Connection[Any]) -> None:
    # A trigger makes what it refers to, before that is looked for.
    table.execute("ALTER TABLE result DROP CONSTRAINT result_id_fkey")
    table.execute("ALTER TABLE result ADD CONSTRAINT late FOREIGN KEY (id) REFERENCES known NOT VALID")
    table.execute(
        "CREATE FUNCTION known() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO known SELECT NEW.id ON CONFLICT DO NOTHING; RETURN NULL; END $$"
    )
    # Its name comes before those of the key's triggers.
    table.execute('CREATE TRIGGER "AAA" AFTER INSERT ON result FOR EACH ROW EXECUTE FUNCTION known()')
    report = _staged(database, table, Part(bad=10))
    assert (report.state, report.written, report.doing) == (parts.STAGED, ROWS * BATCHES, "")
    assert (_count(table, "staged"), _count(table, "result")) == ((ROWS * BATCHES,), (0,))
    assert table.execute("SELECT count(*) FROM staged WHERE _seq < 0").fetchone() == (0,)
    assert table.execute("SELECT count(*) FROM known WHERE id < 0").fetchone() == (0,)


def test_a_role_that_may_not_look_at_the_referenced_table_stages(database: Any, table: psycopg.Connection[Any]) -> None:
    role = f"writer_{table.info.dbname}"
    table.execute(f"CREATE ROLE {role}".encode())
    table.execute(f"GRANT INSERT ON result TO {role}".encode())
    try:
        report = _staged(database, table, Part(bad=10), role=role)
        assert (report.state, report.written) == (parts.STAGED, ROWS * BATCHES)
    finally:
        table.execute(f"DROP OWNED BY {role}".encode())
        table.execute(f"DROP ROLE {role}".encode())


@pytest.mark.parametrize("mode", [WriteMode.OVERWRITE, WriteMode.UPSERT])
def test_only_an_append_is_looked_at(database: Any, table: psycopg.Connection[Any], mode: WriteMode) -> None:
    # Of an upsert another row of the batch may win, and an overwrite will have deleted what is there.
    table.execute("ALTER TABLE result ADD PRIMARY KEY (id)")
    rule = MergeRule(mode, ("id",) if mode is WriteMode.UPSERT else ())
    report = _staged(database, table, Part(bad=10), rule, keys=rule.keys)
    assert (report.state, report.written) == (parts.STAGED, ROWS * BATCHES)
