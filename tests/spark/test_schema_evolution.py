"""A target table that lacks something: refused, extended or widened, as the pipeline says."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import BeforeBatch, Pipelines, file_pipeline, write_lines
from pyspark.sql.types import LongType, StringType, StructField, StructType

from spark_jobs.contracts.config import SchemaEvolution, TableName
from spark_jobs.contracts.errors import TargetAlteredError, TargetMismatchError
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


_KEEP_OUT = (
    "CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
    "CREATE TRIGGER keep_out BEFORE INSERT ON result FOR EACH ROW EXECUTE FUNCTION keep_out()"
)
_MISFITS = [
    "DROP TABLE result",
    "ALTER TABLE result DROP COLUMN name",
    "ALTER TABLE result ALTER COLUMN name TYPE integer USING 0",
    # As wide as before: COPY's bytes would be taken for another value, or for one that is out of range.
    "ALTER TABLE result ALTER COLUMN score TYPE bigint",
    "ALTER TABLE result ALTER COLUMN id TYPE integer",
]
_OTHER = ["ALTER TABLE result ALTER COLUMN id TYPE numeric(20,0)", _KEEP_OUT]


@pytest.mark.parametrize("strategy", ["single", "staged", "two_phase"])
@pytest.mark.parametrize("change", [*_MISFITS, *_OTHER])
def test_a_target_that_is_altered_between_two_batches_gets_no_rows(
    pipelines: Pipelines, inbox: Path, change: str, strategy: str
) -> None:
    made = "id bigint, price numeric(12,4), score double precision, name text"
    merged = strategy == "staged"
    made += ", PRIMARY KEY (id)" if merged else ""
    _table(pipelines, made)
    for number in range(3):
        write_lines(inbox / f"{number}.json", {"id": number, "name": "a", "score": 1.5})
    config = _config(pipelines, inbox, None)
    config["load"] |= {"writeStrategy": strategy, **({"writeMode": "upsert", "keys": "id"} if merged else {})}
    config["extract"]["connectionParams"]["maxFilesPerTrigger"] = "1"
    ended = pipelines.run(config, stop=BeforeBatch(2, pipelines, change))
    assert isinstance(ended.error, TargetMismatchError if change in _MISFITS else TargetAlteredError), ended.error
    assert ended.error.retryable == (change in _OTHER)
    assert "result" in str(ended.error)
    assert pipelines.one("SELECT to_regclass('result') IS NULL") or pipelines.one("SELECT count(*) FROM result") == 1
    assert pipelines.rows("SELECT count(*), sum(written_rows) FROM etl.batch_tracker") == [(1, 1)]
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 0
    pipelines.execute("DROP TABLE IF EXISTS result", "DROP FUNCTION IF EXISTS keep_out")
    _table(pipelines, made)
    pipelines.finish(config)
    assert pipelines.rows("SELECT sum(written_rows) FROM etl.batch_tracker") == [(3,)]


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_a_unique_index_that_is_dropped_between_two_batches_is_named(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    _table(pipelines, "id bigint NOT NULL, price numeric(12,4), score double precision, name text")
    pipelines.execute("CREATE UNIQUE INDEX by_id ON result (id)")
    for number in range(3):
        write_lines(inbox / f"{number}.json", {"id": number, "name": "a"})
    config = _config(pipelines, inbox, None)
    config["load"] |= {"writeMode": "upsert", "keys": "id", "writeStrategy": strategy}
    config["extract"]["connectionParams"]["maxFilesPerTrigger"] = "1"
    ended = pipelines.run(config, stop=BeforeBatch(2, pipelines, "DROP INDEX by_id"))
    assert isinstance(ended.error, TargetMismatchError), ended.error
    assert "unique index on load.keys is gone" in str(ended.error)
    pipelines.execute("CREATE UNIQUE INDEX by_id ON result (id)")
    pipelines.finish(config)
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(0,), (1,), (2,)]


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_a_unique_key_that_compares_nulls_otherwise_stops_an_upsert(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    _table(pipelines, "id bigint, price numeric(12,4), score double precision, name text")
    pipelines.execute("CREATE UNIQUE INDEX by_id ON result (id) NULLS NOT DISTINCT")
    for number in range(3):
        write_lines(inbox / f"{number}.json", {"id": None, "name": f"n{number}"})
    config = _config(pipelines, inbox, None)
    config["load"] |= {"writeMode": "upsert", "keys": "id", "writeStrategy": strategy}
    config["extract"]["connectionParams"]["maxFilesPerTrigger"] = "1"
    swap = ("DROP INDEX by_id", "CREATE UNIQUE INDEX by_id ON result (id)")
    ended = pipelines.run(config, stop=BeforeBatch(2, pipelines, *swap))
    assert isinstance(ended.error, TargetMismatchError), ended.error
    assert "key column id may be NULL, and NULLs would be inserted again each time" in str(ended.error)
    assert pipelines.rows("SELECT id FROM result") == [(None,)]
    pipelines.execute("DROP INDEX by_id", "CREATE UNIQUE INDEX by_id ON result (id) NULLS NOT DISTINCT")
    # Rebuilt, it is the same.
    pipelines.finish(config, stop=BeforeBatch(2, pipelines, "REINDEX INDEX CONCURRENTLY by_id"))
    assert pipelines.rows("SELECT id FROM result") == [(None,)]
    assert pipelines.rows("SELECT sum(written_rows) FROM etl.batch_tracker") == [(3,)]
