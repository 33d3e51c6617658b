"""``load.batchColumn``: whatever way a row takes into the table, it names the micro-batch that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines

from spark_jobs.contracts.errors import ConfigError, TargetMismatchError

_OF_THEIR_BATCHES = """
SELECT r.etl_batch, count(*), b.written_rows FROM result r
LEFT JOIN etl.batch_tracker b ON r.etl_batch = b.query_id || '/' || b.batch_id
GROUP BY r.etl_batch, b.written_rows, b.batch_id ORDER BY b.batch_id"""


def _config(pipelines: Pipelines, inbox: Path, **load: Any) -> dict[str, Any]:
    return file_pipeline(
        "orders",
        inbox,
        pipelines.checkpoints,
        schema="id BIGINT, quantity INT",
        load={"batchColumn": "etl_batch", **load},
        options={"maxFilesPerTrigger": "1"},
    )


@pytest.mark.parametrize("strategy", ["single", "staged", "two_phase"])
def test_rows_name_their_batch_whatever_the_strategy(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    for number in range(2):
        write_lines(inbox / f"{number}.json", *({"id": n, "quantity": number} for n in range(5 + number)))
    pipelines.finish(_config(pipelines, inbox, writeStrategy=strategy))
    found = pipelines.rows(_OF_THEIR_BATCHES)
    assert sorted(row[1:] for row in found) == [(5, 5), (6, 6)]
    assert [name.rpartition("/")[2] for name, *_ in found] == ["0", "1"]


def test_refused_rows_and_those_that_come_home_name_theirs(pipelines: Pipelines, inbox: Path) -> None:
    pipelines.execute("CREATE TABLE result (id bigint, quantity int CHECK (quantity < 3), etl_batch varchar(80))")
    write_lines(inbox / "0.json", *({"id": n, "quantity": n} for n in range(5)))
    pipelines.finish(_config(pipelines, inbox))
    assert [row[1:] for row in pipelines.rows(_OF_THEIR_BATCHES)] == [(3, 3)]
    pipelines.execute("ALTER TABLE result DROP CONSTRAINT result_quantity_check")
    assert pipelines.replayed("orders").replayed == 2
    assert sorted(row[1:] for row in pipelines.rows(_OF_THEIR_BATCHES)) == [(2, 2), (3, 3)]


def test_a_refused_row_without_a_record_comes_home(pipelines: Pipelines, inbox: Path) -> None:
    assert pipelines.spark is not None
    pipelines.spark.sql("SELECT id, cast(id AS INT) AS quantity FROM range(4)").write.parquet(str(inbox / "p"))
    pipelines.execute("CREATE TABLE result (id bigint, quantity int CHECK (quantity < 3), etl_batch text)")
    config = _config(pipelines, inbox / "p")
    config["extract"]["connectionParams"] = {"path": str(inbox / "p"), "format": "parquet"}
    pipelines.finish(config)
    pipelines.execute("ALTER TABLE result DROP CONSTRAINT result_quantity_check")
    assert pipelines.replayed("orders").replayed == 1
    assert sorted(row[1:] for row in pipelines.rows(_OF_THEIR_BATCHES)) == [(1, 1), (3, 3)]


def test_an_aggregations_results_name_their_batch(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", *({"id": n, "at": f"2026-01-0{1 + n}T00:00:00Z"} for n in range(5)))
    config = file_pipeline(
        "days",
        inbox,
        pipelines.checkpoints,
        schema="id BIGINT, at TIMESTAMP",
        transforms=[aggregation(windowColumn="at", windowDuration="1 day", aggregations="n:count")],
        load={"batchColumn": "etl_batch"},
        streaming={"watermark": {"eventTimeColumn": "at", "delayThreshold": "1 hour"}, "outputMode": "append"},
    )
    pipelines.finish(config)
    found = pipelines.rows(_OF_THEIR_BATCHES)
    assert found, "no window was closed"
    assert all(count == written for _, count, written in found)


@pytest.mark.parametrize("column", ["bigint", "varchar(10)", "uuid"])
def test_a_column_that_cannot_hold_it_is_refused(pipelines: Pipelines, inbox: Path, column: str) -> None:
    pipelines.execute(f"CREATE TABLE result (id bigint, quantity int, etl_batch {column})")
    write_lines(inbox / "0.json", {"id": 1, "quantity": 1})
    ended = pipelines.run(_config(pipelines, inbox))
    assert isinstance(ended.error, TargetMismatchError)
    assert "etl_batch" in str(ended.error)


def test_a_column_of_the_result_is_refused(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", {"id": 1, "quantity": 1})
    ended = pipelines.run(_config(pipelines, inbox, batchColumn="Quantity"))
    assert isinstance(ended.error, ConfigError)
    assert "Quantity" in str(ended.error) or "quantity" in str(ended.error)


def test_only_append_has_it(pipelines: Pipelines, inbox: Path) -> None:
    with pytest.raises(ConfigError, match="batchColumn with writeMode upsert"):
        pipelines.run(_config(pipelines, inbox, writeMode="upsert", keys=["id"]))
