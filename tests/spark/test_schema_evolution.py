"""A target table that lacks something: refused, extended or widened, as the pipeline says."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, write_lines
from pyspark.sql.types import LongType, StringType, StructField, StructType

from spark_jobs.contracts.config import SchemaEvolution, TableName
from spark_jobs.contracts.errors import TargetMismatchError
from spark_jobs.sinks.evolution import evolve

SCHEMA = "id BIGINT, price DECIMAL(12,4), score DOUBLE, name STRING"


def _config(pipelines: Pipelines, inbox: Path, evolution: str | None) -> dict[str, Any]:
    load = {"autoCreateTable": False, **({"schemaEvolution": evolution} if evolution else {})}
    return file_pipeline("evolving", inbox, pipelines.checkpoints, schema=SCHEMA, load=load)


def _table(pipelines: Pipelines, columns: str) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute(f"CREATE TABLE result ({columns})")


def _types(pipelines: Pipelines) -> dict[str, str]:
    return dict(
        pipelines.rows(
            "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = 'result'::regclass AND attnum > 0 AND NOT attisdropped"
        )
    )


NARROW = "id integer, price numeric(10,2), score real"


@pytest.fixture
def rows(inbox: Path) -> None:
    write_lines(inbox / "0.json", {"id": 2**40, "price": 12345678.1234, "score": 1e300, "name": "a"})


@pytest.mark.usefixtures("rows")
def test_strict_names_every_difference_at_once_and_changes_nothing(pipelines: Pipelines, inbox: Path) -> None:
    _table(pipelines, NARROW)
    before = _types(pipelines)
    ended = pipelines.run(_config(pipelines, inbox, None))
    assert isinstance(ended.error, TargetMismatchError)
    for column in ("id", "price", "score", "name"):
        assert f"column {column} " in ended.error.found
    assert _types(pipelines) == before


@pytest.mark.usefixtures("rows")
def test_add_columns_widens_nothing_and_changes_nothing_where_that_is_not_enough(
    pipelines: Pipelines, inbox: Path
) -> None:
    _table(pipelines, NARROW)
    before = _types(pipelines)
    ended = pipelines.run(_config(pipelines, inbox, "add_columns"))
    assert isinstance(ended.error, TargetMismatchError)
    assert "column name " not in ended.error.found
    assert _types(pipelines) == before


@pytest.mark.usefixtures("rows")
def test_add_columns_adds_what_is_missing(pipelines: Pipelines, inbox: Path) -> None:
    _table(pipelines, "id bigint, price numeric(12,4), score double precision")
    pipelines.finish(_config(pipelines, inbox, "add_columns"))
    assert _types(pipelines)["name"] == "text"
    assert pipelines.rows("SELECT name FROM result") == [("a",)]


@pytest.mark.usefixtures("rows")
def test_widen_loses_nothing_of_old_and_new_values(pipelines: Pipelines, inbox: Path) -> None:
    _table(pipelines, NARROW)
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("INSERT INTO result VALUES (7, 12345678.25, 0.5)")
    pipelines.finish(_config(pipelines, inbox, "widen"))
    assert _types(pipelines) == {
        "id": "bigint",
        "price": "numeric(12,4)",
        "score": "double precision",
        "name": "text",
    }
    found = pipelines.rows("SELECT id, price::text, score, name FROM result ORDER BY id")
    assert found == [(7, "12345678.2500", 0.5, None), (2**40, "12345678.1234", 1e300, "a")]


@pytest.mark.usefixtures("rows")
def test_what_is_no_widening_is_refused(pipelines: Pipelines, inbox: Path) -> None:
    _table(pipelines, "id text, price numeric(12,4), score double precision, name text")
    ended = pipelines.run(_config(pipelines, inbox, "widen"))
    assert isinstance(ended.error, TargetMismatchError)
    assert "column id is text" in ended.error.found
    assert _types(pipelines)["id"] == "text"


def test_two_that_start_at_once_change_the_table_once(database: Any) -> None:
    schema = StructType([StructField("id", LongType()), StructField("name", StringType())])
    with database.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE result (id integer)")
    together = threading.Barrier(2, timeout=30)
    changes: list[list[str]] = []

    def start() -> None:
        with database.connect(autocommit=True) as conn:
            together.wait()
            changes.append(evolve(conn, TableName("public", "result"), schema, SchemaEvolution.WIDEN))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(map(len, changes)) == [0, 2]


def test_a_role_that_does_not_own_the_table_is_told_so(database: Any) -> None:
    schema = StructType([StructField("id", LongType())])
    with database.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE result (id integer)")
        conn.execute("CREATE ROLE evolving_guest")
        try:
            conn.execute("GRANT ALL ON result TO evolving_guest")
            conn.execute("SET ROLE evolving_guest")
            with pytest.raises(TargetMismatchError, match="owns the table"):
                evolve(conn, TableName("public", "result"), schema, SchemaEvolution.WIDEN)
        finally:
            conn.execute("RESET ROLE")
            conn.execute("DROP OWNED BY evolving_guest")
            conn.execute("DROP ROLE evolving_guest")


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE result",
        "ALTER TABLE result DROP COLUMN name",
        "ALTER TABLE result ALTER COLUMN name TYPE integer USING 0",
    ],
)
def test_a_target_that_changes_between_two_batches_ends_the_run_with_its_name(
    pipelines: Pipelines, inbox: Path, change: str
) -> None:
    _table(pipelines, "id bigint, price numeric(12,4), score double precision, name text")
    for number in range(3):
        write_lines(inbox / f"{number}.json", {"id": number, "name": "a"})
    config = _config(pipelines, inbox, None)
    config["extract"]["connectionParams"]["maxFilesPerTrigger"] = "1"
    listener = pipelines.database.connect(autocommit=True)
    listener.execute("LISTEN etl_batch")

    def change_after_the_first_batch() -> None:
        next(iter(listener.notifies(timeout=120, stop_after=1)))
        listener.execute(change)

    thread = threading.Thread(target=change_after_the_first_batch)
    thread.start()
    ended = pipelines.run(config)
    thread.join(120)
    listener.close()
    if ended.error is None:
        # All three batches were quicker than the change; then the next run must say it.
        write_lines(inbox / "9.json", {"id": 9, "name": "a"})
        ended = pipelines.run(config)
    assert isinstance(ended.error, TargetMismatchError), ended.error
    assert not ended.error.retryable
    assert "result" in str(ended.error)
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS result")
    _table(pipelines, "id bigint, price numeric(12,4), score double precision, name text")
    pipelines.finish(config)
    assert pipelines.rows("SELECT sum(written_rows) FROM etl.batch_tracker") == [(len(list(inbox.iterdir())),)]
