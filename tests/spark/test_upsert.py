"""Upserts as they come in real life: late updates, partial updates, deletions, keys of many kinds, many at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, select, write_lines

from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.errors import ConfigError, TargetMismatchError

SCHEMA = "id INT, region STRING, name STRING, amount INT, version BIGINT, gone BOOLEAN"
STRATEGIES = ["single", "staged"]
TABLE = "id int NOT NULL, region text NOT NULL, name text, amount int, version bigint, UNIQUE (id, region)"


def _table(pipelines: Pipelines, columns: str = TABLE) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute(f"CREATE TABLE result ({columns})")


def _pipeline(pipelines: Pipelines, inbox: Path, **load: Any) -> dict[str, Any]:
    marked = "deleteMarker" in load
    columns = {name: name for name in ("id", "region", "name", "amount", "version", *(["gone"] if marked else []))}
    return file_pipeline(
        "upsert",
        inbox,
        pipelines.checkpoints,
        schema=SCHEMA,
        transforms=[select(**columns)],
        load={"writeMode": "upsert", "keys": "id,region", "autoCreateTable": False, **load},
    )


def _row(id: int, name: str, version: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": id, "region": "eu", "name": name, "amount": 1, "version": version, **more}


def _names(pipelines: Pipelines) -> dict[int, str]:
    return dict(pipelines.rows("SELECT id, name FROM result ORDER BY id"))


def _books(pipelines: Pipelines) -> list[tuple[Any, ...]]:
    return pipelines.rows(
        "SELECT sink_rows, written_rows, write_deduplicated_rows FROM etl.batch_tracker ORDER BY batch_id"
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_highest_value_of_the_order_column_wins_in_a_batch_and_against_the_table(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    _table(pipelines)
    config = _pipeline(pipelines, inbox, orderColumn="version", writeStrategy=strategy)
    write_lines(inbox / "0.json", _row(1, "new", 5), _row(1, "old", 3), _row(2, "none"), _row(3, "x", 9))
    pipelines.finish(config)
    assert _names(pipelines) == {1: "new", 2: "none", 3: "x"}
    late = [_row(1, "late", 4), {**_row(2, "null"), "version": None}, _row(3, "same", 9), _row(4, "first", 1)]
    write_lines(inbox / "1.json", *late)
    pipelines.finish(config)
    assert _names(pipelines) == {1: "new", 2: "none", 3: "same", 4: "first"}
    assert _books(pipelines) == [(4, 3, 1), (4, 2, 2)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_the_chosen_columns_are_updated(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    _table(pipelines)
    config = _pipeline(pipelines, inbox, updateColumns="amount", writeStrategy=strategy)
    write_lines(inbox / "0.json", _row(1, "a", 1))
    pipelines.finish(config)
    write_lines(inbox / "1.json", _row(1, "b", 2, amount=7), _row(2, "c", 2, amount=8))
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, name, amount, version FROM result ORDER BY id") == [
        (1, "a", 7, 1),
        (2, "c", 8, 2),
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_on_conflict_nothing_leaves_what_is_there(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    _table(pipelines)
    config = _pipeline(pipelines, inbox, onConflict="nothing", writeStrategy=strategy)
    write_lines(inbox / "0.json", _row(1, "a"), _row(1, "b"))
    pipelines.finish(config)
    write_lines(inbox / "1.json", _row(1, "c"), _row(2, "d"))
    pipelines.finish(config)
    assert _names(pipelines) == {1: "b", 2: "d"}
    assert _books(pipelines) == [(2, 1, 1), (2, 1, 1)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_deletion_marker_deletes_the_row_of_its_key(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    _table(pipelines)
    config = _pipeline(pipelines, inbox, deleteMarker="gone", orderColumn="version", writeStrategy=strategy)
    write_lines(inbox / "0.json", *[_row(number, f"n{number}", 5) for number in range(1, 6)])
    pipelines.finish(config)
    write_lines(
        inbox / "1.json",
        {"id": 1, "region": "eu", "version": 6, "gone": True},
        {"id": 2, "region": "eu", "version": 4, "gone": True},
        {"id": 9, "region": "eu", "version": 1, "gone": True},
        _row(3, "gone", 6, gone=True),
        _row(3, "back", 7),
        _row(6, "new", 1, gone=False),
    )
    pipelines.finish(config)
    assert _names(pipelines) == {2: "n2", 3: "back", 4: "n4", 5: "n5", 6: "new"}
    # Applied: 1 (deleted), 9 (asked to be), 3 and 6 (written). Not: 2 (older than the row), the first of 3.
    assert _books(pipelines)[1] == (6, 4, 2)


def test_keys_that_are_staged_as_text_are_compared_by_their_own_type(pipelines: Pipelines, inbox: Path) -> None:
    _table(pipelines, "host inet NOT NULL UNIQUE, device uuid, name text")
    config = file_pipeline(
        "upsert",
        inbox,
        pipelines.checkpoints,
        schema="host STRING, device STRING, name STRING",
        load={"writeMode": "upsert", "keys": "host", "autoCreateTable": False},
    )
    uuid = "{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}"
    write_lines(
        inbox / "0.json",
        {"host": "10.0.0.1", "device": uuid, "name": "a"},
        {"host": "10.0.0.1/32", "device": None, "name": "b"},
        {"host": "10.0.0.256", "device": None, "name": "no address"},
        {"host": "::1", "device": "0123456789abcdef", "name": "no uuid"},
        {"host": "::2", "device": uuid.lower().strip("{}"), "name": "c"},
    )
    pipelines.finish(config)
    assert pipelines.rows("SELECT host::text, device::text, name FROM result ORDER BY host") == [
        ("10.0.0.1/32", None, "b"),
        ("::2/128", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "c"),
    ]
    letters = pipelines.rows("SELECT sqlstate, parsed_row->>'name' FROM etl.dead_letter ORDER BY 2")
    assert letters == [("22P02", "no address"), ("22P03", "no uuid")]


def test_settings_that_do_not_fit_are_named(pipelines: Pipelines, inbox: Path) -> None:
    def refused(**load: Any) -> str:
        config = _pipeline(pipelines, inbox, **load)
        with pytest.raises(ConfigError) as caught:
            PipelineConfig.from_json(config)
        return str(caught.value)

    assert "load.orderColumn" in refused(orderColumn="versoin")
    assert "version" in refused(orderColumn="versoin")
    assert "load.updateColumns" in refused(updateColumns="id")
    assert "load.updateColumns" in refused(updateColumns="name", onConflict="nothing")
    assert "only upsert" in refused(writeMode="append", onConflict="nothing")
    assert "load.onConflict" in refused(onConflict="replace")


def test_a_marker_that_is_no_boolean_is_refused(pipelines: Pipelines, inbox: Path) -> None:
    _table(pipelines)
    write_lines(inbox / "0.json", _row(1, "a"))
    config = _pipeline(pipelines, inbox, deleteMarker="gone")
    config["transforms"] = [select(id="id", region="region", name="name", gone="amount")]
    ended = pipelines.run(config)
    assert isinstance(ended.error, ConfigError)
    assert "BOOLEAN" in str(ended.error)


def test_a_missing_unique_key_is_said_before_data_moves_and_when_it_is_dropped_between_runs(
    pipelines: Pipelines, inbox: Path
) -> None:
    _table(pipelines)
    config = _pipeline(pipelines, inbox)
    write_lines(inbox / "0.json", _row(1, "a"))
    pipelines.finish(config)
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("ALTER TABLE result DROP CONSTRAINT result_id_region_key")
    write_lines(inbox / "1.json", _row(1, "b"))
    ended = pipelines.run(config)
    assert isinstance(ended.error, TargetMismatchError)
    assert "unique key over exactly (id, region)" in str(ended.error)
    assert _names(pipelines) == {1: "a"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_an_order_column_the_last_row_wins_also_across_tasks(
    pipelines: Pipelines, inbox: Path, spark: Any, strategy: str
) -> None:
    _table(pipelines)
    config = _pipeline(pipelines, inbox, writeStrategy=strategy)
    # A task for each file, the larger one first; the rows' numbers within each would make the first file's win.
    spark.conf.set("spark.sql.files.openCostInBytes", "128m")
    try:
        write_lines(inbox / "0.json", *(_row(id, f"first {id} {'x' * 100}") for id in range(50)))
        write_lines(inbox / "1.json", *(_row(id, f"second {id}") for id in range(0, 50, 2)))
        pipelines.finish(config)
    finally:
        spark.conf.unset("spark.sql.files.openCostInBytes")
    assert _names(pipelines) == {id: f"second {id}" if id % 2 == 0 else f"first {id} {'x' * 100}" for id in range(50)}
    assert _books(pipelines) == [(75, 50, 25)]
